"""What every model that can be asked offers. Tokens are the source's own; ``codec`` translates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from klype.engine.engine import Event
from klype.values import Distribution, Request, Trace

Message = Mapping[str, str]
"""``role`` and ``content``."""


class Codec(Protocol):
    """Text to the source's tokens and back."""

    @property
    def stop(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        ...

    def encode(self, text: str) -> list[int]:
        """A text to be continued, with the token that begins a text where the model has one."""
        ...

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """A conversation up to where the model's answer begins."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """An answer's text, control tokens left out."""
        ...


def tokens_of(codec: Codec, word: str) -> set[int]:
    """The tokens that are the whole word in one of its usual spellings: none where it takes several, of which the last
    says nothing of the word."""
    start = len(codec.encode(""))
    found = set()
    for spelled in (word, f" {word}", word.lower(), f" {word.lower()}"):
        ids = codec.encode(spelled)
        if len(ids) - start <= 1 and codec.decode(ids[-1:]).strip().lower() == word.lower():
            found.add(ids[-1])
    return found


class Source(Protocol):
    """``name`` says which weights answer; it is what traces carry."""

    @property
    def name(self) -> str: ...

    @property
    def codec(self) -> Codec: ...

    def next(self, prefixes: Sequence[Sequence[int]], top: int = -1) -> list[Distribution]:
        """The next-token distribution (temperature 1) after each prefix; ``top`` -1: as much as the source gives."""
        ...

    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], top: int = 0) -> list[Trace]:
        """How probable each given answer is, token by token."""
        ...

    def generate(self, requests: Sequence[Request]) -> Iterator[Event]:
        """Tokens as they come; ``Event.request`` is the request's place in the sequence. Closing it ends the work."""
        ...


class Around:
    """A source that passes on what it is asked: for those that change or watch one of the three questions."""

    def __init__(self, source: Source) -> None:
        self._source = source

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def codec(self) -> Codec:
        return self._source.codec

    def next(self, prefixes: Sequence[Sequence[int]], top: int = -1) -> list[Distribution]:
        return self._source.next(prefixes, top)

    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], top: int = 0) -> list[Trace]:
        return self._source.score(prompts, answers, top)

    def generate(self, requests: Sequence[Request]) -> Iterator[Event]:
        return self._source.generate(requests)


def answers(source: Source, requests: Sequence[Request]) -> list[list[Trace]]:
    """All answers, in order of request and sample."""
    found: list[list[Trace]] = [[] for _ in requests]
    for event in source.generate(requests):
        if event.trace is not None:
            found[event.request].append(event.trace)
    return [sorted(traces, key=lambda trace: trace.sample) for traces in found]
