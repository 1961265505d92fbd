"""What the demo world keeps back: no question twice, none that fine-tuning asks, no ranking that is learnt from."""

from __future__ import annotations

import math
import random
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from klype.model import checkpoint
from klype.model.transformer import Transformer
from klype.preferences.annotators import Scorer, rank_simulated
from klype.runs import ranking
from klype.runs.machine_probe import model_config
from klype.runs.recipe import read
from klype.runs.task import MIN_QUESTIONS, exam_questions
from klype.runs.world_task import ChatSamples, WorldTask
from klype.sources.model_files import is_aligned
from klype.values import Question

pytestmark = pytest.mark.slow  # a world of many questions is made first
SMALL = ("world=small", "model.width=16", "model.layers=1", "model.heads=2", "model.hidden=16", "examine.questions=450",
         "rank.questions=200", "rank.held_out=60", "rank.drawn=1", "rank.hot=0", "rank.limit=3")  # fmt: skip


@lru_cache(1)
def task() -> WorldTask:
    return WorldTask(read("world", SMALL), 0)


def test_held_out_questions_are_each_once_and_stories_are_apart_from_what_is_always_true() -> None:
    stories, fixed = task().held_out, task().held_out_fixed
    assert len(stories) == 450
    assert len({q.id for q in stories}) == len({q.prompt for q in stories}) == 450
    assert len({q.prompt for q in fixed}) == len(fixed) >= 20
    assert not any(q.extra["fixed"] for q in stories)
    assert all(q.extra["fixed"] for q in fixed)


def test_no_held_out_question_is_asked_in_fine_tuning_ranking_or_alignment() -> None:
    chat = task().chat
    kept = {tuple(chat.prompt(q.messages())) for q in (*task().held_out, *task().held_out_fixed)}
    turns = ChatSamples(task().world, chat, 3)
    for index in range(1500):
        ids, learnt = turns(index)
        assert tuple(ids[: learnt.index(1.0)]) not in kept
    for part in (1, 2, 3):
        assert not kept & {tuple(chat.prompt(task().questions(part)(i).messages())) for i in range(400)}


def test_in_less_than_five_minutes_fewer_questions_are_asked_but_never_fewer_than_shown_to_be_enough() -> None:
    few = WorldTask(read("world", (*SMALL, "examine.questions=420")), 0)
    asked = [len(exam_questions(few, minutes)) for minutes in (None, 60.0, 5.0, 4.9, 0.1)]
    assert asked == [420, 420, 420, 412, MIN_QUESTIONS]


def test_no_training_ranking_counts_as_held_out_and_held_out_ones_do_not_err(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Transformer(model_config(task().recipe.model, task().chat.tokenizer.vocab_size)).eval()
    with ranking.open_store(tmp_path) as store:
        ranking.draw_and_rank(store, model, task(), 0, math.inf)
        entries = store.entries()
    parts: dict[str, set[str]] = {"train": set(), "held-out": set()}
    for entry in entries:
        parts[entry.asked.part].add(entry.asked.question.prompt)
    assert parts["held-out"] <= {q.prompt for q in task().held_out[:60]}
    assert parts["train"] <= {task().questions(1)(i).prompt for i in range(200)}
    assert min(len(part) for part in parts.values()) > 40  # those with one wrong answer only are not ranked
    assert not parts["train"] & parts["held-out"]

    def score(question: Question, answer: str) -> float:
        return task().judge(question, answer, True).score

    annotator = Scorer("exact", score)
    for entry in (e for e in entries if e.asked.part == "held-out"):
        texts = [c.text for c in entry.asked.candidates]
        assert rank_simulated(annotator, entry.asked.question, texts, 0.0, random.Random(0)).order == entry.order


def test_a_model_is_known_to_be_aligned_wherever_it_lies(tmp_path: Path) -> None:
    model = Transformer(model_config(task().recipe.model, task().chat.tokenizer.vocab_size))
    for stage in ("align", "finetune"):
        checkpoint.save(tmp_path / stage, model, task().chat.tokenizer, {"stage": stage})
    (tmp_path / "align").rename(tmp_path / "brought")  # as a further round has it, in place of its fine-tuned model
    assert is_aligned(tmp_path / "brought")
    assert not is_aligned(tmp_path / "finetune")
    assert not is_aligned(tmp_path / "nothing")
