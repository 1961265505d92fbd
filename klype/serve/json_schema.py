"""JSON by a schema (``response_format``): which tokens may come next, as llguidance tells."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from klype.serve.api_errors import ApiError
from klype.values import Constraint

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

SPACING: JsonCompileOptions = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
PARAM = "response_format"
ASCII = bytes(range(0x20, 0x7F))  # in which any JSON can be written


class JsonAnswers:
    """JSON of one model. ``spellings`` are its tokens' bytes (none for control tokens), ``stop`` the tokens that end an
    answer, and ``encode`` its tokenizer.

    Between the parts of the JSON stands one space, as json.dumps writes it: white space of the model's own choice would
    be uncertainty about nothing, and weak models write it without end. For the same reason what the schema leaves no
    choice of has one spelling, the tokenizer's own, and probability 1.
    """

    def __init__(self, spellings: Sequence[bytes], stop: Sequence[int], encode: Callable[[str], list[int]]) -> None:
        self._spellings, self._stop, self._encode = spellings, stop, encode
        # A vocabulary as llguidance's wrapper wants it; the last token stands for the end where the model has none.
        self.tokens, self.eos_token_id, self.bos_token_id = [*spellings, b""], len(spellings), None

    def __call__(self, text: bytes) -> list[int]:
        """Its tokens, which spell exactly this."""
        ids = self._encode(text.decode())
        exact = b"".join(self._spellings[token] for token in ids) == text
        return ids if exact else [self._alone[byte] for byte in text]

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
        return lambda: JsonConstraint(matcher.deep_copy(), len(self._spellings))

    @cached_property
    def _alone(self) -> dict[int, int]:
        """Tokens of a single byte."""
        return {spelling[0]: token for token, spelling in enumerate(self._spellings) if len(spelling) == 1}

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        return LLTokenizer(TokenizerWrapper(self), eos_token=[*self._stop] or self.eos_token_id)


class JsonConstraint:
    """One answer's."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def allowed(self) -> npt.NDArray[np.bool_] | None:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, count=self._vocab_size, bitorder="little").astype(bool)
        return mask if mask.any() and not self._matcher.is_error() else None

    def accept(self, token: int) -> bool:
        return self._matcher.consume_token(token) and self._matcher.is_stopped()
