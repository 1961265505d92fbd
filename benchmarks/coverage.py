"""Do klype's 95 % intervals contain the truth in 95 % of runs? Every estimator is tried on toys and a world whose truth
is known (``coverage_cases``), with 10, 30 and 100 questions.

An interval passes if it covers the truth in 93–98.5 % of 1,000 runs; conservative estimators have no upper limit, and
their width is shown. With fewer than 30 questions an interval may be withheld; with more, only where the case says why.
Intervals that were withheld do not count.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.coverage_cases import cases
from benchmarks.coverage_toys import Case
from klype.examine.intervals import proportion
from klype.values import Figure

LEAST, MOST = 0.93, 0.985
SIZES = (10, 30, 100)
# number of questions below which an interval may be withheld
MAY_WITHHOLD = 30


def run(runs: int = 1000, seed: int = 0) -> dict[str, Any]:
    """The document {"rows": [{name, n, runs, given, covered, low, high, width, conservative, withheld, passed}],
    "passed"}.

    ``given``: share of runs with an interval; ``covered``: share of these that contain the truth, with its own 95 %
    limits low and high. ``withheld``: why there may be none. With fewer than 1,000 intervals, three standard errors are
    allowed for.
    """
    rows = [row for case in cases() for n in case.sizes or SIZES for row in covered(case, n, runs, seed)]
    return {"rows": rows, "passed": all(row["passed"] for row in rows)}


def covered(case: Case, n: int, runs: int, seed: int) -> list[dict[str, Any]]:
    """The rows of a case, one for each of its figures."""
    rng = np.random.default_rng([seed, n])
    found = [case.toy(rng, n) for _ in range(runs * case.times)]
    return [_row(case, part, n, [one[part] for one in found]) for part in found[0]]


def _row(case: Case, part: str, n: int, found: list[tuple[Figure, float]]) -> dict[str, Any]:
    ends = [(f.low, f.high, truth) for f, truth in found if f.low is not None and f.high is not None]
    hits = sum(low - 1e-9 <= truth <= high + 1e-9 for low, high, truth in ends)
    share = proportion(hits, len(ends))
    slack = 0.0 if len(ends) >= 1000 else 3 * math.sqrt(0.95 * 0.05 / max(1, len(ends)))
    within = share.value is None or (
        share.value >= LEAST - slack and (case.conservative or share.value <= MOST + slack)
    )
    return {
        "name": f"{case.name}{part and ': '}{part}",
        "n": n,
        "runs": len(found),
        "given": len(ends) / len(found),
        "covered": share.value,
        "low": share.low,
        "high": share.high,
        "width": float(np.median([high - low for low, high, _ in ends])) if ends else None,
        "conservative": case.conservative,
        "withheld": case.withheld,
        "passed": within and (len(ends) == len(found) or n < MAY_WITHHOLD or bool(case.withheld)),
    }
