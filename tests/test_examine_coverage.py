"""A nominal 95 % interval covers the truth about 95 times of 100: every estimator, on toys whose truth is known."""

import math

import numpy as np
import pytest

from benchmarks.coverage import SIZES, covered, run
from benchmarks.coverage_cases import cases
from benchmarks.coverage_toys import Case, Told, Toy
from klype.examine.intervals import clopper_pearson, student
from klype.values import Figure


@pytest.mark.parametrize(
    "runs", [pytest.param(100, marks=pytest.mark.slow), pytest.param(1000, marks=pytest.mark.soak)]
)
def test_every_estimator_of_the_examination_covers(runs: int) -> None:
    """A hundred runs can only show gross faults: three standard errors."""
    found = run(runs)
    assert len({(row["name"], row["n"]) for row in found["rows"]}) == len(found["rows"]) >= 3 * len(cases()) - 4
    assert {row["n"] for row in found["rows"]} >= set(SIZES)
    assert [row for row in found["rows"] if not row["passed"]] == []


def wald(rng: np.random.Generator, n: int) -> Told:
    k = int(rng.binomial(n, 0.995))
    half = 1.96 * math.sqrt(k / n * (1 - k / n) / n)
    return {"": (Figure(k / n, k / n - half, k / n + half), 0.995)}


def plain_t(rng: np.random.Generator, n: int) -> Told:
    drawn = rng.lognormal(0, 1, n)
    return {"": (Figure(float(drawn.mean()), *student(float(drawn.mean()), drawn)), math.exp(0.5))}


def wide(rng: np.random.Generator, n: int) -> Told:
    drawn = rng.normal(0, 1, n)
    return {"": (Figure(float(drawn.mean()), float(drawn.mean()) - 9, float(drawn.mean()) + 9), 0.0)}


def none(rng: np.random.Generator, n: int) -> Told:
    return {"": (Figure(0.5, why="too few"), 0.5)}


def exact(rng: np.random.Generator, n: int) -> Told:
    k = int(rng.binomial(n, 0.995))
    return {"": (Figure(k / n, *clopper_pearson(k, n)), 0.995)}


@pytest.mark.parametrize(
    ("toy", "n", "runs"), [(wald, 100, 100), (plain_t, 10, 200), (wide, 100, 1000), (none, 30, 20)]
)
def test_a_broken_estimator_is_found_out(toy: Toy, n: int, runs: int) -> None:
    [row] = covered(Case("broken", toy), n, runs, 0)
    assert not row["passed"]


def test_what_may_be_withheld_and_what_may_be_wide() -> None:
    [early] = covered(Case("few", none), 10, 50, 0)
    [said] = covered(Case("few", none, withheld="stated"), 100, 50, 0)
    [conservative] = covered(Case("exact", exact, conservative=True), 100, 200, 0)
    assert early["passed"]
    assert said["passed"]
    assert (said["given"], said["covered"], said["width"]) == (0.0, None, None)
    assert conservative["passed"]
