"""Rulings: tests share one chance of error, equality needs a margin, and simulated worlds are ruled as they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.rulings import RULED, WORLDS, World, run
from benchmarks.rulings import texts as table_of
from klype.examine.evidence import JudgedAnswer
from klype.examine.hypothesis_tests import (
    ALPHA,
    LEFT,
    Outcome,
    constant_hazard,
    difference_above,
    from_interval,
    independent_errors,
    last_position,
    mean_above,
    rulings,
    stretch_hazards,
)
from klype.examine.survival import ERRED, WEIGHED, hazards, survival


def outcome(supports: float, against: float) -> Outcome:
    return Outcome("t", 0.0, 9, supports, against, 0.1)


def test_holm_is_the_step_down_of_its_definition() -> None:
    """Two of four hypotheses at .02 and .012: .012 ≤ .05/4, then .02 > .05/3."""
    found = rulings({"a": outcome(0.012, 0.9), "b": outcome(0.02, 0.8)})
    assert found == {"a": "supports", "b": "undetermined"}
    assert rulings({"a": outcome(0.012, 0.9), "b": outcome(0.016, 0.8)})["b"] == "supports"
    assert rulings({"a": outcome(0.012, 0.9)}, family=5)["a"] == "undetermined"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_more_hypotheses_never_make_a_ruling_bolder(ps: list[float]) -> None:
    tests = {str(i): outcome(p, 1 - p) for i, p in enumerate(ps)}
    few, many = rulings(tests), rulings(tests, family=40)
    for name, ruling in many.items():
        assert ruling in (few[name], "undetermined")


def test_nothing_but_noise_is_seldom_ruled() -> None:
    """True nulls of five claims, 2,000 documents: at most α of them hold a rejection."""
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(2000):
        p = rng.random((5, 2))
        wrong += any(r != "undetermined" for r in rulings({str(i): outcome(*p[i]) for i in range(5)}).values())
    assert wrong / 2000 <= ALPHA + 3 * (ALPHA * (1 - ALPHA) / 2000) ** 0.5


def around(mean: float, error: float = 0.0025) -> list[float]:
    """A hundred values with this mean, of which the standard error is that."""
    off = np.tile([-1.0, 1.0], 50)
    return (mean + off * error * 100 / off.std(ddof=1) / 10).tolist()


@pytest.mark.parametrize(
    ("mean", "expected"),
    [(0.02, "does_not_support"), (0.044, "does_not_support"), (0.046, "undetermined"), (0.054, "undetermined"),
     (0.056, "supports"), (0.3, "supports"), (-0.3, "does_not_support")],
)  # fmt: skip
def test_an_effect_counts_when_all_of_its_interval_is_beyond_the_margin(mean: float, expected: str) -> None:
    """.02 ± .005 is surely an effect, and surely less than one that counts."""
    found = mean_above(around(mean), range(100), 0.05)
    assert rulings({"x": found}) == {"x": expected}  # type: ignore[dict-item]
    figure = {"value": mean, "low": mean - 0.0049, "high": mean + 0.0049, "n": 100}
    assert rulings({"x": from_interval(figure, 0.05)}) == {"x": expected}  # type: ignore[dict-item]
    none = {"value": 0.0, "low": -1e-6, "high": 1e-6, "n": 100}
    assert rulings({"x": difference_above(figure, none, 0.05)}) == {"x": expected}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [(World("", early=1.2), "supports"), (World("", early=5.0), "does_not_support"),
     (World("", early=1.75), "undetermined")],
)  # fmt: skip
def test_hazards_are_the_same_within_their_margin_and_differ_beyond_it(texts: World, expected: str) -> None:
    """Surely uneven, but by less than counts; by more; by so much that it may be either."""
    rng = np.random.default_rng(3)
    assert rulings({"x": constant_hazard(table_of(texts, rng))}) == {"x": expected}  # type: ignore[dict-item]


@pytest.mark.parametrize(("spread", "expected"), [(0.3, "supports"), (1.0, "does_not_support"), (0.58, "undetermined")])
def test_errors_are_independent_within_their_margin_and_dependent_beyond_it(spread: float, expected: str) -> None:
    table = table_of(World("", spread=spread), np.random.default_rng(4))
    assert rulings({"x": independent_errors(table)}) == {"x": expected}  # type: ignore[dict-item]


def test_an_effect_needs_spread_to_be_judged_by() -> None:
    assert mean_above([0.1] * 5, ["q"] * 5, 0.05) is None
    assert mean_above([0.1] * 5, range(5), 0.05) is None  # no spread: nothing to judge by


def test_ten_values_of_a_question_are_not_ten_questions() -> None:
    rng = np.random.default_rng(2)
    value = rng.normal(0.1, 0.2, 12)
    once = mean_above(value, range(12), 0.05)
    tenfold = mean_above(np.repeat(value, 10), np.repeat(np.arange(12), 10).tolist(), 0.05)
    assert once is not None
    assert tenfold is not None
    assert tenfold.statistic == pytest.approx(once.statistic)


def test_z_is_taken_from_the_side_that_faces_the_bound() -> None:
    figure = {"value": 0.3, "low": 0.1, "high": 0.4, "n": 50}
    above = from_interval(figure, 0.1)
    assert above is not None
    assert above.supports == pytest.approx(0.025, abs=1e-6)  # the interval's end is the bound
    assert from_interval({"value": None}, 0.1) is None
    less = difference_above(
        {"value": 0.3, "low": 0.2, "high": 0.4, "n": 5}, {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}, 0.0
    )
    assert less is not None
    assert less.against < 0.01 < 0.99 < less.supports
    assert less.n == 5


def test_on_equal_beginnings_both_hazards_are_the_same_and_the_rest_stand_for_those_that_erred() -> None:
    """One text in two errs half of the time at word 1, the other never: at word 2 the survivors are a third of it, the
    beginnings half."""
    hard = [JudgedAnswer(f"h{i}", ("w",) * 2, "length", s=(0.5, 0.5)) for i in range(10)]
    gone = [JudgedAnswer(f"g{i}", ("w",), "length", first_error=1, s=(0.5,)) for i in range(10)]
    easy = [JudgedAnswer(f"e{i}", ("w",) * 2, "length", s=(1.0, 1.0)) for i in range(20)]
    total = hazards([*hard, *gone, *easy]).sum(axis=0)
    assert total[1, ERRED] / total[1, 0] == pytest.approx(0.5 / 3)
    assert total[1, WEIGHED] / total[1, 4] == pytest.approx(0.25)
    found = survival([*hard, *gone, *easy])
    assert found.by_position[1].value == pytest.approx(0.75 * 0.75)
    assert found.difference[1].value == pytest.approx(0.75 * (1 - 0.5 / 3) - 0.75 * 0.75)


def test_where_s_is_not_known_there_is_no_reference() -> None:
    answers = [JudgedAnswer(f"q{i}", ("w",) * 3, "length", first_error=3 if i % 2 else None) for i in range(40)]
    found = survival(answers)
    assert {figure.why for figure in (*found.by_position, *found.difference)} == {"S is not known"}
    assert found.independent[0].value is not None


def test_too_few_texts_are_not_tested() -> None:
    answers = [JudgedAnswer(f"q{i}", ("w",) * 9, "length", s=(0.9,) * 9) for i in range(20)]
    table = hazards(answers)
    assert last_position(table) == 0
    assert constant_hazard(table) is None
    assert independent_errors(table) is None
    assert stretch_hazards(table) == []


def test_positions_are_looked_at_as_far_as_enough_are_left() -> None:
    table = table_of(WORLDS[0], np.random.default_rng(0))
    n = last_position(table)
    left = np.cumprod(1 - table[:, :, ERRED].sum(axis=0) / table[:, :, 0].sum(axis=0))
    assert left[n - 1] >= LEFT > left[n]


@pytest.mark.slow
def test_worlds_are_ruled_as_they_are() -> None:
    """The benchmark in small: of 4 × 25 documents none may be wrong but by chance, and most rulings are right."""
    found = run(documents=25, seed=5)
    wrong = sum(row["wrong"]["value"] * row["documents"] for row in found["rows"])
    assert wrong <= 11  # 5 % of 100 are 5: three standard deviations more
    for row in found["rows"]:
        for name in RULED if row["world"] == "dependent" else RULED[:2]:
            assert row["rulings"][name]["right"] >= 0.6, (row["world"], name)


@pytest.mark.soak
def test_worlds_are_ruled_as_they_are_four_hundred_times() -> None:
    found = run()
    assert [row for row in found["rows"] if not row["passed"]] == []
