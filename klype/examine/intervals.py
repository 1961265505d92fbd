"""95 % intervals whose coverage is measured on toys (``python -m benchmarks coverage``, docs/coverage.md).

Questions are drawn at random, answers are drawn per question: answers to one question resemble each other, so the
question is what varies. Everything is in closed form, from the questions' own means (or what each of them weighs in a
figure, ``pseudo_values``):

- *shares* (each question's part lies between none and all): Clopper–Pearson on the effective number of questions, where
  one more question is thought to have gone wholly wrong (for the lower end) or right (for the upper one), so that rare
  bad questions which the sample missed are allowed for. One trial a question: Clopper–Pearson itself. Conservative.
  S, the share a word where each word's probability is known, is of the third kind from thirty on.
- *differences of shares*: Bonett–Price on the effective number of questions (one more question each way). Conservative.
- *other values*: Student's t, or Hall's (1992) transformation of it for skewness, whichever reaches further; of a ratio
  its inversion (Fieller). Below ten questions skewness cannot be told from chance: Student's t alone.

Where that is not enough there is no interval but a reason: one question; values nearly all of which are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from klype.values import Figure

Array = npt.NDArray[np.floating[Any]]
ONE = "one question only: nothing is known about others"
SAME = "too few: nearly all values are the same"
UNDERNEATH = "too few: what it is divided by may be nothing"
WORDS, MANY = "share a ", 30
SKEWED = 10
"""Questions; with fewer a skewness says nothing."""
DISTINCT = 5
"""So many values at least must differ from the commonest one, where two agree."""
UNDERSTATED = 1.25
"""A sample's skewness is below its population's where that is great; so many times it is taken."""
STEPS = np.concatenate([np.arange(0.5, 4.0, 0.5), 4.0 * 1.6 ** np.arange(30)])
"""How many standard errors off the end of an interval is looked for; as far as it is, it has none."""
NORMAL = float(special.ndtri(0.975))
Limits = tuple[float, float]


def proportion(k: int, n: int, unit: str = "", judge: str = "") -> Figure:
    """k of n independent trials: Clopper–Pearson. No trials: no figure."""
    if n == 0:
        return Figure(None, unit=unit, judge=judge, why="no trials")
    assert 0 <= k <= n
    low, high = clopper_pearson(k, n)
    return Figure(k / n, low, high, n, unit, judge=judge)


def mean_by_question(
    values: Sequence[float] | Array, questions: Sequence[Any], unit: str = "", judge: str = ""
) -> Figure:
    """Mean over questions of each question's mean value; ``questions[i]`` names the question of ``values[i]``.

    n counts values. Shares are values between 0 and 1 in a unit that begins so, and trials (0 or 1) without a unit.
    """
    assert len(values) == len(questions)
    value_N = np.asarray(values, dtype=float)
    if (why := _unknown(value_N)) is not None:
        return Figure(None, n=value_N.size, unit=unit, judge=judge, why=why)
    mean_M = means(value_N, questions)
    share = (not unit and _trials(value_N)) or _share(unit, value_N, np.ones_like(value_N))
    return figure_of(mean_M, np.ones_like(mean_M), value_N.size, unit, judge, share)


def paired(a: Sequence[float] | Array, b: Sequence[float] | Array, questions: Sequence[Any], unit: str = "") -> Figure:
    """Mean over questions of b − a on the same questions and samples: positive when b is more.

    Right-or-wrong trials, shares that mostly change alike or not, and other values that nearly all change alike:
    Bonett–Price, on the scale of shares or of the greatest change seen; with one trial a question that is Wald's
    interval with two trials added. ``mcnemar`` gives the exact test beside it.
    """
    a_N, b_N = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    assert a_N.shape == b_N.shape == (len(questions),)
    if (why := _unknown(change_N := b_N - a_N)) is not None:
        return Figure(None, n=a_N.size, unit=unit, why=why)
    change_M = means(change_N, questions)
    both_N = np.concatenate([a_N, b_N])
    shares = (not unit or "share" in unit) and bool(((both_N >= 0) & (both_N <= 1)).all())
    scale = 1.0 if shares else float(np.abs(change_M).max())
    alike = (
        scale > 0 and few_differ(change_M, scale) and (shares or np.count_nonzero(change_M) > change_M.size - DISTINCT)
    )
    if change_M.size > 1 and ((shares and _trials(both_N)) or alike):
        low, high = difference_limits(change_M / scale)
        return _held(float(change_M.mean()), (scale * low, scale * high), a_N.size, unit)
    return figure_of(change_M, np.ones_like(change_M), a_N.size, unit)


def mcnemar(a: Sequence[float] | Array, b: Sequence[float] | Array) -> float:
    """Exact two-sided p-value that two sets of right-or-wrong trials on the same questions differ by chance."""
    a_N, b_N = np.asarray(a), np.asarray(b)
    gained, lost = int((b_N > a_N).sum()), int((b_N < a_N).sum())
    if gained + lost == 0:
        return 1.0
    return float(min(1.0, 2 * special.bdtr(min(gained, lost), gained + lost, 0.5)))


def ratio_of_means(
    numerators: Sequence[float] | Array, denominators: Sequence[float] | Array, unit: str = ""
) -> Figure:
    """Σ numerators / Σ denominators over independent clusters (documents, questions); n counts clusters.

    A share is a ratio in a unit that begins so, with every numerator between 0 and its denominator. "Share a word" is a
    mean of many words' exact probabilities in each cluster, none of which is wholly wrong: with ``MANY`` clusters it is
    taken as other values are, unless nearly all are the same. Nothing below the line, or something infinite above it:
    no figure.
    """
    top_M, under_M = np.asarray(numerators, dtype=float), np.asarray(denominators, dtype=float)
    assert top_M.shape == under_M.shape
    if not np.isfinite(top_M).all():
        return Figure(None, n=top_M.size, unit=unit, why="infinite: a possible word was given no probability")
    if top_M.size == 0 or under_M.sum() == 0:
        return Figure(None, n=top_M.size, unit=unit, why="a ratio over nothing")
    share = _share(unit, top_M, under_M)
    rest_M = top_M - under_M * (top_M.sum() / under_M.sum())
    wordwise = share and unit.startswith(WORDS) and top_M.size >= MANY
    if not wordwise or few_differ(rest_M, float(np.abs(top_M).max())):
        return figure_of(top_M, under_M, top_M.size, unit, share=share)
    figure = figure_of(top_M, under_M, top_M.size, unit)
    if figure.low is None or figure.high is None:
        return figure
    return replace(figure, low=max(0.0, figure.low), high=min(1.0, figure.high))


def figure_of(top_M: Array, under_M: Array, n: int, unit: str, judge: str = "", share: bool = False) -> Figure:
    """Σ top / Σ under over questions, with its interval or why there is none."""
    value = float(top_M.sum() / under_M.sum())
    if top_M.size == 1:
        return Figure(value, None, None, n, unit, judge=judge, why=ONE)
    if share:
        return _held(value, share_limits(top_M, under_M), n, unit, judge)
    if few_differ(top_M - value * under_M, float(np.abs(top_M).max())):
        return Figure(value, None, None, n, unit, judge=judge, why=SAME)
    limits = ratio_limits(top_M, under_M)
    if limits is None:
        return Figure(value, None, None, n, unit, judge=judge, why=UNDERNEATH)
    return _held(value, limits, n, unit, judge)


def clopper_pearson(k: float, n: float) -> Limits:
    """Exact 95 % limits of a proportion; k and n may be effective, hence fractional."""
    low = float(special.betaincinv(k, n - k + 1, 0.025)) if k > 0 else 0.0
    high = float(special.betaincinv(k + 1, n - k, 0.975)) if k < n else 1.0
    return low, high


def share_limits(top_M: Array, under_M: Array, size: float = 0.0) -> Limits:
    """Of the share Σ top / Σ under. ``size``: what the one further question weighs beside a mean one (0: as the
    questions are weighted, a typical word's).

    The share's distribution under random weights of all questions (Dirichlet, the Bayesian bootstrap) has a known mean
    and variance; a Beta with these gives the limit. With the further question this is Gaffke's (2005) bound of a mean.
    """
    m, mean = top_M.size, float(under_M.mean())
    size = size or float((under_M**2).mean()) / mean**2
    ends = []
    for right, tail in ((0.0, 0.025), (1.0, 0.975)):
        share = float((top_M.sum() / mean + right * size) / (m + size))
        off = float(((top_M - share * under_M) ** 2).sum()) / mean**2 + (size * (right - share)) ** 2
        variance = off / (m + size) ** 2 * (m + 1) / (m + 2)
        ends.append(_beta(share, variance, tail))
    return ends[0], ends[1]


def difference_limits(change_M: Array, size: float = 1.0) -> Limits:
    """Of a mean difference of shares: questions' values −1 … 1, and one further question each way, of this size."""
    m = change_M.size
    centre = float(change_M.sum()) / (m + 2 * size)
    off = float(((change_M - centre) ** 2).sum()) + size**2 * ((1 - centre) ** 2 + (1 + centre) ** 2)
    half = NORMAL * float(np.sqrt(off)) / (m + 2 * size)
    return max(-1.0, centre - half), min(1.0, centre + half)


def few_differ(value_M: Array, scale: float = 1.0) -> bool:
    """Whether values agree (to a millionth of ``scale``) and fewer than ``DISTINCT`` are others: what else there
    is was not seen."""
    rounded_M = np.round(value_M / (scale or 1.0), 6)
    most = int(np.unique(rounded_M, return_counts=True)[1].max(initial=0))
    return most > 1 and value_M.size - most < DISTINCT


def ratio_limits(top_M: Array, under_M: Array) -> Limits | None:
    """Of Σ top / Σ under: every ratio at which top − ratio · under may have mean 0. None: there is no end to them."""
    ratio, m = float(top_M.sum() / under_M.sum()), top_M.size
    linear_M = ratio + (top_M - ratio * under_M) / under_M.mean()
    if m < SKEWED:
        return student(ratio, linear_M)
    beyond = _beyond(top_M - ratio * under_M, under_M)
    step = float(linear_M.std(ddof=1)) / np.sqrt(m)
    ends = []
    for off_S in (-step * STEPS, step * STEPS):
        outside = np.flatnonzero(beyond(off_S) > 0)
        if not outside.size:
            return None
        inside = float(off_S[outside[0] - 1]) if outside[0] else 0.0
        ends.append(ratio + float(optimize.brentq(lambda off: float(beyond(off)), inside, float(off_S[outside[0]]))))
    return min(ends), max(ends)


def _beyond(rest_M: Array, under_M: Array) -> Callable[[Any], Any]:
    """How far off the ratio → by how much both t and Hall's transformation of it are beyond what 95 % of samples give.

    ``rest_M``: what is above the line less the ratio times what is below; its mean is 0.
    """
    m, under = rest_M.size, float(under_M.mean())
    a_M, b_M = rest_M - rest_M.mean(), under_M - under
    square = [float((a_M**2).mean()), float((a_M * b_M).mean()), float((b_M**2).mean())]
    cube = [float((a_M ** (3 - i) * b_M**i).mean()) for i in range(4)]
    unbiased = UNDERSTATED * np.sqrt(m * (m - 1)) / (m - 2)
    quantile = float(special.stdtrit(m - 1, 0.975))

    def beyond(off: Any) -> Any:
        variance = square[0] - 2 * off * square[1] + off**2 * square[2]
        third = cube[0] - 3 * off * cube[1] + 3 * off**2 * cube[2] - off**3 * cube[3]
        bend = third / variance**1.5 * unbiased / np.sqrt(m)
        t = -off * under / np.sqrt(variance / (m - 1))
        hall = t + bend * t**2 / 3 + bend**2 * t**3 / 27 + bend / 6
        return np.minimum(np.abs(t), np.abs(hall)) - quantile

    return beyond


def student(centre: float, value_M: Array) -> Limits:
    """95 % by Student's t around a centre, from how two values or more are spread."""
    half = special.stdtrit(value_M.size - 1, 0.975) * value_M.std(ddof=1) / np.sqrt(value_M.size)
    return centre - float(half), centre + float(half)


def pseudo_values(value: Array, without_M: Array) -> Array:
    """The jackknife's: what each question weighs in a figure. ``without_M``: the figure without it, one a row."""
    m = len(without_M)
    found: Array = m * value - (m - 1) * without_M
    return found


def without_each(table_MK: Array) -> Array:
    """The mean of all rows but one, for each row."""
    m = len(table_MK)
    found: Array = (table_MK.sum(axis=0) - table_MK) / (m - 1)
    return found


def means(value_N: Array, questions: Sequence[Any]) -> Array:
    """Each question's mean, in the order of first appearance."""
    place: dict[Any, int] = {}
    index_N = np.array([place.setdefault(question, len(place)) for question in questions])
    found: Array = np.bincount(index_N, weights=value_N) / np.bincount(index_N)
    return found


def _unknown(value_N: Array) -> str | None:
    if not value_N.size:
        return "nothing was measured"
    return None if np.isfinite(value_N).all() else "a value is not finite"


def _trials(value_N: Array) -> bool:
    return bool(np.isin(value_N, (0.0, 1.0)).all())


def _share(unit: str, top_M: Array, under_M: Array) -> bool:
    return unit.startswith("share") and bool(((top_M >= 0) & (top_M <= under_M * (1 + 1e-9))).all())


def _beta(mean: float, variance: float, tail: float) -> float:
    """A quantile of the Beta distribution with this mean and variance."""
    if mean <= 0.0 or mean >= 1.0 or variance <= 0.0:
        return min(1.0, max(0.0, mean))
    weight = max(mean * (1 - mean) / variance - 1, 1e-9)
    return float(special.betaincinv(mean * weight, (1 - mean) * weight, tail))


def _held(value: float, limits: Limits, n: int, unit: str, judge: str = "") -> Figure:
    """A figure whose interval contains it."""
    return Figure(value, min(limits[0], value), max(limits[1], value), n, unit, judge=judge)
