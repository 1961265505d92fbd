"""95 % intervals whose coverage was checked on toys (``tests/test_examine_coverage.py``).

Questions are drawn at random, answers are drawn per question: answers to one question resemble each other, so the
question is what an interval resamples. One trial a question of right-or-wrong: Clopper–Pearson, exact. Several trials
of right-or-wrong: Korn–Graubard (Clopper–Pearson on the effective number of trials). Other values: percentile bootstrap
over questions from 40 questions on, Student's t on their means below. One question: no interval, and it says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from klype.values import Figure

Array = npt.NDArray[np.floating[Any]]
MANY = 40  # questions; below, a percentile bootstrap is too narrow (5/10/30 questions covered .81/.88/.90)
RESAMPLES = 2000
ONE = "one question only: nothing is known about others"


def proportion(k: int, n: int, unit: str = "", judge: str = "") -> Figure:
    """k of n independent trials: Clopper–Pearson. No trials: no figure."""
    if n == 0:
        return Figure(None, unit=unit, judge=judge, why="no trials")
    assert 0 <= k <= n
    low, high = clopper_pearson(k, n)
    return Figure(k / n, low, high, n, unit, judge=judge)


def mean_by_question(
    values: Sequence[float] | Array, questions: Sequence[Any], unit: str = "", judge: str = "", seed: int = 0
) -> Figure:
    """Mean over questions of each question's mean value; ``questions[i]`` names the question of ``values[i]``.

    n counts values. Values that are 0 or 1 only are taken for right-or-wrong trials.
    """
    assert len(values) == len(questions)
    value_N = np.asarray(values, dtype=float)
    trials = bool(np.isin(value_N, (0.0, 1.0)).all())
    mean, low, high, why = _interval(value_N, questions, trials, seed)
    return Figure(mean, low, high, value_N.size, unit, judge=judge, why=why)


def paired(
    a: Sequence[float] | Array, b: Sequence[float] | Array, questions: Sequence[Any], unit: str = "", seed: int = 0
) -> Figure:
    """Mean of b − a over the same questions and samples: positive when b is more.

    One right-or-wrong trial a question: Bonett–Price (Wald with two trials added); else as ``mean_by_question``.
    ``mcnemar`` gives the exact test beside it.
    """
    a_N, b_N = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    assert a_N.shape == b_N.shape == (len(questions),)
    trials = bool(np.isin(a_N, (0.0, 1.0)).all() and np.isin(b_N, (0.0, 1.0)).all())
    if not trials or len(set(questions)) < len(questions) or a_N.size < 2:
        mean, low, high, why = _interval(b_N - a_N, questions, False, seed)
        return Figure(mean, low, high, a_N.size, unit, why=why)
    n = a_N.size
    gained, lost = int((b_N > a_N).sum()), int((b_N < a_N).sum())
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = special.ndtri(0.975) * np.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return _figure((gained - lost) / n, max(-1.0, up - down - half), min(1.0, up - down + half), n, unit, "")


def mcnemar(a: Sequence[float] | Array, b: Sequence[float] | Array) -> float:
    """Exact two-sided p-value that two sets of right-or-wrong trials on the same questions differ by chance."""
    a_N, b_N = np.asarray(a), np.asarray(b)
    gained, lost = int((b_N > a_N).sum()), int((b_N < a_N).sum())
    if gained + lost == 0:
        return 1.0
    return float(min(1.0, 2 * special.bdtr(min(gained, lost), gained + lost, 0.5)))


def ratio_of_means(
    numerators: Sequence[float] | Array, denominators: Sequence[float] | Array, unit: str = "", seed: int = 0
) -> Figure:
    """Σ numerators / Σ denominators over independent clusters (documents, questions); n counts clusters.

    Percentile bootstrap from 40 clusters on, Student's t on the linearised ratio below. Nothing below the line, or
    something infinite above it: no figure.
    """
    top_M, under_M = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    assert top_M.shape == under_M.shape
    if not np.isfinite(top_M).all():
        return Figure(None, n=top_M.size, unit=unit, why="infinite: a possible word was given no probability")
    if top_M.size == 0 or under_M.sum() == 0:
        return Figure(None, n=top_M.size, unit=unit, why="a ratio over nothing")
    ratio = float(top_M.sum() / under_M.sum())
    if top_M.size == 1:
        return Figure(ratio, None, None, 1, unit, why="one document only: nothing is known about others")
    if top_M.size >= MANY:
        means = resampled_means(np.stack([top_M, under_M], axis=1), seed)
        kept = means[:, 1] != 0
        low, high = percentiles(ratio, means[kept, 0] / means[kept, 1], top_M.size)
    else:
        low, high = student(ratio, ratio + (top_M - ratio * under_M) / under_M.mean())
    return _figure(ratio, low, high, top_M.size, unit, "")


def clopper_pearson(k: float, n: float) -> tuple[float, float]:
    """Exact 95 % limits of a proportion; k and n may be effective, hence fractional."""
    low = float(special.betaincinv(k, n - k + 1, 0.025)) if k > 0 else 0.0
    high = float(special.betaincinv(k + 1, n - k, 0.975)) if k < n else 1.0
    return low, high


def resampled_means(table_MK: Array, seed: int, resamples: int = RESAMPLES) -> Array:
    """Bootstrap over rows (questions): means_BK of ``resamples`` draws with replacement."""
    rows = table_MK.shape[0]
    draw = _remembered_weights if rows <= 1000 else _weights
    means: Array = draw(rows, seed, resamples) @ table_MK / rows
    return means


def _weights(rows: int, seed: int, resamples: int) -> Array:
    """weights_BM: how often each row is drawn."""
    return np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=resamples).astype(float)


_remembered_weights = lru_cache(maxsize=4)(_weights)


def _interval(
    value_N: Array, questions: Sequence[Any], trials: bool, seed: int
) -> tuple[float | None, float | None, float | None, str]:
    if not value_N.size:
        return None, None, None, "nothing was measured"
    if not np.isfinite(value_N).all():
        return None, None, None, "a value is not finite"
    mean_M, count_M = _means(value_N, questions)
    mean = float(mean_M.mean())
    if mean_M.size == 1:
        return mean, None, None, ONE
    if trials:
        low, high = _trials(mean_M, count_M)
    elif mean_M.size >= MANY:
        low, high = percentiles(mean, resampled_means(mean_M[:, None], seed)[:, 0], mean_M.size)
    else:
        low, high = student(mean, mean_M)
    return mean, min(low, mean), max(high, mean), ""


def _means(value_N: Array, questions: Sequence[Any]) -> tuple[Array, Array]:
    """Each question's mean and number of values, in the order of first appearance."""
    place: dict[Any, int] = {}
    index_N = np.array([place.setdefault(question, len(place)) for question in questions])
    count_M = np.bincount(index_N).astype(float)
    return np.bincount(index_N, weights=value_N) / count_M, count_M


def _trials(mean_M: Array, count_M: Array) -> tuple[float, float]:
    """Right-or-wrong trials: Korn & Graubard 1998; with one trial a question this is Clopper–Pearson.

    When a few questions hold all the errors, the variance between questions is itself badly known: its degrees of
    freedom come from the kurtosis (Satterthwaite). Without, 30 such questions × 10 trials covered .926, with .973.
    """
    m, mean, total = mean_M.size, float(mean_M.mean()), float(count_M.sum())
    if total == m:
        return clopper_pearson(round(mean * m), m)
    variance = float(mean_M.var(ddof=1)) / m
    if variance == 0.0:
        return clopper_pearson(mean * m, m)
    effective = min(mean * (1 - mean) / variance, total)
    off_M = mean_M - mean
    kurtosis = float((off_M**4).mean() / (off_M**2).mean() ** 2)
    freedom = min(m - 1.0, max(1.5, 2 * m / max(kurtosis - 1, 1e-9)))
    effective *= (special.stdtrit(total - 1, 0.975) / special.stdtrit(freedom, 0.975)) ** 2
    return clopper_pearson(mean * effective, effective)


def student(centre: float, value_M: Array) -> tuple[float, float]:
    """95 % by Student's t around a centre, from how two values or more are spread."""
    half = special.stdtrit(value_M.size - 1, 0.975) * value_M.std(ddof=1) / np.sqrt(value_M.size)
    return centre - float(half), centre + float(half)


def percentiles(value: float, value_B: Array, m: int) -> tuple[float, float]:
    """Bootstrap percentiles around a value, widened by what m draws and a normal tail miss (Hesterberg 2015)."""
    ordered_B = np.sort(value_B)  # np.quantile partitions, in quadratic time where many values nearly agree
    low, high = np.interp(np.array([0.025, 0.975]) * (len(ordered_B) - 1), np.arange(len(ordered_B)), ordered_B)
    wider = float(np.sqrt(m / (m - 1)) * special.stdtrit(m - 1, 0.975) / special.ndtri(0.975))
    return value + wider * (float(low) - value), value + wider * (float(high) - value)


def _figure(value: float, low: float, high: float, n: int, unit: str, judge: str) -> Figure:
    return Figure(value, min(low, value), max(high, value), n, unit, judge=judge)
