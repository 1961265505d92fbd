"""Context of a training method: the pre-trained student, its documents, the truth and the teachers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch.nn.functional import pad

from klype.engine.engine import Engine
from klype.errors import KlypeError
from klype.examine.truth import Reader, Tokens
from klype.examine.truth import Truth as KnownTruth
from klype.experiments.corpus import Corpus, Ids
from klype.experiments.training import LabSettings, TrainedModel
from klype.model.transformer import Transformer
from klype.sources.source import EngineSource, Message
from klype.train.objectives import Objective
from klype.values import Batch

# the backspace token: last in every model's vocabulary, and in no document
BACK = "⌫"

# texts are read up to this many wrong words: each makes the truth about ten times as expensive to compute
SLIPS = 2


class MistakesSettings(LabSettings):
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


class WordCodec:
    """A text is words with spaces between; what is no word of the vocabulary cannot be written, controls among them."""

    def __init__(self, vocabulary: Sequence[str], end: int, controls: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self._controls = frozenset((*controls, end))
        self._ids = {word: i for i, word in enumerate(vocabulary) if i not in self._controls}
        self.stop = (end,)

    def encode(self, text: str) -> list[int]:
        unknown = next((word for word in text.split() if word not in self._ids), None)
        if unknown is not None:
            raise KlypeError(f"“{unknown}” is not a word of this language.")
        return [self._ids[word] for word in text.split()]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        raise KlypeError("This model has no chat template.", "Give it plain text.")

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self._vocabulary[i] for i in ids if i not in self._controls)


class Student(EngineSource):
    """A model that goes on learning: it answers as it is at the time of each question."""

    def __init__(self, model: Transformer, codec: WordCodec) -> None:
        super().__init__(Engine(model), codec)
        self.model = model
        self._version = 0

    def refresh(self) -> None:
        """The weights have moved: nothing computed with the old ones is used."""
        self._version += 1
        self.engine.refresh(self._version)


@dataclass(slots=True)
class ExtraCompute:
    """Tokens that went once through the model beside its training (drawn, or read), and FLOPs of teachers."""

    tokens: int = 0
    teachers: float = 0.0


@dataclass(frozen=True, slots=True)
class TrainingContext:
    """What a method is made from. ``beginning``: the truth at the beginning of a document; None where nobody knows it.
    ``teachers``: trained when first asked for."""

    corpus: Corpus
    settings: MistakesSettings
    seed: int
    student: Student
    beginning: Callable[[], KnownTruth | None]
    teachers: Callable[[], list[TrainedModel]]
    spent: ExtraCompute = field(default_factory=ExtraCompute)

    @property
    def back(self) -> int:
        return self.corpus.size - 1

    @property
    def longest(self) -> int:
        return max(map(len, self.corpus.train))

    def reader(self, prompt: Ids) -> Reader:
        """The truth after a prompt that begins a document."""
        return reader(self.beginning, prompt)

    def is_word(self, token: int) -> bool:
        """Neither what begins a text, nor what ends it, nor what takes back."""
        return token not in (self.corpus.train[0][0], self.corpus.end, self.back)


@dataclass(frozen=True, slots=True)
class Training:
    """Batches and objective for the loop. ``rate``: times the rates of going on."""

    batches: Iterator[Batch]
    objective: Objective
    rate: float = 1.0


def reader(beginning: Callable[[], KnownTruth | None], prompt: Ids) -> Reader:
    """The truth after a prompt, its first token being what begins a document."""

    def start() -> KnownTruth:
        truth = beginning()
        assert truth is not None, "only the world knows its truth"
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


def joined(a: Batch, b: Batch) -> Batch:
    """The rows of both, padded to the longer."""
    width = max(a.tokens_BT.shape[1], b.tokens_BT.shape[1])

    def both(*parts: torch.Tensor) -> torch.Tensor:
        return torch.cat([pad(t, (0, 0) * (t.dim() - 2) + (0, width - t.shape[1])) for t in parts])

    extra = {name: both(tensor, b.extra[name]) for name, tensor in a.extra.items()}
    tokens_BT, targets_BT = both(a.tokens_BT, b.tokens_BT), both(a.targets_BT, b.targets_BT)
    return Batch(tokens_BT, targets_BT, both(a.weights_BT, b.weights_BT), extra)
