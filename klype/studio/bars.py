"""The next-token distribution at one place of an answer, as bars: before and after the sliders, beside the truth.

Everything comes from the trace; the model is not asked again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from klype.answers import bounds
from klype.engine.sampling import shape_whole
from klype.samplers import SAMPLERS, active
from klype.values import Distribution, Floats, Sampling, Step

Before = tuple[Sequence[int], Sequence[int]]
"""The prompt, and what of its answer stands before a token."""
FEWEST, SEEN = 5, 5e-4
"""So many bars at least; the others only when they can be seen."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One token: probability under the model, as drawn from, and in truth (None: nobody knows)."""

    token: int
    p: float
    drawn: float
    truth: float | None = None
    chosen: bool = False


@dataclass(frozen=True, slots=True)
class Bars:
    """``rest``: the model's mass on all other tokens; ``exact``: the distribution is whole, so all bars are exact.
    ``kept``: how many tokens can be drawn."""

    bars: tuple[Bar, ...]
    rest: float
    exact: bool
    kept: int


def bars_of(
    step: Step,
    before: Before,
    sampling: Sampling,
    vocabulary: int,
    truth: Mapping[int, float] | None = None,
    most: int = 10,
) -> Bars | None:
    """The ``most`` likeliest tokens, the one that was said, and the truth's likeliest. None: nothing is known."""
    q = step.distribution
    if q is None or not len(q.ids):
        return None
    p_K = np.exp(q.logp.astype(np.float64))
    drawn_K = drawn_from(q, before, sampling, vocabulary)
    place = {int(token): i for i, token in enumerate(q.ids)}
    listed = [int(token) for i, token in enumerate(q.ids[:most]) if i < FEWEST or p_K[i] >= SEEN]
    truest = sorted(truth, key=lambda token: -truth[token])[:4] if truth else []
    listed += [token for token in (step.token, *truest) if token not in listed]
    rows = []
    for token in listed:
        i = place.get(token)
        p, drawn = (0.0, 0.0) if i is None else (float(p_K[i]), float(drawn_K[i]))
        rows.append(Bar(token, p, drawn, None if truth is None else truth.get(token, 0.0), token == step.token))
    rows.sort(key=lambda bar: -bar.p)
    rest = max(0.0, 1.0 - sum(bar.p for bar in rows))
    return Bars(tuple(rows), rest, q.whole, int((drawn_K > 0).sum()))


def drawn_from(q: Distribution, before: Before, sampling: Sampling, vocabulary: int) -> Floats:
    """The listed tokens' probabilities as they would be drawn, by the function that answers are drawn with.

    Of a partial distribution: what is certain of them at this temperature, cut among what is listed; penalties, for
    which the others would have to be known, are left out.
    """
    if not q.whole:
        p_K = bounds.tempered(q, sampling.temperature, vocabulary).low_K
        logp_1K = torch.from_numpy(np.log(np.maximum(p_K, 1e-300)))[None]
        for name, value in active(sampling).items():
            if (cut := SAMPLERS[name].shape) is not None:
                logp_1K = cut(logp_1K, value)
        cut_K: Floats = logp_1K[0].exp().numpy()
        return cut_K if (cut_K[p_K > 0] == 0).any() else p_K
    found_K: Floats = shape_whole(q, sampling, before, vocabulary).double().exp().numpy()[q.ids]
    return found_K


def surprise_bits(p: float) -> float:
    """How much a token of this probability says, in bits."""
    return -math.log2(p) if p > 0 else math.inf
