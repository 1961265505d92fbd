"""Bench of minutes: a run is timed from its command's start to its end, against what it planned."""

from __future__ import annotations

from pathlib import Path

import pytest
from train_toys import FEW

from benchmarks.minutes import WITHIN, _timed, minutes, told
from klype.errors import UsageError


@pytest.mark.slow
def test_a_run_is_timed_and_its_plan_is_its_minutes(tmp_path: Path) -> None:
    shape = ("model.width=16", "model.heads=2", "model.hidden=32", "model.layers=1", "world=small")
    given = [part for setting in (*FEW, *shape) for part in ("--set", setting)]
    row = _timed(given, "world", 0.05, tmp_path / "run", 3)
    assert row["planned_s"] == pytest.approx(3.0)
    assert row["taken_s"] >= row["run_s"] == row["seconds"]["total"]
    assert row["ratio"] == pytest.approx(row["taken_s"] / 3.0, rel=0.01)
    assert row["within"] == (row["ratio"] <= 1 + WITHIN and (row["early"] or row["ratio"] >= 1 - WITHIN))
    assert "world, 0.05 minutes: planned 3 s" in told(row)


def test_a_run_that_fails_is_said_and_is_not_within(tmp_path: Path) -> None:
    row = _timed(["--text", str(tmp_path / "nothing.txt")], "text", 1, tmp_path / "run", 0)
    assert not row["within"]
    assert "there is nothing at" in told(row)


@pytest.mark.parametrize(("recipes", "sizes"), [(("nothing",), (1.0,)), ((), ()), ((), (0.0,))])
def test_what_cannot_be_timed_is_refused(recipes: tuple[str, ...], sizes: tuple[float, ...]) -> None:
    with pytest.raises(UsageError):
        minutes(recipes, sizes, lambda line: None)
