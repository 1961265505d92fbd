"""The models of a studio, and who may use them when: answers as they are written, long work beside them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, TypeVar

from klype.engine.engine import Engine, Event
from klype.engine.runner import NativeRunner
from klype.examine.truth import Reader
from klype.judge.meaning import Meaning
from klype.runs.reading import Reading
from klype.serve.worker import Job, Worker
from klype.sources.source import Around, Codec, Source
from klype.values import Distribution, Question, Request, Trace

T = TypeVar("T")
WHOLE = 4096
"""Vocabularies up to this size have whole distributions in every trace."""
LISTED = 256
"""Else so many of the most probable tokens are kept a step."""


class Asking(Protocol):
    """One question put to a model: what its answers mean, and which of them are right (None: nobody knows)."""

    @property
    def prompt(self) -> tuple[int, ...]: ...
    @property
    def question(self) -> Question: ...
    @property
    def meaning(self) -> Meaning: ...
    @property
    def judge(self) -> str: ...
    @property
    def right(self) -> Callable[[str], bool | None] | None: ...


@dataclass(frozen=True)
class Model:
    """A model that can be asked here. ``name`` is what the pages call it, ``address`` what the command line does.

    ``engine``: it is computed on this machine. ``source`` is for long work and never the same engine. ``stage`` is
    that of its run, if it has one. ``ask`` puts a question to it; ``truth`` knows what follows a question (None:
    nobody does).
    ``raw``: text goes in as it is, not as a message. ``vocabulary`` 0: nobody knows. ``identity``
    is the weights' own; "": there are no questions for it to be examined with. ``reading``: what a run's model has
    read.
    """

    name: str
    address: str
    source: Source
    window: int
    vocabulary: int
    spell: Callable[[int], bytes]
    control: Callable[[int], str | None]
    ask: Callable[[str], Asking]
    truth: Callable[[str], Reader | None] = lambda text: None
    stage: str = ""
    raw: bool = False
    engine: Engine | None = None
    flops_per_token: Callable[[int], int] | None = None
    identity: str = ""
    reading: Reading | None = None

    @property
    def codec(self) -> Codec:
        return self.source.codec

    @property
    def speculates(self) -> bool:
        """Whether tokens can be guessed ahead: where klype computes the model itself."""
        return self.engine is not None and isinstance(self.engine.runner, NativeRunner)

    @property
    def top(self) -> int:
        """How much of every distribution is kept: -1 all of it."""
        return -1 if 0 < self.vocabulary <= WHOLE else LISTED

    def flops(self, trace: Trace) -> int | None:
        """Of reading the prompt and of every step, each token attending to what was before it on average."""
        tokens = len(trace.prompt) + len(trace.steps)
        return None if self.flops_per_token is None else tokens * self.flops_per_token(tokens // 2)


class Voice:
    """A model at work. Answers of all visitors are written together by its engine's thread; long work has a thread of
    its own, one piece after the other, so that it keeps no answer waiting."""

    def __init__(self, model: Model, batch: int = 64, queue: int = 256) -> None:
        self.model = model
        self._lock = threading.Lock()
        self.worker = None if model.engine is None else Worker(model.engine, batch, queue)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="klype studio")
        self._shared: Source = model.source if self.worker is not None else Shared(model.source, self._lock)

    async def write(self, request: Request) -> AsyncIterator[list[Event]]:
        """Tokens as they come, those that came meanwhile together. Leaving the loop ends the work."""
        if self.worker is not None:
            job = Job([request])
            self.worker.submit(job)
            try:
                async for news in job.updates():
                    yield [update for update in news if isinstance(update, Event)]
            finally:
                self.worker.cancel(job)
            return
        async for events in _in_a_thread(self._shared.generate, request):
            yield events

    async def beside(self, work: Callable[[Source], T]) -> T:
        """Long work with the model, in turn; it should look at a flag of its own to be cancelled."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, self._shared)

    def stop(self) -> None:
        if self.worker is not None:
            self.worker.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)


class Shared(Around):
    """A source that one thread at a time may call: each call waits for its turn."""

    def __init__(self, source: Source, lock: threading.Lock) -> None:
        super().__init__(source)
        self._lock = lock

    def next(self, prefixes: Sequence[Sequence[int]], top: int = -1) -> list[Distribution]:
        with self._lock:
            return self._source.next(prefixes, top)

    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], top: int = 0) -> list[Trace]:
        with self._lock:
            return self._source.score(prompts, answers, top)

    def generate(self, requests: Sequence[Request]) -> Iterator[Event]:
        with self._lock:
            yield from self._source.generate(requests)


class Remembered(Around):
    """A source whose distributions are asked for once: at another temperature most of a tree is known already."""

    def __init__(self, source: Source, known: dict[tuple[int, ...], Distribution], most: int = 4000) -> None:
        super().__init__(source)
        self._known, self._most = known, most

    def next(self, prefixes: Sequence[Sequence[int]], top: int = -1) -> list[Distribution]:
        wanted = [tuple(prefix) for prefix in prefixes]
        new = [prefix for prefix in dict.fromkeys(wanted) if prefix not in self._known]
        fresh = dict(zip(new, self._source.next(new, top), strict=True)) if new else {}
        found = [fresh.get(prefix) or self._known[prefix] for prefix in wanted]
        if len(self._known) + len(fresh) <= self._most:
            self._known.update(fresh)
        return found


class CancelledError(Exception):
    """Raised inside long work by its own progress when nobody wants it any more."""


async def _in_a_thread(
    generate: Callable[[Sequence[Request]], Iterator[Event]], request: Request
) -> AsyncIterator[list[Event]]:
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()
    wanted = threading.Event()
    wanted.set()

    def tell(news: Event | BaseException | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(arrived.put_nowait, news)

    def run() -> None:
        try:
            for event in generate([request]):
                if not wanted.is_set():
                    return
                tell(event)
            tell(None)
        except BaseException as error:
            tell(error)

    threading.Thread(target=run, name="klype answer", daemon=True).start()
    try:
        while (event := await arrived.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield [event]
    finally:
        wanted.clear()
