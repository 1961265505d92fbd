"""The plan of a stage: who computes, and how it is put right once."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from train_toys import Seeded, random_batch, tiny_model

from klype.data.batches import WithRehearsal
from klype.errors import TrainingInterrupted
from klype.planner import MAX_RESERVED, MIN_STEPS, StepBudget, StepPlan, divide, first_that_fits
from klype.runs.machine_probe import seconds_per_step, thread_configs
from klype.runs.recipe import read
from klype.train.loop import TrainSession, TrainSettings, train
from klype.train.objectives import Objective, cross_entropy
from klype.train.resume import states
from klype.values import Batch, Batches

PLAN = StepPlan(1000, 100.0, 2, 1, "bfloat16")


def go(budget: StepBudget, seconds_a_step: float, start: int = 0) -> int:
    """Steps at a steady budget until the plan changes or is done; the last step."""
    for step in range(start + 1, budget.plan.steps + 1):
        budget.watch(step, step * seconds_a_step)
        if budget.changed:
            return step
    return budget.plan.steps


def follow(budget: StepBudget, seconds_a_step: float) -> list[tuple[bool, int]]:
    """Of each start: whether it resumes, and the step that it comes to."""
    starts: list[tuple[bool, int]] = []

    def train() -> None:
        starts.append((budget.resumes, go(budget, seconds_a_step, starts[-1][1] if starts else 0)))
        if budget.changed:
            raise TrainingInterrupted("stopped")

    budget.follow(train)
    return starts


@pytest.mark.parametrize("seconds_a_step", [0.05, 0.085, 0.13, 0.4])
def test_a_training_ends_on_time_at_the_pace_that_it_really_goes(seconds_a_step: float) -> None:
    known, kept = PLAN.json(), list[int]()
    budget = StepBudget(known, 0.0, lambda: kept.append(known["then"]["steps"]))
    assert follow(budget, seconds_a_step) == [(False, 300), (True, budget.plan.steps)]  # once is enough
    assert kept == [budget.plan.steps]
    assert budget.plan.steps * seconds_a_step == pytest.approx(
        max(PLAN.seconds, (300 + MIN_STEPS) * seconds_a_step), rel=0.01
    )


def test_a_stop_that_is_no_change_of_plan_stops() -> None:
    def train() -> None:
        raise TrainingInterrupted("Ctrl-C")

    with pytest.raises(TrainingInterrupted, match="Ctrl-C"):
        StepBudget(PLAN.json(), 0.0).follow(train)


def test_ctrl_c_while_the_plan_is_changed_stops(tmp_path: Path) -> None:
    """It comes while the state is saved for the new plan: training must not go on."""
    known = {**PLAN.json(), "then": {"at": 3, "steps": 900}}
    budget, starts = StepBudget(known, 0.0), []

    class Late(Seeded):
        def state(self) -> dict[str, Any]:
            os.kill(os.getpid(), signal.SIGINT)
            return super().state()

    def start() -> None:
        starts.append(budget.plan.steps)
        session = TrainSession(on_step=lambda step, metrics: budget.watch(step, 0.0), stop=lambda: budget.changed)
        train(tiny_model(), cross_entropy, Late(), TrainSettings(steps=8), tmp_path, session)

    with pytest.raises(TrainingInterrupted) as stopped:
        budget.follow(start)
    assert stopped.value.asked
    assert starts == [1000]
    assert [place.name for place in states(tmp_path)] == ["step-000003"]


def test_a_plan_that_holds_is_kept() -> None:
    budget = StepBudget(PLAN.json(), 0.0)
    assert go(budget, 0.102) == 1000
    assert budget.plan == PLAN


def test_steps_that_were_asked_for_are_kept_and_the_most_is_not_passed() -> None:
    assert follow(StepBudget(StepPlan(1000, 0.0).json(), 0.0), 0.9) == [(False, 1000)]
    assert follow(StepBudget(PLAN.json(), 0.0, most=1200), 0.05) == [(False, 300), (True, 1200)]


def test_a_resumed_run_changes_over_at_the_same_step() -> None:
    known = {**PLAN.json(), "then": {"at": 300, "steps": 640}}
    assert go(StepBudget(known, 0.0, at=120), 0.01, start=120) == 300
    assert StepBudget(known, 0.0, at=300).plan.steps == 640


SHARES = {"pretrain": 0.6, "finetune": 0.2, "rank": 0.04, "examine": 0.16}
SECONDS = st.floats(0.1, 1e6)


@given(SECONDS, st.floats(0, 1e6), st.floats(0, 1e6))
def test_time_is_divided_whole_and_by_the_shares_where_nothing_needs_more(left: float, a: float, b: float) -> None:
    found = divide(left, SHARES, {"examine": a, "rank": b})
    assert sum(found.values()) == pytest.approx(left)
    assert min(found.values()) >= 0
    assert found["pretrain"] / found["finetune"] == pytest.approx(3)
    assert found["pretrain"] >= 0.75 * (1 - MAX_RESERVED) * left * (1 - 1e-9)
    plain = {name: share * left for name, share in SHARES.items()}
    assert divide(left, SHARES, {}) == pytest.approx(plain)
    assert divide(left, SHARES, {"examine": min(a, plain["examine"]), "rank": 0.0}) == pytest.approx(plain)


def test_what_takes_as_long_as_it_takes_is_kept_for_it_and_the_most_important_first() -> None:
    assert divide(100.0, SHARES, {"examine": 30.0, "rank": 10.0}) == pytest.approx(
        {"examine": 30.0, "rank": 10.0, "pretrain": 45.0, "finetune": 15.0}
    )
    crowded = divide(100.0, SHARES, {"examine": 45.0, "rank": 90.0})
    assert crowded == pytest.approx({"examine": 45.0, "rank": 5.0, "pretrain": 37.5, "finetune": 12.5})


@given(st.lists(st.floats(0, 10), min_size=1), st.floats(0, 10))
def test_the_first_that_fits_is_taken_or_the_last(costs: list[float], most: float) -> None:
    fitting = [cost for cost in costs if cost <= most]
    assert first_that_fits(costs, float, most) == (fitting[0] if fitting else costs[-1])


def test_threads_use_all_cores_and_no_more_workers_than_there_is_work() -> None:
    assert thread_configs(1, 2) == [(1, 1)]
    assert thread_configs(2, 1) == [(1, 1), (1, 2)]
    assert thread_configs(8, 2) == [(1, 1), (1, 8), (2, 4)]
    assert all(
        workers * threads <= cores
        for cores in range(1, 9)
        for m in range(1, 9)
        for workers, threads in thread_configs(cores, m)
    )


def test_a_plan_comes_back_from_its_record() -> None:
    assert StepPlan.parse(PLAN.json()) == PLAN


def test_a_plan_made_longer_or_cut_keeps_its_pace() -> None:
    longer, cut = PLAN.longer(50.0), PLAN.at_most(300)
    assert (longer.steps, longer.seconds) == (1500, pytest.approx(150.0))
    assert (cut.steps, cut.seconds) == (300, pytest.approx(30.0))
    assert PLAN.at_most(5000) == PLAN.longer(0.0) == PLAN
    assert StepPlan(1000, 0.0).longer(9.0).steps == 1000  # steps that were asked for have no budget


def test_a_text_that_is_met_more_often_decays_more() -> None:
    options = ("pretrain.decay_a_pass=0.1", "pretrain.decay_tokens=0")
    recipe = read("text", ("pretrain.rows=8", "model.window=256", *options))
    decays = [recipe.pretraining(steps, 2048 * 100).optimizer.decay for steps in (0, 300, 900, 5000)]
    assert decays == [0.0, pytest.approx(0.3), pytest.approx(0.9), 1.0]
    assert recipe.pretraining(900, None) == recipe.training("pretrain")


def test_the_shorter_a_text_the_stronger_it_decays_up_to_a_half() -> None:
    recipe = read("text", ("pretrain.decay_tokens=1000",))
    decays = [recipe.pretraining(50, tokens).optimizer.decay for tokens in (100, 2000, 4000, 10**6)]
    assert decays == [0.5, 0.5, 0.25, 0.001]
    assert recipe.pretraining(5000, 4000) == recipe.pretraining(50, 4000)
    assert recipe.pretraining(50, None) == recipe.training("pretrain")


@pytest.mark.parametrize("at", [2, 9])
def test_ctrl_c_while_it_tries_out_how_long_a_step_takes_is_heard(at: int) -> None:
    def spoilt(number: int) -> Batch:
        if number == at:
            signal.raise_signal(signal.SIGINT)
        return random_batch(number)

    def build(model: nn.Module) -> tuple[Objective, Batches]:
        return cross_entropy, Seeded(spoilt)

    model, before = tiny_model(), torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        seconds_per_step(model, build, StepPlan(20, 0.0), TrainSettings(steps=20), cores=1)
    assert torch.equal(before, torch.get_rng_state())


def test_a_probe_ends_by_itself_when_it_takes_too_long() -> None:
    drawn = []

    def build(model: nn.Module) -> tuple[Objective, Batches]:
        return cross_entropy, Seeded(lambda number: drawn.append(number) or random_batch(number))

    assert seconds_per_step(tiny_model(), build, StepPlan(50, 0.0), TrainSettings(steps=50), 1, longest=0.0) > 0
    assert len(drawn) < 20


def test_what_rehearsal_is_beside_is_closed() -> None:
    class Closing(Seeded):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    main = Closing()
    WithRehearsal(main, random_batch).close()
    assert main.closed == 1
    WithRehearsal(Seeded(), random_batch).close()  # nothing to close
