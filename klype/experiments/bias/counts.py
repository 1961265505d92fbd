"""Counts as a teacher: what followed the same words in other documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from klype.data.kneser_ney import KneserNey

Floats = npt.NDArray[np.floating[Any]]
FOLDS = 8


def cross_fitted(documents: Sequence[Sequence[int]], size: int, order: int = 4, folds: int = FOLDS) -> Floats:
    """[N, V]: each document's targets by what all *other* folds say. What saw a target itself would only repeat it."""
    folds = min(folds, len(documents))
    assert folds >= 2
    ends = np.cumsum([0, *(len(d) - 1 for d in documents)])
    out = np.empty((int(ends[-1]), size), np.float16)
    for f in range(folds):
        others = KneserNey([d for i, d in enumerate(documents) if i % folds != f], size, order)
        for i in range(f, len(documents), folds):
            out[ends[i] : ends[i + 1]] = others.table([documents[i]])
    return out
