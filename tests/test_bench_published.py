"""Published figures: known closed forms, and a file of names whose likelihood is known by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from klype.bench.published import bigram, published, speculation, speculative, wald_coverage
from klype.errors import UsageError


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


def test_what_cannot_be_run_says_so_and_nothing_disagrees(tmp_path: Path) -> None:
    found = published()
    assert found["passed"]
    assert all(row["agrees"] is not None or "not run" in row["ours"]["why"] for row in found["rows"])
    with pytest.raises(UsageError, match="no file"):
        published(tmp_path / "absent.txt")


def test_speculation_accepts_the_overlap_and_draws_what_the_model_would() -> None:
    """Over seeds the ratio is one in its mean, and χ² ÷ its degrees of freedom as well."""
    rows = [speculative(seed, 300) for seed in range(4)]
    for row, tolerance in ((0, 0.1), (1, 0.6)):
        values = [found[row].ours.value or 0.0 for found in rows]
        assert sum(values) / len(values) == pytest.approx(1, abs=tolerance)
