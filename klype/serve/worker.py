"""Runs all clients' jobs of a model in one thread: continuous batching, scoring between steps, cancellation."""

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt

from klype.engine.engine import Engine, Event
from klype.serve.api_errors import ApiError, as_api_error
from klype.values import Request, Trace

LOG = logging.getLogger("klype.serve")
ENDING = "The server is shutting down."
AT_ONCE = 128  # tokens and alternatives that a job processes before others on the event loop have their turn
SCORED = 4096  # tokens of given texts that are scored between two steps of generation (at least one text)


@dataclass(frozen=True, slots=True)
class TextResult:
    """The result for a given text, number ``place`` of its job: the log-probabilities of its tokens except the first,
    or the mean of its hidden states, [D]."""

    place: int
    value: Trace | npt.NDArray[np.float32]


Update = Event | TextResult  # ``Event.request`` is an index into the job's requests


class Job:
    """A client's work: answers to ``requests``, and for ``texts`` log-probabilities (with ``top`` alternatives per
    token) or, with ``embeds``, mean hidden states.

    It must be created on the event loop that awaits it. ``size``: the number of answers and texts.
    """

    def __init__(
        self, requests: Sequence[Request], texts: Sequence[Sequence[int]] = (), top: int = 0, embeds: bool = False
    ) -> None:
        self.requests = tuple(requests)
        self.texts = deque(enumerate(tuple(text) for text in texts))
        self.top, self.embeds = top, embeds
        self.at_once = max(1, AT_ONCE // (1 + max([top, *(request.top for request in requests)])))
        self.size = sum(request.n for request in requests) + len(texts)
        self.left = self.size
        self.loop = asyncio.get_running_loop()
        self._arrived: deque[Update] = deque()
        self._error: BaseException | None = None
        self._changed = asyncio.Event()

    async def updates(self) -> AsyncIterator[list[Update]]:
        """Yields updates as they arrive, in batches small enough for the event loop, until the job is done. Raises the
        error that ended it."""
        expected = self.size
        while expected:
            await self._changed.wait()
            self._changed.clear()
            while self._arrived:
                news = [self._arrived.popleft() for _ in range(min(len(self._arrived), self.at_once))]
                expected -= sum(ends(update) for update in news)
                yield news
                await asyncio.sleep(0)
            if self._error is not None:
                raise self._error

    def arrive(self, news: Iterable[Update], error: BaseException | None) -> None:
        """Adds updates and an error; call it on the event loop's thread."""
        self._arrived.extend(news)
        self._error = self._error or error
        self._changed.set()


def ends(update: Update) -> bool:
    """Whether an update is the last one of an answer or a text."""
    return isinstance(update, TextResult) or update.trace is not None


class Worker:
    """A thread, started with the first job, that owns an engine: nobody else may call it.

    At most ``batch`` samples run and ``queue`` more wait; further jobs are refused (429). If the engine fails, the jobs
    that were running get the error, and the engine is reset. ``failure``: why the thread ended, if it could not be.
    """

    def __init__(self, engine: Engine, batch: int, queue: int) -> None:
        self.engine = engine
        self.load = 0  # samples and texts that are accepted and not done
        self.cancelled = 0  # jobs
        self.failure = ""
        self._rate = 0.0  # samples per second, a moving average
        self._batch, self._queue = batch, queue
        self._changed = threading.Condition()
        self._inbox: deque[tuple[Job, bool]] = deque()  # job, and whether to cancel it
        self._jobs: dict[Job, set[int]] = {}  # jobs, oldest first, with the engine's ids of their requests
        self._owners: dict[int, tuple[Job, int]] = {}  # by the engine's id: job, index of the request
        self._news: dict[Job, list[Update]] = {}
        self._errors: dict[Job, BaseException] = {}
        self._thread: threading.Thread | None = None
        self._stopping = False

    @property
    def running(self) -> int:
        return min(self.load, self._batch)

    @property
    def waiting(self) -> int:
        return self.load - self.running

    def submit(self, job: Job) -> None:
        """Raises ApiError if the queue is full; an idle worker takes a job of any size."""
        with self._changed:
            if self._stopping:
                raise ApiError(self.failure or ENDING, 503)
            if self.load and self.load + job.size > self._batch + self._queue:
                # seconds until half of the load is done
                later = max(1, min(60, math.ceil(self.load / 2 / self._rate))) if self._rate else 1
                raise ApiError("The server is busy: its queue is full. Try again later.", 429, retry_after=later)
            if self._thread is None:
                self.engine.max_batch = self._batch
                thread = threading.Thread(target=self._run, name="klype engine", daemon=True)
                thread.start()
                self._thread = thread
            self.load += job.size
            self._inbox.append((job, False))
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Cancels a job before the next step; a finished job is ignored."""
        with self._changed:
            if not self._stopping:
                self._inbox.append((job, True))
                self._changed.notify()

    def stop(self) -> None:
        """Ends the thread and all jobs that are not done."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        why = ApiError(ENDING, 503)
        try:
            while True:
                with self._changed:
                    while not (self._inbox or self._stopping or self._jobs):
                        self._changed.wait()
                    if self._stopping:
                        break
                self._turn()
        except BaseException as error:
            LOG.critical("A model's thread ends, for its engine cannot begin anew.", exc_info=error)
            self.failure = f"The model answers no more ({type(error).__name__}): start the server again."
            why = ApiError(self.failure, 503)
        with self._changed:
            self._stopping = True
        for job in [*self._jobs, *(job for job, gone in self._inbox if not gone)]:
            self._end(job, why, asks_engine=False)
        self._inbox.clear()
        self._deliver()

    def _turn(self) -> None:
        """One iteration: new and cancelled jobs, some given texts, one token of every answer."""
        try:
            while self._inbox:  # only this thread takes from it
                job, gone = self._inbox.popleft()
                (self._drop if gone else self._take)(job)
            started, done = time.perf_counter(), self._score()
            if self._jobs and self.engine.busy:
                for event in self.engine.step():
                    job, place = self._owners[event.request]
                    done += event.trace is not None
                    self._report(job, replace(event, request=place))
            took = max(time.perf_counter() - started, 1e-6)
            self._rate += (done / took - self._rate) * min(1.0, took / 10)
        except BaseException as error:  # whatever it is, later jobs are served
            LOG.error("The engine failed, and begins anew.", exc_info=error)
            # jobs of which nothing was begun, only texts to be scored, stay
            for job in [job for job in self._jobs if len(job.texts) < job.left]:
                self._end(job, error, asks_engine=False)
            self.engine.abandon()
        self._deliver()

    def _take(self, job: Job) -> None:
        self._jobs[job] = set()
        try:
            for place, request in enumerate(job.requests):
                number = self.engine.add(request)
                self._jobs[job].add(number)
                self._owners[number] = job, place
        except Exception as error:
            self._end(job, error)

    def _score(self) -> int:
        """Scores the oldest texts that need the same results, in one call of the engine, and returns how many."""
        waiting, batch, tokens = [job for job in self._jobs if job.texts], list[tuple[Job, int, tuple[int, ...]]](), 0
        if not waiting:
            return 0
        first = waiting[0]
        for job in takewhile(lambda job: (job.top, job.embeds) == (first.top, first.embeds), waiting):
            while job.texts and tokens < SCORED:
                place, text = job.texts.popleft()
                batch.append((job, place, text))
                tokens += len(text)
        texts = [text for *_, text in batch]
        try:
            found: Iterable[Any] = (
                self.engine.mean_states(texts)
                if first.embeds
                else self.engine.score([text[:1] for text in texts], [text[1:] for text in texts], first.top)
            )
        except Exception as error:
            LOG.exception("Scoring failed.")
            for job in {job for job, *_ in batch}:
                self._end(job, error)
            return 0
        for (job, place, _), one in zip(batch, found, strict=True):
            self._report(job, TextResult(place, one))
        return len(batch)

    def _report(self, job: Job, update: Update) -> None:
        self._news.setdefault(job, []).append(update)
        if ends(update):
            job.left -= 1
            with self._changed:
                self.load -= 1
            if not job.left:
                self._end(job)

    def _end(self, job: Job, error: BaseException | None = None, asks_engine: bool = True) -> None:
        """Removes a job that is done or failed; ``error``: for its client."""
        if asks_engine and job.left:
            for number in self._jobs[job]:
                self.engine.cancel(number)
        for number in self._jobs.pop(job, ()):
            del self._owners[number]
        with self._changed:
            self.load -= job.left
        if error is not None:
            self._errors[job] = as_api_error(error)

    def _drop(self, job: Job) -> None:
        """Removes a job whose client has disconnected."""
        if job in self._jobs:
            self.cancelled += 1
            self._news.pop(job, None)
            self._end(job)

    def _deliver(self) -> None:
        """Hands over all updates and errors, with one call into each event loop."""
        news, errors = self._news, self._errors
        self._news, self._errors = {}, {}
        jobs = [*{**news, **errors}]

        def hand_over(own: list[Job]) -> None:
            for job in own:
                job.arrive(news.get(job, ()), errors.get(job))

        for loop in {job.loop for job in jobs}:
            own = [job for job in jobs if job.loop is loop]
            try:
                loop.call_soon_threadsafe(hand_over, own)
            except RuntimeError:  # the loop is closed
                for job in own:
                    self._drop(job)
