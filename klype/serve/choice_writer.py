"""How a choice is written, for chat and completions: its text as tokens come, its pieces, and its log-probabilities."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from klype.serve.request_parsing import Plan
from klype.serve.worker import AT_ONCE
from klype.values import Step, Trace

LEAST = -9999.0  # stands for a log-probability that is no number JSON knows (OpenAI's own convention)
Piece = dict[str, Any]


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
        end = min((at for stop in self._stops if (at := data.find(stop)) >= 0), default=-1)
        self._cut = end >= 0
        if not self._cut:
            end = len(data) - (0 if last else max((_overlap(data, stop) for stop in self._stops), default=0))
        self._held = data[end:]
        text = self._decoder.decode(data[:end])
        if text and self._strip:
            self._strip = False
            text = text.removeprefix(" ")
        return text


def _overlap(data: bytes, stop: bytes) -> int:
    """How many bytes at the end of ``data`` begin ``stop``."""
    longest = min(len(data), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if data.endswith(stop[:n])), 0)


def finite(logp: float) -> float:
    return logp if math.isfinite(logp) else LEAST


class ChoiceWriter:
    """One of the answers: what has been said, and how it is written. ``kind`` and ``chunk_kind`` are the names of the
    object around it, whole and in pieces, and ``prefix`` begins its id."""

    prefix: ClassVar[str]
    kind: ClassVar[str]
    chunk_kind: ClassVar[str]
    lead: ClassVar[bool] = False
    broken: ClassVar[str] = ""  # leads the escaped bytes of a token that is no text, as OpenAI has it

    def __init__(self, plan: Plan, index: int) -> None:
        self.plan, self.index, self.top = plan, index, plan.top or 0
        self.said = 0
        self.opened = False
        self._spoken = Spoken(plan.body.stops, self.lead)

    def opening(self, prompt: Trace | None) -> list[Piece]:
        """Pieces before the first token, given the probabilities of the prompt where they were asked for."""
        raise NotImplementedError

    def piece(self, text: str, logprobs: Piece | None, reason: str | None) -> Piece:
        raise NotImplementedError

    def logprobs(self, steps: Sequence[Step]) -> Piece:
        raise NotImplementedError

    def whole(self, pieces: Sequence[Piece]) -> Piece:
        """The choice, put together from all of its pieces."""
        raise NotImplementedError

    def pieces(self, steps: Sequence[Step], reason: str | None) -> list[Piece]:
        """The next one, if any, with these steps; ``reason``: why it ended (None: it goes on)."""
        self.said += len(steps)
        spellings = self.plan.served.spellings
        text = "".join([self._spoken.add(spellings[step.token]) for step in steps])
        if reason is not None:
            text += self._spoken.add(b"", last=True)
        logprobs = self.logprobs(steps) if steps and self.plan.top is not None else None
        return [self.piece(text, logprobs, reason)] if text or reason or logprobs else []

    def spelling(self, token: int) -> str:
        """A token as text: a control token has its name, and bytes that are no characters are escaped; with
        ``return_tokens_as_token_ids`` (vLLM's) "token_id:7", which no two tokens share."""
        if self.plan.body.return_tokens_as_token_ids:
            return f"token_id:{token}"
        data = self.plan.served.spellings[token]
        if not data:
            return self.plan.served.names.get(token, "")
        try:
            return data.decode()
        except UnicodeDecodeError:
            return self.broken + "".join(f"\\x{byte:02x}" for byte in data)

    def alternatives(self, step: Step) -> list[tuple[int, float]]:
        """The most probable tokens with their log-probabilities; the chosen one's is exactly the step's own."""
        found, top = step.distribution, self.top
        if found is None or not top:
            return []
        pairs = zip(found.ids[:top].tolist(), found.logp[:top].tolist(), strict=True)
        # under a constraint fewer may be possible than are asked for
        return [(token, finite(step.logp if token == step.token else p)) for token, p in pairs if p > -math.inf]


class ChatWriter(ChoiceWriter):
    """``choices`` of chat.completion and its chunks."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"
    lead = True

    def opening(self, prompt: Trace | None) -> list[Piece]:
        return [self._chunk({"role": "assistant", "content": "", "refusal": None}, None, None)]

    def piece(self, text: str, logprobs: Piece | None, reason: str | None) -> Piece:
        return self._chunk({"content": text} if text or logprobs else {}, logprobs, reason)

    def whole(self, pieces: Sequence[Piece]) -> Piece:
        text = "".join(piece["delta"].get("content", "") for piece in pieces)
        entries = [entry for piece in pieces if piece["logprobs"] for entry in piece["logprobs"]["content"]]
        return {
            "index": self.index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None if self.plan.top is None else self._listed(entries),
            "finish_reason": pieces[-1]["finish_reason"],
        }

    def logprobs(self, steps: Sequence[Step]) -> Piece:
        def entry(token: int, logp: float) -> Piece:
            data = self.plan.served.spellings[token]
            return {"token": self.spelling(token), "logprob": logp, "bytes": list(data) or None}

        return self._listed(
            [
                {
                    **entry(step.token, finite(step.logp)),
                    "top_logprobs": [entry(*one) for one in self.alternatives(step)],
                }
                for step in steps
            ]
        )

    def _listed(self, entries: list[Piece]) -> Piece:
        constraint = {"constraint": self.plan.constraint} if self.plan.constraint else {}
        return {"content": entries, "refusal": None, **constraint}

    def _chunk(self, delta: Piece, logprobs: Piece | None, reason: str | None) -> Piece:
        return {"index": self.index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


class CompletionWriter(ChoiceWriter):
    """``choices`` of text_completion."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"
    broken = "bytes:"
    _at = 0  # where the next token begins in the text, in characters

    def opening(self, prompt: Trace | None) -> list[Piece]:
        if self.plan.echoes is None:
            return []
        echo = self.plan.echoes[self.index // self.plan.n]
        if prompt is None:
            self._at = len(echo)
            return [self.piece(echo, None, None)]
        found = enumerate(self._prompt_logprobs(prompt, echo))
        return [self.piece("" if i else echo, logprobs, None) for i, logprobs in found]

    def piece(self, text: str, logprobs: Piece | None, reason: str | None) -> Piece:
        return {"index": self.index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def whole(self, pieces: Sequence[Piece]) -> Piece:
        text = "".join(piece["text"] for piece in pieces)
        logprobs = self.logprobs(())
        for piece in pieces:
            for name, values in (piece["logprobs"] or {}).items():
                logprobs[name] += values
        return self.piece(text, None if self.plan.top is None else logprobs, pieces[-1]["finish_reason"])

    def logprobs(self, steps: Sequence[Step]) -> Piece:
        """The token that was chosen is always among its alternatives."""
        out: Piece = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for step in steps:
            listed: dict[str, float] = {}
            for token, logp in (*self.alternatives(step), (step.token, finite(step.logp))):
                listed.setdefault(self.spelling(token), logp)
            self._put(out, step.token, finite(step.logp), listed)
        return out

    def _put(self, out: Piece, token: int, logp: float | None, listed: dict[str, float] | None) -> None:
        """A character counts where its first byte is."""
        values = self.spelling(token), logp, listed, max(0, self._at)
        for name, value in zip(out, values, strict=True):
            out[name].append(value)
        self._at += sum(byte & 0xC0 != 0x80 for byte in self.plan.served.spellings[token])

    def _prompt_logprobs(self, prompt: Trace, echo: str) -> Iterator[Piece]:
        """Of some tokens after the other. Nothing is known about the first one. A space that the tokenizer put before
        the text is not in the text."""
        ids = self.plan.prompts[self.index // self.plan.n]
        self._at = len(echo) - len(self.plan.served.text(ids))
        first = self.logprobs(())
        self._put(first, ids[0], None, None)
        yield first
        some = max(1, AT_ONCE // (1 + self.top))
        for start in range(0, len(prompt.steps), some):
            yield self.logprobs(prompt.steps[start : start + some])
        self._at = len(echo)
