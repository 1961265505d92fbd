"""Constrained decoding of JSON by a schema (``response_format``), through llguidance."""

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

SPACING: "JsonCompileOptions" = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
PARAM = "response_format"
ASCII = bytes(range(0x20, 0x7F))  # enough to write any JSON


class JsonAnswers:
    """Makes constraints for a model. ``spellings``: its tokens' bytes (empty for control tokens); ``stop``: tokens that
    end an answer; ``encode``: its tokenizer.

    White space is as json.dumps writes it: if models chose it, their answers would differ in nothing but that, and weak
    models write it endlessly. For the same reason text that the schema determines has only one tokenization, the
    tokenizer's, with probability 1.
    """

    def __init__(self, spellings: Sequence[bytes], stop: Sequence[int], encode: Callable[[str], list[int]]) -> None:
        self._spellings, self._stop, self._encode = spellings, stop, encode
        # attributes that llguidance's TokenizerWrapper reads; the last token is the end for models without one
        self.tokens, self.eos_token_id, self.bos_token_id = [*spellings, b""], len(spellings), None

    def __call__(self, text: bytes) -> list[int]:
        """The tokens of a text, which spell it exactly (called by llguidance)."""
        ids = self._encode(text.decode())
        exact = b"".join(self._spellings[token] for token in ids) == text
        return ids if exact else [self._alone[byte] for byte in text]

    def constraint_factory(self, schema: Mapping[str, Any]) -> Callable[[], Constraint]:
        """Returns a function that makes a constraint for one answer. Raises ApiError for an unsupported schema, for a
        model that cannot write JSON, and without llguidance."""
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
        matcher.compute_bitmask()  # an infinite schema is only noticed here
        if matcher.is_error():
            why = matcher.get_error().partition("\n")[0][:300].rstrip(".")
            raise ApiError(f"The JSON schema cannot be followed: {why}.", 400, f"{PARAM}.json_schema.schema")
        return lambda: JsonConstraint(matcher.deep_copy(), len(self._spellings))

    @cached_property
    def _alone(self) -> dict[int, int]:
        """The tokens of a single byte, by byte."""
        return {spelling[0]: token for token, spelling in enumerate(self._spellings) if len(spelling) == 1}

    @cached_property
    def _tokenizer(self) -> "LLTokenizer":
        from llguidance import LLTokenizer, TokenizerWrapper

        return LLTokenizer(TokenizerWrapper(self), eos_token=[*self._stop] or self.eos_token_id)


class JsonConstraint:
    """The constraint on one answer."""

    def __init__(self, matcher: "LLMatcher", vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def allowed(self) -> npt.NDArray[np.bool_] | None:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, count=self._vocab_size, bitorder="little").astype(bool)
        return mask if mask.any() and not self._matcher.is_error() else None

    def accept(self, token: int) -> bool:
        return self._matcher.consume_token(token) and self._matcher.is_stopped()
