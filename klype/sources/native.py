"""klype's own engine as a source."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from threading import Lock

from klype.engine.engine import Engine, Event
from klype.errors import KlypeError
from klype.model.transformer import Transformer
from klype.sources.source import Codec, Message
from klype.text.chat import Chat
from klype.text.tokenizer import Tokenizer
from klype.values import Distribution, Request, Trace


class NativeCodec:
    """A tokenizer and, where the model has one, its chat template."""

    def __init__(self, tokenizer: Tokenizer, chat: Chat | None = None) -> None:
        self.tokenizer = tokenizer
        self.chat = chat

    @property
    def stop(self) -> tuple[int, ...]:
        return self.tokenizer.ends

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode_beginning(text)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        if self.chat is None:
            raise KlypeError("This model has no chat template.", "Use --raw to give it plain text.")
        return self.chat.prompt(messages)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode_answer(ids)


class EngineSource:
    """An engine with the words it speaks, whatever codec knows them. It may be asked from several threads, and while an
    answer is being written: each step of the engine advances all that are."""

    def __init__(self, engine: Engine, codec: Codec) -> None:
        self.engine = engine
        self.codec = codec
        self._lock = Lock()  # held while the engine computes
        self._heard: dict[int, deque[Event]] = {}
        self._left: deque[int] = deque()

    @property
    def name(self) -> str:
        return self.engine.label

    def next(self, prefixes: Sequence[Sequence[int]], top: int = -1) -> list[Distribution]:
        with self._lock:
            return self.engine.next(prefixes, top)

    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], top: int = 0) -> list[Trace]:
        with self._lock:
            return self.engine.score(prompts, answers, top)

    def generate(self, requests: Sequence[Request]) -> Iterator[Event]:
        """What is left when the iterator is closed is cancelled."""
        with self._lock:
            for request in requests:  # all are looked at before any is begun
                self.engine.check(request)
        return self._events(requests)

    def _events(self, requests: Sequence[Request]) -> Iterator[Event]:
        heard: deque[Event] = deque()
        with self._lock:
            places = {self.engine.add(request): place for place, request in enumerate(requests)}
            self._heard |= dict.fromkeys(places, heard)
        running = sum(request.n for request in requests)
        try:
            while running:
                with self._lock:
                    if not heard:
                        self._step(places)
                while heard:
                    event = heard.popleft()
                    running -= event.trace is not None
                    yield replace(event, request=places[event.request])
        finally:
            self._left += places
            # Not waited for: a garbage collector may close this inside a step of the same thread.
            if self._lock.acquire(blocking=False):
                self._cancel()
                self._lock.release()

    def _step(self, mine: Collection[int]) -> None:
        """One step, whose events everyone finds among their own."""
        self._cancel()
        if not self._heard.keys() >= set(mine):
            raise KlypeError(f"{self.name or 'The model'} failed at another question: this answer was lost, too.")
        try:
            for event in self.engine.step():
                self._heard[event.request].append(event)
        except BaseException:  # the engine has dropped all that was running
            self._heard.clear()
            raise

    def _cancel(self) -> None:
        while self._left:
            request = self._left.popleft()
            self.engine.cancel(request)
            self._heard.pop(request, None)


class NativeSource(EngineSource):
    """… whose words are a tokenizer's."""

    codec: NativeCodec

    def __init__(self, engine: Engine, codec: NativeCodec) -> None:
        super().__init__(engine, codec)

    @staticmethod
    def of(model: Transformer, tokenizer: Tokenizer, chat: Chat | None = None, name: str = "") -> NativeSource:
        """A source with an engine of its own."""
        return NativeSource(Engine(model, decode_bytes=tokenizer.token_bytes, name=name), NativeCodec(tokenizer, chat))
