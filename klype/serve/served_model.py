"""A model as the server offers it: a name, an engine, the words and the JSON it speaks, and which weights it has."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from klype.api.prompt_context import is_single_turn
from klype.errors import UsageError
from klype.serve.json_schema import JsonAnswers
from klype.sources.find_model import ModelFiles, located
from klype.sources.opening import open_model
from klype.sources.source import NativeSource

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class ServedModel:
    """``name`` is what clients call it (never a path); ``created`` is in Unix seconds; ``single_turn``: it was taught
    single questions, so that what was said before is not for it. The source's engine is the server's from now on.

    ``spellings``: what each token adds to a text, in bytes (nothing for control tokens and for rows without a
    spelling), of which the longest has ``longest``; ``names``: those of control tokens.
    """

    def __init__(self, name: str, source: NativeSource, created: int = 0, single_turn: bool = False) -> None:
        if not NAME.fullmatch(name):
            raise UsageError(
                f"'{name}' cannot be a model's name: use letters, digits, '.', '_' and '-'.",
                "Give it one: NAME=FOLDER.",
            )
        self.name, self.source, self.created, self.single_turn = name, source, created, single_turn
        tokenizer, runner = source.codec.tokenizer, source.engine.runner
        source.engine.decode_bytes = tokenizer.token_bytes
        self.tokenizer, self.window, self.vocab_size = tokenizer, runner.window, runner.vocab_size
        self.fingerprint = runner.weights.fingerprint()
        self.spellings = tuple(map(tokenizer.token_bytes, range(self.vocab_size)))
        self.longest = max(map(len, self.spellings))
        self.names = {token: text for text, token in tokenizer.control_ids().items()}
        self.json = JsonAnswers(self.spellings, source.codec.stop, partial(tokenizer.encode, first=False))

    def text(self, tokens: Iterable[int]) -> str:
        """What they spell; bytes that are no UTF-8 become U+FFFD. No call of Python a token: a client may send 2^18."""
        return b"".join(map(self.spellings.__getitem__, tokens)).decode(errors="replace")


def open_served(text: str, precision: str = "float32", device: str = "auto") -> ServedModel:
    """``MODEL`` or ``NAME=MODEL``; without a name it is made from the folder's. It is opened as everywhere, and its
    engine knows it by its name (a path is nobody's business). Raises UsageError when another server computes it."""
    given, separator, rest = text.partition("=")
    named = bool(separator) and NAME.fullmatch(given) is not None and not Path(text).exists()
    address = located(rest if named else text)
    opened = open_model(address, precision, device=device)
    opened.engine.name = name = given if named else name_of(opened.found, address)
    assert isinstance(opened.source, NativeSource), "what has an engine has a tokenizer"
    created = min(int(opened.found.folder.stat().st_mtime), int(time.time()))
    return ServedModel(name, opened.source, created, is_single_turn(opened))


def name_of(found: ModelFiles, text: str) -> str:
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
