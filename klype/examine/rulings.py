"""What tests say to a claim: it holds, it does not, or that cannot be told. All tests of a document share one error.

A claim has two null hypotheses, each of which can be rejected: that it does not hold (by more than a margin, where it
says that something is equal), and that it holds. Holm's procedure over all of them keeps the chance of any wrong
ruling in a document below ``ALPHA``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy import special

from klype.examine.intervals import Array

Ruling = Literal["supports", "does_not_support", "undetermined"]
ALPHA = 0.05
Z = float(special.ndtri(0.975))


@dataclass(frozen=True, slots=True)
class Outcome:
    """``test`` names it; ``supports`` and ``against``: p-values that the claim does not hold, and that it does.

    ``margin``: how far from equal still counts as equal, or from what on an effect counts.
    """

    test: str
    statistic: float
    n: int
    supports: float
    against: float
    margin: float | None = None

    def json(self) -> dict[str, Any]:
        return asdict(self)


def rulings(tests: Mapping[str, Outcome], family: int = 0) -> dict[str, Ruling]:
    """Holm 1979 over both hypotheses of every test; ``family``: as many hypotheses at least. A claim of equality that
    differs, but by less than its margin, holds."""
    hypotheses = [(t.supports, name, "supports") for name, t in tests.items()]
    hypotheses += [(t.against, name, "against") for name, t in tests.items()]
    number = max(family, len(hypotheses))
    rejected: set[tuple[str, str]] = set()
    for i, (p, name, side) in enumerate(sorted(hypotheses)):
        if p > ALPHA / (number - i):
            break
        rejected.add((name, side))
    return {
        name: "supports"
        if (name, "supports") in rejected
        else "does_not_support"
        if (name, "against") in rejected
        else "undetermined"
        for name in tests
    }


def from_interval(figure: Mapping[str, Any], bound: float) -> Outcome | None:
    """That a figure is above a bound: z from the side of its 95 % interval that faces it."""
    value, low, high = figure.get("value"), figure.get("low"), figure.get("high")
    if value is None or low is None or high is None:
        return None
    spread = (value - low if value > bound else high - value) / Z
    if spread <= 0:
        return Outcome("interval", 0.0, figure.get("n", 0), 1.0, 1.0, bound)
    z = (value - bound) / spread
    return Outcome("interval", z, figure.get("n", 0), float(special.ndtr(-z)), float(special.ndtr(z)), bound)


def more(a: Mapping[str, Any], b: Mapping[str, Any]) -> Outcome | None:
    """That a is more than b: z from the sides of the intervals that face each other, as if they were independent."""
    ends = [end for figure in (a, b) for key in ("value", "low", "high") if (end := figure.get(key)) is not None]
    if len(ends) < 6:
        return None
    x, x_low, x_high, y, y_low, y_high = ends
    above = x > y
    spread = math.hypot(*((x - x_low, y_high - y) if above else (x_high - x, y - y_low))) / Z
    n = min(a.get("n", 0), b.get("n", 0))
    if spread <= 0:
        return Outcome("intervals", 0.0, n, 1.0, 1.0)
    z = (x - y) / spread
    return Outcome("intervals", z, n, float(special.ndtr(-z)), float(special.ndtr(z)))


def effect(values: Sequence[float] | Array, questions: Sequence[Any], margin: float) -> Outcome | None:
    """That a mean is above 0; against it: that it is below ``margin``. Student's t over questions, each weighted by its
    number of values."""
    clustered = _clustered(np.asarray(values, dtype=float), questions)
    if clustered is None:
        return None
    mean, error, freedom = clustered
    t = mean / error
    below = (mean - margin) / error
    return Outcome("t", t, len(values), float(special.stdtr(freedom, -t)), float(special.stdtr(freedom, below)), margin)


def _clustered(value_N: Array, questions: Sequence[Any]) -> tuple[float, float, int] | None:
    """Mean, its standard error over clusters, and degrees of freedom. None: fewer than two questions, or no spread."""
    place: dict[Any, int] = {}
    index_N = np.array([place.setdefault(question, len(place)) for question in questions], dtype=int)
    clusters = len(place)
    if clusters < 2:
        return None
    mean = float(value_N.mean())
    off_M = np.bincount(index_N, weights=value_N - mean)
    error = math.sqrt(float((off_M**2).sum()) * clusters / (clusters - 1)) / value_N.size
    return (mean, error, clusters - 1) if error > 0 else None
