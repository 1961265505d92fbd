"""Ways to read a text: in tokens, as klype's recipe does, or in characters, as nanoGPT's script does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from benchmarks.quality_task import Array, Given
from benchmarks.train_task import Shape
from klype.data.documents import Documents, units
from klype.data.readers import TextDocument
from klype.runs.recipe import SHAPES, ModelShape, Recipe, read
from klype.text.chat import TEMPLATE
from klype.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

# windows of held-out text that are read at once
ROWS = 8

# tokens [B, T] → logits [B, T, V]
Logits = Callable[["Tensor"], "Tensor"]


class Reading(Protocol):
    """A way to read a text. ``ids``: the whole text. ``shape``: of the model that reads it, and of its batches."""

    ids: list[int]
    shape: Shape
    how: str

    def score(self, logits: Logits, text: str) -> tuple[Array, Array]:
        """The bits and bytes of each token of a text."""
        ...


class Tokens:
    """Blocks of a book, each with begin and end, in the recipe's vocabulary. A peer's model has klype's shape (small,
    if klype does not take part)."""

    def __init__(self, given: Given, recipe: Recipe | None = None) -> None:
        recipe = recipe or read("text")
        texts = [unit.text for unit in units(TextDocument(given.train, "train.txt"))]
        self.tokenizer = Tokenizer.train(texts, recipe.tokenizer.tokens(sum(map(len, texts))), TEMPLATE)
        encoded = self.tokenizer.encode_documents(texts)
        self.documents = Documents.of(encoded)
        self.ids = [i for ids in encoded for i in ids]
        model = recipe.model.with_shape(ModelShape(*given.shape) if given.shape else SHAPES["small"])
        vocab, rows = self.tokenizer.vocab_size, recipe.pretrain.rows
        self.shape = Shape(model.layers, model.width, model.heads, model.hidden, model.window, vocab, rows)
        self.how = f"{model.layers} × {model.width}, {vocab} tokens, rows of {model.window}"

    def score(self, logits: Logits, text: str) -> tuple[Array, Array]:
        """Scores a text as one document. Its leading space does not count as a byte."""
        from klype.runs.text_measures import token_bits

        ids = self.tokenizer.encode_document(text)
        size_N = np.array([len(self.tokenizer.token_bytes(i)) for i in ids[1:]], dtype=np.float64)
        size_N[0] -= size_N.sum() - len(text.encode())
        return token_bits(logits, ids, self.shape.window, ROWS), size_N


class Characters:
    """nanoGPT's settings for a small text on a CPU: a vocabulary of all characters (also of the held-out part), a model
    of 4 layers of width 128, windows of 64, twelve per step."""

    def __init__(self, given: Given) -> None:
        train = given.train
        self._codes = {character: i for i, character in enumerate(sorted(set(train + given.held_out)))}
        self.ids = [self._codes[character] for character in train]
        # two matrices of 513 for its 512
        self.shape = Shape(layers=4, width=128, heads=4, hidden=342, window=64, vocab=len(self._codes), rows=12)
        self.how = f"4 × 128, {self.shape.vocab} characters, rows of 64"

    def score(self, logits: Logits, text: str) -> tuple[Array, Array]:
        """Scores a text. The first character, which has no context, costs as much as any."""
        from klype.runs.text_measures import token_bits

        bits_N = token_bits(logits, [self._codes[character] for character in text], self.shape.window, ROWS)
        size_N = np.array([len(character.encode()) for character in text], dtype=np.float64)
        return np.concatenate([[np.log2(self.shape.vocab)], bits_N]), size_N
