"""Writes choices of chat and completions: their text as tokens arrive, chunks of a stream, and log-probabilities."""

import codecs
import math
from collections.abc import Sequence
from typing import Any, ClassVar

from klype.serve.request_parsing import Plan
from klype.serve.worker import AT_ONCE
from klype.values import Step, Trace

MIN_LOGPROB = -9999.0  # OpenAI's value for log-probabilities that JSON cannot hold
Piece = dict[str, Any]


class StopTextDecoder:
    """Incremental decoder that ends before the first stop text. What may be the beginning of one is held back.

    ``lead``: one leading space is left out. Invalid UTF-8 becomes U+FFFD; an incomplete character at the end is left
    out."""

    def __init__(self, stops: Sequence[str] = (), lead: bool = False) -> None:
        self._stops = [stop.encode() for stop in stops]
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = b""
        self._strip, self._cut = lead, False

    def add(self, data: bytes, last: bool = False) -> str:
        """The text that is certain after these bytes; ``last``: nothing follows."""
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


def finite_logprob(logp: float) -> float:
    return logp if math.isfinite(logp) else MIN_LOGPROB


class ChoiceWriter:
    """Writes one choice. ``kind``, ``chunk_kind``: the ``object`` of a response, whole and streamed; ``prefix``: of its
    id; ``said``: the number of tokens so far."""

    prefix: ClassVar[str]
    kind: ClassVar[str]
    chunk_kind: ClassVar[str]
    lead: ClassVar[bool] = False
    broken: ClassVar[str] = ""  # comes before the escaped bytes of a token that is no text, as in OpenAI's API

    def __init__(self, plan: Plan, index: int) -> None:
        self.plan, self.index, self.top = plan, index, plan.top or 0
        self.said = 0
        self.opened = False
        self._spoken = StopTextDecoder(plan.body.stops, self.lead)

    def first_pieces(self, prompt: Trace | None) -> list[Piece]:
        """Pieces before the first token; ``prompt``: the scored prompt, if it was requested."""
        raise NotImplementedError

    def piece(self, text: str, logprobs: Piece | None, reason: str | None) -> Piece:
        raise NotImplementedError

    def logprobs(self, steps: Sequence[Step]) -> Piece:
        raise NotImplementedError

    def whole(self, pieces: Sequence[Piece]) -> Piece:
        """The choice, joined from all of its pieces."""
        raise NotImplementedError

    def choice(self, content: Piece, logprobs: Piece | None, reason: str | None) -> Piece:
        """An element of ``choices``, whole or streamed."""
        return {"index": self.index, **content, "logprobs": logprobs, "finish_reason": reason}

    def pieces(self, steps: Sequence[Step], reason: str | None) -> list[Piece]:
        """The next piece, if any, with these steps; ``reason``: why the choice ended (None: it continues)."""
        self.said += len(steps)
        spellings = self.plan.served.spellings
        text = "".join([self._spoken.add(spellings[step.token]) for step in steps])
        if reason is not None:
            text += self._spoken.add(b"", last=True)
        logprobs = self.logprobs(steps) if steps and self.plan.top is not None else None
        return [self.piece(text, logprobs, reason)] if text or reason or logprobs else []

    def token_text(self, token: int) -> str:
        """A token as text: the name of a control token, escaped bytes for what is no text, or with vLLM's option
        ``return_tokens_as_token_ids`` "token_id:7"."""
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
        """The most probable tokens with their log-probabilities, where the sampled token's equals the step's
        exactly."""
        found, top = step.distribution, self.top
        if found is None or not top:
            return []
        pairs = zip(found.ids[:top].tolist(), found.logp[:top].tolist(), strict=True)
        # a constraint may allow fewer tokens than are requested
        return [(token, finite_logprob(step.logp if token == step.token else p)) for token, p in pairs if p > -math.inf]


class ChatWriter(ChoiceWriter):
    """``choices`` of chat.completion and its chunks."""

    prefix, kind, chunk_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"
    lead = True

    def first_pieces(self, prompt: Trace | None) -> list[Piece]:
        return [self.choice({"delta": {"role": "assistant", "content": "", "refusal": None}}, None, None)]

    def piece(self, text: str, logprobs: Piece | None, reason: str | None) -> Piece:
        return self.choice({"delta": {"content": text} if text or logprobs else {}}, logprobs, reason)

    def whole(self, pieces: Sequence[Piece]) -> Piece:
        text = "".join(piece["delta"].get("content", "") for piece in pieces)
        entries = [entry for piece in pieces if piece["logprobs"] for entry in piece["logprobs"]["content"]]
        message = {"role": "assistant", "content": text, "refusal": None}
        logprobs = None if self.plan.top is None else self._logprobs(entries)
        return self.choice({"message": message}, logprobs, pieces[-1]["finish_reason"])

    def logprobs(self, steps: Sequence[Step]) -> Piece:
        def entry(token: int, logp: float) -> Piece:
            data = self.plan.served.spellings[token]
            return {"token": self.token_text(token), "logprob": logp, "bytes": list(data) or None}

        tops = ([entry(*one) for one in self.alternatives(step)] for step in steps)
        own = (entry(step.token, finite_logprob(step.logp)) for step in steps)
        return self._logprobs([{**one, "top_logprobs": top} for one, top in zip(own, tops, strict=True)])

    def _logprobs(self, entries: list[Piece]) -> Piece:
        constraint = {"constraint": self.plan.constraint} if self.plan.constraint else {}
        return {"content": entries, "refusal": None, **constraint}


class CompletionWriter(ChoiceWriter):
    """``choices`` of text_completion."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"
    broken = "bytes:"
    _at = 0  # where the next token begins in the text, in characters

    def first_pieces(self, prompt: Trace | None) -> list[Piece]:
        if self.plan.echoes is None:
            return []
        place = self.index // self.plan.n
        echo, ids, steps = self.plan.echoes[place], self.plan.prompts[place], tuple[Step, ...]()
        if prompt is not None:
            steps = Step(ids[0], math.nan, math.nan, "forced"), *prompt.steps
        # a space that the tokenizer puts before the text is not part of it
        self._at = len(echo) - len(self.plan.served.text(ids))
        some = max(1, AT_ONCE // (1 + self.top))
        parts = [self.logprobs(steps[start : start + some]) for start in range(0, len(steps), some)]
        self._at = len(echo)
        return [self.piece("" if i else echo, part, None) for i, part in enumerate(parts or [None])]

    def piece(self, text: str, logprobs: Piece | None, reason: str | None) -> Piece:
        return self.choice({"text": text}, logprobs, reason)

    def whole(self, pieces: Sequence[Piece]) -> Piece:
        text = "".join(piece["text"] for piece in pieces)
        logprobs = self.logprobs(())
        for piece in pieces:
            for name, values in (piece["logprobs"] or {}).items():
                logprobs[name] += values
        return self.piece(text, None if self.plan.top is None else logprobs, pieces[-1]["finish_reason"])

    def logprobs(self, steps: Sequence[Step]) -> Piece:
        """Log-probabilities with the sampled token always among the alternatives; null for the first token of a
        prompt."""
        out: Piece = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for step in steps:
            logp, listed = None if math.isnan(step.logp) else finite_logprob(step.logp), dict[str, float]()
            for token, p in self.alternatives(step):
                listed.setdefault(self.token_text(token), p)
            if logp is not None:
                listed.setdefault(self.token_text(step.token), logp)
            values = self.token_text(step.token), logp, listed or None, max(0, self._at)
            for name, value in zip(out, values, strict=True):
                out[name].append(value)
            # characters begun in this token: bytes that do not continue one
            self._at += sum(byte & 0xC0 != 0x80 for byte in self.plan.served.spellings[step.token])
        return out
