"""What all pages of one studio share: its models and who may use them when, conversations, examinations, its home."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from klype.device import EnergyMeter
from klype.engine.engine import Engine, Event
from klype.engine.runner import NativeRunner
from klype.engine.speculation import LookupDraft, speculate
from klype.errors import UsageError
from klype.examine.truth import Reader
from klype.judge.meaning import Meaning
from klype.preferences.records import Entry
from klype.runs.provenance import Reading
from klype.runs.rankers import summary
from klype.serve.worker import Job, Worker
from klype.sources.native import NativeSource
from klype.sources.source import Around, Codec, Source
from klype.studio.conversation import Answer, Conversation, Conversations
from klype.studio.examinations import Examinations
from klype.values import Distribution, Question, Request, Trace

if TYPE_CHECKING:
    from klype.studio.ranking_stores import RankingStore


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


class SharedModel:
    """A model at work. Answers of all visitors are written together by its engine's thread; long work has a thread of
    its own, one piece after the other, so that it keeps no answer waiting."""

    def __init__(self, model: Model, batch: int = 64, queue: int = 256) -> None:
        self.model = model
        self._lock = threading.Lock()
        self.worker = None if model.engine is None else Worker(model.engine, batch, queue)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="klype studio")
        self._shared: Source = model.source if self.worker is not None else LockedSource(model.source, self._lock)

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


class LockedSource(Around):
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


class CachedSource(Around):
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


def begin(model: Model, conversation: Conversation, question: str) -> list[int]:
    """The prompt of a new turn. The oldest turns leave a window that is full; raises UsageError when even the last
    message does not fit."""
    reserve = min(64, model.window // 4)
    if model.raw:
        prompt = model.codec.encode(question)
        if len(prompt) + 1 > model.window:
            raise UsageError(f"The text has {len(prompt)} tokens, and {model.name} reads {model.window} at most.")
        return prompt
    said = {
        (place, model.name): model.codec.decode(turn.branches[model.name].current.tokens)
        for place, turn in enumerate(conversation.turns)
        if model.name in turn.branches
    }
    messages = conversation.messages(model.name, question, said)
    while True:
        prompt = model.codec.prompt(messages)
        if len(prompt) + reserve <= model.window:
            return prompt
        if len(messages) == 1:
            raise UsageError(f"The message has {len(prompt)} tokens, and {model.name} reads {model.window} at most.")
        messages = messages[2:]


def request_of(model: Model, answer: Answer, limit: int) -> Request:
    """What is still to be written: after a fork the beginning belongs to the prompt. The same seed and place in the
    text have the same noise, so that a fork differs by its token only."""
    prompt = (*answer.prompt, *answer.tokens)
    room = min(limit - len(answer.steps), model.window - len(prompt))
    if room < 1:
        raise UsageError(f"There is no room left: {model.name} reads {model.window} tokens at most.")
    return Request(
        prompt, limit=room, sampling=answer.sampling, seed=answer.seed, stop=tuple(model.codec.stop), top=model.top
    )


async def write(voice: SharedModel, answer: Answer, limit: int) -> None:
    """Appends to the answer's steps as they come; ``answer.running`` made false ends it."""
    meter = EnergyMeter()
    async for events in voice.write(request_of(voice.model, answer, limit)):
        for event in events:
            answer.steps.append(event.step)
            answer.trace = event.trace or answer.trace
        if not answer.running:
            break
    if answer.trace is not None:
        answer.joules = meter.joules() if answer.trace.joules is None else answer.trace.joules


async def speculated(voice: SharedModel, answer: Answer, limit: int) -> None:
    """The same answer written with guesses ahead (looked up in the text so far), checked several a pass."""
    request = replace(request_of(voice.model, answer, limit), top=0)

    def work(source: Source) -> None:
        assert isinstance(source, NativeSource), "klype's own engine speculates"
        meter = EnergyMeter()
        traces, counts = speculate(source.engine, request, LookupDraft())
        (scored,) = source.score([request.prompt], [traces[0].tokens], voice.model.top)
        steps = [
            replace(step, distribution=seen.distribution)
            for step, seen in zip(traces[0].steps, scored.steps, strict=True)
        ]
        answer.steps.extend(steps)
        answer.trace, answer.joules = traces[0], meter.joules()
        answer.accepted, answer.proposed = counts.accepted, counts.proposed

    await voice.beside(work)


RECOUNT_S = 5.0


@dataclass(frozen=True)
class StoreSummary:
    """A store's entries, how well their makers agree, and how many questions there are."""

    entries: Sequence[Entry]
    summary: Mapping[str, Any]
    questions: int


@dataclass
class SummaryCache:
    """``of`` waits for the store: call it in a thread. What it tells may be ``EVERY_S`` old while others rank."""

    clock: Callable[[], float] = time.monotonic
    _known: dict[str, tuple[tuple[int, int], float, StoreSummary]] = field(default_factory=dict)
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def of(self, place: RankingStore) -> StoreSummary:
        with self._counting, place.open() as store:
            known, mark = self._known.get(place.key), store.mark()
            if known is not None and (known[0] == mark or self.clock() - known[1] < RECOUNT_S):
                return known[2]
            entries = store.entries()
            questions = sum(len(asked.candidates) > 1 for asked in store.questions())
            tally = StoreSummary(entries, summary(entries), questions)
            self._known[place.key] = (mark, self.clock(), tally)
            return tally


@dataclass
class Studio:
    """``home`` is klype's own folder: results of long work are kept there. ``command`` starts ``klype``.
    ``questions`` are some to begin with, by language. ``store``: a file or url where rankings are kept instead of each
    run's own place; ``runs``: where runs are looked for and made, when it is neither ``runs`` nor ``home``."""

    models: Sequence[Model]
    home: Path
    command: Sequence[str]
    questions: Mapping[str, Sequence[str]] = field(default_factory=dict)
    store: str = ""
    runs: Path | None = None
    conversations: Conversations = field(default_factory=Conversations)
    tallies: SummaryCache = field(default_factory=SummaryCache)
    voices: dict[str, SharedModel] = field(init=False)
    examinations: Examinations = field(init=False)

    def __post_init__(self) -> None:
        names = [model.name for model in self.models]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"Two models are called '{twice}'.", "Give one another name: NAME=MODEL.")
        self.voices = {model.name: SharedModel(model) for model in self.models}
        self.examinations = Examinations(self.home / "examinations", self.command)

    def voice(self, name: str) -> SharedModel:
        """By a name that a browser sent."""
        if name not in self.voices:
            raise UsageError(f"There is no model {name[:100]!a} here.")
        return self.voices[name]

    def stop(self) -> None:
        self.examinations.stop()
        for voice in self.voices.values():
            voice.stop()
