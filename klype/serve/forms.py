"""How a choice is written: for chat and for completions, whole and in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from klype.serve.logprobs import Offsets, Spelling, chat_entries, completion_entries
from klype.serve.plan import Plan
from klype.serve.text import Spoken
from klype.serve.worker import AT_ONCE
from klype.values import Step, Trace


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

    def open(self, prompt: Trace | None) -> list[dict[str, Any]]:
        return [self._chunk({"role": "assistant", "content": "", "refusal": None}, None, None)]

    def piece(self, text: str, steps: Sequence[Step], reason: str | None) -> dict[str, Any]:
        logprobs = None
        if self._top is not None and steps:
            logprobs = {"content": chat_entries(steps, self._spelling, self._top), "refusal": None}
        return self._chunk({"content": text} if text or logprobs else {}, logprobs, reason)

    def whole(self, pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
        text = "".join(piece["delta"].get("content", "") for piece in pieces)
        entries = [entry for piece in pieces if piece["logprobs"] for entry in piece["logprobs"]["content"]]
        return {
            "index": self.index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None if self._top is None else {"content": entries, "refusal": None},
            "finish_reason": pieces[-1]["finish_reason"],
        }

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
