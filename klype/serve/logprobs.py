"""Tokens and their log-probabilities as OpenAI's API spells them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from klype.serve.served import Served
from klype.values import Step

LEAST = -9999.0
"""What stands for a log-probability that is no number JSON knows (OpenAI's own convention)."""


class Spelling:
    """A token as text. Bytes that are no characters are escaped; control tokens have their name and no bytes.

    ``as_ids``: "token_id:7" instead (vLLM's ``return_tokens_as_token_ids``), which no two tokens share.
    """

    def __init__(self, served: Served, as_ids: bool = False, broken: str = "") -> None:
        """``broken`` leads the escaped bytes: "bytes:" in completions, nothing in chat, as OpenAI has it."""
        self._served = served
        self._names = {token: name for name, token in served.tokenizer.control_ids().items()}
        self._as_ids = as_ids
        self._broken = broken

    def text(self, token: int) -> str:
        if self._as_ids:
            return f"token_id:{token}"
        data = self._served.token_bytes(token)
        if not data:
            return self._names.get(token, "")
        try:
            return data.decode()
        except UnicodeDecodeError:
            return self._broken + "".join(f"\\x{byte:02x}" for byte in data)

    def bytes(self, token: int) -> list[int] | None:
        return list(self._served.token_bytes(token)) or None


def finite(logp: float) -> float:
    return logp if math.isfinite(logp) else LEAST


def alternatives(step: Step, top: int) -> list[tuple[int, float]]:
    """The ``top`` most probable tokens with their log-probabilities; the chosen one's is exactly the step's own."""
    found = step.distribution
    if found is None or not top:
        return []
    pairs = zip(found.ids[:top].tolist(), found.logp[:top].tolist(), strict=True)
    return [(token, finite(step.logp if token == step.token else logp)) for token, logp in pairs]


def chat_entries(steps: Sequence[Step], spelling: Spelling, top: int) -> list[dict[str, Any]]:
    """``logprobs.content`` of chat completions."""

    def entry(token: int, logp: float) -> dict[str, Any]:
        return {"token": spelling.text(token), "logprob": logp, "bytes": spelling.bytes(token)}

    return [
        {
            **entry(step.token, finite(step.logp)),
            "top_logprobs": [entry(token, logp) for token, logp in alternatives(step, top)],
        }
        for step in steps
    ]


class Offsets:
    """Where in a choice's text each token begins, in characters."""

    def __init__(self, start: int = 0) -> None:
        self._at = start

    def next(self, data: bytes) -> int:
        """The place of a token of these bytes; a character counts where its first byte is."""
        at = self._at
        self._at += sum(byte & 0xC0 != 0x80 for byte in data)
        return at


def completion_entries(
    steps: Sequence[Step], spelling: Spelling, top: int, offsets: Offsets, served: Served
) -> dict[str, list[Any]]:
    """``logprobs`` of completions. The token that was chosen is always among its alternatives."""
    out: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for step in steps:
        listed: dict[str, float] = {}
        for token, logp in (*alternatives(step, top), (step.token, finite(step.logp))):
            listed.setdefault(spelling.text(token), logp)
        out["tokens"].append(spelling.text(step.token))
        out["token_logprobs"].append(finite(step.logp))
        out["top_logprobs"].append(listed)
        out["text_offset"].append(offsets.next(served.token_bytes(step.token)))
    return out
