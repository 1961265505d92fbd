"""Intervals: exact where exact is possible, and never without their value."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from klype.examine.intervals import MANY, mcnemar, mean_by_question, paired, proportion, ratio_of_means
from klype.values import Figure


def test_clopper_pearson_inverts_the_binomial_tail() -> None:
    figure = proportion(83, 100)
    assert stats.binom.sf(82, 100, figure.low) == pytest.approx(0.025)
    assert stats.binom.cdf(83, 100, figure.high) == pytest.approx(0.025)
    assert (proportion(0, 50).low, proportion(50, 50).high) == (0.0, 1.0)
    assert proportion(0, 50).high == pytest.approx(1 - 0.025 ** (1 / 50))
    assert proportion(0, 0).value is None


@given(st.integers(1, 200), st.data())
def test_one_trial_a_question_is_clopper_pearson(n: int, data: st.DataObject) -> None:
    trials = data.draw(st.lists(st.integers(0, 1), min_size=max(2, n), max_size=max(2, n)))
    got, want = mean_by_question(trials, range(len(trials))), proportion(sum(trials), len(trials))
    assert (got.low, got.high) == pytest.approx((want.low, want.high))


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(0, 60)), min_size=1, max_size=200))
def test_the_interval_contains_the_value(rows: list[tuple[float, int]]) -> None:
    values, questions = [v for v, _ in rows], [q for _, q in rows]
    figures = [
        mean_by_question(values, questions),
        mean_by_question([float(v > 0) for v in values], questions),
        paired(values, values[::-1], questions),
        paired([float(v > 0) for v in values], [float(v > 1) for v in values], list(range(len(values)))),
        ratio_of_means(values, [1 + abs(v) for v in values]),
    ]
    for figure in figures:
        assert figure.value is not None
        assert figure.low is None or (figure.low <= figure.value <= figure.high)


def test_one_question_has_no_interval_and_says_why() -> None:
    for figure in (mean_by_question([1, 0, 1], ["q"] * 3), ratio_of_means([1.0], [2.0]), paired([1.0], [0.5], ["q"])):
        assert figure.low is None
        assert figure.high is None
        assert "one" in figure.why


def test_what_is_undefined_says_why() -> None:
    for figure in (
        mean_by_question([], []),
        mean_by_question([np.nan, 1.0], [0, 1]),
        ratio_of_means([1.0, np.inf], [1.0, 1.0]),
        ratio_of_means([1.0, 2.0], [0.0, 0.0]),
    ):
        assert figure.value is None
        assert figure.why
        assert figure.json() == {"value": None, "why": figure.why}


def test_ten_samples_of_one_question_are_not_ten_questions() -> None:
    """Samples that only repeat their question carry no more than one trial a question."""
    right = [1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 1]
    once = mean_by_question(right, range(12))
    often = mean_by_question(np.repeat(right, 10), np.repeat(np.arange(12), 10).tolist())
    assert width(often) >= 0.9 * width(once)
    assert width(mean_by_question([1.0] * 120, np.repeat(np.arange(12), 10).tolist())) == pytest.approx(
        width(proportion(12, 12))
    )


def test_a_paired_comparison_is_narrower_than_two_apart() -> None:
    rng = np.random.default_rng(0)
    for m in (MANY // 2, MANY * 3):
        easy = rng.random(m)
        a, b = easy + 0.01 * rng.random(m), easy + 0.1 + 0.01 * rng.random(m)
        difference = paired(a, b, range(m))
        assert difference.value == pytest.approx(float(np.mean(b - a)))
        assert width(difference) < 0.2 * width(mean_by_question(a, range(m)))


def test_mcnemar_is_the_sign_test_of_the_discordant() -> None:
    a, b = [1] * 9 + [0] * 2 + [1] * 20, [0] * 9 + [1] * 2 + [1] * 20
    assert mcnemar(a, b) == pytest.approx(stats.binomtest(2, 11).pvalue)
    assert mcnemar(a, a) == 1.0
    assert paired(a, b, range(31)).value == pytest.approx(-7 / 31)
    assert paired(a, a, range(31)).low < 0 < paired(a, a, range(31)).high


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(1).random(90)
    first, again = mean_by_question(values, range(90), seed=3), mean_by_question(values, range(90), seed=3)
    assert (first.low, first.high) == (again.low, again.high)


def width(figure: Figure) -> float:
    assert figure.low is not None
    assert figure.high is not None
    return figure.high - figure.low
