"""Intervals: exact where exact is possible, and never without their value."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from klype.examine.intervals import (
    MIN_QUESTIONS,
    mcnemar,
    mean_by_question,
    mean_change,
    proportion,
    ratio_of_means,
    ratio_over_seeds,
)
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
        mean_change(values, values[::-1], questions),
        mean_change([float(v > 0) for v in values], [float(v > 1) for v in values], list(range(len(values)))),
        ratio_of_means(values, [1 + abs(v) for v in values]),
    ]
    for figure in figures:
        assert figure.value is not None
        assert figure.low is None or (figure.low <= figure.value <= figure.high)


def test_one_question_has_no_interval_and_says_why() -> None:
    for figure in (
        mean_by_question([1, 0, 1], ["q"] * 3),
        ratio_of_means([1.0], [2.0]),
        mean_change([1.0], [0.5], ["q"]),
    ):
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
    for m in (MIN_QUESTIONS, 120):
        easy = rng.random(m)
        a, b = easy + 0.01 * rng.random(m), easy + 0.1 + 0.01 * rng.random(m)
        difference = mean_change(a, b, range(m))
        assert difference.value == pytest.approx(float(np.mean(b - a)))
        assert width(difference) < 0.2 * width(mean_by_question(a, range(m)))


def test_mcnemar_is_the_sign_test_of_the_discordant() -> None:
    a, b = [1] * 9 + [0] * 2 + [1] * 20, [0] * 9 + [1] * 2 + [1] * 20
    assert mcnemar(a, b) == pytest.approx(stats.binomtest(2, 11).pvalue)
    assert mcnemar(a, a) == 1.0
    assert mean_change(a, b, range(31)).value == pytest.approx(-7 / 31)
    assert mean_change(a, a, range(31)).low < 0 < mean_change(a, a, range(31)).high


def test_questions_that_hardly_change_do_not_show_that_none_does() -> None:
    """Ten samples of thirty questions, none of which changed: one question in twenty could still."""
    a = np.tile([1.0, 0.0], 150)
    questions = np.repeat(np.arange(30), 10).tolist()
    same = mean_change(a, a, questions)
    assert same.low < -0.05 < 0.05 < same.high
    assert (same.low, same.high) == pytest.approx(astuple_of(mean_change(a[:30], a[:30], range(30))))


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=60), st.integers(2, 4))
def test_a_question_asked_again_counts_once(rows: list[tuple[bool, bool]], times: int) -> None:
    """An id that repeats with the same outcome says nothing new."""
    a, b = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    names = list(range(len(rows)))
    once, again = mean_change(a, b, names), mean_change(np.tile(a, times), np.tile(b, times), names * times)
    assert astuple_of(again) == pytest.approx(astuple_of(once))


def test_a_change_that_is_the_same_everywhere_is_one() -> None:
    """All sixty answers went from the best score to the worst: there is no spread, but no doubt either."""
    fell = mean_change([1.0] * 60, [-1.0] * 60, range(60), "points")
    assert -2 == fell.low < fell.high < -1.5
    assert mean_change([0.0] * 60, [0.0] * 58 + [1.5, 2.0], range(60), "points").low is None


def test_bonett_and_prices_interval_by_hand() -> None:
    a, b = [0] * 3 + [1] + [1] * 16, [1] * 3 + [0] + [1] * 16
    centre = 2 / 22
    half = stats.norm.ppf(0.975) * np.sqrt((4 / 22 + 2 / 22 - centre**2) / 22)
    assert astuple_of(mean_change(a, b, range(20))) == pytest.approx((centre - half, centre + half))


@given(st.lists(st.integers(0, 5), min_size=2, max_size=60))
def test_shares_of_equal_clusters_are_shares_of_their_means(right: list[int]) -> None:
    ratio = ratio_of_means(right, [5] * len(right), "share of pairs")
    mean = mean_by_question([k / 5 for k in right], range(len(right)), "share of pairs")
    assert astuple_of(ratio) == pytest.approx(astuple_of(mean))


def test_three_of_three_do_not_show_that_all_are() -> None:
    figure = ratio_of_means([4.0, 6.0, 5.0], [4.0, 6.0, 5.0], "share of pairs")
    assert figure.low < 0.4
    assert figure.high == 1
    assert astuple_of(ratio_of_means([5] * 9, [5] * 9, "share of pairs")) == pytest.approx(
        astuple_of(proportion(9, 9)), abs=1e-6
    )


def test_a_skewed_mean_reaches_further_to_the_tail() -> None:
    rng = np.random.default_rng(4)
    skewed = rng.lognormal(0, 1, 35)
    figure = mean_by_question(skewed, range(35), "nats")
    mirrored = mean_by_question(-skewed, range(35), "nats")
    assert figure.high - figure.value > 1.3 * (figure.value - figure.low)
    assert (mirrored.low, mirrored.high) == pytest.approx((-figure.high, -figure.low))


def test_the_ratio_of_training_runs_inverts_and_of_equal_weights_it_is_students_mean() -> None:
    """What is divided by what does not matter to what is known (Fieller)."""
    rng = np.random.default_rng(5)
    a, b = rng.normal(3, 0.2, 5), rng.normal(2, 0.2, 5)
    ratio, other = ratio_over_seeds(a, b, "times"), ratio_over_seeds(b, a, "times")
    assert astuple_of(ratio) == pytest.approx((1 / other.high, 1 / other.low))
    mean = ratio_over_seeds(a, np.ones(5), "nats")
    assert astuple_of(mean) == pytest.approx(stats.t.interval(0.95, 4, a.mean(), stats.sem(a)))
    assert ratio_over_seeds(a[:1], b[:1], "times").why == "one seed only"
    assert "divided by" in ratio_over_seeds(a[:3], [1.0, -1.0, 0.5], "times").why


@pytest.mark.parametrize("sign", [1, -1])
def test_values_without_bounds_allow_for_one_twice_as_far_out(sign: int) -> None:
    """Student's interval of the sample with that one; also of a ratio of equal weights, whatever their sign."""
    value = np.random.default_rng(6).exponential(1, 40)
    mean, far = value.mean(), value - value.mean()
    ends = []
    for at, further in enumerate((mean + 2 * far.min(), mean + 2 * far.max())):
        more = np.append(value, further)
        ends.append(stats.t.interval(0.95, 40, more.mean(), stats.sem(more))[at])
    assert astuple_of(mean_by_question(value, range(40), "nats")) == pytest.approx(tuple(ends))
    ratio = ratio_of_means(sign * value, [sign * 2.0] * 40, "nats a word")
    assert astuple_of(ratio) == pytest.approx(tuple(end / 2 for end in ends))


def test_values_without_bounds_need_thirty_questions() -> None:
    value = np.random.default_rng(7).normal(0, 1, MIN_QUESTIONS)
    for n in (3, 10, MIN_QUESTIONS - 1):
        for figure in (
            mean_by_question(value[:n], range(n), "nats"),
            ratio_of_means(value[:n], np.ones(n), "nats a word"),
            mean_change(np.zeros(n), value[:n], range(n), "points"),
            mean_change(np.zeros(n), np.full(n, 2.0), range(n), "points"),
        ):
            assert figure.value is not None
            assert figure.low is None
            assert "too few" in figure.why
    assert "rare ones" in mean_by_question(value[1:], range(MIN_QUESTIONS - 1), "nats").why
    assert mean_by_question(value, range(MIN_QUESTIONS), "nats").low is not None


@given(st.lists(st.integers(0, 6), min_size=2, max_size=40), st.sampled_from([(-3.0, 2.7), (-1.0, 1.0), (0.0, 6.0)]))
def test_values_within_bounds_are_shares_of_the_way(eighths: list[int], within: tuple[float, float]) -> None:
    least, most = within
    value = [least + (most - least) * k / 6 for k in eighths]
    share = mean_by_question([k / 6 for k in eighths], range(len(value)), "share")
    got = mean_by_question(value, range(len(value)), "points", within=within)
    assert astuple_of(got) == pytest.approx(tuple(least + (most - least) * end for end in astuple_of(share)))


def test_equal_scores_do_not_show_that_none_is_bad() -> None:
    """Ten answers of 2.6 points each: one in five could still be the worst there is."""
    figure = mean_by_question([2.6] * 10, range(10), "points", within=(-3.0, 2.7))
    assert figure.low is not None
    assert figure.low < 0.8 * 2.6 + 0.2 * -3.0
    change = mean_change([2.6] * 10, [2.6] * 10, range(10), "points", within=(-3.0, 2.7))
    assert change.low == -change.high < -1


def test_where_nearly_all_values_are_the_same_there_is_no_interval_but_a_reason() -> None:
    few = [0.0] * 26 + [1.5, 2.0, 0.3, 0.4]
    for figure in (
        mean_by_question(few, range(30), "nats"),
        mean_by_question([0.2] * 30, range(30), "nats"),
        ratio_of_means(few, [1.0] * 30, "times"),
        mean_change([0.0] * 30, few, range(30), "points"),
        mean_change([0.3] * 30, [0.3] * 30, range(30), "points"),
        mean_change([0.3] * 3, [0.3] * 3, range(3), "points"),
        ratio_of_means([1.0] * 30, few, "J per right answer"),
    ):
        assert figure.value is not None
        assert figure.low is None
        assert "too few" in figure.why
        assert figure.json()["why"] == figure.why


def astuple_of(figure: Figure) -> tuple[float, float]:
    assert figure.low is not None
    assert figure.high is not None
    return figure.low, figure.high


def width(figure: Figure) -> float:
    assert figure.low is not None
    assert figure.high is not None
    return figure.high - figure.low
