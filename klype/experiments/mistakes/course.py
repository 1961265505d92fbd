"""What a method gets to teach with: a model that has been trained on documents, the documents, and who may be asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import Field

from klype.examine.truth import Reader, Tokens
from klype.examine.truth import Truth as KnownTruth
from klype.experiments.bias.corpus import Corpus, Ids
from klype.experiments.bias.lab import LabSettings, Learnt
from klype.experiments.mistakes.codec import Pupil
from klype.train.objectives import Objective
from klype.values import Batch, Batches

BACK = "⌫"
"""The token that takes the last word back: the last of every model's vocabulary, and in no document."""

SLIPS = 2
"""A text is read up to its next slip: with each one the truth becomes ten times as dear to compute."""


class CourseSettings(LabSettings):
    """How the model is trained first, and how it goes on: ``steps`` of ``rows`` texts with ``again`` times the rates.

    Methods that learn from the model's own texts have ``own`` of them drawn at the beginning of each of ``rounds``, by
    the model as it then is; those of earlier rounds are kept (DAgger). ``replaced``: the share of words that scheduled
    sampling replaces at its end. ``late``: for so many words after a wrong one it is still to be taken back.
    """

    rows: int = 32
    epochs: int = 8
    teachers: int = Field(default=3, ge=1)
    steps: int = Field(default=200, ge=1)
    rounds: int = Field(default=5, ge=1)
    own: int = Field(default=96, ge=2)
    again: float = Field(default=0.5, gt=0)
    replaced: float = Field(default=0.25, ge=0, le=1)
    late: int = Field(default=1, ge=0)


@dataclass(slots=True)
class Spent:
    """Tokens that went once through the model beside its training (drawn, or read), and FLOPs of teachers."""

    tokens: int = 0
    teachers: float = 0.0


@dataclass(frozen=True, slots=True)
class Course:
    """``beginning``: the truth at the beginning of a document; None where nobody knows it. ``teachers``: trained when
    first asked for."""

    corpus: Corpus
    settings: CourseSettings
    seed: int
    pupil: Pupil
    beginning: Callable[[], KnownTruth | None]
    teachers: Callable[[], list[Learnt]]
    spent: Spent = field(default_factory=Spent)

    @property
    def back(self) -> int:
        return self.corpus.size - 1

    @property
    def longest(self) -> int:
        return max(map(len, self.corpus.train))

    def truth(self) -> KnownTruth:
        found = self.beginning()
        assert found is not None, "only the world knows its truth"
        return found

    def reader(self, prompt: Ids) -> Reader:
        """The truth after a prompt that begins a document."""
        return reader(self.truth, prompt)

    def is_word(self, token: int) -> bool:
        """Neither what begins a text, nor what ends it, nor what takes back."""
        return token not in (self.corpus.train[0][0], self.corpus.end, self.back)


@dataclass(frozen=True, slots=True)
class Training:
    """What the loop is given. ``rate``: times the rates of going on."""

    batches: Batches
    objective: Objective
    rate: float = 1.0


def reader(beginning: Callable[[], KnownTruth], prompt: Ids) -> Reader:
    """The truth after a prompt, its first token being what begins a document."""

    def start() -> KnownTruth:
        truth = beginning()
        for token in prompt[1:]:
            truth.push(token)
        return truth

    return Reader(start)


def up_to_slips(reader: Reader, text: Tokens) -> Tokens:
    """The text before the word that is one slip too many, for the truth to be computed at every place of it."""
    slips = 0
    for t, token in enumerate(text):
        slips += token not in reader.next(text[:t])
        if slips > SLIPS:
            return text[:t]
    return text


class InOneGo:
    """Batches of a method, which is taught whole or not at all: what is resumed is the experiment, model by model."""

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        raise AssertionError("a method is taught in one go")


def joined(a: Batch, b: Batch) -> Batch:
    """The rows of both, padded to the longer."""
    width = max(a.tokens_BT.shape[1], b.tokens_BT.shape[1])

    def both(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        parts = []
        for tensor in (one, other):
            more = tensor.new_zeros((tensor.shape[0], width - tensor.shape[1], *tensor.shape[2:]))
            parts.append(torch.cat([tensor, more], 1))
        return torch.cat(parts)

    extra = {"soft_BTV": both(a.extra["soft_BTV"], b.extra["soft_BTV"])} if "soft_BTV" in a.extra else {}
    return Batch(
        both(a.tokens_BT, b.tokens_BT), both(a.targets_BT, b.targets_BT), both(a.weights_BT, b.weights_BT), extra
    )
