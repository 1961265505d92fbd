"""Laws of the measures of divergence, on toys whose truth is known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klype.examine.calibration import (
    TEMPERATURES,
    best_temperature,
    cross_entropies,
    excess_error,
    rejection_ratio,
    risk_coverage,
)
from klype.examine.evidence import ByQuestion, Evidence, JudgedAnswer
from klype.examine.intervals import mean_by_question
from klype.examine.measures import measure
from klype.examine.repetition import Index, agreement, chao_shen, common_prefix, find_copied, good_turing, unseen_known
from klype.examine.survival import weibull_shape
from klype.values import Distribution


def whole(p: np.ndarray) -> Distribution:
    order = np.argsort(-p)
    return Distribution(order, np.log(p[order]))


def hazard(rng: np.random.Generator, question: str, errors: list[float]) -> JudgedAnswer:
    hit = next((t for t, e in enumerate(errors, 1) if rng.random() < e), None)
    return JudgedAnswer(question, ("w",) * (hit or len(errors)), "length", first_error=hit)


# independence


def test_an_equal_hazard_has_shape_one_and_no_difference() -> None:
    answers = [JudgedAnswer(f"q{i}", ("w",) * 9, "length", s=(0.9,) * 9) for i in range(50)]
    figure = weibull_shape(answers)
    assert figure.value == pytest.approx(1, abs=0.01)
    assert measure(Evidence(answers))["independence"].value == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("k", [0.5, 1.0, 2.0])
def test_the_shape_of_a_weibull_hazard_is_found(k: float) -> None:
    """Exact hazards of a discrete Weibull give its shape back."""
    t = np.arange(1, 13)
    h = 1 - np.exp(-(0.05**k) * (t**k - (t - 1) ** k))
    answers = [JudgedAnswer(f"q{i}", ("w",) * 12, "length", s=tuple((1 - h).tolist())) for i in range(40)]
    assert weibull_shape(answers).value == pytest.approx(k, rel=0.01)


def test_questions_that_differ_bend_the_shape_below_one() -> None:
    rng = np.random.default_rng(0)
    answers = [hazard(rng, str(i), [float(rng.beta(0.5, 9.5))] * 30) for i in range(800)]
    figure = weibull_shape(answers)
    assert figure.high < 1


def test_without_errors_there_is_no_shape() -> None:
    assert weibull_shape([JudgedAnswer("q", ("w",) * 5, "stop")]).why == "too few errors"


def test_the_shape_covers_the_truth() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(40):
        figure = weibull_shape([hazard(rng, str(i), [0.1] * 15) for i in range(120)])
        hits += figure.low <= 1 <= figure.high
    assert hits >= 40 * (0.95 - 5 * math.sqrt(0.05 * 0.95 / 40))


# entropies, unseen, agreement


@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=30))
def test_chao_shen_lies_between_nothing_and_infinity_and_sees_only_classes(said: list[str]) -> None:
    value = chao_shen(said)
    assert value is not None
    assert 0 <= value < math.inf
    assert chao_shen([{"a": 1, "b": 2, "c": 3, "d": 4}[x] for x in said]) == pytest.approx(value)
    if len(set(said)) == 1:
        assert value == 0


def test_chao_shen_is_nearer_than_plug_in() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(12, 1.0))
    true = -(p * np.log(p)).sum()
    estimates, plugged = [], []
    for _ in range(400):
        said = rng.choice(12, 16, p=p).tolist()
        estimates.append(chao_shen(said))
        share = np.bincount(said) / 16
        plugged.append(-(share[share > 0] * np.log(share[share > 0])).sum())
    assert abs(np.mean(estimates) - true) < 0.5 * abs(np.mean(plugged) - true)


def test_chao_shen_of_draws_all_different_is_finite() -> None:
    assert chao_shen([1, 2, 3]) > math.log(3)
    assert chao_shen([1]) is None


def test_an_entropy_known_between_bounds_has_an_interval_that_holds_both_of_theirs() -> None:
    """From the lower bounds' interval to the upper ones'; where they have none, what is certain of these questions."""
    rng = np.random.default_rng(4)
    ends = [(float(low), float(low + gap)) for low, gap in zip(rng.gamma(4, 1, 40), rng.random(40), strict=True)]
    answers = [JudgedAnswer(f"q{i}", ("w",), "stop", entropy_bounds=both) for i, both in enumerate(ends)]
    found = measure(Evidence(answers))["answer_entropy"]
    low, high = (mean_by_question([both[i] for both in ends], range(40), "nats") for i in (0, 1))
    assert (found.low, found.value, found.high) == (low.low, pytest.approx((low.value + high.value) / 2), high.high)
    assert not found.certain
    few = measure(Evidence(answers[:29]))["answer_entropy"]
    assert (few.low, few.high) == pytest.approx(tuple(np.mean(ends[:29], axis=0)))
    assert few.certain


def test_unseen_is_what_known_probabilities_leave_and_lies_in_zero_one() -> None:
    assert unseen_known([("a", math.log(0.5)), ("a", math.log(0.5)), ("b", math.log(0.2))]) == pytest.approx(0.3)
    assert unseen_known([("a", 0.0)]) == 0


@given(st.lists(st.integers(0, 6), min_size=1, max_size=40))
def test_good_turing_lies_in_zero_one(said: list[int]) -> None:
    figure = good_turing(said)
    assert 0 <= figure.low <= figure.value <= figure.high <= 1
    assert figure.value == sum(said.count(x) == 1 for x in set(said)) / len(said)


def test_ten_draws_that_all_differ_do_not_show_that_all_is_unseen() -> None:
    figure = good_turing(list(range(10)))
    assert figure.low < 0.75
    assert figure.high == figure.value == 1
    assert good_turing(["a"] * 10).high > 0.2


def test_unseen_is_good_turings_where_probabilities_are_not_told() -> None:
    said = [JudgedAnswer(q, (w,), "stop") for q, words in (("a", "xxyz"), ("b", "xxxx")) for w in words]
    assert measure(Evidence(said))["unseen"].value == pytest.approx((2 / 4 + 0 / 4) / 2)
    alone = measure(Evidence(said[:4]))["unseen"]
    assert alone.value == pytest.approx(2 / 4)
    assert alone.low < 0.5 < alone.high


def test_estys_interval_covers_the_unseen_mass() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(300, 0.3))
    hits = 0
    for _ in range(300):
        said = rng.choice(300, 200, p=p)
        figure = good_turing(said.tolist())
        hits += figure.low <= 1 - p[np.unique(said)].sum() <= figure.high
    assert hits / 300 > 0.9


def test_agreement_is_the_sum_of_squares_in_the_mean() -> None:
    """E q(y) = Σ P² = the U-statistic's mean."""
    p = np.array([0.5, 0.3, 0.2])
    exact = (p**2).sum()
    mean = sum(math.prod(p[i] for i in draw) * agreement(list(draw)) for draw in itertools.product(range(3), repeat=4))
    assert mean == pytest.approx(exact)


def test_common_prefix() -> None:
    assert common_prefix([["a", "b"], ["a", "c"], ["a", "b"]]) == pytest.approx((1 + 2 + 1) / 3)
    assert common_prefix([["a"]]) is None


def test_duplicates_change_no_entropy_of_the_tree_kind() -> None:
    """Classes sum unique answers: the same answers drawn twice as often mean the same."""
    figures = [
        measure(
            Evidence(
                [
                    JudgedAnswer("q", ("a",), "stop", meaning=m, drawn_logp=math.log(0.5))
                    for m in (1, 2)
                    for _ in range(n)
                ]
                + [JudgedAnswer("r", ("a",), "stop", meaning=1, drawn_logp=math.log(0.5)) for _ in range(n)]
            )
        )
        for n in (1, 3)
    ]
    assert figures[0]["unseen"].value == figures[1]["unseen"].value == pytest.approx(0.5)


# knowing when it is wrong


@pytest.mark.slow
@given(st.lists(st.booleans(), min_size=2, max_size=30))
def test_a_score_that_says_nothing_gains_nothing_and_the_truth_gains_all(right: list[bool]) -> None:
    questions = list(range(len(right)))
    flat = rejection_ratio([1.0] * len(right), right, questions)
    if len(set(right)) == 1:
        assert flat.value is None
        return
    assert flat.value == pytest.approx(0)
    assert rejection_ratio([float(not r) for r in right], right, questions).value == pytest.approx(1)
    assert rejection_ratio([float(r) for r in right], right, questions).value < 0


def test_a_random_score_gains_nothing_in_the_mean() -> None:
    rng = np.random.default_rng(0)
    right = (rng.random(200) < 0.7).tolist()
    values = [rejection_ratio(rng.random(200).tolist(), right, range(200)).value for _ in range(20)]
    assert abs(np.mean(values)) < 5 * np.std(values) / math.sqrt(20)


def test_few_wrong_answers_say_too_little_of_what_a_score_gains() -> None:
    right = [True] * 35 + [False] * 5
    few = rejection_ratio(np.linspace(0, 1, 40).tolist(), right, range(40))
    assert few.value == pytest.approx(1)
    assert few.low is None
    assert "too few" in few.why


def test_the_last_point_of_risk_coverage_is_the_error_rate() -> None:
    curve = risk_coverage([0.1, 0.9, 0.5, 0.5], [True, False, True, False])
    assert curve[-1] == (1.0, pytest.approx(0.5))
    assert curve[0] == (0.25, 0.0)
    assert curve[1][1] == curve[1][1] == pytest.approx(0.25)


# temperature, excess error


def test_the_truth_itself_is_most_honest_at_one_and_a_sharpened_one_at_its_sharpening() -> None:
    rng = np.random.default_rng(0)
    rows: dict[float, list[np.ndarray]] = {1.0: [], 0.5: []}
    for _ in range(30):
        p = rng.dirichlet(np.full(9, 0.8)) + 1e-9
        p /= p.sum()
        for sharpened in rows:
            q = p ** (1 / sharpened)
            rows[sharpened].append(cross_entropies(dict(enumerate(p)), whole(q / q.sum())))
    assert best_temperature(np.array(rows[1.0])).value == pytest.approx(1, abs=0.01)
    found = best_temperature(np.array(rows[0.5]))
    assert found.value == pytest.approx(2, rel=0.02)


def test_cross_entropy_is_its_definition() -> None:
    p, q = np.array([0.2, 0.8]), np.array([0.6, 0.4])
    at_one = cross_entropies({0: 0.2, 1: 0.8}, whole(q))[len(TEMPERATURES) // 2]
    assert TEMPERATURES[len(TEMPERATURES) // 2] == pytest.approx(1)
    assert at_one == pytest.approx(-(p * np.log(q)).sum())


def test_equal_divergence_on_both_sides_is_no_excess() -> None:
    assert excess_error([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]).value == pytest.approx(0)
    assert excess_error([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]).value == pytest.approx(100)
    assert excess_error([1.0, 1.0], [0.0, 0.0]).why == "a ratio over nothing"
    figures = measure(Evidence(sums=[ByQuestion(1.0 + i, 1.0 + i) for i in range(5)]))
    assert figures["excess_error"].value == pytest.approx(0)


# copied


def test_a_training_document_is_copied_whole_and_a_new_text_is_not() -> None:
    text = "the old dog drank cold water from the deep well today"
    index = Index([text, "another story about a cat that slept"])
    found = find_copied(text, index)
    assert found is not None
    assert (found.longest, found.share, found.text) == (11, 1.0, text)
    new = find_copied("nobody has ever written these seven words", index)
    assert new is not None
    assert new.share == 0
    assert find_copied("too short", index) is None


def test_runs_are_counted_once() -> None:
    index = Index(["a b c d e f g h", "x1 x2 x3 x4 x5"])
    found = find_copied("a b c d e f q x1 x2 x3 x4 x5", index)
    assert found is not None
    assert found.longest == 6
    assert found.share == pytest.approx(11 / 12)
