"""Bench of trainers: both learn the same from the same, tokens are counted alike, and bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.align import BOUNDS, align, ratio
from benchmarks.align_task import TASKS, WARM, Given, Sizes, prepare
from benchmarks.align_trainers import Klype, Trl
from klype.errors import UsageError

SMALL = Sizes(width=16, layers=1, heads=2, hidden=16, rows=2, questions=2, answers=2, limit=3, steps=2)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    torch.set_num_threads(1)
    made = prepare(tmp_path_factory.mktemp("bench"), SMALL, 1)
    file = Path(made.folder).parent / "given.json"
    made.write(file)
    return Given.read(file)


@pytest.mark.slow
def test_klype_learns_from_what_was_given_and_counts_it(given: Given, tmp_path: Path) -> None:
    trainer = Klype()
    trainer.load(given)
    found = {task: trainer.train(task, tmp_path / task) for task in TASKS}
    assert all(found[task]["seconds"] > 0 for task in TASKS)
    pairs = sum(2 * len(p) + len(c) + len(r) for p, c, r in given.pairs)
    assert found["reward"]["tokens"] == pairs
    assert found["reward"]["completions"] == 2 * len(given.pairs)
    assert found["grpo"]["completions"] == SMALL.steps * SMALL.questions * SMALL.answers
    asked = given.prompts[WARM * SMALL.questions :]
    assert found["grpo"]["tokens"] == SMALL.answers * sum(len(ids) + SMALL.limit for _, ids in asked)
    assert found["dpo"]["completions"] == 2 * SMALL.rows * SMALL.steps


def test_both_begin_with_the_same_loss(given: Given, tmp_path: Path) -> None:
    """Before anything is learnt (a rate near 0) the losses over the same texts are equal, and those of DPO ln 2."""
    pytest.importorskip("trl")
    klype, trl = Klype(), Trl()
    klype.load(given)
    trl.load(given)
    ours, theirs = (t.train("dpo", tmp_path / "dpo") for t in (klype, trl))
    assert ours["loss"] == pytest.approx(theirs["loss"], abs=2e-3)
    assert ours["completions"] == theirs["completions"]
    ours, theirs = (t.train("sft", tmp_path / "sft") for t in (klype, trl))
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)


def test_ratios_are_of_rates_within_rounds_and_name_what_is_missing() -> None:
    def runs(tokens: int, *seconds: float) -> list[dict[str, Any]]:
        return [{"tokens": tokens, "seconds": s} for s in seconds]

    timed = {("klype", "sft"): runs(100, 1.0, 2.0, 1.0), ("TRL", "sft"): runs(50, 1.0, 3.0, 4.0)}
    found = ratio(timed, "sft", "seconds", {})
    assert (found.value, found.low, found.high, found.n) == (3.0, 2.0, 8.0, 3)
    missing = ratio({("klype", "sft"): runs(1, 1.0)}, "sft", "seconds", {"TRL": "trl is not installed"})
    assert missing.value is None
    assert "trl is not installed" in missing.why
    assert set(BOUNDS) == set(TASKS)


def test_bad_input_starts_nothing() -> None:
    with pytest.raises(UsageError, match="minutes"):
        align(0, print)
    with pytest.raises(UsageError, match="no task 'ppo'"):
        align(1, print, only=("ppo",))
