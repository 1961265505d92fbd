"""A text as trainers read it: as klype's recipe does, in tokens, or as nanoGPT's script does, in characters."""

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

ROWS = 8
"""Windows of held-out text that are read at a time."""

Logits = Callable[["Tensor"], "Tensor"]
"""Tokens [B, T] to [B, T, V]."""


class Reading(Protocol):
    """``ids``: the text on end. ``shape``: the model that reads it, and its batches."""

    ids: list[int]
    shape: Shape
    how: str

    def score(self, logits: Logits, text: str) -> tuple[Array, Array]:
        """Bits and bytes of each piece of a text."""
        ...


class Tokens:
    """Blocks of a book, each with a begin and an end, in the recipe's vocabulary; a peer's model has klype's shape
    (small, where klype takes no part)."""

    def __init__(self, given: Given, recipe: Recipe | None = None) -> None:
        recipe = recipe or read("text")
        texts = [unit.text for unit in units(TextDocument(given.train, "train.txt"))]
        self.tokenizer = Tokenizer.train(texts, recipe.tokenizer.tokens(sum(map(len, texts))), TEMPLATE)
        encoded = self.tokenizer.encode_documents(texts)
        self.documents = Documents.of(encoded)
        self.ids = [i for ids in encoded for i in ids]
        model = recipe.model.filled(ModelShape(*given.shape) if given.shape else SHAPES["small"])
        vocab, rows = self.tokenizer.vocab_size, recipe.pretrain.rows
        self.shape = Shape(model.layers, model.width, model.heads, model.hidden, model.window, vocab, rows)
        self.how = f"{model.layers} × {model.width}, {vocab} tokens, rows of {model.window}"

    def score(self, logits: Logits, text: str) -> tuple[Array, Array]:
        """As one document. The space that leads it is none of its bytes."""
        from klype.runs.text_measures import token_bits

        ids = self.tokenizer.encode_document(text)
        size_N = np.array([len(self.tokenizer.token_bytes(i)) for i in ids[1:]], dtype=np.float64)
        size_N[0] -= size_N.sum() - len(text.encode())
        return token_bits(logits, ids, self.shape.window, ROWS), size_N


class Characters:
    """nanoGPT's way for a small text on a CPU: the characters of all of it (the held-out part's, too) as they lie; a
    model of 4 × 128, windows of 64, twelve a step."""

    def __init__(self, given: Given) -> None:
        train = given.train
        self._codes = {character: i for i, character in enumerate(sorted(set(train + given.held_out)))}
        self.ids = [self._codes[character] for character in train]
        # two matrices of 513 for its 512
        self.shape = Shape(layers=4, width=128, heads=4, hidden=342, window=64, vocab=len(self._codes), rows=12)
        self.how = f"4 × 128, {self.shape.vocab} characters, rows of 64"

    def score(self, logits: Logits, text: str) -> tuple[Array, Array]:
        """Nothing stands before the first character, which costs as much as any."""
        from klype.runs.text_measures import token_bits

        bits_N = token_bits(logits, [self._codes[character] for character in text], self.shape.window, ROWS)
        size_N = np.array([len(character.encode()) for character in text], dtype=np.float64)
        return np.concatenate([[np.log2(self.shape.vocab)], bits_N]), size_N
