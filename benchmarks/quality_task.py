"""What every trainer is given: a text, its held-out end, and seconds; and how what it learnt is measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
HELD_OUT = 0.1
"""The last part of each text that nobody learns from, of its characters."""
BLOCK = 2_000
"""Bytes of a block of held-out text: what an interval resamples."""


@dataclass(frozen=True, slots=True)
class Text:
    """One text of the comparison: its file, the seconds that it is learnt for, and what is aimed at, in bits a byte."""

    file: str
    seconds: float
    floor: float
    goal: float


TEXTS = {
    "shakespeare": Text("tinyshakespeare/input.txt", 180.0, 2.15, 2.05),
    "laws": Text("norske-lover/lover.jsonl", 300.0, 1.35, 1.2),
}


@dataclass(frozen=True, slots=True)
class Given:
    """``folder`` holds train.txt and held-out.txt, and is where a trainer may write. ``cache``: where klype keeps what
    it compiles. ``shape``: that of klype's model, also for those who take the same; empty: klype chooses."""

    folder: str
    seconds: float
    seed: int
    threads: int
    cache: str
    shape: list[int] = field(default_factory=list)

    @property
    def train(self) -> str:
        return (Path(self.folder) / "train.txt").read_bytes().decode()

    @property
    def held_out(self) -> str:
        return (Path(self.folder) / "held-out.txt").read_bytes().decode()


@dataclass(frozen=True, slots=True)
class Learnt:
    """How much was learnt in the seconds given, and by what. ``shape``: klype's own choice (see recipe.Shape)."""

    how: str
    steps: int
    tokens: int
    parameters: int
    shape: tuple[int, ...] = ()

    def json(self) -> dict[str, Any]:
        return asdict(self)


class Trainer(Protocol):
    """One contender. What it does in ``load`` is not counted."""

    def load(self, threads: int, cache: str) -> None: ...

    def learn(self, given: Given) -> Learnt:
        """A model of ``given.train``, in ``given.seconds`` seconds with all that belongs to it."""

    def score(self, text: str) -> tuple[Array, Array]:
        """The text in pieces: bits_N that the model needs for each, and size_N, the bytes of each."""


def parted(text: str) -> tuple[str, str]:
    """What is learnt from, and the held-out end."""
    cut = round((1 - HELD_OUT) * len(text))
    return text[:cut], text[cut:]


def put(folder: Path, text: str) -> tuple[str, str]:
    """Both parts as files of ``folder``."""
    parts = parted(text)
    folder.mkdir()
    for name, part in zip(("train.txt", "held-out.txt"), parts, strict=True):
        (folder / name).write_bytes(part.encode())
    return parts


def in_blocks(bits_N: Array, size_N: Array) -> tuple[list[float], list[float]]:
    """Bits and bytes of each block; a piece belongs to the block that it begins in."""
    block_N = ((np.cumsum(size_N) - size_N) // BLOCK).astype(np.int64)
    last = max(0, int(np.ceil(size_N.sum() / BLOCK)) - 1)
    block_N = np.minimum(block_N, last)
    bits_M, size_M = (np.bincount(block_N, weights=each_N, minlength=last + 1) for each_N in (bits_N, size_N))
    return bits_M.tolist(), size_M.tolist()
