"""What has been drawn so far: plain arrays, one line a running answer; Python objects are made when it has ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from klype.engine.runner import ReadPrompt
from klype.values import Distribution, How, Request, Step, Trace

Indices = npt.NDArray[np.int64]
Ended = Literal["stop", "length", "cancelled"]


@dataclass(eq=False)
class Job:
    """A request on its way: which samples are still to be started and which are done."""

    id: int
    request: Request
    room: int  # tokens an answer may have: the limit, or what the window leaves
    waiting: int  # samples not started
    read: ReadPrompt | None = None
    started: float = 0.0
    traces: list[Trace] = field(default_factory=list)

    @property
    def next_sample(self) -> int:
        return self.request.first_sample + self.request.n - self.waiting

    def prompt(self) -> ReadPrompt:
        assert self.read is not None, "the prompt has been read before its samples join"
        return self.read


class Records:
    """Tokens and their log-probabilities, [lines, positions]; lines are reused."""

    def __init__(self) -> None:
        self.tokens: npt.NDArray[np.int64] = np.zeros((0, 32), np.int64)
        self.logp: npt.NDArray[np.float64] = np.zeros((0, 32))
        self.drawn_logp: npt.NDArray[np.float64] = np.zeros((0, 32))
        self.distributions: dict[int, list[Distribution]] = {}
        self.texts: dict[int, bytearray] = {}
        self._free: list[int] = []

    def open(self, count: int) -> Indices:
        """Lines for so many new answers."""
        missing = count - len(self._free)
        if missing > 0:
            used = len(self.tokens)
            grown = max(missing, used // 2)
            self._free.extend(range(used + grown - 1, used - 1, -1))
            self._grow(grown, 0)
        return np.array([self._free.pop() for _ in range(count)], np.int64)

    def close(self, line: int) -> None:
        self.distributions.pop(line, None)
        self.texts.pop(line, None)
        self._free.append(line)

    def write(self, lines: Indices, at: Indices, tokens: Indices, logp: npt.NDArray[np.float64]) -> None:
        """``logp`` [2, R]: under the model, and under what was drawn from."""
        last = int(at.max(initial=0))
        if last >= self.tokens.shape[1]:
            self._grow(0, max(self.tokens.shape[1], last + 1 - self.tokens.shape[1]))
        self.tokens[lines, at] = tokens
        self.logp[lines, at] = logp[0]
        self.drawn_logp[lines, at] = logp[1]

    def last(self, line: int, count: int) -> Step:
        """The newest of ``count`` steps."""
        at = count - 1
        listed = self.distributions.get(line)
        token, logp, drawn = self.tokens[line, at], self.logp[line, at], self.drawn_logp[line, at]
        return Step(int(token), float(logp), float(drawn), "drawn", listed[at] if listed else None)

    def steps(self, line: int, count: int) -> tuple[Step, ...]:
        tokens, logp = self.tokens[line, :count].tolist(), self.logp[line, :count].tolist()
        drawn = self.drawn_logp[line, :count].tolist()
        listed: Sequence[Distribution | None] = self.distributions.get(line) or [None] * count
        how: How = "drawn"
        return tuple(Step(t, p, d, how, q) for t, p, d, q in zip(tokens, logp, drawn, listed, strict=True))

    def _grow(self, lines: int, positions: int) -> None:
        more = ((0, lines), (0, positions))
        self.tokens = np.pad(self.tokens, more)
        self.logp = np.pad(self.logp, more)
        self.drawn_logp = np.pad(self.drawn_logp, more)


def distribution(logp_V: Tensor, top: int) -> Distribution:
    """The most probable ``top`` tokens (-1: all), most probable first."""
    return distributions(logp_V[None], top)[0]


def distributions(logp_BV: Tensor, top: int) -> list[Distribution]:
    """``distribution`` of every row."""
    V = logp_BV.shape[-1]
    if top < 0 or top >= V:
        ids_BV, sorted_BV = _sorted(logp_BV.cpu().numpy())
        return [Distribution(ids_V, logp_V) for ids_V, logp_V in zip(ids_BV, sorted_BV, strict=True)]
    values_BK, ids_BK = (found.cpu() for found in logp_BV.topk(top))
    rest = (1.0 - values_BK.double().exp().sum(-1)).clamp(min=0.0).tolist()
    return [Distribution(*row) for row in zip(ids_BK.numpy(), values_BK.numpy(), rest, strict=True)]


def _sorted(logp_BV: npt.NDArray[np.float32]) -> tuple[Indices, npt.NDArray[np.float32]]:
    """Most probable first, equals by id. Value and id are sorted as one integer: several times as fast as ``topk``,
    and the same on every processor."""
    bits_BV = np.ascontiguousarray(logp_BV).view(np.uint32)
    rising_BV = np.where(bits_BV >> 31, ~bits_BV, bits_BV | np.uint32(1 << 31))
    keys_BV = (~rising_BV).astype(np.uint64) << np.uint64(32)
    keys_BV |= np.arange(logp_BV.shape[1], dtype=np.uint64)
    keys_BV.sort(axis=1)
    ids_BV = (keys_BV & np.uint64(0xFFFFFFFF)).astype(np.int64)
    return ids_BV, np.take_along_axis(logp_BV, ids_BV, axis=1)
