"""What a run is about: the demo world, or somebody's own text. The pipeline knows only this."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from klype.examine.facts import DataFacts, NextFacts, Text, TextFacts
from klype.model.transformer import Transformer
from klype.runs.recipe import Recipe
from klype.text.chat import Chat
from klype.values import Batch, Batches, Figure, Question, Ranking, Verdict

Asked = Callable[[int], Question]
"""Question i of the training side, a pure function of i."""

Judge = Callable[[Question, str, bool], Verdict]
"""question, answer, finished → what the annotator thinks"""


class Subject(Protocol):
    """Everything that differs between the world and own text. Made once a run, from recipe and seed."""

    recipe: Recipe
    seed: int
    chat: Chat
    held_out: list[Question]
    held_out_fixed: list[Question]
    """About what is always true, which the text has told often; asked apart. None of these is in fine-tuning."""
    tokens: int | None
    """Of the text to pre-train on; None: it has no end."""
    examples: int | None
    """To fine-tune on; None: as many as are asked for."""
    annotator: Text
    annotator_name: str
    judge_name: str

    def pretraining(self, steps: int, background: bool) -> Batches: ...

    def watched(self, stage: str) -> list[Batch]:
        """What a model is measured on while a stage trains it, in the stage's micro-batches; none where nothing is met
        twice, or too little is held out. No answers of ``held_out``: what the examination asks chooses no weights."""
        ...

    def late(self, steps: int) -> dict[str, Any]:
        """A state of ``pretraining(steps)`` near its end."""
        ...

    def finetuning(self, background: bool) -> Batches: ...

    def rehearsal(self, rows: int, pieces: int = 1) -> Batches:
        """Pre-training text, ``rows`` a step in ``pieces`` micro-batches; its state is the number of the next one."""
        ...

    def questions(self, part: int) -> Asked: ...

    def judge(self, question: Question, answer: str, finished: bool) -> Verdict: ...

    def scores(self, words: int) -> tuple[float, float]:
        """The least and the most that ``judge`` gives an answer of at most so many words."""
        ...

    def wrong_answers(self, question: Question, n: int, seed: int) -> list[str]: ...

    def given_rankings(self) -> list[Ranking]: ...

    def before_finetuning(self, model: Transformer) -> None: ...

    def knowledge(self, model: Transformer, few: bool) -> dict[str, Figure]:
        """What the model knows of plain text: against the truth, or in bits per byte."""
        ...

    def next_words(self, model: Transformer) -> list[NextFacts]: ...

    def next_right(self, question: Question) -> Any:
        """The truth of the next token of an answer (a TokenFilter), or None where nobody knows it."""
        ...

    def yardsticks(self) -> TextFacts | None: ...

    def data(self) -> list[DataFacts]: ...

    def notes(self) -> list[Text]: ...

    def speak(self, model: Transformer, trained: str) -> str:
        """A line of what the model says now, for the one who waits."""
        ...

    def save_inputs(self, folder: Path) -> None: ...
