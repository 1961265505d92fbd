"""Does what is said to be 80 % likely come true 80 times of 100?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from klype.examine.intervals import NORMAL, ONE, Array, Limits, mean_by_question
from klype.values import Figure

IN_A_BIN = 10
"""Questions, for each bin: there are no more bins than this allows."""
PLAIN = 5000.0
"""Squared gaps beside chance's part of them, beyond which their root is as good as normal."""


def bins(
    said: Sequence[float] | Array, came_true: Sequence[float] | Array, questions: Sequence[Any], count: int = 10
) -> list[tuple[float, Figure]]:
    """Reliability by bins of equal mass: (mean probability said, how often it came true).

    ``came_true`` is 0 or 1, or the true probability itself where it is known. Equal values share a bin. ``count``: at
    most, and ``IN_A_BIN`` questions for each.
    """
    said_N, true_N = np.asarray(said, dtype=float), np.asarray(came_true, dtype=float)
    found = []
    for b in np.unique(where_N := bin_of(said_N, _bins(count, len(set(questions))))):
        inside = where_N == b
        asked = [questions[i] for i in np.flatnonzero(inside).tolist()]
        found.append((float(said_N[inside].mean()), mean_by_question(true_N[inside], asked, "share")))
    return found


def calibration_error(
    said: Sequence[float] | Array,
    came_true: Sequence[float] | Array,
    questions: Sequence[Any],
    count: int = 10,
) -> Figure:
    """Root mean square gap over bins of equal mass, less what chance alone would show (Kumar et al. 2019).

    Bins as in ``bins``. The interval inverts the distribution of the squared gaps' sum (noncentral χ², its degrees of
    freedom by Satterthwaite), so that 0 lies in it when a model is calibrated.
    """
    said_N, true_N = np.asarray(said, dtype=float), np.asarray(came_true, dtype=float)
    if said_N.size == 0:
        return Figure(None, why="nothing was measured")
    place: dict[Any, int] = {}
    index_N = np.array([place.setdefault(question, len(place)) for question in questions])
    where_N = np.unique(bin_of(said_N, _bins(count, len(place))), return_inverse=True)[1]
    table_MKC = np.zeros((len(place), int(where_N.max()) + 1, 3))
    for column, value_N in enumerate((np.ones_like(said_N), true_N - said_N, true_N)):
        np.add.at(table_MKC[:, :, column], (index_N, where_N), value_N)
    n_K, gap_K, true_K = table_MKC.sum(axis=0).T
    gap_K, true_K, weight_K = gap_K / n_K, true_K / n_K, n_K / n_K.sum()
    off_MK = (table_MKC[:, :, 1] - gap_K * table_MKC[:, :, 0]) / n_K
    chance_KK = off_MK.T @ off_MK * len(place) / max(1, len(place) - 1)
    seen = float(weight_K @ gap_K**2)
    value = float(np.sqrt(max(0.0, seen - float(weight_K @ np.diag(chance_KK)))))
    if len(place) == 1:
        return Figure(value, None, None, said_N.size, "probability", why=ONE)
    # One question more in each bin that came wholly true, and one that did not: chance is not nothing where all agreed.
    asked_K = (table_MKC[:, :, 0] > 0).sum(axis=0)
    chance_KK = weight_K[:, None] * (chance_KK + np.diag((true_K**2 + (1 - true_K) ** 2) / asked_K**2))
    low, high = _limits(seen, chance_KK, len(place) - 1)
    return Figure(value, min(low, value), max(high, value), said_N.size, "probability")


def bin_of(said_N: Array, count: int) -> npt.NDArray[np.int64]:
    """Each value's bin of (about) equal mass."""
    edges = np.unique(np.quantile(said_N, np.linspace(0, 1, count + 1)[1:-1]))
    return np.searchsorted(edges, said_N, side="left").astype(np.int64)


def _bins(most: int, questions: int) -> int:
    return max(1, min(most, questions // IN_A_BIN))


def _limits(seen: float, chance_KK: Array, freedom: int) -> Limits:
    """Of √Σ w g², from Σ w ĝ² and w · cov(ĝ); ``freedom``: of what is known of cov(ĝ), as Student's t allows for it."""
    wider = float(special.stdtrit(freedom, 0.975) / NORMAL) ** 2
    mean, square = wider * float(np.trace(chance_KK)), wider**2 * float((chance_KK * chance_KK.T).sum())
    scale, degrees = square / mean, mean**2 / square
    if seen > PLAIN * scale:
        half = NORMAL * float(np.sqrt(wider * max(np.linalg.eigvals(chance_KK).real)))
        return float(np.sqrt(seen)) - half, float(np.sqrt(seen)) + half

    def inverse(ratio: float, tail: float) -> float:
        """The noncentrality with which so small a ratio has this probability; 0 where none has."""
        none = special.chdtr(degrees, ratio) <= tail
        return 0.0 if none else float(special.chndtrinc(ratio, degrees, tail))

    ratios = (seen / scale, 0.975), (max(seen / scale, degrees), 0.025)
    low, high = (float(np.sqrt(scale * inverse(ratio, tail))) for ratio, tail in ratios)
    return low, high
