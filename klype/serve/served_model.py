"""A model as the server offers it: its name, engine, vocabulary, JSON grammar and fingerprint."""

import re
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from klype.api.prompt_context import is_single_turn
from klype.errors import UsageError
from klype.serve.json_schema import JsonAnswers
from klype.sources.model_files import resolve
from klype.sources.opening import open_model
from klype.sources.source import NativeSource

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class ServedModel:
    """A model with its name for clients (never a path). The server takes over the source's engine.

    ``created``: in Unix seconds; ``single_turn``: it was taught single questions, and gets the last one only.
    ``spellings``: the bytes of each token, empty for control tokens and unused rows; ``longest``: the length of the
    longest; ``names``: those of control tokens.
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
        """The text of tokens; invalid UTF-8 becomes U+FFFD."""
        # without a call of Python per token: a client may send 2^18 of them
        return b"".join(map(self.spellings.__getitem__, tokens)).decode(errors="replace")


def open_served(text: str, precision: str = "float32", device: str = "auto") -> ServedModel:
    """Opens ``MODEL`` or ``NAME=MODEL``; the default name is that of the run, folder or file. The engine gets the name
    as its label, so that clients never see a path. Raises UsageError for a model of another server."""
    given, separator, rest = text.partition("=")
    named = bool(separator) and NAME.fullmatch(given) is not None and not Path(text).exists()
    address = resolve(rest if named else text)
    opened = open_model(address, precision, device=device)
    last = Path(address).expanduser().resolve()
    raw = last.stem if last.is_file() else last.name
    if (run := opened.found.run) is not None and last != run.resolve():
        raw = f"{run.resolve().name}-{opened.found.stage}"
    name = given if named else re.sub(r"[^A-Za-z0-9._-]+", "-", raw).strip("-._")[:100]
    if not name:
        raise UsageError(f"There is no name to be made from {address}.", "Give it one: NAME=MODEL.")
    opened.engine.name = name
    assert isinstance(opened.source, NativeSource), "what has an engine has a tokenizer"
    created = min(int(opened.found.folder.stat().st_mtime), int(time.time()))
    return ServedModel(name, opened.source, created, is_single_turn(opened))
