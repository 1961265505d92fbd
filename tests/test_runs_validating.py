"""Held-out text is measured while a model learns; the best weights are kept, across a restart too."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from train_toys import FEW, NARROW, Seeded, random_batch, tiny_model

from klype.data.readers import BadRows
from klype.errors import Interrupted, KlypeError
from klype.runs import pipeline
from klype.runs.best import Best
from klype.runs.options import StageOptions
from klype.runs.recipe import read
from klype.runs.say import Silent
from klype.runs.text_subject import TextSubject
from klype.runs.validating import Validated, every
from klype.train.loop import Session, Settings, train
from klype.train.objectives import cross_entropy

HELD_OUT = random_batch(99)


def loss_of(model: torch.nn.Module) -> float:
    with torch.no_grad():
        loss = cross_entropy(model, HELD_OUT)
    return float(loss.total / loss.count)


def run(folder: Path, session: Session, steps: int = 12) -> tuple[torch.nn.Module, Validated]:
    """On four batches over and over, which are learnt by heart: held-out text becomes worse."""
    model = tiny_model()
    batches = Validated(
        Seeded(lambda i: random_batch(i % 4)), HELD_OUT, partial(cross_entropy, model), 2, Best(model, folder)
    )
    settings = Settings(steps=steps, save_seconds=0.0, save_every=1)
    train(model, cross_entropy, batches, settings, folder, session)
    return model, batches


def test_what_was_seen_is_the_loss_of_the_model_as_it_was(tmp_path: Path) -> None:
    model = tiny_model()
    before = loss_of(model)
    batches = Validated(Seeded(), HELD_OUT, partial(cross_entropy, model), 3, Best(model, tmp_path))
    for _ in range(4):
        batch = next(batches)
    assert batches.seen == [(3, pytest.approx(before))]
    assert batch.extra["metrics"] == {"validation": pytest.approx(before)}
    lines = run(tmp_path / "trained", Session())[1].seen
    assert [drawn for drawn, _ in lines] == [2, 4, 6, 8, 10]
    told = [json.loads(line) for line in (tmp_path / "trained" / "metrics.jsonl").read_text().splitlines()]
    assert "validation" not in told[1]
    assert [row["validation"] for row in told[2::2]] == [pytest.approx(loss) for _, loss in lines]


def test_looking_changes_nothing_that_is_learnt(tmp_path: Path) -> None:
    model, plain = run(tmp_path / "looked", Session())[0], tiny_model()
    settings = Settings(steps=12, save_seconds=0.0)
    train(plain, cross_entropy, Seeded(lambda i: random_batch(i % 4)), settings, tmp_path / "plain")
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("stopped", [False, True])
def test_the_best_weights_come_back_straight_or_resumed(tmp_path: Path, stopped: bool) -> None:
    if stopped:
        asked = iter([False] * 7 + [True])
        with pytest.raises(Interrupted):
            run(tmp_path, Session(stop=lambda: next(asked)), 60)
    model, batches = run(tmp_path, Session(resume=stopped), 60)
    seen = batches.seen
    batches.look()
    assert batches.finish()  # learnt by heart: the last is not the best
    assert batches.best[1] == min(loss for _, loss in seen) == pytest.approx(loss_of(model), rel=1e-6)
    assert list(tmp_path.glob("best-*"))
    batches.forget()
    assert not list(tmp_path.glob("best-*"))


def test_where_the_last_is_the_best_it_stays(tmp_path: Path) -> None:
    model = tiny_model()
    batches = Validated(Seeded(lambda i: HELD_OUT), HELD_OUT, partial(cross_entropy, model), 2, Best(model, tmp_path))
    train(model, cross_entropy, batches, Settings(steps=20, save_seconds=0.0), tmp_path)
    after = loss_of(model)
    assert not batches.finish()
    assert batches.best == (20, pytest.approx(after))


def test_best_weights_that_are_gone_are_missed(tmp_path: Path) -> None:
    run(tmp_path, Session(), 60)
    for file in tmp_path.glob("best-*"):
        file.unlink()
    batches = run(tmp_path, Session(resume=True), 60)[1]
    with pytest.raises(KlypeError, match=r"best-\d+.safetensors, the best weights so far, is missing"):
        batches.finish()


def test_looks_are_few_where_time_is_short() -> None:
    assert every(1000, 0.0) == 100
    assert every(1000, 600.0) == 100
    assert every(1000, 18.0) == 333
    assert every(1000, 1.0) == 500
    assert every(1, 0.0) == 1


def test_a_text_of_ones_own_is_validated(tmp_path: Path) -> None:
    text = tmp_path / "bok.txt"
    text.write_text("\n\n".join(f"Reven gikk {i} ganger over isen. Fisken så på dag {i}." for i in range(300)))
    said: list[str] = []

    class Heard(Silent):
        def note(self, text: str) -> None:
            said.append(text)

    options: dict[str, Any] = {"stage": "pretrain", "text": (str(text),), "steps": 20, "out": tmp_path / "run"}
    pipeline.train_stage(StageOptions(**options, overrides=(*NARROW, *FEW)), Heard())
    rows = [json.loads(line) for line in (tmp_path / "run/pretrain/metrics.jsonl").read_text().splitlines()]
    assert {"validation"} <= rows[-1].keys()
    assert any("On held-out text" in line and "nats a token" in line for line in said)
    assert not list((tmp_path / "run" / "pretrain").glob("best-*"))


def test_instructions_are_validated_by_questions_that_nothing_else_asks(tmp_path: Path) -> None:
    text, rows = tmp_path / "bok.txt", tmp_path / "spørsmål.jsonl"
    text.write_text("\n\n".join(f"Reven gikk {i} ganger over isen. Fisken så på dag {i}." for i in range(300)))
    rows.write_text("".join(f'{{"question": "Hva så dyr {i}?", "answer": "Dag {i}."}}\n' for i in range(400)))
    given = {"stage": "finetune", "text": (str(text),), "instructions": rows, "steps": 12}
    options = StageOptions(**given, from_="none", overrides=(*NARROW, *FEW))
    subject = TextSubject(read("text", options.overrides), 0, options, BadRows())
    batch = subject.held_out_batch("finetune")
    assert batch is not None
    assert len(batch.tokens_BT) == len(subject._watched) == (len(subject.held_out) + len(batch.tokens_BT)) // 5
    learnt, asked = {q.prompt for q in subject._learnt}, {q.prompt for q in subject.held_out}
    watched = {q.prompt for q in subject._watched}
    assert len(watched) == len(batch.tokens_BT)
    assert not watched & (learnt | asked)
    learnt_BT = batch.weights_BT > 0
    answers = [row[kept].tolist() for row, kept in zip(batch.targets_BT, learnt_BT, strict=True)]
    said = {subject.chat.tokenizer.decode(ids).strip() for ids in answers}
    assert said == {q.answers[0] for q in subject._watched}
    few = tmp_path / "få.jsonl"
    few.write_text("".join(rows.read_text().splitlines(keepends=True)[:30]))
    fewer = options.model_copy(update={"instructions": few})
    subject = TextSubject(read("text", options.overrides), 0, fewer, BadRows())
    assert subject.held_out_batch("finetune") is None
    assert subject.held_out
