"""A small model whose words are the experiment's ids, as a source: for decoders and the feedback experiment."""

from __future__ import annotations

from collections.abc import Sequence

from klype.engine.engine import Engine
from klype.errors import KlypeError
from klype.model.transformer import Transformer
from klype.sources.native import EngineSource
from klype.sources.source import Message


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
            raise KlypeError(f"“{unknown}” is no word of this language.")
        return [self._ids[word] for word in text.split()]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        raise KlypeError("This model has no chat template.", "Give it plain text.")

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self._vocabulary[i] for i in ids if i not in self._controls)


class Pupil(EngineSource):
    """A model that goes on learning: it answers as it is at the time of each question."""

    def __init__(self, model: Transformer, codec: WordCodec) -> None:
        super().__init__(Engine(model), codec)
        self.model = model
        self._version = 0

    def refresh(self) -> None:
        """The weights have moved: nothing computed with the old ones is used."""
        self._version += 1
        self.engine.refresh(self._version)
