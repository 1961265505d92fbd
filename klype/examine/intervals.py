"""95 % confidence intervals, with coverage measured on toys (``python -m benchmarks coverage``,
docs/laboratory/coverage.md).

Questions are a random sample, and answers to one question resemble each other, so questions are the units that vary. A
sample may have missed rare questions that are far from the others. Every interval therefore allows for one further
question at either end, and is conservative. All are in closed form, from the questions' means (or their jackknife
``pseudo_values``):

- *shares* and other values with known bounds: the further question lies at a bound. Clopper–Pearson on the effective
  number of questions, which with one trial per question is Clopper–Pearson itself.
- *differences of shares*: Bonett–Price on the effective number of questions (one further question in each direction).
- *values without bounds*: the further question lies twice as far out as the farthest one seen; Student's t, or
  Fieller's (1954) inversion of it for a ratio. With fewer than ``MIN_QUESTIONS`` questions there is no interval.
- *training runs*, one per seed: Student's t and Fieller's limits alone, because no run is rare and far from the others.

Where the data do not suffice there is no interval but a reason: one question only, too few questions, or nearly all
values the same.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import special

from klype.values import Figure

Array = npt.NDArray[np.floating[Any]]
Values = Sequence[float] | Array
Limits = tuple[float, float]
SHARES = (0.0, 1.0)
ONE = "one question only: nothing is known about others"
SAME = "too few: nearly all values are the same"
UNDERNEATH = "too few: what it is divided by may be nothing"
MISSED = "too few: rare ones far from the others may be missing"
MIN_QUESTIONS = 30  # questions; with fewer, values without bounds get no interval
DISTINCT = 5  # where two values agree, at least this many must differ from the most common one
# How far out the further question lies where values have no bounds, as a multiple of the farthest one seen. With 1,
# coverage is .88 where 8 % of thirty documents are five times as bad; with 3, intervals are wider by a quarter.
FURTHER = 2.0
NORMAL = float(special.ndtri(0.975))


def ends(figure: Figure) -> Limits:
    """The ends of the figure's interval, or its value twice where it has none."""
    value = figure.value or 0.0
    return value if figure.low is None else figure.low, value if figure.high is None else figure.high


def with_bounds(
    figure: Figure, error: Figure, least: float, most: float, times: float = 1.0, within: Limits = SHARES
) -> Figure:
    """The figure with its judge's error rate and with bounds.

    The bounds go from ``least`` to ``most``, widened by ``times`` the upper end of the error rate, as if all errors
    were in one direction (Horowitz & Manski 1995), but not beyond ``within``. A rate that was not measured does not
    widen them.
    """
    farther = times * ends(error)[1]
    least, most = (edge(end, figure.value or 0.0) for edge, end in ((min, least), (max, most)))
    return replace(figure, error_rate=error, bounds=(max(within[0], least - farther), min(within[1], most + farther)))


def figure_with(value: float, limits: Limits | None, n: int, unit: str, judge: str = "", why: str = "") -> Figure:
    """A figure with an interval that contains its value; without limits, with the reason ``why``."""
    if limits is None:
        return Figure(value, None, None, n, unit, judge=judge, why=why)
    return Figure(value, min(limits[0], value), max(limits[1], value), n, unit, judge=judge)


def proportion(k: int, n: int, unit: str = "", judge: str = "") -> Figure:
    """The share k / n of independent trials, with the Clopper–Pearson interval; without a value if n is 0."""
    if n == 0:
        return Figure(None, unit=unit, judge=judge, why="no trials")
    assert 0 <= k <= n
    return Figure(k / n, *clopper_pearson(k, n), n, unit, judge=judge)


def mean_by_question(
    values: Values, questions: Sequence[Any], unit: str = "", judge: str = "", within: Limits | None = None
) -> Figure:
    """The mean over questions of each question's mean value; ``questions[i]`` is the question of ``values[i]``.

    n counts values. ``within``: the range that a value can have; not needed for shares (a unit that begins with
    "share", and values from 0 to 1) and for trials (values 0 and 1, without a unit).
    """
    assert len(values) == len(questions)
    value_N = np.asarray(values, dtype=float)
    if (why := _missing_reason(value_N)) is not None:
        return Figure(None, n=value_N.size, unit=unit, judge=judge, why=why)
    mean_M = means(value_N, questions)
    if (not unit and np.isin(value_N, (0.0, 1.0)).all()) or _share(unit, value_N, np.ones_like(value_N)):
        within = SHARES
    return figure_of(mean_M, np.ones_like(mean_M), value_N.size, unit, judge, within)


def mean_change(a: Values, b: Values, questions: Sequence[Any], unit: str = "", within: Limits | None = None) -> Figure:
    """The mean over questions of b − a, for the same questions and samples.

    For shares, values ``within`` known bounds, and values that nearly all change by the same amount, the interval is
    Bonett–Price, on the scale of the largest change possible or seen; with one trial per question this is Wald's
    interval with two trials added. ``mcnemar`` is the exact test for it.
    """
    a_N, b_N = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    assert a_N.shape == b_N.shape == (len(questions),)
    if (why := _missing_reason(change_N := b_N - a_N)) is not None:
        return Figure(None, n=a_N.size, unit=unit, why=why)
    change_M = means(change_N, questions)
    both_N = np.concatenate([a_N, b_N])
    if (not unit or "share" in unit) and bool(((both_N >= 0) & (both_N <= 1)).all()):
        within = SHARES
    seen = float(np.abs(change_M).max())
    most = np.count_nonzero(change_M) > change_M.size - DISTINCT
    alike = change_M.size >= MIN_QUESTIONS and seen > 0 and most and few_differ(change_M, seen)
    if change_M.size > 1 and (within is not None or alike):
        scale = seen if within is None else within[1] - within[0]
        low, high = difference_limits(change_M / scale)
        return figure_with(float(change_M.mean()), (scale * low, scale * high), a_N.size, unit)
    return figure_of(change_M, np.ones_like(change_M), a_N.size, unit)


def mcnemar(a: Values, b: Values) -> float:
    """McNemar's exact two-sided p-value for two sets of binary trials on the same questions."""
    a_N, b_N = np.asarray(a), np.asarray(b)
    gained, lost = int((b_N > a_N).sum()), int((b_N < a_N).sum())
    if gained + lost == 0:
        return 1.0
    # under the null hypothesis, the pairs that differ are throws of a fair coin
    return float(min(1.0, 2 * special.bdtr(min(gained, lost), gained + lost, 0.5)))


def ratio_of_means(numerators: Values, denominators: Values, unit: str = "") -> Figure:
    """Σ numerators / Σ denominators over independent clusters (documents, questions); n counts clusters.

    It is treated as a share if its unit begins with "share" and every numerator lies between 0 and its denominator.
    Without a value where the denominators sum to 0, or a numerator is infinite.
    """
    top_M, under_M = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    if (why := _no_ratio(top_M, under_M)) is not None:
        return Figure(None, n=top_M.size, unit=unit, why=why)
    return figure_of(top_M, under_M, top_M.size, unit, within=SHARES if _share(unit, top_M, under_M) else None)


def ratio_over_seeds(numerators: Values, denominators: Values, unit: str) -> Figure:
    """Σ numerators / Σ denominators over training runs, one per seed, with Fieller's interval; n counts runs."""
    top_S, under_S = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    if (why := _no_ratio(top_S, under_S)) is not None:
        return Figure(None, n=top_S.size, unit=unit, why=why)
    value = float(top_S.sum() / under_S.sum())
    limits = fieller(top_S, under_S) if top_S.size > 1 else None
    why = "one seed only" if top_S.size == 1 else UNDERNEATH
    if limits is not None and few_differ(top_S - value * under_S, float(np.abs(top_S).max())):
        limits, why = None, SAME
    return figure_with(value, limits, top_S.size, unit, why=why)


def figure_of(top_M: Array, under_M: Array, n: int, unit: str, judge: str = "", within: Limits | None = None) -> Figure:
    """Σ top / Σ under over questions, with its interval or the reason why there is none."""
    value = float(top_M.sum() / under_M.sum())
    limits: Limits | None = None
    if top_M.size == 1:
        why = ONE
    elif within is not None:
        why, (least, most) = "", within
        low, high = share_limits((top_M - least * under_M) / (most - least), under_M)
        limits = least + (most - least) * low, least + (most - least) * high
    elif few_differ(top_M - value * under_M, float(np.abs(top_M).max())):
        why = SAME
    elif top_M.size < MIN_QUESTIONS:
        why = MISSED
    else:
        why, limits = UNDERNEATH, ratio_limits(top_M, under_M)
    return figure_with(value, limits, n, unit, judge, why)


def clopper_pearson(k: float, n: float) -> Limits:
    """Exact 95 % limits of a proportion; k and n may be effective numbers, hence fractional."""
    low = float(special.betaincinv(k, n - k + 1, 0.025)) if k > 0 else 0.0
    high = float(special.betaincinv(k + 1, n - k, 0.975)) if k < n else 1.0
    return low, high


def share_limits(top_M: Array, under_M: Array, size: float = 0.0) -> Limits:
    """Limits of the share Σ top / Σ under. ``size``: the weight of the further question relative to the mean one (0:
    that of the question that a random unit of ``under`` belongs to, on average).

    Under random weights of all questions (Dirichlet, the Bayesian bootstrap) the share has a known mean and variance; a
    Beta distribution with these gives the limit. With the further question, this is Gaffke's (2005) bound of a mean.
    """
    m, mean = top_M.size, float(under_M.mean())
    size = size or float((under_M**2).mean()) / mean**2
    ends = []
    for right, tail in ((0.0, 0.025), (1.0, 0.975)):
        share = float((top_M.sum() / mean + right * size) / (m + size))
        off = float(((top_M - share * under_M) ** 2).sum()) / mean**2 + (size * (right - share)) ** 2
        # with equal weights this is off / ((m + 1) (m + 2)), the variance under Dirichlet(1, …, 1)
        variance = off / (m + size) ** 2 * (m + 1) / (m + 2)
        ends.append(_beta(share, variance, tail))
    return ends[0], ends[1]


def difference_limits(change_M: Array, size: float = 1.0) -> Limits:
    """Limits of a mean difference of shares, from values in −1 … 1 and one further question of weight ``size`` in each
    direction."""
    m = change_M.size
    centre = float(change_M.sum()) / (m + 2 * size)
    off = float(((change_M - centre) ** 2).sum()) + size**2 * ((1 - centre) ** 2 + (1 + centre) ** 2)
    half = NORMAL * float(np.sqrt(off)) / (m + 2 * size)
    return max(-1.0, centre - half), min(1.0, centre + half)


def few_differ(value_M: Array, scale: float = 1.0) -> bool:
    """Whether some values agree (to a millionth of ``scale``) and fewer than ``DISTINCT`` differ from the most common
    one: the sample then says too little about others."""
    # rounded, because floats that should be equal differ in their last bits
    rounded_M = np.round(value_M / (scale or 1.0), 6)
    most = int(np.unique(rounded_M, return_counts=True)[1].max(initial=0))
    return most > 1 and value_M.size - most < DISTINCT


def ratio_limits(top_M: Array, under_M: Array) -> Limits | None:
    """Fieller's limits of Σ top / Σ under, each with one further question at its end, of typical weight (root mean
    square) and ``FURTHER`` times as far out as the farthest of mean weight. None: they are infinite."""
    # the further question has positive weight: so must the others
    if under_M.sum() < 0:
        return ratio_limits(-top_M, -under_M)
    ratio = float(top_M.sum() / under_M.sum())
    weight = float(np.sqrt((under_M**2).mean()))
    # each question's weighted distance from the common ratio
    rest_M, weight_M = top_M - ratio * under_M, np.append(under_M, weight)
    out = FURTHER * weight / float(under_M.mean())
    low, high = (
        fieller(np.append(top_M, ratio * weight + out * float(far)), weight_M) for far in (rest_M.min(), rest_M.max())
    )
    return None if low is None or high is None else (low[0], high[1])


def fieller(top_M: Array, under_M: Array) -> Limits | None:
    """The ratios ρ at which Student's t does not reject that top − ρ · under has mean 0 (Fieller 1954); with equal
    weights, Student's interval of a mean. None: they have no end."""
    m, top, under = top_M.size, float(top_M.mean()), float(under_M.mean())
    part = float(special.stdtrit(m - 1, 0.975)) ** 2 / (m - 1)
    # where the denominator's own interval contains 0, any ratio is possible
    square = under**2 - part * float(under_M.var())
    if square <= 0:
        return None
    mixed = top * under - part * float(((top_M - top) * (under_M - under)).mean())
    half = np.sqrt(max(0.0, mixed**2 - square * (top**2 - part * float(top_M.var()))))
    return float((mixed - half) / square), float((mixed + half) / square)


def student(centre: float, value_M: Array) -> Limits:
    """Student's 95 % interval around a centre, from the spread of two or more values."""
    half = special.stdtrit(value_M.size - 1, 0.975) * value_M.std(ddof=1) / np.sqrt(value_M.size)
    return centre - float(half), centre + float(half)


def pseudo_values(value: Array, without_M: Array) -> Array:
    """The jackknife's pseudo-values, [M, …]. ``without_M``: the figure without each question, one per row."""
    m = len(without_M)
    return np.asarray(m * value - (m - 1) * without_M)


def jackknife_limits(value: Array, without_M: Array) -> Limits | None:
    """Limits of a single number, from the pseudo-values of questions (or groups of them). None: nearly all of these are
    the same, or the limits are infinite."""
    part_M = pseudo_values(value, without_M)
    return None if few_differ(part_M) else ratio_limits(part_M, np.ones_like(part_M))


def exp_limits(limits: Limits | None) -> Limits | None:
    """The limits of a number, from those of its logarithm."""
    return limits and (math.exp(min(limits[0], 700.0)), math.exp(min(limits[1], 700.0)))


def without_each(table_MK: Array) -> Array:
    """The mean of all other rows, for each row."""
    m = len(table_MK)
    return np.asarray((table_MK.sum(axis=0) - table_MK) / (m - 1))


def means(value_N: Array, questions: Sequence[Any]) -> Array:
    """Each question's mean, in the order of first appearance."""
    index_N, _ = index_of(questions)
    return np.asarray(np.bincount(index_N, weights=value_N) / np.bincount(index_N))


def index_of(questions: Iterable[Any]) -> tuple[npt.NDArray[np.int64], int]:
    """(the number of each value's question in order of first appearance, how many questions there are)."""
    place: dict[Any, int] = {}
    index_N = np.array([place.setdefault(question, len(place)) for question in questions], dtype=np.int64)
    return index_N, len(place)


def _missing_reason(value_N: Array) -> str | None:
    if not value_N.size:
        return "nothing was measured"
    return None if np.isfinite(value_N).all() else "a value is not finite"


def _no_ratio(top_M: Array, under_M: Array) -> str | None:
    assert top_M.shape == under_M.shape
    if not np.isfinite(top_M).all():
        return "infinite: a possible word was given no probability"
    return "a ratio over nothing" if top_M.size == 0 or under_M.sum() == 0 else None


def _share(unit: str, top_M: Array, under_M: Array) -> bool:
    return unit.startswith("share") and bool(((top_M >= 0) & (top_M <= under_M * (1 + 1e-9))).all())


def _beta(mean: float, variance: float, tail: float) -> float:
    """A quantile of the Beta distribution with this mean and variance."""
    if mean <= 0.0 or mean >= 1.0 or variance <= 0.0:
        return min(1.0, max(0.0, mean))
    # a + b of the Beta distribution; its variance cannot exceed mean (1 − mean)
    weight = max(mean * (1 - mean) / variance - 1, 1e-9)
    return float(special.betaincinv(mean * weight, (1 - mean) * weight, tail))
