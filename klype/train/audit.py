"""What a reward model likes beyond what the annotator likes: length, politeness, anything that can be counted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from klype.values import Figure, Floats


def bias_audit(
    scores: Sequence[float],
    quality: Sequence[float],
    traits: Mapping[str, Sequence[float]],
    questions: Sequence[int],
) -> dict[str, Figure]:
    """Partial correlation of the scores with each trait, given the annotator's ``quality``, within questions.

    All are centred within their question first, then ``quality`` is regressed out of scores and trait. 0: the model
    likes the trait only as far as the annotator does. Intervals by Fisher's z with the degrees of freedom that are
    left; one that a trait or the scores do not vary in has no value.
    """
    groups = np.unique(np.asarray(questions), return_inverse=True)[1]
    score, liked = _centred(scores, groups), _centred(quality, groups)
    free = len(groups) - int(groups.max(initial=-1) + 1) - 1
    return {
        name: _figure(_residual(score, liked), _residual(_centred(trait, groups), liked), free)
        for name, trait in traits.items()
    }


def _figure(a: Floats, b: Floats, free: int) -> Figure:
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    if length < 1e-12 or free < 4:
        return Figure(None, n=len(a), why="nothing varies within a question" if length < 1e-12 else "too few answers")
    value = float(np.clip(a @ b / length, -1.0, 1.0))
    middle = math.atanh(min(max(value, -1 + 1e-12), 1 - 1e-12))
    half = 1.96 / math.sqrt(free - 2)
    low, high = math.tanh(middle - half), math.tanh(middle + half)
    return Figure(value, min(low, value), max(high, value), len(a), "partial correlation")


def _centred(values: Sequence[float], groups: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    sums = np.bincount(groups, array)
    return np.asarray(array - (sums / np.bincount(groups))[groups])


def _residual(values: Floats, given: Floats) -> Floats:
    variance = float(given @ given)
    return values if variance < 1e-12 else np.asarray(values - given * float(given @ values) / variance)
