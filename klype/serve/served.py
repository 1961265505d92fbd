"""A model as the server offers it: a name, an engine, the words it speaks, and which weights it has."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from klype.api.asking import is_single_turn
from klype.errors import UsageError
from klype.serve.json_answers import JsonAnswers
from klype.sources.bundled import located
from klype.sources.find import Found
from klype.sources.opening import open_model
from klype.sources.source import NativeSource
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
    json: JsonAnswers
    created: int = 0
    single_turn: bool = False
    """Whether it was taught single questions, so that what was said before is not for it."""

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
        json = JsonAnswers(spellings, source.codec.stop, partial(tokenizer.encode, first=False))
        return Served(name, source, runner.weights.fingerprint(), spellings, max(map(len, spellings)), json, created)

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


def open_served(text: str, precision: str = "float32", device: str = "auto") -> Served:
    """``MODEL`` or ``NAME=MODEL``; without a name it is made from the folder's. It is opened as everywhere, and its
    engine knows it by its name (a path is nobody's business). Raises UsageError when another server computes it."""
    given, separator, rest = text.partition("=")
    named = bool(separator) and NAME.fullmatch(given) is not None and not Path(text).exists()
    address = located(rest if named else text)
    opened = open_model(address, precision, device=device)
    found, engine = opened.found, opened.engine
    assert isinstance(opened.source, NativeSource), "what has an engine has a tokenizer"
    engine.name = name = given if named else name_of(found, address)
    created = int(found.folder.stat().st_mtime)
    served = Served.of(name, opened.source, min(created, int(time.time())))
    return replace(served, single_turn=is_single_turn(opened))


def name_of(found: Found, text: str) -> str:
    """The run's name (with the stage, when one was named), the folder's or the file's; never a path."""
    last = Path(text).expanduser().resolve()
    if found.run is not None and last != found.run.resolve():
        raw = f"{found.run.resolve().name}-{found.stage}"
    else:
        raw = last.stem if last.is_file() else last.name
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", raw).strip("-._")[:100]
    if not name:
        raise UsageError(f"There is no name to be made from {text}.", "Give it one: NAME=MODEL.")
    return name
