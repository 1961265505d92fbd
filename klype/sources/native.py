"""klype's own engine as a source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

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
    """An engine with the words it speaks, whatever codec knows them."""

    def __init__(self, engine: Engine, codec: Codec) -> None:
        self.engine = engine
        self.codec = codec

    @property
    def name(self) -> str:
        return self.engine.label

    def next(self, prefixes: Sequence[Sequence[int]], top: int = -1) -> list[Distribution]:
        return self.engine.next(prefixes, top)

    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], top: int = 0) -> list[Trace]:
        return self.engine.score(prompts, answers, top)

    def generate(self, requests: Sequence[Request]) -> Iterator[Event]:
        """The engine must be idle; what is left when the iterator is closed is cancelled."""
        if self.engine.busy:
            raise KlypeError("The engine is already answering: finish or cancel its requests first.")
        for request in requests:  # all are looked at before any is begun
            self.engine.check(request)
        return self._events(requests)

    def _events(self, requests: Sequence[Request]) -> Iterator[Event]:
        places = {self.engine.add(request): place for place, request in enumerate(requests)}
        try:
            while self.engine.busy:
                for event in self.engine.step():
                    yield replace(event, request=places[event.request])
        finally:
            for request_id in places:
                self.engine.cancel(request_id)


class NativeSource(EngineSource):
    """… whose words are a tokenizer's."""

    codec: NativeCodec

    def __init__(self, engine: Engine, codec: NativeCodec) -> None:
        super().__init__(engine, codec)

    @staticmethod
    def of(model: Transformer, tokenizer: Tokenizer, chat: Chat | None = None, name: str = "") -> NativeSource:
        """A source with an engine of its own."""
        return NativeSource(Engine(model, decode_bytes=tokenizer.token_bytes, name=name), NativeCodec(tokenizer, chat))
