"""The task of every trainer: shapes, batches, and the FLOPs of a token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Shape:
    """A model and its batches: ``rows`` texts of ``window`` tokens per step, with a loss on every token.

    ``hidden``: of SwiGLU (three matrices); a two-matrix MLP has 3/2 of it, and thus as many weights. ``conv``: taps of
    klype's convolution, where it replaces rotary embeddings; peers keep their own positions.
    """

    layers: int
    width: int
    heads: int
    hidden: int
    window: int
    vocab: int
    rows: int
    conv: int = 0

    @property
    def tokens(self) -> int:
        return self.rows * self.window

    @property
    def flops(self) -> float:
        """FLOPs of a token, forward and backward: 6 per weight of a matrix, and the two products of causal
        attention."""
        matrices = self.layers * (4 * self.width**2 + 3 * self.width * self.hidden) + self.width * self.vocab
        return 6.0 * matrices + 6.0 * self.layers * self.width * self.window


# a and b are of medium size for a laptop; "tiny" is the demo's, which is dominated by calls and memory traffic
SHAPES = {
    "a": Shape(layers=4, width=256, heads=4, hidden=688, window=256, vocab=4096, rows=16),
    "b": Shape(layers=6, width=384, heads=6, hidden=1024, window=256, vocab=4096, rows=16),
    "tiny": Shape(layers=2, width=96, heads=4, hidden=192, window=80, vocab=1104, rows=64, conv=5),
}

# steps of a turn that are not timed: each turn makes a new optimizer
WARM = 1


class Trainer(Protocol):
    """A trainer of the comparison. ``precision``: in which it computes; ``how``: a description for the reader."""

    @property
    def precision(self) -> str: ...
    @property
    def how(self) -> str: ...

    def load(self, shape: Shape, threads: int, cache: str) -> None:
        """Makes the model and everything else that a turn needs. ``cache``: folder for compiled code."""

    def train(self, steps: int) -> dict[str, Any]:
        """Trains WARM steps and then ``steps``; returns ``seconds`` and ``core_seconds`` of the latter, and the last
        ``loss``."""


def batch(shape: Shape, number: int) -> Any:
    """Tokens [rows, window + 1], the same for all trainers. They can be learned: every token is followed by one of two
    others."""
    import torch

    generator = torch.Generator().manual_seed(number)
    step = 1 + torch.randint(0, 2, (shape.rows, shape.window + 1), generator=generator)
    start = torch.randint(0, shape.vocab, (shape.rows, 1), generator=generator)
    return (start + step.cumsum(1)) % shape.vocab
