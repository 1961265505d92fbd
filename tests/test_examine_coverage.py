"""A nominal 95 % interval covers the truth about 95 times of 100: every estimator, on toys whose truth is known."""

from collections.abc import Callable

import numpy as np
import pytest

from klype.examine.coverage import cases, run
from klype.examine.intervals import mean_by_question, paired, proportion, ratio_of_means
from klype.values import Figure

Toy = Callable[[np.random.Generator, int], Figure]


def repeated_trials(m: int, samples: int) -> Toy:
    """Right with a probability that differs between questions: Beta(1.9, .1), mean .95."""

    def toy(rng: np.random.Generator, seed: int) -> Figure:
        right = rng.binomial(1, rng.beta(1.9, 0.1, (m, 1)), (m, samples)).ravel()
        return mean_by_question(right, np.repeat(np.arange(m), samples).tolist(), seed=seed)

    return toy


def values(m: int) -> Toy:
    return lambda rng, seed: mean_by_question(rng.normal(0.2, 1, m), range(m), seed=seed)


def ratio(m: int) -> Toy:
    def toy(rng: np.random.Generator, seed: int) -> Figure:
        words = rng.integers(20, 60, m)
        return ratio_of_means(rng.gamma(2.0 * words, 0.05), words, seed=seed)

    return toy


def difference(m: int) -> Toy:
    def toy(rng: np.random.Generator, seed: int) -> Figure:
        a = rng.random(m) < 0.8
        b = np.where(rng.random(m) < 0.1, rng.random(m) < 0.95, a)
        return paired(a, b, range(m), seed=seed)

    return toy


TOYS: dict[str, tuple[Toy, float]] = {
    "clopper-pearson": (lambda rng, seed: proportion(int(rng.binomial(100, 0.995)), 100), 0.995),
    "30 questions x 10": (repeated_trials(30, 10), 0.95),
    "200 questions x 4": (repeated_trials(200, 4), 0.95),
    "12 values": (values(12), 0.2),
    "60 values": (values(60), 0.2),
    "ratio of 12": (ratio(12), 0.1),
    "ratio of 60": (ratio(60), 0.1),
    "difference of 60": (difference(60), 0.1 * 0.15),
}
CONSERVATIVE = ("clopper-pearson", "30 questions x 10", "200 questions x 4", "difference of 60")


@pytest.mark.parametrize("runs", [200, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TOYS)
def test_coverage(name: str, runs: int) -> None:
    """Conservative ones have no ceiling. 200 runs can only show gross faults: five standard errors."""
    toy, truth = TOYS[name]
    rng = np.random.default_rng(7)
    figures = [toy(rng, seed) for seed in range(runs)]
    covered = float(np.mean([f.low <= truth <= f.high for f in figures]))
    slack = 0.02 if runs >= 1000 else 5 * (0.95 * 0.05 / runs) ** 0.5
    assert covered >= 0.95 - slack, covered
    assert name in CONSERVATIVE or covered <= 0.95 + slack, covered


@pytest.mark.parametrize("runs", [60, pytest.param(1000, marks=pytest.mark.soak)])
def test_every_estimator_of_the_examination_covers(runs: int) -> None:
    found = run(runs)
    assert len({row["name"] for row in found["rows"]}) == len(cases())
    assert [row for row in found["rows"] if not row["passed"]] == []
