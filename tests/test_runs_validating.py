"""Held-out text is measured while a model learns; the best weights are kept, across a restart too."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train_parallel import team
from train_toys import FEW, NARROW, Seeded, random_batch, tiny_model

from klype.data.readers import BadRows
from klype.errors import KlypeError, TrainingInterrupted
from klype.runs import pipeline
from klype.runs.best_weights import BestWeights, ValidatedBatches, validation_interval
from klype.runs.listener import SilentListener
from klype.runs.recipe import read
from klype.runs.run_options import StageOptions
from klype.runs.text_task import TextTask
from klype.train import parallel
from klype.train.flat_parameters import weights_of
from klype.train.loop import TrainSession, TrainSettings, train
from klype.train.objectives import cross_entropy
from klype.train.resume import states
from klype.values import Batch, Loss

HELD_OUT = random_batch(99)


def loss_of(model: torch.nn.Module) -> float:
    with torch.no_grad():
        loss = cross_entropy(model, HELD_OUT)
    return float(loss.total / loss.count)


def run(folder: Path, session: TrainSession, steps: int = 12) -> tuple[torch.nn.Module, ValidatedBatches]:
    """On four batches over and over, which are learnt by heart: held-out text becomes worse."""
    model = tiny_model()
    batches = ValidatedBatches(Seeded(lambda i: random_batch(i % 4)), [HELD_OUT], model, 2, folder)
    settings = TrainSettings(steps=steps, save_seconds=0.0, save_every=1)
    train(model, cross_entropy, batches, settings, folder, replace(session, on_ready=batches.set_measure))
    return model, batches


def test_what_was_seen_is_the_loss_of_the_model_as_it_was(tmp_path: Path) -> None:
    model = tiny_model()
    before = loss_of(model)
    batches = ValidatedBatches(Seeded(), [HELD_OUT], model, 3, tmp_path)
    for _ in range(4):
        batch = next(batches)
    assert batches.seen == [(3, pytest.approx(before))]
    assert batch.extra["metrics"] == {"validation": pytest.approx(before)}
    lines = run(tmp_path / "trained", TrainSession())[1].seen
    assert [drawn for drawn, _ in lines] == [2, 4, 6, 8, 10]
    told = [json.loads(line) for line in (tmp_path / "trained" / "metrics.jsonl").read_text().splitlines()]
    assert "validation" not in told[1]
    assert [row["validation"] for row in told[2::2]] == [pytest.approx(loss) for _, loss in lines]


def test_looking_changes_nothing_that_is_learnt(tmp_path: Path) -> None:
    model, plain = run(tmp_path / "looked", TrainSession())[0], tiny_model()
    settings = TrainSettings(steps=12, save_seconds=0.0)
    train(plain, cross_entropy, Seeded(lambda i: random_batch(i % 4)), settings, tmp_path / "plain")
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
def test_the_best_weights_come_back_straight_or_resumed(tmp_path: Path, stopped: bool) -> None:
    if stopped:
        asked = iter([False] * 7 + [True])
        with pytest.raises(TrainingInterrupted):
            run(tmp_path, TrainSession(stop=lambda: next(asked)), 60)
    model, batches = run(tmp_path, TrainSession(resume=stopped), 60)
    seen = batches.seen
    assert batches.finish()  # learnt by heart: the last is not the best
    assert batches.kept is not None
    assert batches.kept[1] == min(loss for _, loss in seen) == pytest.approx(loss_of(model), rel=1e-6)
    assert list(tmp_path.glob("best-*"))
    BestWeights(model, tmp_path).forget()
    assert not list(tmp_path.glob("best-*"))


def test_where_the_last_is_the_best_it_stays(tmp_path: Path) -> None:
    model = tiny_model()
    batches = ValidatedBatches(Seeded(lambda i: HELD_OUT), [HELD_OUT], model, 2, tmp_path)
    train(model, cross_entropy, batches, TrainSettings(steps=20, save_seconds=0.0), tmp_path)
    after = loss_of(model)
    assert not batches.finish()
    assert batches.kept == (20, pytest.approx(after))


@pytest.mark.slow
def test_best_weights_that_are_gone_are_missed(tmp_path: Path) -> None:
    run(tmp_path, TrainSession(), 60)
    for file in tmp_path.glob("best-*"):
        file.unlink()
    batches = run(tmp_path, TrainSession(resume=True), 60)[1]
    with pytest.raises(KlypeError, match=r"best-\d+.safetensors, the best weights so far, is missing"):
        batches.finish()


def _by_some(folder: Path, stop_at: int, steps: int = 60) -> None:
    """A life, or a part of one that is stopped or gone on with, on however many processes."""
    asked = iter([False] * stop_at + [True])
    stop = (lambda: next(asked)) if stop_at else (lambda: False)
    session = TrainSession(resume=bool(states(folder)), stop=stop)
    try:
        model, batches = run(folder, session, steps)
    except TrainingInterrupted:
        return
    assert batches.finish()
    assert batches.kept is not None
    assert batches.kept[1] == pytest.approx(loss_of(model), rel=1e-5)
    torch.save((batches.kept, model.state_dict()), folder / f"best-of-{parallel.rank()}.pt")


@pytest.mark.slow
def test_several_processes_keep_the_best_weights_as_one_does(tmp_path: Path) -> None:
    """Straight by one and by two; begun by two, gone on with by one, and the other way round."""
    for name, first, then in (("one", 1, 0), ("two", 2, 0), ("two-one", 2, 1), ("one-two", 1, 2)):
        team(first, partial(_by_some, tmp_path / name, 30 if then else 0), tmp_path / name)
        if then:
            assert list((tmp_path / name).glob("best-*.safetensors"))  # after step 30 the best lies behind
            team(then, partial(_by_some, tmp_path / name, 0), tmp_path / name)
    (at, loss), straight = torch.load(tmp_path / "one" / "best-of-0.pt", weights_only=True)
    assert at < 30
    for file in ("two/best-of-0", "two/best-of-1", "two-one/best-of-0", "one-two/best-of-0", "one-two/best-of-1"):
        (own_at, own_loss), own = torch.load(tmp_path / f"{file}.pt", weights_only=True)
        assert (own_at, own_loss) == (at, pytest.approx(loss, rel=1e-4))
        for name, weight in straight.items():
            torch.testing.assert_close(own[name], weight, rtol=1e-3, atol=1e-4)


def test_a_state_of_several_that_kept_no_weights_is_gone_on_with(tmp_path: Path) -> None:
    """As earlier versions saved it: the least loss lies behind, and the best is that of the looks to come."""
    model = tiny_model()
    batches = ValidatedBatches(Seeded(), [HELD_OUT], model, 1, tmp_path)
    state = {"drawn": 6, "seen": [[2, 0.001], [4, 0.5]], "kept": None, "batches": batches.state()["batches"]}
    batches.restore(json.loads(json.dumps(state)))
    before = copy.deepcopy(model.state_dict())
    next(batches)
    assert batches.kept == (6, pytest.approx(loss_of(model)))
    for weight in model.parameters():
        weight.data.add_(torch.randn_like(weight))
    assert batches.finish()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_the_last_two_best_weights_stay_after_a_million_steps(tmp_path: Path) -> None:
    best = BestWeights(tiny_model(), tmp_path)
    best.keep()
    for step in (999_998, 999_999, 1_000_000, 1_000_001):
        best.save(step)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["best-1000000.safetensors", "best-1000001.safetensors"]


def test_a_loss_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    found = iter([math.nan, 3.0, math.inf, 2.0, math.nan])
    model = tiny_model()
    measure = lambda batch: Loss(torch.tensor(next(found)), torch.tensor(1.0))
    batches = ValidatedBatches(Seeded(), [HELD_OUT], model, 1, tmp_path)
    batches.set_measure(measure, partial(weights_of, model))
    kept = []
    for _ in range(5):
        next(batches)
        kept.append(batches.kept and batches.kept[0])
    assert kept == [None, 1, 2, 2, 4]
    assert batches.finish()


def test_held_out_tokens_are_measured_in_pieces_as_in_one(tmp_path: Path) -> None:
    model = tiny_model()
    whole = (HELD_OUT.tokens_BT, HELD_OUT.targets_BT, HELD_OUT.weights_BT)
    rows = [Batch(*(part[i : i + 1] for part in whole)) for i in range(len(whole[0]))]
    batches = ValidatedBatches(Seeded(), rows, model, 1, tmp_path)
    batches.look()
    assert len(rows) > 1
    assert batches.seen == [(0, pytest.approx(loss_of(model), rel=1e-6))]


def test_looks_are_few_where_time_is_short() -> None:
    assert validation_interval(1000, 0.0) == 100
    assert validation_interval(1000, 600.0) == 100
    assert validation_interval(1000, 18.0) == 333
    assert validation_interval(1000, 1.0) == 500
    assert validation_interval(1, 0.0) == 1


@pytest.mark.slow
def test_a_text_of_ones_own_is_validated(tmp_path: Path) -> None:
    text = tmp_path / "bok.txt"
    text.write_text("\n\n".join(f"Reven gikk {i} ganger over isen. Fisken så på dag {i}." for i in range(300)))
    said: list[str] = []

    class Heard(SilentListener):
        def note(self, text: str) -> None:
            said.append(text)

    options: dict[str, Any] = {"stage": "pretrain", "text": (str(text),), "steps": 20, "out": tmp_path / "run"}
    pipeline.train_stage(StageOptions(**options, overrides=(*NARROW, *FEW)), Heard())
    rows = [json.loads(line) for line in (tmp_path / "run/pretrain/metrics.jsonl").read_text().splitlines()]
    assert {"validation"} <= rows[-1].keys()
    assert any("On held-out text" in line and "nats per token" in line for line in said)
    assert not list((tmp_path / "run" / "pretrain").glob("best-*"))


def test_instructions_are_validated_by_questions_that_nothing_else_asks(tmp_path: Path) -> None:
    text, rows = tmp_path / "bok.txt", tmp_path / "spørsmål.jsonl"
    text.write_text("\n\n".join(f"Reven gikk {i} ganger over isen. Fisken så på dag {i}." for i in range(300)))
    rows.write_text("".join(f'{{"question": "Hva så dyr {i}?", "answer": "Dag {i}."}}\n' for i in range(400)))
    given: dict[str, Any] = {"stage": "finetune", "text": (str(text),), "instructions": rows, "steps": 12}
    options = StageOptions(**given, from_="none", overrides=(*NARROW, *FEW, "finetune.rows=6"))

    def task(seed: int = 0, **more: Any) -> TextTask:
        asked = replace(options, **more, seed=seed)
        return TextTask(read("text", options.overrides), seed, asked, BadRows())

    first = task()
    batches = first.validation_batches("finetune")
    assert all(len(batch.tokens_BT) <= 6 for batch in batches)
    watched, asked = {q.prompt for q in first._watched}, {q.prompt for q in first.held_out}
    assert sum(len(batch.tokens_BT) for batch in batches) == len(watched) == len(first._watched)
    assert 8 <= len(watched) <= 32
    assert not watched & (asked | {q.prompt for q in first._learnt})
    answers = [row[kept].tolist() for b in batches for row, kept in zip(b.targets_BT, b.weights_BT > 0, strict=True)]
    assert {first.chat.tokenizer.decode(ids).strip() for ids in answers} == {q.answers[0] for q in first._watched}
    assert {q.prompt for q in task(seed=5)._watched} == watched  # another stage's seed mixes nothing
    # two answers to every question: both are watched, or asked
    twice = tmp_path / "to.jsonl"
    twice.write_text(rows.read_text() + rows.read_text().replace("Dag ", "Om natta "))
    again = task(instructions=twice)
    assert {q.prompt for q in again._watched} == watched
    assert {q.prompt for q in again.held_out} == asked
    # rankings of held-out questions are not learnt from
    ranked = tmp_path / "p.jsonl"
    pairs = [{"prompt": f"Hva så dyr {i}?", "chosen": "A.", "rejected": "B."} for i in range(400)]
    ranked.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    told = {r.question.prompt for r in task(preferences=ranked).given_rankings}
    assert told == {q.prompt for q in first._learnt}
    few = tmp_path / "få.jsonl"
    few.write_text("".join(rows.read_text().splitlines(keepends=True)[:60]))
    assert task(instructions=few).validation_batches("finetune") == []
    assert task(instructions=few).held_out
