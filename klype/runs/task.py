"""The task of a run, the demo world or the user's own text, and how its models are examined on it."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, Protocol

from klype.data.example_batches import STEPS, PoolSettings
from klype.examine.caching_source import Joules, Shape
from klype.examine.exam import ExamResult, draw, examine
from klype.examine.examined_model import EvalTarget
from klype.examine.run_facts import JsonObject, LocalText, StageName
from klype.examine.settings import ExamSettings
from klype.examine.truth import Reader
from klype.judge.judge import Judge as Judging
from klype.model.transformer import Transformer
from klype.runs.recipe import Recipe
from klype.sources.source import NativeSource
from klype.text.chat import Chat
from klype.values import Batch, Batches, Figure, Question, Ranking, Trace, Verdict

QuestionStream = Callable[[int], Question]  # i → training question i, a pure function


class Task(Protocol):
    """Everything that differs between the demo world and the user's own text. Made once per run, from recipe and
    seed."""

    recipe: Recipe
    seed: int
    chat: Chat
    held_out: list[Question]  # never trained on
    held_out_fixed: Sequence[Question] = ()  # about fixed facts
    tokens: int | None = None  # of the text to pre-train on; None: endless
    examples: int | None = None  # to fine-tune on; None: endless
    given_rankings: Sequence[Ranking] = ()
    data: list[JsonObject]  # the sources of the training data, with their licences where known
    notes: Sequence[LocalText] = ()  # remarks for the report
    languages: list[str]
    annotator: LocalText
    annotator_name: str
    judge_name: str
    deciding: Judging | None = None  # the judge of correctness, where it can err
    reader: Callable[[Question], Reader] | None = None  # the true distribution of a question's answers, where known

    def pretraining(self, steps: int, background: bool) -> Batches:
        """Batches of text for ``steps`` steps. ``background``: may be made in another process."""

    def validation_batches(self, stage: str) -> list[Batch]:
        """Held-out micro-batches to validate a stage on while it trains; none where no example is seen twice, or too
        little is held out. Without the questions of ``held_out``: the examination's must not choose the weights."""
        return []

    def late_batches(self) -> Batches:
        """Batches from late in pre-training, for timing: the documents grow longer during training."""

    def finetuning(self, background: bool) -> Batches:
        """Batches of conversations; only the answers have a loss. ``background``: as for pre-training."""

    def rehearsal(self, rows: int, pieces: int = 1) -> Callable[[int], Batch]:
        """Returns a function from a batch's number to pre-training text, ``rows`` per step in ``pieces``
        micro-batches."""

    def pools(self, rows: int, pieces: int) -> PoolSettings:
        """Settings of padded batches: ``rows`` per step, in ``pieces`` micro-batches."""
        pad = self.chat.tokenizer.pad
        return PoolSettings(max(1, rows // pieces), STEPS * pieces, pieces, pad=pad, seed=self.seed)

    def questions(self, part: int) -> QuestionStream:
        """Endless training questions, for ranking and alignment. Each ``part`` (a stage's number) has its own."""

    def judge(self, question: Question, answer: str, finished: bool) -> Verdict:
        """The annotator's verdict on an answer. ``finished``: the model ended it, not the token limit."""

    def scores(self, words: int) -> tuple[float, float]:
        """The lowest and the highest score that ``judge`` gives an answer of at most this many words."""

    def wrong_answers(self, question: Question, n: int, seed: int) -> list[str]:
        """At most ``n`` wrong answers to the question, as candidates for ranking."""

    def before_finetuning(self, model: Transformer) -> None:
        """Initialises the chat's control tokens, where their plain-text counterparts are known."""
        return

    def knowledge(self, model: Transformer, few: bool) -> dict[str, Figure]:
        """Figures of the model on plain text: against the truth, or bits per byte. ``few``: on a smaller sample."""

    def next_words(self, model: Transformer) -> list[JsonObject]:
        """The model's next-token probabilities after a few prompts, as the report shows them."""

    def further_questions(self, model: StageName) -> Mapping[str, Sequence[Question]]:
        """Further questions to examine the model on, by the name of the figure: their share of right answers."""

    def yardsticks(self) -> JsonObject | None:
        """Bits per byte of compressors and n-grams, to compare with; None for the demo world."""
        return None

    def sample_text(self, model: Transformer, trained: str) -> str:
        """A line of the model's text, to show during the training of the stage ``trained``."""

    def save_inputs(self, folder: Path) -> None:
        """Writes questions.jsonl: the held-out questions, then those about fixed facts."""
        kept = (*self.held_out, *self.held_out_fixed)
        rows = [{k: v for k, v in asdict(q).items() if v not in ("", (), {})} for q in kept]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "questions.jsonl").write_text(text, encoding="utf-8")


MIN_QUESTIONS = 400  # questions in the examination, however short the time


def exam_questions(task: Task, minutes: float | None) -> list[Question]:
    """The held-out questions to examine a run of so many minutes on: with five or more, as many as the recipe says."""
    most = task.recipe.examine.questions
    return task.held_out[: min(most, max(MIN_QUESTIONS, round(most * (minutes or 5) / 5)))]


def answer_settings(
    task: Task, temperature: float, n: int = 1, keeps: Literal["answers", "distributions"] = "answers"
) -> ExamSettings:
    """Settings for ``n`` answers to each question at one temperature, with all questions in one batch."""
    limit, seed = task.recipe.rank.limit, task.seed
    return ExamSettings(
        (temperature,), n, limit, seed, trees=0, forks=0, interventions=0, chunk=sys.maxsize, greedy=n, keeps=keeps
    )


def examine_model(
    task: Task, model: Transformer, questions: Sequence[Question], settings: ExamSettings, joules: Joules = lambda: None
) -> ExamResult:
    """Examines a run's model by its answers in the chat template: verdicts, measures and cost."""
    return examine(target_of(task, model, questions), settings, joules=joules)


def draw_answers(
    task: Task, model: Transformer, questions: Sequence[Question], temperature: float, n: int = 1
) -> list[list[Trace]]:
    """The same answers without verdicts. Sample k of a question does not depend on the other questions."""
    return draw(target_of(task, model, questions), answer_settings(task, temperature, n), temperature)


def target_of(task: Task, model: Transformer, questions: Sequence[Question]) -> EvalTarget:
    """A run's model with its questions and the task's judges, ready to be examined."""
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
