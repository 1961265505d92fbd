"""Does a model know when it is wrong? Answers are kept in order of certainty; how wrong are those kept?"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from klype.examine.intervals import Array
from klype.values import Figure

RESAMPLES = 500


def risk_coverage(uncertainty: Sequence[float], right: Sequence[bool]) -> list[tuple[float, float]]:
    """(share kept, share wrong among them), the most certain first; equal uncertainties share their risk."""
    score, wrong = np.asarray(uncertainty, dtype=float), 1.0 - np.asarray(right, dtype=float)
    risks = _risks(score, wrong)
    return [((i + 1) / len(risks), float(risk)) for i, risk in enumerate(risks)]


def rejection_ratio(
    uncertainty: Sequence[float], right: Sequence[bool], questions: Sequence[Hashable], seed: int = 0
) -> Figure:
    """Prediction–rejection ratio (Malinin & Gales 2021): 1 as good as knowing, 0 as good as chance, below 0 worse.

    (mean risk of keeping at random − that of keeping by score) / (… − that of keeping by truth); bootstrap over
    questions. All right or all wrong: nothing can be rejected, no figure.
    """
    score_N, wrong_N = np.asarray(uncertainty, dtype=float), 1.0 - np.asarray(right, dtype=float)
    unit = "share of what knowing gains"
    value = _ratio(score_N, wrong_N)
    if value is None:
        return Figure(None, n=len(wrong_N), unit=unit, why="all answers are right, or all are wrong")
    place: dict[Hashable, int] = {}
    index_N = np.array([place.setdefault(question, len(place)) for question in questions])
    if len(place) == 1:
        return Figure(value, None, None, len(wrong_N), unit, why="one question only: nothing is known about others")
    members = [np.flatnonzero(index_N == i) for i in range(len(place))]
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([members[i] for i in rng.integers(0, len(place), len(place))])
        again = _ratio(score_N[rows], wrong_N[rows])
        if again is not None:
            drawn.append(again)
    low, high = np.quantile(drawn, (0.025, 0.975)) if drawn else (value, value)
    return Figure(value, min(float(low), value), min(1.0, max(float(high), value)), len(wrong_N), unit)


def _ratio(score_N: Array, wrong_N: Array) -> float | None:
    base = float(wrong_N.mean())
    if base in (0.0, 1.0):
        return None
    best = float(_risks(wrong_N, wrong_N).mean())
    return (base - float(_risks(score_N, wrong_N).mean())) / (base - best)


def _risks(score_N: Array, wrong_N: Array) -> Array:
    """Share wrong among the first i + 1; within a group of equal scores errors are spread evenly."""
    order = np.argsort(score_N, kind="stable")
    score_N, wrong_N = score_N[order], wrong_N[order]
    starts = np.flatnonzero(np.r_[True, score_N[1:] != score_N[:-1]])
    sizes = np.diff(np.r_[starts, len(score_N)])
    spread_N = np.repeat(np.add.reduceat(wrong_N, starts) / sizes, sizes)
    risks: Array = np.cumsum(spread_N) / np.arange(1, len(score_N) + 1)
    return risks
