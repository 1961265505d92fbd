"""Published figures: known closed forms, and a file of names whose likelihood is known by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import pytest

from klype.bench.monofacts import bigram_world, singletons
from klype.bench.published import Row, bigram, published, speculation, speculative, wald_coverage
from klype.errors import UsageError
from klype.values import Figure


@pytest.mark.parametrize(("alpha", "drafted"), [(0.8, 5), (0.3, 2), (0.95, 8)])
def test_speculation_is_its_closed_form(alpha: float, drafted: int) -> None:
    figure = speculation(alpha, drafted, 1)
    assert figure.value == pytest.approx((1 - alpha ** (drafted + 1)) / (1 - alpha), rel=0.01)


def test_wald_covers_as_brown_cai_and_dasgupta_say() -> None:
    assert round(wald_coverage(100, 0.106).value or 0, 3) == 0.952
    assert round(wald_coverage(100, 0.107).value or 0, 3) == 0.911


def test_bigram_by_hand(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\nb\n")
    assert bigram(tmp_path / "names.txt").value == pytest.approx(math.log(2) / 2)  # a or b; then the end for certain


def test_a_world_whose_facts_are_all_known_has_none_false() -> None:
    """The false ones are what bigrams mix up: the more is said of a few facts, the fewer there are."""
    few, many = bigram_world(0.3, 0), bigram_world(5.0, 0)
    assert few[0] < many[0]
    assert few[1] < many[1]
    for false, once, miscalibration in (few, many):
        assert 0 <= once <= 1
        assert 0 <= miscalibration <= 1
        assert false >= once - miscalibration  # Kalai & Vempala's bound


def test_who_remembers_is_wrong_about_as_often_as_a_question_was_seen_once() -> None:
    """Good and Turing: what was not seen weighs about as much as what was seen once."""
    false, least, most = singletons(0)
    assert least < (false.value or 0) < most
    assert false.value == pytest.approx(math.exp(-0.5) * 0.99, abs=0.005)


@pytest.mark.parametrize(("low", "bound", "agrees"), [(0.2, "least", True), (0.0, "least", False), (0.0, "most", True)])
def test_a_bound_is_kept_by_the_whole_interval(low: float, bound: Literal["least", "most"], agrees: bool) -> None:
    row = Row("x", "y", 0.1, 0.0, Figure(low, low - 0.05, low + 0.05), bound)
    assert row.json()["agrees"] is agrees


@pytest.mark.slow
def test_what_cannot_be_run_says_so_and_nothing_disagrees(tmp_path: Path) -> None:
    found = published()
    assert found["passed"]
    assert all(row["agrees"] is not None or "not run" in row["ours"]["why"] for row in found["rows"])
    with pytest.raises(UsageError, match="no file"):
        published(tmp_path / "absent.txt")


@pytest.mark.slow
def test_speculation_accepts_the_overlap_and_draws_what_the_model_would() -> None:
    """Over seeds the ratio is one in its mean, and χ² ÷ its degrees of freedom as well."""
    rows = [speculative(seed, 300) for seed in range(4)]
    for row, tolerance in ((0, 0.1), (1, 0.6)):
        values = [found[row].ours.value or 0.0 for found in rows]
        assert sum(values) / len(values) == pytest.approx(1, abs=tolerance)
