"""A MODEL, opened: what chat, ask and next have in common."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from klype.errors import UsageError
from klype.values import Request, Sampling, Trace

if TYPE_CHECKING:
    from klype.engine.engine import Engine
    from klype.model.checkpoint import Loaded
    from klype.runs.find import Found
    from klype.text.chat import Message


@dataclass(frozen=True, slots=True)
class Opened:
    """A loaded model with its engine, and where it came from."""

    name: str
    found: Found
    loaded: Loaded
    engine: Engine

    @property
    def window(self) -> int:
        return self.loaded.config.window

    def as_raw(self, raw: bool | None) -> bool:
        """Whether text goes in as it is: as asked; else where there is no template, or none has been learnt yet."""
        if raw is None:
            return self.found.stage == "pretrain" or self.loaded.tokenizer.template is None
        return raw

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The conversation as token ids, up to where the answer begins."""
        return self.loaded.chat.prompt(messages)

    def plain(self, text: str) -> list[int]:
        """A text as the start of a document."""
        return self.loaded.tokenizer.encode_document(text)[: -1 if self.loaded.tokenizer.end >= 0 else None]

    def flops(self, trace: Trace) -> int:
        """FLOP of reading the prompt and of every step, each token attending to what was before it on average."""
        from klype.device import flops_per_token

        tokens = len(trace.prompt) + len(trace.steps)
        return tokens * flops_per_token(self.loaded.config, tokens // 2)


def open_model(name: str, precision: str = "float32", measured: bool = False) -> Opened:
    """Finds, checks and loads a MODEL; computing uses every usable core.

    ``measured``: its probabilities are looked at, for which "auto" never chooses int8.
    """
    from klype.runs.find import find_model

    found = find_model(name)
    from klype.device import pick_device, pick_precision, set_threads
    from klype.engine.engine import Engine
    from klype.model import checkpoint
    from klype.model.packed import fastest_alone, pack

    set_threads()
    asked = fastest_alone() if precision == "auto" and not measured else precision
    chosen = pick_precision(asked, pick_device("cpu"))
    loaded = checkpoint.load(found.folder, dtype="float32" if chosen == "int8" else chosen)
    pack(loaded.model, chosen)
    engine = Engine(loaded.model, decode_bytes=loaded.tokenizer.token_bytes, name=str(found.folder))
    return Opened(name, found, loaded, engine)


def checked_sampling(temperature: float, top_p: float = 1.0) -> Sampling:
    """The sampling that was asked for, or one sentence about what is wrong with it."""
    if not 0 <= temperature < float("inf"):
        raise UsageError(f"--temperature should be a number from 0 up (it is {temperature}).")
    if not 0 < top_p <= 1:
        raise UsageError(f"--top-p should be above 0 and at most 1 (it is {top_p}).")
    return Sampling(temperature=temperature, top_p=top_p)


def room(opened: Opened, prompt: Sequence[int], limit: int) -> int:
    """How many tokens the answer may have: ``limit``, or what the window leaves."""
    if limit < 1:
        raise UsageError(f"--limit should be at least 1 (it is {limit}).")
    if not prompt:
        raise UsageError("There is no text to go on from.")
    left = opened.window - len(prompt)
    if left < 1:
        raise UsageError(
            f"The text has {len(prompt)} tokens, and {opened.name} reads {opened.window} at most, the answer included.",
            "Shorten it.",
        )
    return min(limit, left)


class Pieces:
    """An answer's text as its tokens arrive: whole characters only, without the one space that leads it."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._begun = False

    def add(self, data: bytes, last: bool = False) -> str:
        text = self._decoder.decode(data, last)
        if text and not self._begun:
            self._begun = True
            text = text.removeprefix(" ")
        return text


def stream(opened: Opened, request: Request) -> Iterator[tuple[str, Trace | None]]:
    """The answer piece by piece; the last item carries the trace. Leaving the loop early cancels the request."""
    pieces, number = Pieces(), opened.engine.add(request)
    ended = False
    try:
        while not ended:
            for event in opened.engine.step():
                if event.request == number:
                    data = opened.loaded.tokenizer.token_bytes(event.step.token)
                    ended = event.trace is not None
                    yield pieces.add(data, ended), event.trace
    finally:
        if not ended:
            opened.engine.cancel(number)
