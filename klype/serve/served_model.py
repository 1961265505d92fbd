"""A model as the server offers it: a name, an engine, the words and the JSON it speaks, and which weights it has."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from klype.api.prompt_context import is_single_turn
from klype.errors import UsageError
from klype.serve.errors import ApiError
from klype.sources.find_model import Found, located
from klype.sources.opening import open_model
from klype.sources.source import NativeSource
from klype.values import Constraint

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
SPACING: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
PARAM = "response_format"
ASCII = bytes(range(0x20, 0x7F))  # in which any JSON can be written


class Served:
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


def open_served(text: str, precision: str = "float32", device: str = "auto") -> Served:
    """``MODEL`` or ``NAME=MODEL``; without a name it is made from the folder's. It is opened as everywhere, and its
    engine knows it by its name (a path is nobody's business). Raises UsageError when another server computes it."""
    given, separator, rest = text.partition("=")
    named = bool(separator) and NAME.fullmatch(given) is not None and not Path(text).exists()
    address = located(rest if named else text)
    opened = open_model(address, precision, device=device)
    opened.engine.name = name = given if named else name_of(opened.found, address)
    assert isinstance(opened.source, NativeSource), "what has an engine has a tokenizer"
    created = min(int(opened.found.folder.stat().st_mtime), int(time.time()))
    return Served(name, opened.source, created, is_single_turn(opened))


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


class JsonAnswers:
    """JSON by a schema, of one model: llguidance tells which tokens may come next. ``spellings`` are its tokens' bytes
    (none for control tokens), ``stop`` the tokens that end an answer, and ``encode`` its tokenizer.

    Between the parts of the JSON stands one space, as json.dumps writes it: white space of the model's own choice would
    be uncertainty about nothing, and weak models write it without end. For the same reason what the schema leaves no
    choice of has one spelling, the tokenizer's own, and probability 1.
    """

    def __init__(self, spellings: Sequence[bytes], stop: Sequence[int], encode: Callable[[str], list[int]]) -> None:
        self._spellings, self._stop, self._encode = spellings, stop, encode

    def following(self, schema: Mapping[str, Any]) -> Callable[[], Constraint]:
        """A constraint for each answer. ApiError: the schema cannot be followed, not by this model, or not here."""
        try:
            from llguidance import LLMatcher
        except ImportError:
            message = "A response_format of JSON needs the package llguidance, which is not installed here: "
            raise ApiError(message + "pip install 'klype[json]' on the server.", 400, PARAM) from None
        written = json.dumps(schema, ensure_ascii=False)
        if lacking := {*ASCII, *written.encode()} - self._alone.keys():
            raise ApiError(f"This model cannot write JSON: it has no token {bytes([min(lacking)])!r}.", 400, PARAM)
        matcher = LLMatcher(
            self._tokenizer, LLMatcher.grammar_from_json_schema(written, overrides=SPACING), log_level=0
        )
        matcher.compute_bitmask()  # an endless schema is noticed at the first token only
        if matcher.is_error():
            why = matcher.get_error().partition("\n")[0][:300].rstrip(".")
            raise ApiError(f"The JSON schema cannot be followed: {why}.", 400, f"{PARAM}.json_schema.schema")
        return lambda: _Following(matcher.deep_copy(), len(self._spellings))

    @cached_property
    def _alone(self) -> dict[int, int]:
        """Tokens of a single byte."""
        return {spelling[0]: token for token, spelling in enumerate(self._spellings) if len(spelling) == 1}

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        def spelled(text: bytes) -> list[int]:
            ids = self._encode(text.decode())
            exact = b"".join(self._spellings[token] for token in ids) == text
            return ids if exact else [self._alone[byte] for byte in text]

        end = len(self._spellings)  # stands for the end where the model has no token for it
        return LLTokenizer(
            TokenizerWrapper(_Vocabulary([*self._spellings, b""], end, spelled)), eos_token=[*self._stop] or end
        )


@dataclass(frozen=True)
class _Vocabulary:
    """As llguidance asks for it."""

    tokens: list[bytes]
    eos_token_id: int
    encode: Callable[[bytes], list[int]]
    bos_token_id: int | None = None

    def __call__(self, text: bytes) -> list[int]:
        return self.encode(text)


class _Following:
    """One answer."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def allowed(self) -> npt.NDArray[np.bool_] | None:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, count=self._vocab_size, bitorder="little").astype(bool)
        return mask if mask.any() and not self._matcher.is_error() else None

    def accept(self, token: int) -> bool:
        return self._matcher.consume_token(token) and self._matcher.is_stopped()
