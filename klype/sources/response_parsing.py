"""Strict parsing of servers' responses: OpenAI's chat and completions, vLLM's and llama.cpp's variants.

Formats follow their documentation: OpenAI API reference (chat: ``logprobs.content``; completions: ``tokens``,
``token_logprobs``, ``top_logprobs``), vLLM's OpenAI-compatible server (``token_id:N`` with
``return_tokens_as_token_ids``), llama.cpp's server README (``content`` also for completions, with ``id``).
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from klype.errors import KlypeError

Key = int | bytes  # a token: its id if the server returns it, else its bytes
# OpenAI's value for "less likely than anything listed"; also for NaN and infinity, which JSON cannot hold
UNLIKELY = -9999.0
IDS = 1 << 63  # token ids are below
UNTOLD = "\ufffd"  # an incomplete character; llama.cpp reports its tokens together with the one that completes it
LONGEST = 512  # characters of a token at most: vocabularies have runs of spaces and of signs


@dataclass(frozen=True, slots=True)
class ServerToken:
    """A token with its log-probability (NaN: unknown) and the most probable tokens, most probable first.

    ``data``: its bytes, if they are returned beside its id. llama.cpp returns the tokens of one character as one entry,
    under the id of the last.
    """

    key: Key
    logp: float
    top: tuple[tuple[Key, float], ...]
    data: bytes = b""

    @property
    def hidden(self) -> int:
        """How many further tokens the entry may include: a character has at most four bytes."""
        return 0 if self.data.isascii() else 3


@dataclass(frozen=True, slots=True)
class ServerChoice:
    """One choice of a response; ``tokens`` None: without log-probabilities."""

    index: int
    text: str
    tokens: tuple[ServerToken, ...] | None
    finish: str | None


def choices_of(answer: dict[str, Any], n: int, where: str, most: int = 0, echoed: int = 0) -> list[ServerChoice]:
    """All ``n`` choices in order; ``most``: tokens requested; ``echoed``: tokens of the prompt that each includes.

    Raises KlypeError for a response that is malformed or contradicts itself.
    """
    rows = answer.get("choices")
    if not isinstance(rows, list) or len(rows) != n:
        found = len(rows) if isinstance(rows, list) else "no"
        raise KlypeError(f"{where} gave {found} answers where {n} were asked for.", "Nothing of them is used.")
    choices = sorted((choice_of(row, where) for row in rows), key=lambda choice: choice.index)
    if (numbers := [choice.index for choice in choices]) != list(range(n)):
        raise KlypeError(f"{where} numbers its answers {numbers}.", "Nothing of them is used.")
    for choice in choices:
        if choice.finish is None:
            raise KlypeError(f"{where} gave an answer without saying why it ended.", "Nothing of it is used.")
        tokens, text = choice.tokens or (), choice.text
        keys = [token.key for token in tokens if isinstance(token.key, bytes)]
        if keys and len(keys) == len(tokens):  # the tokens' bytes must contain the text
            joined = b"".join(keys).decode(errors="replace")
            if UNTOLD not in joined + text and text.strip() not in joined:
                raise KlypeError(f"{where} tells tokens that do not spell its text.", "Nothing of it is used.")
        if most and len(tokens) > most:
            raise KlypeError(f"{where} told {len(tokens)} tokens, more than the {most} asked for.")
        if most and len(text) > LONGEST * most:
            raise KlypeError(f"{where} wrote {len(text)} characters, too many for the {most} tokens asked for.")
    if all(choice.tokens is not None for choice in choices):
        told = [token for choice in choices for token in choice.tokens or ()]
        silent = sum(choice.finish == "stop" for choice in choices) + sum(token.hidden for token in told)
        # the limit was reached within a character
        silent += 3 * sum(choice.text.endswith(UNTOLD) for choice in choices)
        check_count(len(told) - n * echoed, silent, answer.get("usage"), where)
    return choices


def choice_of(row: Any, where: str) -> ServerChoice:
    """Parses a choice, whole or a chunk of a stream. Raises KlypeError if it is malformed."""
    try:
        message = row.get("message", row.get("delta"))
        text = (message.get("content") or "") if message is not None else row.get("text", "")
        tokens = logprobs_of(row.get("logprobs"), where)
        if not isinstance(text, str):
            raise TypeError("text")
        return ServerChoice(int(row.get("index", 0)), text, tokens, row.get("finish_reason"))
    except (AttributeError, TypeError, ValueError, OverflowError, KeyError, IndexError) as error:
        raise KlypeError(f"{where} gave an answer that cannot be read ({error}).", "Nothing of it is used.") from None


def logprobs_of(found: Any, where: str) -> tuple[ServerToken, ...] | None:
    """Parses log-probabilities of either format; None if there are none."""
    if not found:
        return None
    if isinstance(found.get("content"), list):
        heard = []
        for entry in found["content"]:
            listed = [(_key(one), _logp(one["logprob"], where)) for one in entry.get("top_logprobs") or ()]
            data = _bytes_of_list(entry.get("bytes") or []) if isinstance(entry.get("id"), int) else b""
            heard.append(ServerToken(_key(entry), _logp(entry["logprob"], where), by_probability(listed), data))
        return tuple(heard)
    if not isinstance(found.get("tokens"), list):
        return None
    tokens, logps = found["tokens"], found["token_logprobs"]
    tops = found.get("top_logprobs") or [None] * len(tokens)
    if not len(tokens) == len(logps) == len(tops):
        raise KlypeError(
            f"{where} tells {len(tokens)} tokens, {len(logps)} log-probabilities and {len(tops)} lists of others.",
            "Nothing of it is used.",
        )
    heard = []
    for token, logp, top in zip(tokens, logps, tops, strict=True):
        listed = [(key_of(text), _logp(value, where)) for text, value in (top or {}).items()]
        heard.append(ServerToken(key_of(token), _logp(logp, where), by_probability(listed)))
    return tuple(heard)


def key_of(text: str, data: Any = None) -> Key:
    """The token of a text in a response, or of its bytes ``data`` if those are returned."""
    match = re.fullmatch(r"token_id:([0-9]+)", text)
    if match:
        return _id(int(match[1]))
    if data:
        return _bytes_of_list(data)
    if text.startswith("bytes:"):
        return bytes.fromhex("".join(re.findall(r"\\x([0-9a-f]{2})", text)))
    return text.encode("utf-8", "surrogatepass")


def by_probability(listed: Sequence[tuple[Key, float]]) -> tuple[tuple[Key, float], ...]:
    """Most probable first, without duplicates and unknown log-probabilities."""
    best: dict[Key, float] = {}
    for key, logp in listed:
        if not math.isnan(logp):
            best[key] = max(logp, best.get(key, -math.inf))
    return tuple(sorted(best.items(), key=lambda item: -item[1]))


def check_count(told: int, silent: int, usage: Any, where: str) -> None:
    """Raises KlypeError unless the number of tokens agrees with the server's ``usage``, which may count up to
    ``silent`` more."""
    if not isinstance(usage, dict) or not isinstance(usage.get("completion_tokens"), int):
        return
    details = usage.get("completion_tokens_details")
    hidden = details.get("reasoning_tokens") if isinstance(details, dict) else 0
    claimed = usage["completion_tokens"] - (hidden if isinstance(hidden, int) else 0)
    if not told <= claimed <= told + silent:
        raise KlypeError(f"{where} says that it wrote {claimed} tokens and tells {told}.", "Nothing of it is used.")


def _key(one: dict[str, Any]) -> Key:
    number = one.get("id")
    return _id(number) if isinstance(number, int) else key_of(one["token"], one.get("bytes"))


def _id(number: int) -> int:
    if not 0 <= number < IDS:
        raise ValueError("the id of a token")
    return number


def _bytes_of_list(data: Any) -> bytes:
    """Bytes from a list of numbers. Raises TypeError for anything else: ``bytes`` of a number would be that many
    zeros."""
    if not isinstance(data, list):
        raise TypeError("bytes")
    return bytes(data)


def _logp(value: Any, where: str) -> float:
    """A log-probability; NaN if unknown. Raises KlypeError for what cannot be one."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value > 1e-3:
        raise KlypeError(f"{where} gives the log-probability {value!r}, which cannot be.", "Nothing of it is used.")
    return math.nan if value <= UNLIKELY else min(0.0, float(value))
