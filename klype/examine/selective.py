"""Does a model know when it is wrong? Answers are kept in order of certainty; how wrong are those kept?"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from klype.examine.intervals import ONE, Array, few_differ, pseudo_values, ratio_limits
from klype.values import Figure

GROUPS = 20
"""Questions are left out in so many groups, two or more at a time: the surest answers weigh much, which leaving out
one question after another takes for too little (fifty random scores covered .92)."""
LEAST = 10
"""Right answers, and wrong ones: from fewer there is no interval."""
FEW = "too few: fewer than ten answers are right, or fewer are wrong"


def risk_coverage(uncertainty: Sequence[float], right: Sequence[bool]) -> list[tuple[float, float]]:
    """(share kept, share wrong among them), the most certain first; equal uncertainties share their risk."""
    score, wrong = np.asarray(uncertainty, dtype=float), 1.0 - np.asarray(right, dtype=float)
    risks = _risks(score, wrong)
    return [((i + 1) / len(risks), float(risk)) for i, risk in enumerate(risks)]


def rejection_ratio(uncertainty: Sequence[float], right: Sequence[bool], questions: Sequence[Hashable]) -> Figure:
    """Prediction–rejection ratio (Malinin & Gales 2021): 1 as good as knowing, 0 as good as chance, below 0 worse.

    (mean risk of keeping at random − that of keeping by score) / (… − that of keeping by truth); interval from what
    groups of questions weigh in it. All right or all wrong: nothing can be rejected, no figure.
    """
    score_N, wrong_N = np.asarray(uncertainty, dtype=float), 1.0 - np.asarray(right, dtype=float)
    n, unit = len(wrong_N), "share of what knowing gains"
    value = _ratio(score_N, wrong_N)
    if value is None:
        return Figure(None, n=n, unit=unit, why="all answers are right, or all are wrong")
    place: dict[Hashable, int] = {}
    index_N = np.array([place.setdefault(question, len(place)) for question in questions])
    if len(place) == 1:
        return Figure(value, None, None, n, unit, why=ONE)
    groups = min(len(place), GROUPS, max(10, len(place) // 2))
    ranked = Ranked.of(score_N, wrong_N, index_N % groups)
    without = [again for again in map(ranked.ratio, 1 - np.eye(groups, dtype=int)) if again is not None]
    if min(wrong_N.sum(), n - wrong_N.sum()) < LEAST or len(without) < groups:
        return Figure(value, None, None, n, unit, why=FEW)
    part_G = pseudo_values(np.array(value), np.array(without))
    limits = None if few_differ(part_G) else ratio_limits(part_G, np.ones(groups))
    if limits is None:
        return Figure(value, None, None, n, unit, why=FEW)
    return Figure(value, min(limits[0], value), min(1.0, max(limits[1], value)), n, unit)


def _ratio(score_N: Array, wrong_N: Array) -> float | None:
    return Ranked.of(score_N, wrong_N, np.zeros(len(score_N), int)).ratio(np.ones(1, int))


@dataclass(frozen=True, slots=True)
class Ranked:
    """Answers in the order of their scores, sorted once: a resample of questions only counts them anew.

    ``starts``: where groups of equal scores begin. Within a group errors are spread evenly, so that the risks of its
    n₀ + 1 … n₁ kept ones, (E₀ + r (j − n₀)) / j, sum to r (n₁ − n₀) + (E₀ − r n₀) (H(n₁) − H(n₀)), H the harmonic sums.
    """

    question_N: npt.NDArray[np.int64]
    wrong_N: Array
    starts: npt.NDArray[np.int64]

    @staticmethod
    def of(score_N: Array, wrong_N: Array, question_N: npt.NDArray[np.int64]) -> Ranked:
        order = np.argsort(score_N, kind="stable")
        sorted_N = score_N[order]
        starts = np.flatnonzero(np.r_[True, sorted_N[1:] != sorted_N[:-1]])
        return Ranked(question_N[order], wrong_N[order], starts)

    def ratio(self, times_M: npt.NDArray[np.int64]) -> float | None:
        """``times_M``: how often each question is taken. None: all right, or all wrong."""
        times_N = times_M[self.question_N]
        kept_G = np.add.reduceat(times_N, self.starts)
        wrong_G = np.add.reduceat(times_N * self.wrong_N, self.starts)
        n, errors = int(kept_G.sum()), float(wrong_G.sum())
        if errors in (0.0, float(n)):
            return None
        base = errors / n
        best = _mean_risk(np.array([n - round(errors), round(errors)]), np.array([0.0, errors]))
        return (base - _mean_risk(kept_G, wrong_G)) / (base - best)


def _mean_risk(kept_G: npt.NDArray[np.int64], wrong_G: Array) -> float:
    there = kept_G > 0
    kept_G, wrong_G = kept_G[there], wrong_G[there]
    end_G, rate_G = np.cumsum(kept_G), wrong_G / kept_G
    begin_G, before_G = end_G - kept_G, np.cumsum(wrong_G) - wrong_G
    harmonic = special.digamma(end_G + 1.0) - special.digamma(begin_G + 1.0)
    return float((rate_G * kept_G + (before_G - rate_G * begin_G) * harmonic).sum() / end_G[-1])


def _risks(score_N: Array, wrong_N: Array) -> Array:
    """Share wrong among the first i + 1; within a group of equal scores errors are spread evenly."""
    order = np.argsort(score_N, kind="stable")
    score_N, wrong_N = score_N[order], wrong_N[order]
    starts = np.flatnonzero(np.r_[True, score_N[1:] != score_N[:-1]])
    sizes = np.diff(np.r_[starts, len(score_N)])
    spread_N = np.repeat(np.add.reduceat(wrong_N, starts) / sizes, sizes)
    risks: Array = np.cumsum(spread_N) / np.arange(1, len(score_N) + 1)
    return risks
