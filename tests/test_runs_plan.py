"""The plan of a stage: who computes, and how it is put right once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from klype.runs.plan import Crew, Planned, crews
from klype.runs.stages import _Pace

PLAN = Planned(1000, 100.0, Crew(2, 1), "bfloat16")


def run_of(folder: Path, plan: dict[str, Any]) -> Any:
    """What a pace asks of a run: its folder, and a record that can be kept."""
    record = SimpleNamespace(content={"plan": plan}, save=lambda: None)
    return SimpleNamespace(folder=folder, record=record)


def go(pace: _Pace, seconds_a_step: float, start: int = 0) -> int:
    """Steps at a steady pace until the plan changes or is done; the last step."""
    for step in range(start + 1, pace.planned.steps + 1):
        pace.watch(step, step * seconds_a_step)
        if pace.changed:
            return step
    return pace.planned.steps


@pytest.mark.parametrize("seconds_a_step", [0.05, 0.085, 0.13, 0.4])
def test_a_stage_ends_on_time_at_the_pace_that_it_really_goes(tmp_path: Path, seconds_a_step: float) -> None:
    run = run_of(tmp_path, {"pretrain": PLAN.json()})
    pace = _Pace(run, "pretrain", PLAN, now=0.0)
    assert go(pace, seconds_a_step) == 300
    pace.go_on()
    assert pace.resumes
    assert pace.planned.steps * seconds_a_step == pytest.approx(max(PLAN.seconds, 310 * seconds_a_step), rel=0.01)
    assert go(pace, seconds_a_step, 300) == pace.planned.steps  # once is enough


def test_a_plan_that_holds_is_kept(tmp_path: Path) -> None:
    pace = _Pace(run_of(tmp_path, {"pretrain": PLAN.json()}), "pretrain", PLAN, now=0.0)
    assert go(pace, 0.102) == 1000
    assert pace.planned == PLAN


def test_steps_that_were_asked_for_are_kept(tmp_path: Path) -> None:
    asked = Planned(1000, 0.0, Crew())
    pace = _Pace(run_of(tmp_path, {"pretrain": asked.json()}), "pretrain", asked, now=0.0)
    assert go(pace, 0.9) == 1000


def test_a_resumed_run_changes_over_at_the_same_step(tmp_path: Path) -> None:
    known = {"pretrain": {**PLAN.json(), "then": {"at": 300, "steps": 640}}}
    pace = _Pace(run_of(tmp_path, known), "pretrain", PLAN, now=0.0)
    assert go(pace, 0.01, start=120) == 300
    (tmp_path / "pretrain" / "resume" / "step-000300").mkdir(parents=True)
    later = _Pace(run_of(tmp_path, known), "pretrain", PLAN, now=0.0)
    assert later.planned.steps == 640


def test_crews_use_all_cores_and_no_more_workers_than_there_is_work() -> None:
    assert crews(1, 2) == [Crew(1, 1)]
    assert crews(2, 1) == [Crew(1, 1), Crew(1, 2)]
    assert crews(8, 2) == [Crew(1, 1), Crew(1, 8), Crew(2, 4)]
    assert all(c.workers * c.threads <= cores for cores in range(1, 9) for m in range(1, 9) for c in crews(cores, m))


def test_a_plan_comes_back_from_its_record() -> None:
    assert Planned.parse(PLAN.json()) == PLAN


def test_a_plan_made_longer_or_cut_keeps_its_pace() -> None:
    longer, cut = PLAN.longer(50.0), PLAN.at_most(300)
    assert (longer.steps, longer.seconds) == (1500, pytest.approx(150.0))
    assert (cut.steps, cut.seconds) == (300, pytest.approx(30.0))
    assert PLAN.at_most(5000) == PLAN.longer(0.0) == PLAN
    assert Planned(1000, 0.0, Crew()).longer(9.0).steps == 1000  # steps that were asked for have no pace
