"""How a choice is written, for chat and completions: its text as tokens come, its pieces, and its log-probabilities."""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from typing import Any, ClassVar

from klype.serve.request_parsing import Plan
from klype.serve.worker import AT_ONCE
from klype.values import Step, Trace

LEAST = -9999.0  # stands for a log-probability that is no number JSON knows (OpenAI's own convention)
Piece = dict[str, Any]


class StopTextDecoder:
    """Bytes in, text out, up to the stop text that is whole first. What may turn out to be the beginning of one waits
    until it is known.

    ``lead``: the one space that leads a chat answer is left out. Bytes that cannot become UTF-8 are U+FFFD; the first
    bytes of a character that never came whole are left out.
    """

    def __init__(self, stops: Sequence[str] = (), lead: bool = False) -> None:
        self._stops = [stop.encode() for stop in stops]
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = b""
        self._strip, self._cut = lead, False

    def add(self, data: bytes, last: bool = False) -> str:
        """The text that is certain now; ``last`` when nothing follows."""
        if self._cut:
            return ""
        data = self._held + data
        end = min((at for stop in self._stops if (at := data.find(stop)) >= 0), default=-1)
        self._cut = end >= 0
        if not self._cut:
            starts = (stop[:n] for stop in self._stops for n in range(1, min(len(data) + 1, len(stop))))
            end = len(data) - (0 if last else max((len(start) for start in starts if data.endswith(start)), default=0))
        self._held = data[end:]
        text = self._decoder.decode(data[:end])
        if text and self._strip:
            self._strip = False
            text = text.removeprefix(" ")
        return text


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
        self._spoken = StopTextDecoder(plan.body.stops, self.lead)

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

        tops = ([entry(*one) for one in self.alternatives(step)] for step in steps)
        own = (entry(step.token, finite(step.logp)) for step in steps)
        return self._listed([{**one, "top_logprobs": top} for one, top in zip(own, tops, strict=True)])

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
        place = self.index // self.plan.n
        echo, ids, steps = self.plan.echoes[place], self.plan.prompts[place], tuple[Step, ...]()
        if prompt is not None:
            steps = Step(ids[0], math.nan, math.nan, "forced"), *prompt.steps
        # a space that the tokenizer put before the text is not in the text
        self._at = len(echo) - len(self.plan.served.text(ids))
        some = max(1, AT_ONCE // (1 + self.top))
        parts = [self.logprobs(steps[start : start + some]) for start in range(0, len(steps), some)]
        self._at = len(echo)
        return [self.piece("" if i else echo, part, None) for i, part in enumerate(parts or [None])]

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
        """The token that was chosen is always among its alternatives; nothing is known about a prompt's first (NaN)."""
        out: Piece = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for step in steps:
            logp, listed = None if math.isnan(step.logp) else finite(step.logp), dict[str, float]()
            for token, p in self.alternatives(step):
                listed.setdefault(self.spelling(token), p)
            if logp is not None:
                listed.setdefault(self.spelling(step.token), logp)
            values = self.spelling(step.token), logp, listed or None, max(0, self._at)
            for name, value in zip(out, values, strict=True):
                out[name].append(value)
            # a character counts where its first byte is
            self._at += sum(byte & 0xC0 != 0x80 for byte in self.plan.served.spellings[step.token])
        return out
