"""How a choice is written, for chat and completions: its text as tokens come, its pieces, and its log-probabilities."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from klype.serve.plan import Plan
from klype.serve.served import Served
from klype.serve.worker import AT_ONCE
from klype.values import Step, Trace


class Spoken:
    """Bytes in, text out, up to the stop text that is whole first. What may turn out to be the beginning of one waits
    until it is known.

    ``lead``: the one space that leads a chat answer is left out. Bytes that cannot become UTF-8 are U+FFFD; the first
    bytes of a character that never came whole are left out.
    """

    def __init__(self, stops: Sequence[str] = (), lead: bool = False) -> None:
        self._stops = [stop.encode() for stop in stops]
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = b""
        self._strip = lead
        self._cut = False

    def add(self, data: bytes, last: bool = False) -> str:
        """The text that is certain now; ``last`` when nothing follows."""
        if self._cut:
            return ""
        data = self._held + data
        found = [at for stop in self._stops if (at := data.find(stop)) >= 0]
        if found:
            self._cut, self._held = True, b""
            return self._decode(data[: min(found)])
        keep = 0 if last else max((_overlap(data, stop) for stop in self._stops), default=0)
        self._held = data[len(data) - keep :]
        return self._decode(data[: len(data) - keep])

    def _decode(self, data: bytes) -> str:
        text = self._decoder.decode(data)
        if text and self._strip:
            self._strip = False
            text = text.removeprefix(" ")
        return text


def _overlap(data: bytes, stop: bytes) -> int:
    """How many bytes at the end of ``data`` begin ``stop``."""
    longest = min(len(data), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if data.endswith(stop[:n])), 0)


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
    # under a constraint fewer may be possible than are asked for
    return [(token, finite(step.logp if token == step.token else logp)) for token, logp in pairs if logp > -math.inf]


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


class Form(Protocol):
    """One choice on its way. ``open`` is what comes before its tokens; ``text`` is what a piece adds."""

    spoken: Spoken

    def open(self, prompt: Trace | None) -> list[dict[str, Any]]:
        """Pieces before the first token, given the probabilities of the prompt where they were asked for."""
        ...

    def piece(self, text: str, steps: Sequence[Step], reason: str | None) -> dict[str, Any]: ...

    def whole(self, pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The choice, put together from all of its pieces."""
        ...


class ChatForm:
    """``choices`` of chat.completion and its chunks."""

    def __init__(self, plan: Plan, index: int) -> None:
        self.index = index
        self.spoken = Spoken(plan.stops, lead=True)
        self._top = plan.top
        self._spelling = Spelling(plan.served, plan.as_ids)
        self._constraint = {"constraint": plan.constraint} if plan.constraint else {}

    def open(self, prompt: Trace | None) -> list[dict[str, Any]]:
        return [self._chunk({"role": "assistant", "content": "", "refusal": None}, None, None)]

    def piece(self, text: str, steps: Sequence[Step], reason: str | None) -> dict[str, Any]:
        logprobs = None
        if self._top is not None and steps:
            logprobs = self._logprobs(chat_entries(steps, self._spelling, self._top))
        return self._chunk({"content": text} if text or logprobs else {}, logprobs, reason)

    def whole(self, pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
        text = "".join(piece["delta"].get("content", "") for piece in pieces)
        entries = [entry for piece in pieces if piece["logprobs"] for entry in piece["logprobs"]["content"]]
        return {
            "index": self.index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None if self._top is None else self._logprobs(entries),
            "finish_reason": pieces[-1]["finish_reason"],
        }

    def _logprobs(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
        return {"content": entries, "refusal": None, **self._constraint}

    def _chunk(self, delta: dict[str, Any], logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
        return {"index": self.index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


class CompletionForm:
    """``choices`` of text_completion."""

    def __init__(self, plan: Plan, index: int) -> None:
        self.index = index
        self.spoken = Spoken(plan.stops)
        self._served = plan.served
        self._top = plan.top
        self._spelling = Spelling(plan.served, plan.as_ids, "bytes:")
        self._prompt = plan.prompts[index // plan.n]
        self._echo = None if plan.echoes is None else plan.echoes[index // plan.n]
        self._offsets = Offsets(len(self._echo or ""))

    def open(self, prompt: Trace | None) -> list[dict[str, Any]]:
        if self._echo is None:
            return []
        if prompt is None:
            return [self._chunk(self._echo, None, None)]
        found = enumerate(self._prompt_logprobs(prompt))
        return [self._chunk("" if i else self._echo, logprobs, None) for i, logprobs in found]

    def piece(self, text: str, steps: Sequence[Step], reason: str | None) -> dict[str, Any]:
        logprobs = None
        if self._top is not None and steps:
            logprobs = completion_entries(steps, self._spelling, self._top, self._offsets, self._served)
        return self._chunk(text, logprobs, reason)

    def whole(self, pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
        text = "".join(piece["text"] for piece in pieces)
        logprobs: dict[str, list[Any]] | None = None
        if self._top is not None:
            logprobs = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
            for piece in pieces:
                for name, values in (piece["logprobs"] or {}).items():
                    logprobs[name] += values
        return self._chunk(text, logprobs, pieces[-1]["finish_reason"])

    def _prompt_logprobs(self, prompt: Trace) -> Iterator[dict[str, list[Any]]]:
        """Of some tokens after the other. Nothing is known about the first one. A space that the tokenizer put before
        the text is not in the text."""
        first = self._prompt[0]
        added = len(self._served.text(self._prompt)) - len(self._echo or "")
        offsets = Offsets(-added)
        at = offsets.next(self._served.token_bytes(first))
        text = self._spelling.text(first)
        yield {"tokens": [text], "token_logprobs": [None], "top_logprobs": [None], "text_offset": [max(0, at)]}
        top = self._top or 0
        some = max(1, AT_ONCE // (1 + top))
        for start in range(0, len(prompt.steps), some):
            steps = prompt.steps[start : start + some]
            found = completion_entries(steps, self._spelling, top, offsets, self._served)
            yield {**found, "text_offset": [max(0, place) for place in found["text_offset"]]}

    def _chunk(self, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": reason}
