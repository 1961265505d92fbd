"""What a run is about, the demo world or the user's own text, and how its models are examined on it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, Protocol

from klype.data.example_batches import STEPS, PoolSettings
from klype.examine.caching_source import Meters, Shape
from klype.examine.exam import ExamResult, draw, examine
from klype.examine.examined_model import EvalTarget
from klype.examine.run_figures import JsonObject, LocalText, StageName
from klype.examine.settings import ExamSettings
from klype.examine.truth import Reader
from klype.judge.judge import Judge as Judging
from klype.model.transformer import Transformer
from klype.runs.recipe import Recipe
from klype.sources.source import NativeSource
from klype.text.chat import Chat
from klype.values import Batch, Batches, Figure, Question, Ranking, Trace, Verdict

Asked = Callable[[int], Question]  # question i of the training side, a pure function of i


class Task(Protocol):
    """Everything that differs between the world and own text. Made once a run, from recipe and seed."""

    recipe: Recipe
    seed: int
    chat: Chat
    held_out: list[Question]  # none of these is in fine-tuning
    held_out_fixed: Sequence[Question] = ()  # about what is always true
    tokens: int | None = None  # of the text to pre-train on; None: it has no end
    examples: int | None = None  # to fine-tune on; None: as many as are asked for
    given_rankings: Sequence[Ranking] = ()
    data: list[JsonObject]  # what the run learns from: each source, with its licence where that is known
    notes: Sequence[LocalText] = ()  # remarks for the report
    languages: list[str]
    annotator: LocalText
    annotator_name: str
    judge_name: str
    deciding: Judging | None = None  # who says what is right, where that can err
    reader: Callable[[Question], Reader] | None = None  # the truth of a question's answers, where it is known

    def pretraining(self, steps: int, background: bool) -> Batches:
        """Batches of text for ``steps`` steps. ``background``: they may be made in another process."""

    def watched(self, stage: str) -> list[Batch]:
        """What a model is measured on while a stage trains it, in the stage's micro-batches; none where nothing is met
        twice, or too little is held out. No answers of ``held_out``: what the examination asks chooses no weights."""
        return []

    def late(self) -> Batches:
        """Batches from late in a pre-training: documents grow, and the pace of the longest counts."""

    def finetuning(self, background: bool) -> Batches:
        """Batches of conversations, of which only the answers are learnt. ``background``: as for pre-training."""

    def rehearsal(self, rows: int, pieces: int = 1) -> Callable[[int], Batch]:
        """Pre-training text by the number of the batch, ``rows`` a step in ``pieces`` micro-batches."""

    def pools(self, rows: int, pieces: int) -> PoolSettings:
        """Settings of padded batches: ``rows`` per step, in ``pieces`` micro-batches."""
        pad = self.chat.tokenizer.pad
        return PoolSettings(max(1, rows // pieces), STEPS * pieces, pieces, pad=pad, seed=self.seed)

    def questions(self, part: int) -> Asked:
        """The training side's, endless: for ranking and alignment. ``part`` keeps stages apart."""

    def judge(self, question: Question, answer: str, finished: bool) -> Verdict:
        """The annotator's verdict on an answer. ``finished``: it came to an end of its own."""

    def scores(self, words: int) -> tuple[float, float]:
        """The least and the most that ``judge`` gives an answer of at most this many words."""

    def wrong_answers(self, question: Question, n: int, seed: int) -> list[str]:
        """At most ``n`` wrong answers to the question, as candidates for rankings."""

    def before_finetuning(self, model: Transformer) -> None:
        """What the chat's marks are known to stand for in plain text is put into the model."""
        return

    def knowledge(self, model: Transformer, few: bool) -> dict[str, Figure]:
        """What the model knows of plain text: against the truth, or in bits per byte."""

    def next_words(self, model: Transformer) -> list[JsonObject]:
        """The model's next-token probabilities after a few beginnings of text."""

    def asked_apart(self, model: StageName) -> Mapping[str, Sequence[Question]]:
        """Further questions of which it is told how many answers are right, by the name of that figure."""

    def yardsticks(self) -> JsonObject | None:
        return None

    def speak(self, model: Transformer, trained: str) -> str:
        """A line of what the model says now, for the user who waits."""

    def save_inputs(self, folder: Path) -> None:
        """questions.jsonl: the held-out questions, and those of what is always true behind them."""
        kept = (*self.held_out, *self.held_out_fixed)
        rows = [{k: v for k, v in asdict(q).items() if v not in ("", (), {})} for q in kept]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "questions.jsonl").write_text(text, encoding="utf-8")


LEAST = 400  # questions, however short the time


def examined_on(task: Task, minutes: float | None) -> list[Question]:
    """The held-out questions that there is time to ask: all of the recipe's in five minutes."""
    most = task.recipe.examine.questions
    return task.held_out[: min(most, max(LEAST, round(most * (minutes or 5) / 5)))]


def answer_settings(
    task: Task, temperature: float, n: int = 1, keeps: Literal["answers", "distributions"] = "answers"
) -> ExamSettings:
    """How questions are put to a run's model: ``n`` answers to each at this temperature, all questions together."""
    limit, seed = task.recipe.rank.limit, task.seed
    return ExamSettings(
        (temperature,), n, limit, seed, trees=0, forks=0, interventions=0, chunk=sys.maxsize, greedy=n, keeps=keeps
    )


def examine_model(
    task: Task, model: Transformer, questions: Sequence[Question], settings: ExamSettings, meters: Meters = Meters()
) -> ExamResult:
    """The answers of a run's model through the chat template, with their verdicts and what they cost."""
    return examine(target_of(task, model, questions), settings, meters=meters)


def draw_answers(
    task: Task, model: Transformer, questions: Sequence[Question], temperature: float, n: int = 1
) -> list[list[Trace]]:
    """The same answers, not judged; sample k of a question is the same alone."""
    return draw(target_of(task, model, questions), answer_settings(task, temperature, n), temperature)


def target_of(task: Task, model: Transformer, questions: Sequence[Question]) -> EvalTarget:
    """A run's model, its questions, and who judges the answers."""
    config, chat = model.config, task.chat
    told = {name: getattr(task, name) for name in ("judge", "judge_name", "deciding", "reader", "scores")}
    return EvalTarget(
        source=NativeSource.of(model, chat.tokenizer, chat),
        name="",
        identity="",
        vocabulary=config.vocab_size,
        questions=tuple(questions),
        prompts=tuple(tuple(chat.prompt(question.messages())) for question in questions),
        meaning=lambda question: lambda text: None,
        shape=Shape(config.flops_per_token // 2, config.layers, config.heads * config.head_dim),
        **told,
    )
