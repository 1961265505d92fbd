"""What tests say to a claim: it holds, it does not, or that cannot be told. All tests of a document share one error.

Every claim has a margin, and what it says is on one side of it: an effect is as large as the margin, an equality holds
within it. So it has two null hypotheses that exclude each other, and each can be rejected: that the truth is on the
other side, and that it is on this one. Holm's procedure over all of a document keeps the chance of any wrong ruling in
it below ``ALPHA``.
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

    ``margin``: from what on an effect counts, or how far from equal still counts as equal.
    """

    test: str
    statistic: float
    n: int
    supports: float
    against: float
    margin: float

    def json(self) -> dict[str, Any]:
        return asdict(self)


def rulings(tests: Mapping[str, Outcome], family: int = 0) -> dict[str, Ruling]:
    """Holm 1979 over both hypotheses of every test; ``family``: as many hypotheses at least."""
    hypotheses = [(t.supports, name, "supports") for name, t in tests.items()]
    hypotheses += [(t.against, name, "against") for name, t in tests.items()]
    number = max(family, len(hypotheses))
    rejected: set[tuple[str, str]] = set()
    for i, (p, name, side) in enumerate(sorted(hypotheses)):
        # Holm: at the first that is not rejected all greater ones stay, too
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


def from_interval(figure: Mapping[str, Any], margin: float) -> Outcome | None:
    """That a figure is above a margin: z from the side of its 95 % interval that faces it."""
    value, low, high = figure.get("value"), figure.get("low"), figure.get("high")
    if value is None or low is None or high is None:
        return None
    spread = value - low if value > margin else high - value
    return _normal("interval", value - margin, spread, figure.get("n", 0), margin)


def more(a: Mapping[str, Any], b: Mapping[str, Any], margin: float) -> Outcome | None:
    """That a is above b by a margin: z from the sides of the intervals that face each other, as if they were
    independent."""
    ends = [end for figure in (a, b) for key in ("value", "low", "high") if (end := figure.get(key)) is not None]
    if len(ends) < 6:
        return None
    x, x_low, x_high, y, y_low, y_high = ends
    spread = math.hypot(*((x - x_low, y_high - y) if x - y > margin else (x_high - x, y - y_low)))
    return _normal("intervals", x - y - margin, spread, min(a.get("n", 0), b.get("n", 0)), margin)


def _normal(test: str, beyond: float, spread: float, n: int, margin: float) -> Outcome:
    """z of how far it is beyond the margin; ``spread`` is half of a 95 % interval."""
    if spread <= 0:
        return Outcome(test, 0.0, n, 1.0, 1.0, margin)
    z = beyond / spread * Z
    return Outcome(test, z, n, float(special.ndtr(-z)), float(special.ndtr(z)), margin)


def effect(values: Sequence[float] | Array, questions: Sequence[Any], margin: float) -> Outcome | None:
    """That a mean is above ``margin``. Student's t over questions, each weighted by its number of values."""
    clustered = _clustered(np.asarray(values, dtype=float), questions)
    if clustered is None:
        return None
    mean, error, freedom = clustered
    t = (mean - margin) / error
    p = float(special.stdtr(freedom, -t))
    return Outcome("t", t, len(values), p, 1 - p, margin)


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
