"""Whether a model's probabilities can be trusted: calibration, selective prediction, the best temperature."""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from klype.examine import intervals
from klype.examine.intervals import NORMAL, ONE, Array, Limits, Values, figure_with, index_of
from klype.examine.truth import logp_of, possible
from klype.values import Distribution, Figure

IN_A_BIN = 10  # questions per bin, at least: this limits the number of bins
PLAIN = 5000.0  # ratio of the squared gaps to chance's part of them, above which their root is treated as normal


def bins(said: Values, came_true: Values, questions: Sequence[Any], *, count: int = 10) -> list[tuple[float, Figure]]:
    """A reliability diagram: (mean predicted probability, observed frequency) by bins of equal mass.

    ``said``: the predicted probabilities; ``came_true``: 0 or 1, or the true probability where it is known. Equal
    predictions share a bin. ``count``: the most bins; each has at least ``IN_A_BIN`` questions.
    """
    said_N, true_N = np.asarray(said, dtype=float), np.asarray(came_true, dtype=float)
    found = []
    for b in np.unique(where_N := bin_of(said_N, len(set(questions)), count)):
        inside = where_N == b
        asked = [questions[i] for i in np.flatnonzero(inside).tolist()]
        found.append((float(said_N[inside].mean()), intervals.mean_by_question(true_N[inside], asked, "share")))
    return found


def calibration_error(said: Values, came_true: Values, questions: Sequence[Any], *, count: int = 10) -> Figure:
    """The root mean square gap over bins of equal mass, minus what chance alone would show (Kumar et al. 2019).

    Bins as in ``bins``. The interval inverts the distribution of the squared gaps' sum (noncentral χ², its degrees of
    freedom by Satterthwaite), so that 0 lies in it when a model is calibrated.
    """
    said_N, true_N = np.asarray(said, dtype=float), np.asarray(came_true, dtype=float)
    if said_N.size == 0:
        return Figure(None, why="nothing was measured")
    index_N, m = index_of(questions)
    where_N = np.unique(bin_of(said_N, m, count), return_inverse=True)[1]
    table_MKC = np.zeros((m, int(where_N.max()) + 1, 3))
    for column, value_N in enumerate((np.ones_like(said_N), true_N - said_N, true_N)):
        np.add.at(table_MKC[:, :, column], (index_N, where_N), value_N)
    n_K, gap_K, true_K = table_MKC.sum(axis=0).T
    gap_K, true_K, weight_K = gap_K / n_K, true_K / n_K, n_K / n_K.sum()
    off_MK = (table_MKC[:, :, 1] - gap_K * table_MKC[:, :, 0]) / n_K
    # with covariances: one question's answers may lie in several bins
    chance_KK = off_MK.T @ off_MK * m / max(1, m - 1)
    seen = float(weight_K @ gap_K**2)
    # a calibrated model has gaps as well, by chance: these are subtracted
    value = float(np.sqrt(max(0.0, seen - float(weight_K @ np.diag(chance_KK)))))
    if m == 1:
        return figure_with(value, None, said_N.size, "probability", why=ONE)
    # one further question in each bin where the prediction came true, and one where it did not: where all agreed, the
    # variance would otherwise be 0
    asked_K = (table_MKC[:, :, 0] > 0).sum(axis=0)
    chance_KK = weight_K[:, None] * (chance_KK + np.diag((true_K**2 + (1 - true_K) ** 2) / asked_K**2))
    return figure_with(value, _limits(seen, chance_KK, m - 1), said_N.size, "probability")


def bin_of(said_N: Array, questions: int, most: int) -> npt.NDArray[np.int64]:
    """The bin of each prediction; bins have about equal mass, and the number of questions limits how many there are."""
    count = max(1, min(most, questions // IN_A_BIN))
    edges = np.unique(np.quantile(said_N, np.linspace(0, 1, count + 1)[1:-1]))
    return np.searchsorted(edges, said_N, side="left").astype(np.int64)


def _limits(seen: float, chance_KK: Array, freedom: int) -> Limits:
    """Limits of √Σ w g², from Σ w ĝ² and w · cov(ĝ); ``freedom``: degrees of freedom of the estimate of cov(ĝ)."""
    # cov(ĝ) is estimated: wider, as Student's t is wider than the normal distribution
    wider = float(special.stdtrit(freedom, 0.975) / NORMAL) ** 2
    mean, square = wider * float(np.trace(chance_KK)), wider**2 * float((chance_KK * chance_KK.T).sum())
    scale, degrees = square / mean, mean**2 / square
    if seen > PLAIN * scale:
        half = NORMAL * float(np.sqrt(wider * max(np.linalg.eigvals(chance_KK).real)))
        return float(np.sqrt(seen)) - half, float(np.sqrt(seen)) + half

    def inverse(ratio: float, tail: float) -> float:
        """The noncentrality at which a ratio this small has probability ``tail``; 0 where there is none."""
        none = special.chdtr(degrees, ratio) <= tail
        return 0.0 if none else float(special.chndtrinc(ratio, degrees, tail))

    # the upper end is never below what a calibrated model shows on average
    ratios = (seen / scale, 0.975), (max(seen / scale, degrees), 0.025)
    low, high = (float(np.sqrt(scale * inverse(ratio, tail))) for ratio, tail in ratios)
    return low, high


# Jackknife groups, of two questions or more: the most certain answers have much weight, which leaving out single
# questions underestimates (with fifty random scores, coverage was .92).
GROUPS = 20
MIN_CASES = 10  # correct answers, and wrong ones: with fewer there is no interval
FEW = "too few: fewer than ten answers are right, or fewer are wrong"


def risk_coverage(uncertainty: Sequence[float], right: Sequence[bool]) -> list[tuple[float, float]]:
    """The risk–coverage curve: (share of answers kept, share wrong among them), keeping the most certain first. Answers
    of equal uncertainty share their risk."""
    risk_N = _risks(np.asarray(uncertainty, dtype=float), 1.0 - np.asarray(right, dtype=float))
    return [((i + 1) / len(risk_N), float(risk)) for i, risk in enumerate(risk_N)]


def _risks(score_N: Array, wrong_N: Array) -> Array:
    """The share wrong among the 1, 2, … most certain answers."""
    order = np.argsort(score_N, kind="stable")
    sorted_N = score_N[order]
    # among equal scores, errors are spread evenly: the order of these answers means nothing
    starts = np.flatnonzero(np.r_[True, sorted_N[1:] != sorted_N[:-1]])
    sizes = np.diff(np.r_[starts, len(order)])
    spread_N = np.repeat(np.add.reduceat(wrong_N[order], starts) / sizes, sizes)
    return np.asarray(np.cumsum(spread_N) / np.arange(1, len(order) + 1))


def rejection_ratio(uncertainty: Sequence[float], right: Sequence[bool], questions: Sequence[Hashable]) -> Figure:
    """The prediction–rejection ratio (Malinin & Gales 2021): 1 for perfect rejection, 0 for chance, below 0 for worse.

    (mean risk when keeping at random − when keeping by score) / (… − when keeping by truth), with a jackknife interval
    over groups of questions. Without a value where all answers are correct, or all are wrong.
    """
    score_N, wrong_N = np.asarray(uncertainty, dtype=float), 1.0 - np.asarray(right, dtype=float)
    n, unit = len(wrong_N), "share of what knowing gains"
    index_N, m = index_of(questions)
    # at least two questions per group, if that leaves ten groups
    group_N = index_N % (groups := min(m, GROUPS, max(10, m // 2)))

    def ratio(kept_N: npt.NDArray[np.bool_]) -> float | None:
        """The ratio of some answers; None where all are correct, or all are wrong."""
        some_N = wrong_N[kept_N]
        if some_N.all() or not some_N.any():
            return None
        # perfect rejection keeps all correct answers first
        base, best = float(some_N.mean()), float(_risks(some_N, some_N).mean())
        return (base - float(_risks(score_N[kept_N], some_N).mean())) / (base - best)

    value = ratio(np.ones(n, bool))
    if value is None:
        return Figure(None, n=n, unit=unit, why="all answers are right, or all are wrong")
    if m == 1:
        return figure_with(value, None, n, unit, why=ONE)
    without = [again for group in range(groups) if (again := ratio(group_N != group)) is not None]
    limits = None
    if min(wrong_N.sum(), n - wrong_N.sum()) >= MIN_CASES and len(without) == groups:
        limits = intervals.jackknife_limits(np.array(value), np.array(without))
    return figure_with(value, limits and (limits[0], min(1.0, limits[1])), n, unit, why=FEW)


TEMPERATURES = tuple(float(t) for t in np.exp(np.linspace(math.log(0.25), math.log(4.0), 49)))


def cross_entropies(p: Mapping[int, float], q: Distribution) -> Array:
    """−Σ p ln softmax(z/T) for every T of TEMPERATURES. ``p``: the truth, or {the observed token: 1}."""
    ids_A, p_A = possible(p)
    logq_A = logp_of(q, ids_A)
    listed_A = logq_A > -math.inf if not q.whole else np.ones(len(ids_A), bool)
    cold_G = 1 / np.array(TEMPERATURES)
    most = float(q.logp.max())
    weight_GK = np.multiply.outer(cold_G, q.logp.astype(np.float64) - most)
    norm_G = most * cold_G + np.log(np.exp(weight_GK, out=weight_GK).sum(axis=1))
    return np.asarray(norm_G * p_A[listed_A].sum() - cold_G * float(p_A[listed_A] @ logq_A[listed_A]))


def best_temperature(table_MG: Array) -> Figure:
    """The temperature of least cross-entropy, from each question's summed ``cross_entropies``; the interval is that of
    ln T."""
    questions = table_MG.shape[0]
    if questions == 0:
        return Figure(None, unit="temperature", why="nothing was measured")
    value, limits = float(_least(table_MG.mean(axis=0)[None])[0]), None
    if questions >= intervals.MIN_QUESTIONS:
        without_M = np.log(_least(intervals.without_each(table_MG)))
        limits = intervals.exp_limits(intervals.jackknife_limits(np.log(value), without_M))
    why = ONE if questions == 1 else intervals.MISSED if questions < intervals.MIN_QUESTIONS else intervals.SAME
    return figure_with(value, limits, questions, "temperature", why=why)


def excess_error(own: Sequence[float], true: Sequence[float]) -> Figure:
    """ExAccErr (Arora et al. 2022, arXiv:2204.01171): 100 (ρ − 1) %, where ρ is the mean of Σ KL(p‖q) along the model's
    own answers divided by the mean along true ones. ``own``, ``true``: one sum per question."""
    ratio = intervals.ratio_of_means(own, true, "ratio")
    if ratio.value is None:
        return Figure(None, n=ratio.n, unit="% more", why=ratio.why)
    low, high = (None if end is None else 100 * (end - 1) for end in (ratio.low, ratio.high))
    return Figure(100 * (ratio.value - 1), low, high, ratio.n, "% more", why=ratio.why)


def _least(mean_BG: Array) -> Array:
    """The temperature at the minimum of each curve, interpolated between grid points by a parabola in ln T."""
    at_B = np.clip(np.argmin(mean_BG, axis=1), 1, mean_BG.shape[1] - 2)
    rows = np.arange(len(mean_BG))
    before, here, after = (mean_BG[rows, at_B + step] for step in (-1, 0, 1))
    bend = before - 2 * here + after
    shift = np.divide(before - after, 2 * bend, out=np.zeros_like(bend), where=bend > 0)
    step = math.log(TEMPERATURES[1] / TEMPERATURES[0])
    return np.asarray(np.exp(np.log(np.array(TEMPERATURES))[at_B] + step * np.clip(shift, -1, 1)))
