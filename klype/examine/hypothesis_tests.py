"""Hypothesis tests that rule on claims: supported, not supported, or undetermined, with one error rate per document.

Every claim has a margin: an effect is at least as large as the margin, or an equality holds within it. This gives two
null hypotheses that exclude each other: that the truth is on the other side of the margin, and that it is on this side.
Holm's procedure over all tests of a document keeps the probability of any wrong ruling below ``ALPHA``.

Two tests use the tables of ``survival``: whether the hazard is constant over positions, and whether errors are
independent given the position. For error-free prefixes drawn from what can follow, K_n = E Π S_t; independence means
K_n = Π E S_t, with each position's own hazard.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import special

from klype.examine.intervals import NORMAL, Array, Values, index_of, pseudo_values
from klype.examine.survival import AT_RISK, ERRED, WEIGHED, WEIGHT

Ruling = Literal["supports", "does_not_support", "undetermined"]
ALPHA = 0.05
MIN_AT_LAST = 30  # questions that must be at risk at the last position used
LEFT = 0.7  # share without an error that must remain there: beyond it, few answers would stand for many
STRETCHES = 4  # stretches of positions whose hazards are compared
TIMES = 1.25  # a hazard is constant if that of each stretch is the mean within this factor
PART = 0.05  # errors are independent if the share with an error is as under independence, within this part of it


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one test.

    ``supports``: the p-value of the null hypothesis that the claim does not hold; ``against``: of the one that it does.
    ``margin``: the smallest effect that counts, or the largest difference that counts as equal.
    """

    test: str
    statistic: float
    n: int
    supports: float
    against: float
    margin: float


def rulings(tests: Mapping[str, Outcome], family: int = 0) -> dict[str, Ruling]:
    """Holm's (1979) procedure over both hypotheses of every test. ``family``: the number of hypotheses, if more."""
    hypotheses = [(t.supports, name, "supports") for name, t in tests.items()]
    hypotheses += [(t.against, name, "against") for name, t in tests.items()]
    number = max(family, len(hypotheses))
    found: dict[str, Ruling] = dict.fromkeys(tests, "undetermined")
    for i, (p, name, side) in enumerate(sorted(hypotheses)):
        # Holm: after the first hypothesis that is not rejected, none is
        if p > ALPHA / (number - i):
            break
        if found[name] != "supports":
            found[name] = "supports" if side == "supports" else "does_not_support"
    return found


def from_interval(figure: Mapping[str, Any], margin: float) -> Outcome | None:
    """Tests that a figure is above a margin: z from the side of its 95 % interval that faces the margin."""
    value, low, high = figure.get("value"), figure.get("low"), figure.get("high")
    if value is None or low is None or high is None:
        return None
    spread = value - low if value > margin else high - value
    return _normal("interval", value - margin, spread, figure.get("n", 0), margin)


def difference_above(a: Mapping[str, Any], b: Mapping[str, Any], margin: float) -> Outcome | None:
    """Tests that a − b is above a margin: z from the sides of the intervals that face each other, taken as
    independent."""
    ends = [end for figure in (a, b) for key in ("value", "low", "high") if (end := figure.get(key)) is not None]
    if len(ends) < 6:
        return None
    x, x_low, x_high, y, y_low, y_high = ends
    spread = math.hypot(*((x - x_low, y_high - y) if x - y > margin else (x_high - x, y - y_low)))
    return _normal("intervals", x - y - margin, spread, min(a.get("n", 0), b.get("n", 0)), margin)


def _normal(test: str, beyond: float, spread: float, n: int, margin: float) -> Outcome:
    """The z-test of a distance ``beyond`` the margin; ``spread``: half the width of a 95 % interval."""
    if spread <= 0:
        return Outcome(test, 0.0, n, 1.0, 1.0, margin)
    z = beyond / spread * NORMAL
    return Outcome(test, z, n, float(special.ndtr(-z)), float(special.ndtr(z)), margin)


def mean_above(values: Values, questions: Sequence[Any], margin: float) -> Outcome | None:
    """Tests that a mean is above ``margin``: Student's t over questions, each weighted by its number of values. None
    with fewer than two questions, or without any spread."""
    value_N, (index_N, clusters) = np.asarray(values, dtype=float), index_of(questions)
    if clusters < 2:
        return None
    mean = float(value_N.mean())
    off_M = np.bincount(index_N, weights=value_N - mean)
    error = math.sqrt(float((off_M**2).sum()) * clusters / (clusters - 1)) / value_N.size
    if error <= 0:
        return None
    t = (mean - margin) / error
    p = float(special.stdtr(clusters - 1, -t))
    return Outcome("t", t, len(values), p, 1 - p, margin)


def last_position(table_MTE: Array) -> int:
    """The last position with ``MIN_AT_LAST`` questions at risk and at least ``LEFT`` without error; 0: none."""
    questions_T = (table_MTE[:, :, AT_RISK] > 0).sum(axis=0)
    total_TE = table_MTE.sum(axis=0)
    # 0 where nobody is at risk, not 0 / 0
    hazard_T = total_TE[:, ERRED] / np.maximum(total_TE[:, AT_RISK], 1e-300)
    fine_T = (questions_T >= MIN_AT_LAST) & (np.cumprod(1 - hazard_T) >= LEFT)
    return int(np.argmin(fine_T)) if not fine_T.all() else len(fine_T)


def independent_errors(table_MTE: Array) -> Outcome | None:
    """Tests that errors are independent: ln of (1 − K_n) / (1 − Π(1 − h̄_t)), with jackknife t over texts. None with too
    few texts or errors."""

    def excess(sums_BTE: Array) -> Array:
        k_B, reference_B = (
            np.prod(1 - sums_BTE[..., error] / np.maximum(sums_BTE[..., risk], 1e-300), axis=1)
            for error, risk in ((ERRED, AT_RISK), (WEIGHED, WEIGHT))
        )
        return np.asarray(np.log((1 - k_B) / (1 - reference_B))[:, None])

    return _alike(table_MTE, 2, excess, -math.log(1 - PART), PART)


def constant_hazard(table_MTE: Array) -> Outcome | None:
    """Tests that the hazard is constant: ln of each stretch's hazard over their mean, with jackknife t over texts."""

    def log_ratios(sums_BTE: Array) -> Array:
        stretch_BS = _stretches(sums_BTE)
        return np.asarray(np.log(stretch_BS / stretch_BS.mean(axis=1, keepdims=True)))

    return _alike(table_MTE, STRETCHES, log_ratios, math.log(TIMES), TIMES)


def _alike(
    table_MTE: Array, fewest: int, function: Callable[[Array], Array], most: float, margin: float
) -> Outcome | None:
    """Tests that every column of ``function(sums over texts)`` lies within ± ``most``.

    ``supports`` is the largest p-value of the columns (intersection–union), ``against`` the smallest times their number
    (Bonferroni); the statistic is that of the furthest column. None with fewer positions than ``fewest``, or where a
    value is not finite or does not vary.
    """
    if (n := last_position(table_MTE)) < fewest:
        return None
    table_MTE = table_MTE[:, :n]
    total_1TE = table_MTE.sum(axis=0)[None]
    with np.errstate(divide="ignore", invalid="ignore"):
        pseudo_MS = pseudo_values(function(total_1TE), function(total_1TE - table_MTE))
    texts, columns = pseudo_MS.shape
    mean_S, error_S = np.abs(pseudo_MS.mean(axis=0)), pseudo_MS.std(axis=0, ddof=1) / math.sqrt(texts)
    if not np.isfinite(mean_S).all() or not (error_S > 0).all():
        return None
    freedom, t_S = texts - 1, (mean_S - most) / error_S
    beyond_S = special.stdtr(freedom, -t_S) + special.stdtr(freedom, -(mean_S + most) / error_S)
    # all must lie within: the least certain column decides
    inside = float(special.stdtr(freedom, t_S).max())
    return Outcome("jackknife t", float(t_S.max()), texts, inside, min(1.0, columns * float(beyond_S.min())), margin)


def _stretches(sums_BTE: Array) -> Array:
    """The mean hazard of each stretch of positions."""
    hazard_BT = sums_BTE[..., WEIGHED] / np.maximum(sums_BTE[..., WEIGHT], 1e-300)
    return np.stack([part_BT.mean(axis=1) for part_BT in np.array_split(hazard_BT, STRETCHES, axis=1)], axis=1)


def stretch_hazards(table_MTE: Array) -> list[float]:
    """The mean hazard of each stretch of the positions that are tested; empty where there are too few."""
    n = last_position(table_MTE)
    return [] if n < STRETCHES else [float(h) for h in _stretches(table_MTE[:, :n].sum(axis=0)[None])[0]]
