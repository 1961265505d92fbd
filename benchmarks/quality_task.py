"""The task of every trainer: a text, its held-out end, and seconds; and how the trained model is measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
# share of each text's characters, at its end, that is held out
HELD_OUT = 0.1
# bytes of a block of held-out text, over which intervals are computed
BLOCK = 2_000


@dataclass(frozen=True, slots=True)
class Text:
    """A text of the comparison: its file, the seconds of training, and floor and goal in bits per byte."""

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
    """What a trainer is given. ``folder``: holds train.txt and held-out.txt; a trainer may write there. ``cache``:
    folder of klype's compiled code. ``shape``: of klype's model, and of peers that take the same (empty: klype
    chooses)."""

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
    """What was trained in the seconds given, and how. ``shape``: klype's own choice (see recipe.Shape)."""

    how: str
    steps: int
    tokens: int
    parameters: int
    shape: tuple[int, ...] = ()

    def json(self) -> dict[str, Any]:
        return asdict(self)


class Trainer(Protocol):
    """A trainer of the comparison. What it does in ``load`` does not count."""

    def load(self, threads: int, cache: str) -> None: ...

    def learn(self, given: Given) -> Learnt:
        """Trains a model on ``given.train``, everything within ``given.seconds`` seconds."""

    def score(self, text: str) -> tuple[Array, Array]:
        """Scores a text token by token: bits_N of each, and size_N, its bytes."""


def parted(text: str) -> tuple[str, str]:
    """The training part of a text, and its held-out end."""
    cut = round((1 - HELD_OUT) * len(text))
    return text[:cut], text[cut:]


def put(folder: Path, text: str) -> tuple[str, str]:
    """Writes both parts as files of ``folder``."""
    parts = parted(text)
    folder.mkdir()
    for name, part in zip(("train.txt", "held-out.txt"), parts, strict=True):
        (folder / name).write_bytes(part.encode())
    return parts


def in_blocks(bits_N: Array, size_N: Array) -> tuple[list[float], list[float]]:
    """The bits and bytes of each block; a token belongs to the block in which it begins."""
    block_N = ((np.cumsum(size_N) - size_N) // BLOCK).astype(np.int64)
    last = max(0, int(np.ceil(size_N.sum() / BLOCK)) - 1)
    block_N = np.minimum(block_N, last)
    bits_M, size_M = (np.bincount(block_N, weights=each_N, minlength=last + 1) for each_N in (bits_N, size_N))
    return bits_M.tolist(), size_M.tolist()
