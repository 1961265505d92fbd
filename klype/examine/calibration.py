"""Does what is said to be 80 % likely come true 80 times of 100?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from klype.examine.intervals import mean_by_question, percentiles, resampled_means
from klype.values import Figure

Array = npt.NDArray[np.floating[Any]]


def bins(
    said: Sequence[float] | Array, came_true: Sequence[float] | Array, questions: Sequence[Any], count: int = 10
) -> list[tuple[float, Figure]]:
    """Reliability by bins of equal mass: (mean probability said, how often it came true).

    ``came_true`` is 0 or 1, or the true probability itself where it is known. Equal values share a bin.
    """
    said_N, true_N = np.asarray(said, dtype=float), np.asarray(came_true, dtype=float)
    found = []
    for b in np.unique(where_N := bin_of(said_N, count)):
        inside = where_N == b
        asked = [questions[i] for i in np.flatnonzero(inside).tolist()]
        found.append((float(said_N[inside].mean()), _clipped(mean_by_question(true_N[inside], asked))))
    return found


def calibration_error(
    said: Sequence[float] | Array,
    came_true: Sequence[float] | Array,
    questions: Sequence[Any],
    count: int = 10,
    seed: int = 0,
) -> Figure:
    """Root mean square gap over bins of equal mass, less what chance alone would show (Kumar et al. 2019).

    The interval resamples questions; each resample has chance's part twice, so it is taken off twice.
    """
    said_N, true_N = np.asarray(said, dtype=float), np.asarray(came_true, dtype=float)
    if said_N.size == 0:
        return Figure(None, why="nothing was measured")
    place: dict[Any, int] = {}
    index_N = np.array([place.setdefault(question, len(place)) for question in questions])
    where_N = np.unique(bin_of(said_N, count), return_inverse=True)[1]
    table_MKC = np.zeros((len(place), int(where_N.max()) + 1, 3))
    gap_N = true_N - said_N
    for column, value_N in enumerate((np.ones_like(gap_N), gap_N, gap_N**2)):
        np.add.at(table_MKC[:, :, column], (index_N, where_N), value_N)
    value = float(_error(table_MKC.mean(axis=0)[None], len(place), 1)[0])
    if len(place) == 1:
        return Figure(value, None, None, said_N.size, "probability", why="one question only")
    drawn = resampled_means(table_MKC.reshape(len(place), -1), seed).reshape(-1, *table_MKC.shape[1:])
    low, high = percentiles(value, _error(drawn, len(place), 2), len(place))
    return Figure(value, max(0.0, min(low, value)), max(high, value), said_N.size, "probability")


def bin_of(said_N: Array, count: int) -> npt.NDArray[np.int64]:
    """Each value's bin of (about) equal mass."""
    edges = np.unique(np.quantile(said_N, np.linspace(0, 1, count + 1)[1:-1]))
    return np.searchsorted(edges, said_N, side="left").astype(np.int64)


def _error(mean_BKC: Array, questions: int, noise: int) -> Array:
    n_BK, gap_BK, square_BK = np.moveaxis(mean_BKC * questions, -1, 0)
    safe_BK = np.maximum(n_BK, 1)
    gap_BK = gap_BK / safe_BK
    chance_BK = np.maximum(0, square_BK / safe_BK - gap_BK**2) / np.maximum(1, n_BK - 1)
    total_B = (n_BK * (gap_BK**2 - noise * chance_BK)).sum(axis=1) / n_BK.sum(axis=1)
    error: Array = np.sqrt(np.maximum(0, total_B))
    return error


def _clipped(figure: Figure) -> Figure:
    if figure.low is None or figure.high is None:
        return figure
    return Figure(figure.value, max(0.0, figure.low), min(1.0, figure.high), figure.n, "share")
