"""A model as the server offers it: a name, an engine, the words it speaks, and which weights it has."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from klype.errors import UsageError
from klype.sources.native import NativeSource
from klype.text.tokenizer import Tokenizer

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Served:
    """``name`` is what clients call it (never a path); ``created`` is in Unix seconds."""

    name: str
    source: NativeSource
    fingerprint: str
    spellings: tuple[bytes, ...]
    """What each of the model's tokens adds to a text: nothing for control tokens and for rows without a spelling."""
    longest: int
    """Bytes of the longest token."""
    created: int = 0

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UsageError(
                f"'{self.name}' cannot be a model's name: use letters, digits, '.', '_' and '-'.",
                "Give it one: NAME=FOLDER.",
            )

    @staticmethod
    def of(name: str, source: NativeSource, created: int = 0) -> Served:
        """The source's engine is the server's from now on."""
        tokenizer, runner = source.codec.tokenizer, source.engine.runner
        spellings = tuple(map(tokenizer.token_bytes, range(runner.vocab_size)))
        source.engine.decode_bytes = tokenizer.token_bytes
        return Served(name, source, runner.weights.fingerprint(), spellings, max(map(len, spellings)), created)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.source.codec.tokenizer

    @property
    def window(self) -> int:
        return self.source.engine.runner.window

    @property
    def vocab_size(self) -> int:
        return self.source.engine.runner.vocab_size

    def token_bytes(self, token: int) -> bytes:
        return self.spellings[token]

    def text(self, tokens: Iterable[int]) -> str:
        """What they spell; bytes that are no UTF-8 become U+FFFD. No call of Python a token: a client may send 2^18."""
        return b"".join(map(self.spellings.__getitem__, tokens)).decode(errors="replace")
