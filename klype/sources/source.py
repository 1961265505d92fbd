"""The interface of every model that can be asked. Tokens are the model's own; a codec translates text."""

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from threading import Lock
from typing import Protocol

from klype.engine.engine import Engine, Event
from klype.errors import KlypeError
from klype.model.transformer import Transformer
from klype.text.chat import Chat
from klype.text.tokenizer import Tokenizer
from klype.values import Distribution, Request, Trace

Message = Mapping[str, str]  # ``role`` and ``content``


class Codec(Protocol):
    """Translates between text and a source's tokens."""

    @property
    def stop(self) -> tuple[int, ...]:
        """Tokens that end an answer."""

    def encode(self, text: str) -> list[int]:
        """The tokens of a text to be continued, after the token that begins a text if the model has one."""

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a conversation, up to where the model's answer begins."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer, without control tokens."""


def tokens_of(codec: Codec, word: str) -> set[int]:
    """The single tokens that spell a word, in any usual spelling; spellings that take several tokens are left out."""
    start = len(codec.encode(""))
    found = set()
    for spelled in (word, f" {word}", word.lower(), f" {word.lower()}"):
        ids = codec.encode(spelled)
        if len(ids) - start <= 1 and codec.decode(ids[-1:]).strip().lower() == word.lower():
            found.add(ids[-1])
    return found


class Source(Protocol):
    """A model that can be asked. ``name`` identifies its weights in traces."""

    @property
    def name(self) -> str: ...

    @property
    def codec(self) -> Codec: ...

    def next(self, prefixes: Sequence[Sequence[int]], top: int = -1) -> list[Distribution]:
        """The next-token distribution (temperature 1) after each prefix, of its ``top`` tokens; -1: all that are
        known."""

    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], top: int = 0) -> list[Trace]:
        """Log-probabilities of each given answer, token by token."""

    def generate(self, requests: Sequence[Request]) -> Iterator[Event]:
        """Yields tokens as they are generated; ``Event.request`` is an index into ``requests``. Closing the iterator
        cancels what is left."""


class SourceWrapper:
    """The base of a source that changes or observes what another one does; it has that one's codec and name."""

    def __init__(self, source: Source) -> None:
        self._source, self.codec = source, source.codec

    @property
    def name(self) -> str:
        return self._source.name


def answers(source: Source, requests: Sequence[Request]) -> list[list[Trace]]:
    """All answers to each request, in order of sample."""
    found: list[list[Trace]] = [[] for _ in requests]
    for event in source.generate(requests):
        if event.trace is not None:
            found[event.request].append(event.trace)
    return [sorted(traces, key=lambda trace: trace.sample) for traces in found]


class NativeCodec:
    """A codec of a tokenizer and, if the model has one, its chat template."""

    def __init__(self, tokenizer: Tokenizer, chat: Chat | None = None) -> None:
        self.tokenizer, self.chat, self.stop = tokenizer, chat, tokenizer.ends

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode_beginning(text)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        if self.chat is None:
            raise KlypeError("This model has no chat template.", "Use --raw to give it plain text.")
        return self.chat.prompt(messages)

    def answer(self, messages: Sequence[Message], answer: str) -> list[int]:
        """The tokens of a given answer after its prompt, as the chat template writes them, with an end token."""
        if self.chat is None or self.tokenizer.user >= 0:  # models trained by klype have one fixed template
            return self.with_end_token(self.tokenizer.encode_answer(answer))
        prompt = self.prompt(messages)
        ids, learnt = self.chat.conversation([*messages, {"role": "assistant", "content": answer}])
        if ids[: len(prompt)] != prompt or 1 not in learnt[len(prompt) :]:
            return self.with_end_token(self.tokenizer.encode_answer(answer))
        return self.with_end_token(ids[len(prompt) : len(learnt) - learnt[::-1].index(1)])

    def with_end_token(self, ids: list[int]) -> list[int]:
        """The tokens with an end token, if the model has one."""
        said = bool(ids) and ids[-1] in self.stop
        return ids if said or self.tokenizer.end < 0 else [*ids, self.tokenizer.end]

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode_answer(ids)


class EngineSource:
    """An engine with a codec, as a source. Thread-safe, also while answers are generated: each step of the engine
    advances all of them."""

    def __init__(self, engine: Engine, codec: Codec) -> None:
        self.engine, self.codec = engine, codec
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
        with self._lock:
            for request in requests:  # all are checked before any is begun
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
            # without waiting: the garbage collector may close this generator inside a step of the same thread
            if self._lock.acquire(blocking=False):
                self._cancel()
                self._lock.release()

    def _step(self, mine: Collection[int]) -> None:
        """One step of the engine; each event is queued for the iterator that it belongs to."""
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
    """An engine whose codec is a tokenizer with its chat template."""

    codec: NativeCodec

    @staticmethod
    def of(model: Transformer, tokenizer: Tokenizer, chat: Chat | None = None, name: str = "") -> "NativeSource":
        """A source with an engine of its own."""
        return NativeSource(Engine(model, decode_bytes=tokenizer.token_bytes, name=name), NativeCodec(tokenizer, chat))
