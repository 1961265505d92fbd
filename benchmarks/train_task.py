"""What every trainer is asked to do: shapes, batches, and what a token costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Shape:
    """A model and its batches: ``rows`` texts of ``window`` tokens a step, all of them learnt.

    ``hidden`` is SwiGLU's (three matrices); a two-matrix layer has 3/2 of it, so that there are as many weights.
    ``conv``: taps of klype's convolution, where it stands for rotated positions; peers have theirs as they are.
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
        """Of a token, forward and backward: 6 for every weight of a matrix, and causal attention's two products."""
        matrices = self.layers * (4 * self.width**2 + 3 * self.width * self.hidden) + self.width * self.vocab
        return 6.0 * matrices + 6.0 * self.layers * self.width * self.window


SHAPES = {
    "a": Shape(layers=4, width=256, heads=4, hidden=688, window=256, vocab=4096, rows=16),
    "b": Shape(layers=6, width=384, heads=6, hidden=1024, window=256, vocab=4096, rows=16),
    "tiny": Shape(layers=2, width=96, heads=4, hidden=192, window=80, vocab=1104, rows=64, conv=5),
}
"""A and B of medium size for a laptop; "tiny" is the demo's, where calls and passes over memory rule."""

WARM = 1
"""Steps of a turn that are not counted: each turn makes its optimizer anew."""


class Trainer(Protocol):
    """One contender. ``precision`` is what it computes in; ``how`` says how, for the reader."""

    @property
    def precision(self) -> str: ...
    @property
    def how(self) -> str: ...

    def load(self, shape: Shape, threads: int, cache: str) -> None:
        """Makes the model and whatever else a turn needs. ``cache``: where what is compiled may be kept."""

    def train(self, steps: int) -> dict[str, Any]:
        """WARM steps and then so many; ``seconds`` and ``core_seconds`` of the latter, and the last ``loss``."""


def batch(shape: Shape, number: int) -> Any:
    """Tokens [rows, window + 1], the same for everybody: learnable, since every token leads to one of two others."""
    import torch

    generator = torch.Generator().manual_seed(number)
    step = 1 + torch.randint(0, 2, (shape.rows, shape.window + 1), generator=generator)
    start = torch.randint(0, shape.vocab, (shape.rows, 1), generator=generator)
    return (start + step.cumsum(1)) % shape.vocab
