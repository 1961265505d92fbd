"""Sources for tests: the real engine over models whose next token depends on the last one only, or partial ones."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from klype.answers.tree import Tree, TreeSettings, grow
from klype.engine.engine import Engine, Event
from klype.sources.source import Message, NativeSource, Source, SourceWrapper
from klype.values import Distribution, Request, Trace
from tests.toys import bigram


@dataclass(frozen=True)
class ToyCodec:
    """Tokens are letters; ``stop`` ends an answer."""

    stop: tuple[int, ...]
    letters: tuple[str, ...]

    def encode(self, text: str) -> list[int]:
        return [self.letters.index(letter) for letter in text]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        return self.encode(messages[-1]["content"])

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.letters[i] for i in ids if i not in self.stop)

    def token_bytes(self, token: int) -> bytes:
        return b"" if token in self.stop else self.letters[token].encode()


def table_source(
    p_VV: np.ndarray, stop: tuple[int, ...] = (0,), letters: Sequence[str] = ()
) -> tuple[NativeSource, ToyCodec]:
    """Row i of ``p_VV`` is the distribution after token i. Letters default to ".abc…"."""
    codec = ToyCodec(stop, tuple(letters or ".abcdefghijklmnop"[: len(p_VV)]))
    with np.errstate(divide="ignore"):
        logits = np.maximum(np.log(p_VV), -200.0)
    engine = Engine(bigram(logits.tolist()), name="table")
    return NativeSource(engine, codec), codec  # type: ignore[arg-type]


def grow_one(
    source: Source,
    prompt: Sequence[int],
    settings: TreeSettings,
    token_bytes: Callable[[int], bytes] | None = None,
    meaning: Callable[[str], Hashable] = lambda text: text,
    progress: Callable[[int, float], None] | None = None,
) -> Tree:
    """The tree of one prompt, where every text is a meaning of its own."""
    return grow(source, [prompt], settings, token_bytes, [meaning], progress)[0]


class Forwarding(SourceWrapper):
    """A source that is none of klype's own, and does what another one does."""

    def next(self, prefixes: Sequence[Sequence[int]], top: int = -1) -> list[Distribution]:
        return self._source.next(prefixes, top)

    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], top: int = 0) -> list[Trace]:
        return self._source.score(prompts, answers, top)

    def generate(self, requests: Sequence[Request]) -> Iterator[Event]:
        return self._source.generate(requests)


@dataclass(frozen=True)
class Partial:
    """The same source, but only its ``k`` most probable tokens are listed."""

    inner: NativeSource
    k: int

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def codec(self) -> ToyCodec:
        return self.inner.codec  # type: ignore[return-value]

    def next(self, prefixes: Sequence[Sequence[int]], top: int = -1) -> list[Distribution]:
        return self.inner.next(prefixes, self.k)

    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], top: int = 0) -> list[Trace]:
        return self.inner.score(prompts, answers, top and self.k)

    def generate(self, requests: Sequence[Request]) -> Iterator[Event]:
        return self.inner.generate(requests)


def random_table(rng: np.random.Generator, size: int, flatness: float = 0.5) -> np.ndarray:
    """Distributions of a Dirichlet; every token can end."""
    return rng.dirichlet(np.full(size, flatness), size=size) * 0.9 + 0.1 * np.eye(size)[0]


def enumerate_answers(p_VV: np.ndarray, start: int, limit: int, stop: int = 0) -> dict[tuple[int, ...], float]:
    """P of every token sequence that ends within ``limit`` tokens (the end included)."""
    found: dict[tuple[int, ...], float] = {}
    opened = [((), start, 1.0)]
    for _ in range(limit):
        grown = []
        for tokens, last, mass in opened:
            for token, p in enumerate(p_VV[last]):
                if p * mass == 0:
                    continue
                if token == stop:
                    found[tokens] = found.get(tokens, 0.0) + mass * p
                else:
                    grown.append(((*tokens, token), token, mass * p))
        opened = grown  # type: ignore[assignment]
    return found


def at_temperature(p_VV: np.ndarray, temperature: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        raised = np.where(p_VV > 0, np.exp(np.log(np.maximum(p_VV, 1e-300)) / temperature), 0.0)
    return raised / raised.sum(axis=1, keepdims=True)
