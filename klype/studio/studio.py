"""What all pages of a studio share: models, conversations, runs and stores of rankings.

A conversation has turns, and each turn the branches of every model that was asked: a branch is an answer, or one that
begins as another does, up to a token that was chosen instead.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import log
from pathlib import Path
from secrets import token_urlsafe
from typing import TypeVar, cast

from klype.api.examination import identity, reader_of
from klype.api.model import Model
from klype.api.prompt_context import fit, is_single_turn, read_of, reading_from, suggestions, world_of
from klype.device import EnergyMeter
from klype.engine.engine import Event
from klype.engine.runner import NativeRunner
from klype.engine.speculation import LookupDraft, speculate
from klype.errors import UsageError
from klype.examine.truth import Reader
from klype.model.atomic_folder import is_whole
from klype.preferences import database
from klype.runs.provenance import question_in
from klype.runs.ranking import has_store
from klype.serve.worker import Job, Worker
from klype.sources.model_files import NEWEST_FIRST, RUNS, resolve
from klype.sources.opening import OpenModel, kind_of, open_model
from klype.sources.source import Message, NativeSource, Source
from klype.studio.ranking_stores import RankingStore, SummaryCache, named_stores
from klype.values import Request, Sampling, Step, Trace

T = TypeVar("T")
# A trace holds the whole distribution of every step for vocabularies up to WHOLE, else the LISTED most probable tokens.
WHOLE, LISTED = 4096, 256
READERS = 64  # questions whose reader of the truth is cached
KEPT = 40_000_000  # probabilities in the distributions of all conversations together (some 500 MB)


@dataclass
class AnswerBranch:
    """An answer, finished or not. ``steps`` begin with those of its ``parent`` (the first ``at``) and the token that
    was chosen there. ``trace``: what the model wrote itself, once it has ended, in ``seconds``; ``joules``: of the
    whole machine in that time. ``accepted`` of the ``proposed`` tokens: of a draft, where one was used."""

    number: int
    prompt: tuple[int, ...]
    sampling: Sampling
    seed: int
    parent: int | None = None
    at: int = 0
    steps: list[Step] = field(default_factory=list)
    trace: Trace | None = None
    accepted: int | None = None
    proposed: int | None = None
    seconds: float = 0.0
    joules: float | None = None
    failed: str = ""
    running: bool = True

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(step.token for step in self.steps)


@dataclass
class Branches:
    """All answers of one model to one message; ``shown``: the number of the one that the conversation continues."""

    model: str
    answers: list[AnswerBranch] = field(default_factory=list)
    shown: int = 0

    @property
    def current(self) -> AnswerBranch:
        return self.answers[self.shown]

    def begin(self, prompt: Sequence[int], sampling: Sampling, seed: int) -> AnswerBranch:
        return self._add(AnswerBranch(len(self.answers), tuple(prompt), sampling, seed))

    def fork(self, at: int, token: int, sampling: Sampling) -> AnswerBranch:
        """Adds a branch of the shown answer that has ``token`` at place ``at``. UsageError if the answer has no such
        place, or that token there."""
        old = self.current
        if not 0 <= at < len(old.steps):
            raise UsageError(f"The answer has no token {at}.")
        if old.steps[at].token == token:
            raise UsageError("The answer went that way already.")
        was = old.steps[at].distribution
        p = None if was is None else was.p(token)
        logp = float("-inf") if not p else log(p)
        steps = [*old.steps[:at], Step(token, logp, logp, "forced", was)]
        return self._add(AnswerBranch(len(self.answers), old.prompt, sampling, old.seed, old.number, at, steps))

    def _add(self, answer: AnswerBranch) -> AnswerBranch:
        self.answers.append(answer)
        self.shown = answer.number
        return answer


@dataclass
class Turn:
    question: str
    branches: dict[str, Branches] = field(default_factory=dict)


@dataclass
class Conversation:
    """A conversation. Its ``key`` is in the page's address, so that a reload finds it again."""

    key: str
    turns: list[Turn] = field(default_factory=list)

    def messages(self, model: str, question: str, decode: Callable[[Sequence[int]], str]) -> list[Message]:
        """The conversation for this model: the turns in which it was asked, with its answers that are shown."""
        out: list[Message] = []
        for turn in self.turns:
            if model in turn.branches:
                out.append({"role": "user", "content": turn.question})
                out.append({"role": "assistant", "content": decode(turn.branches[model].current.tokens)})
        return [*out, {"role": "user", "content": question}]

    @property
    def size(self) -> int:
        """The number of probabilities in the distributions of its answers."""
        branches = [b for turn in self.turns for b in turn.branches.values()]
        steps = [step for b in branches for answer in b.answers for step in answer.steps]
        return sum(len(step.distribution.ids) for step in steps if step.distribution is not None)


class Conversations:
    """The conversations of all visitors, in memory only: the ``most`` that were used last."""

    def __init__(self, most: int = 64) -> None:
        self._most = most
        self._found: dict[str, Conversation] = {}  # the one used last is last

    def get(self, key: str) -> Conversation:
        """Returns the conversation with this key, or a new one with a new key."""
        found = self._found.pop(key, None) or Conversation(token_urlsafe(12))
        self._found[found.key] = found
        while len(self._found) > self._most or (
            len(self._found) > 2 and sum(one.size for one in self._found.values()) > KEPT
        ):
            del self._found[next(iter(self._found))]
        return found


class SharedModel(Model):
    """A ``klype.Model`` for all visitors. A worker thread batches their answers; long work has a thread and an engine
    of its own, one piece after the other, so that no answer waits for it.

    ``name``: on the pages; ``address``: on the command line. ``identity``: of the weights, "" if there are no questions
    to examine it with. ``source``: for long work.
    """

    name = ""

    def __init__(
        self, name: str, address: str, opened: OpenModel, identity: str = "", batch: int = 64, queue: int = 256
    ) -> None:
        super().__init__(opened)
        self.name, self.address, self.identity = name, address, identity
        self.stage, self.raw, self.reading = opened.found.stage, opened.as_raw(None), reading_from(opened)
        self.worker: Worker | None = None
        self.source: Source = opened.source
        if isinstance(opened.source, NativeSource):
            self.worker = Worker(opened.source.engine, batch, queue)
            # the same weights with a queue of their own: a tree with 400 expansions delays nobody's answer
            self.source = NativeSource(opened.source.engine.twin(), opened.source.codec)
        self.stopped = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="klype studio")
        self._reader = lru_cache(READERS)(self.reader)

    @property
    def speculates(self) -> bool:
        """Whether speculative decoding is available: for models that klype computes itself."""
        return self.worker is not None and isinstance(self.worker.engine.runner, NativeRunner)

    def prompt_after(self, conversation: Conversation, question: str) -> list[int]:
        """The prompt of a new turn. The oldest turns are left out when the window is full, and all of them for a model
        that was taught single questions. UsageError if even the last message does not fit."""
        if self.raw:
            prompt = self.opened.encode_text(question)
            if len(prompt) + 1 > self.window:
                raise UsageError(f"The text has {len(prompt)} tokens, and {self.name} reads {self.window} at most.")
            return prompt
        messages = conversation.messages(self.name, question, self.opened.source.codec.decode)
        # at least a quarter of a small window is left for the answer
        read = read_of(messages, is_single_turn(self.opened))
        fitting = fit(read, self.opened.prompt, self.window, min(64, self.window // 4))
        if fitting is None:
            prompt = self.opened.prompt(messages[-1:])
            raise UsageError(f"The message has {len(prompt)} tokens, and {self.name} reads {self.window} at most.")
        return fitting[1]

    def rest_of(self, answer: AnswerBranch, limit: int) -> Request:
        """The request for the rest of an answer: the tokens before a fork are part of the prompt. The noise depends on
        the seed and the position only, so that a branch differs from its parent by its token only."""
        prompt = (*answer.prompt, *answer.tokens)
        left = min(limit - len(answer.steps), self.window - len(prompt))
        if left < 1:
            raise UsageError(f"There is no room left: {self.name} reads {self.window} tokens at most.")
        top = -1 if 0 < self.vocabulary <= WHOLE else LISTED
        return replace(self.request(prompt, answer.sampling, left, answer.seed), top=top)

    async def extend(self, answer: AnswerBranch, limit: int) -> None:
        """Appends steps to the answer as they are generated, until it ends or ``answer.running`` is set to False."""
        meter, began = EnergyMeter(), time.monotonic()
        async for events in self.events(self.rest_of(answer, limit)):
            for event in events:
                answer.steps.append(event.step)
                answer.trace = event.trace or answer.trace
            if not answer.running:
                break
        answer.seconds, answer.joules = time.monotonic() - began, meter.joules()

    async def extend_ahead(self, answer: AnswerBranch, limit: int) -> None:
        """Generates the same answer by speculative decoding, with drafts looked up in the text so far."""
        request = self.rest_of(answer, limit)

        def work(source: Source) -> None:
            assert isinstance(source, NativeSource), "klype's own engine speculates"
            meter, began = EnergyMeter(), time.monotonic()
            # the distributions are computed for the finished answer, in one pass
            traces, counts = speculate(source.engine, replace(request, top=0), LookupDraft())
            (scored,) = source.score([request.prompt], [traces[0].tokens], request.top)
            for step, seen in zip(traces[0].steps, scored.steps, strict=True):
                answer.steps.append(replace(step, distribution=seen.distribution))
            answer.trace, answer.seconds, answer.joules = traces[0], time.monotonic() - began, meter.joules()
            answer.accepted, answer.proposed = counts.accepted, counts.proposed

        await self.beside(work)

    async def events(self, request: Request) -> AsyncIterator[list[Event]]:
        """Yields the events of a request as they come, several at a time. Leaving the loop cancels the request."""
        if self.worker is not None:
            job = Job([request])
            self.worker.submit(job)
            try:
                async for news in job.updates():
                    yield [update for update in news if isinstance(update, Event)]
            finally:
                self.worker.cancel(job)
            return
        # another source's generator runs in a thread, where it is closed when the loop is left
        events = cast("Generator[Event, None, None]", self.opened.source.generate([request]))
        pool, loop = ThreadPoolExecutor(1, thread_name_prefix="klype answer"), asyncio.get_running_loop()
        try:
            # None at the end: a future cannot raise StopIteration
            while (event := await loop.run_in_executor(pool, next, events, None)) is not None:
                yield [event]
        finally:
            pool.submit(events.close)
            pool.shutdown(wait=False)

    async def beside(self, work: Callable[[Source], T]) -> T:
        """Runs long work in the model's thread, after what is queued there; to be cancelled, it has to look at a
        flag."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, self.source)

    def truth(self, question: str, tokens: tuple[int, ...]) -> Mapping[int, float] | None:
        """The true distribution of the next token of an answer; None where it is not known, or where the answer has
        left the world's language."""
        reader = self._reader(question)
        return None if reader is None else reader.next(tokens)

    def reader(self, question: str) -> Reader | None:
        """A reader of the true distributions along an answer to this question; None where they are not known."""
        run, world = self.opened.found.run, None
        if self.opened.native is not None and not self.raw:
            world = world_of(self.opened)
        asked = question_in(world, run, question)[0] if run is not None and world is not None else None
        return reader_of(self.opened, world)(asked) if world is not None and asked is not None else None

    def stop(self) -> None:
        """Ends the worker, and long work when it next looks: Python would wait for both when it exits."""
        self.stopped.set()
        if self.worker is not None:
            self.worker.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)


@dataclass
class Studio:
    """A studio. ``home``: klype's own folder, where background work is kept. ``command`` starts ``klype``, and
    ``device`` is where it computes. ``store``: a file or url for rankings, instead of the runs' own stores; ``runs``:
    the folder for runs, by default ``runs`` and ``home``. ``opens``: whether visitors may open any model that the user
    of this machine could; the studio's own runs they always may."""

    models: Sequence[SharedModel]
    home: Path
    command: Sequence[str]
    store: str = ""
    runs: Path | None = None
    device: str = "auto"
    precision: str = "float32"
    opens: bool = False
    conversations: Conversations = field(default_factory=Conversations)
    summaries: SummaryCache = field(default_factory=SummaryCache)
    # two visitors who open the same MODEL load it once
    _opening: threading.Lock = field(default_factory=threading.Lock)

    def open(self, text: str) -> list[SharedModel]:
        """Opens a MODEL, of a run all finished stages, and returns the models; one that is open already is not opened
        again. Call it in a thread. KlypeError if there is no such model, it is damaged, or another has its
        name."""
        with self._opening:
            known = {model.address: model for model in self.models}
            named = stages_of(text)
            for name, address in named:
                if address not in known:
                    if any(name == other.name for other in self.models):
                        raise UsageError(f"Two models are called '{name}'.", "Give one another name: NAME=MODEL.")
                    opened = open_model(address, self.precision, measured=True, device=self.device)
                    run = opened.found.run
                    examined = run is not None and (run / "questions.jsonl").is_file()
                    known[address] = SharedModel(name, address, opened, identity(opened) if examined else "")
                    self.models = [*self.models, known[address]]
        return [known[address] for _, address in named]

    def suggestions(self, lang: str) -> list[str]:
        """Questions to ask, drawn anew, for the last model that has any. Call it in a thread."""
        return next(filter(None, (suggestions(model.opened, lang) for model in reversed(self.models))), [])

    def model(self, name: str) -> SharedModel:
        """The model with a name that a browser sent. UsageError if there is none."""
        found = next((model for model in self.models if model.name == name), None)
        if found is None:
            raise UsageError(f"There is no model {name[:100]!a} here.")
        return found

    @property
    def runs_home(self) -> Path:
        """The folder for runs that are started here."""
        return self.runs or self.home / "runs"

    def run_folders(self) -> list[Path]:
        """All runs, each once: those of the studio's models, those started here, and those in the folder for runs."""
        found: dict[Path, Path] = {}
        for model in self.models:
            if (run := model.opened.found.run) is not None and (run / "run.json").is_file():
                found.setdefault(run.resolve(), run)
        # a model's run may be in one of these folders, too, or be reached by a link
        for base in (self.runs_home, self.home / "runs", self.runs or RUNS):
            for file in sorted(base.glob("*/run.json"), key=mtime, reverse=True):
                found.setdefault(file.parent.resolve(), file.parent)
        return list(found.values())

    def ranking_stores(self) -> list[RankingStore]:
        """All stores: that of the option --store, those of runs, and those that ``STORES`` names."""
        known = [run for run in self.run_folders() if has_store(run / "rank")]
        stores = [*(RankingStore(run.name, run) for run in known), *named_stores(self.home)]
        if self.store:
            stores.insert(0, RankingStore(database.short(self.store), known[0] if known else None, self.store))
        return stores

    def fill_store(self) -> None:
        """Fills the store of the option --store, if it is empty, with the questions and rankings of the first run.
        KlypeError if it cannot be opened, UsageError if there is nothing to rank."""
        if not self.store:
            return
        place = self.ranking_stores()[0]
        with place.open() as store:
            if store.questions():
                return
            if place.run is None:
                raise UsageError(
                    f"There are no questions in {place.name}, and no run to take them from.",
                    "Name a run whose answers are to be ranked.",
                )
            with RankingStore(place.run.name, place.run).open() as own:
                store.add(own.questions())
                store.put(own.entries())

    def stop(self) -> None:
        for model in self.models:
            model.stop()


def mtime(file: Path) -> float:
    """When a file was last written, in seconds since 1970; 0 if there is none."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def stages_of(text: str) -> list[tuple[str, str]]:
    """(name, address) pairs of MODEL or NAME=MODEL: one, or of a run one for each finished stage."""
    given, separator, rest = text.partition("=")
    try:
        named = bool(separator) and given.replace("-", "").replace("_", "").isalnum() and not Path(text).exists()
        name, address = (given, resolve(rest)) if named else ("", resolve(text))
        folder = Path(address).expanduser()
        if (folder / "run.json").is_file() and not (folder / "config.json").is_file():
            short = name or folder.resolve().name
            stages = [stage for stage in reversed(NEWEST_FIRST) if is_whole(folder / stage)]
            if stages:
                return [(f"{short}/{stage}", str(folder / stage)) for stage in stages]
        return [(name or kind_of(address).short(address), address)]
    except (OSError, RuntimeError, ValueError):  # a name that is too long, has a NUL, or is of a user who has no home
        raise UsageError(f"There is no model {text[:200]!a}.") from None
