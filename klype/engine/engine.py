"""The engine under chat, rollouts, examination and server. Shapes: R running rows, V vocabulary.

Every step reads: schedule (who joins), run (one pass of the model), postprocess (draw, record, end). A row is one
sample of a request; rows join a running batch and leave it at once. Prompts are read once, stored once, and shared.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from klype.device import threads_for
from klype.engine.checks import check_answer, check_prompt, check_request
from klype.engine.prefix_cache import CachedPrefix, PrefixCache, by_shelf
from klype.engine.records import Ended, Job, Records, distributions, token_counts
from klype.engine.rows import Rows
from klype.engine.sampling import noise, sample
from klype.engine.score import score
from klype.errors import KlypeError
from klype.model.cache import Cache
from klype.model.transformer import Transformer
from klype.samplers import Seen, needs_seen
from klype.values import Distribution, Request, Step, Trace

FEW = 8
"""Rows that are worth a copy of what they share, where that lets one call compute a step."""
PRODUCTS = 4
"""Of a layer."""
FETCHED = 10
"""Operations in the time that it takes to fetch a byte of a matrix from memory."""
COPIED = 4096
"""Tokens that such copies may hold."""


@dataclass(frozen=True, slots=True)
class Event:
    """One token of one sample; ``trace`` is the whole answer when this token ended it."""

    request: int
    sample: int
    step: Step
    trace: Trace | None


@dataclass(frozen=True, slots=True)
class Drawn:
    """What one step did: the row's job, sample and token, and the traces of rows that ended (by row)."""

    jobs: npt.NDArray[np.object_]
    samples: npt.NDArray[np.int64]
    lines: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    ended: dict[int, Trace]


class Engine:
    """Generates with one model. ``decode_bytes`` (token to bytes) is needed for stop texts only."""

    def __init__(
        self,
        model: Transformer,
        *,
        decode_bytes: Callable[[int], bytes] | None = None,
        name: str = "",
        max_batch: int = 256,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        assert max_batch > 0
        self.model = model
        self.decode_bytes = decode_bytes
        self.name = name
        self.max_batch = max_batch
        self.clock = clock
        self.version: int | str = 0
        self.prefixes = PrefixCache(model)
        self.passes = 0  # forward passes over running rows; those over prompts are counted by ``prefixes``
        self._weights = [p for p in model.parameters() if not p.is_inference()]
        self._fingerprint = self._changes()
        self._next_id = 0
        self._queue: deque[Job] = deque()
        self._records = Records()
        self._clear_rows()

    @property
    def busy(self) -> bool:
        return bool(self._queue) or len(self._rows) > 0

    @property
    def label(self) -> str:
        """Names the weights: the model's name and their version."""
        return f"{self.name}@{self.version}" if self.version else self.name

    def add(self, request: Request) -> int:
        """Queue a request; its samples join as soon as there is room. Returns its id."""
        self.check(request)
        room = min(request.limit, self.model.config.window - len(request.prompt) + 1)
        self._next_id += 1
        self._queue.append(Job(self._next_id, request, room, request.n))
        return self._next_id

    def check(self, request: Request) -> None:
        """Raise what is wrong with a request, or with the freshness of what is remembered."""
        config = self.model.config
        check_request(request, config.window, config.vocab_size, self.decode_bytes is not None)
        self._check_fresh()

    def step(self) -> list[Event]:
        """One token for every running row. When it fails (damaged weights), all that was running is dropped."""
        try:
            drawn = self._advance()
        except BaseException:  # half a step cannot be gone on from
            self.abandon()
            raise
        events = []
        for row, job in enumerate(drawn.jobs):
            trace = drawn.ended.get(row)
            if trace is not None:
                last = trace.steps[-1]
            else:
                last = self._records.last(int(drawn.lines[row]), int(drawn.counts[row]))
            events.append(Event(job.id, int(drawn.samples[row]), last, trace))
        return events

    @torch.inference_mode()
    def cancel(self, request_id: int) -> list[Trace]:
        """Stop a request at once; returns what its running samples had said. An unknown or finished id is no error."""
        self._queue = deque(job for job in self._queue if job.id != request_id)
        mine = np.array([job.id == request_id for job in self._rows.jobs], bool)
        traces = [self._trace(int(row), "cancelled") for row in np.flatnonzero(mine)]
        if traces:
            self._leave(mine)
        return traces

    def abandon(self) -> None:
        """Drop all that runs and waits, whatever state a failure has left it in."""
        self._queue.clear()
        self._records = Records()  # a failure may have left lines half put away
        self._clear_rows()

    def run(self, requests: Sequence[Request]) -> list[list[Trace]]:
        """Answers to all requests, in order of request and sample. The engine must be idle."""
        occupied = self.busy
        if occupied:
            raise KlypeError("The engine is already answering: finish or cancel its requests first.")
        jobs = []
        try:
            for request in requests:
                self.add(request)
                jobs.append(self._queue[-1])
            while self.busy:
                self._advance()
        except BaseException:
            self.abandon()
            raise
        return [sorted(job.traces, key=lambda trace: trace.sample) for job in jobs]

    def next(self, prefixes: Sequence[Sequence[int]], top: int = -1) -> list[Distribution]:
        """The model's distribution (temperature 1) after each prefix; ``top`` -1: whole."""
        config = self.model.config
        for prefix in prefixes:
            check_prompt(prefix, config.window, config.vocab_size)
        self._check_fresh()
        places = self.prefixes.read([tuple(prefix) for prefix in prefixes])
        if not places:
            return []
        found = distributions(torch.stack([place.logits for place in places]).float().log_softmax(-1), top)
        if any(np.isnan(d.logp).any() for d in found):
            raise self.not_numbers()
        return found

    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], top: int = 0) -> list[Trace]:
        """How probable given answers are, token by token ("forced"), ``top`` of the distribution beside each."""
        config = self.model.config
        for prompt, answer in zip(prompts, answers, strict=True):
            check_prompt(prompt, config.window, config.vocab_size)
            check_answer(prompt, answer, config.window, config.vocab_size)
        self._check_fresh()
        traces = score(self.prefixes, prompts, answers, top, self.label)
        if any(np.isnan(step.logp) for trace in traces for step in trace.steps):
            raise self.not_numbers()
        return traces

    def refresh(self, version: int | str) -> None:
        """The weights have changed: forget everything computed with the old ones."""
        if len(self._rows):
            raise KlypeError("The weights cannot change while answers are being written: finish or cancel them first.")
        self.version = version
        self._fingerprint = self._changes()
        self.prefixes.clear()
        for job in self._queue:
            job.place = None
        self._clear_rows()

    def not_numbers(self) -> KlypeError:
        model = f"The model {self.label}" if self.label else "The model"
        return KlypeError(f"{model} returns values that are not numbers: it is damaged, or its training diverged.")

    def _advance(self) -> Drawn:
        self._check_fresh()
        with torch.inference_mode():
            joining = self._schedule()
            if not joining and not len(self._rows):
                return Drawn(self._rows.jobs, self._rows.samples, self._rows.lines, self._rows.counts, {})
            with threads_for(operations(self.model, len(self._rows))):
                logits_RV = self._run(joining)
                return self._postprocess(logits_RV)

    def _schedule(self) -> list[tuple[Job, int]]:
        """Which samples join: (job, how many), first come first served, as far as there is room."""
        room, joining = self.max_batch - len(self._rows), []
        while room > 0 and self._queue:
            job = self._queue[0]
            count = min(room, job.waiting)
            joining.append((job, count))
            room -= count
            if count < job.waiting:
                break
            self._queue.popleft()
        unread = [job for job, _ in joining if job.place is None]
        now = self.clock()
        if unread:
            places = self.prefixes.read([job.request.prompt for job in unread])
            for job, place in zip(unread, places, strict=True):
                job.place, job.started = place, now
        return joining

    def _run(self, joining: list[tuple[Job, int]]) -> Tensor:
        """Logits [R, V] of the next token of every row: those that go on, then those that join."""
        parts = []
        if len(self._rows):
            last_R1 = self._last_R[:, None].to(self._cache.device)
            parts.append(self.model.unembed(self.model.hidden(last_R1, self._cache)[:, 0]))
            self.passes += 1
        places = [job.seen() for job, _ in joining]
        seats = [(places[i], *joining[i]) for i in by_shelf(places)]
        parts += [place.logits.expand(count, -1) for place, _, count in seats]
        self._join(seats)
        return torch.cat(parts)

    def _join(self, seats: list[tuple[CachedPrefix, Job, int]]) -> None:
        if seats and self._cache.rows and not self._cache.shelves:
            self._cache.share()
        for _, group in groupby(seats, key=lambda seat: id(seat[0].shelf)):  # one call a shelf
            slots, lengths = [], []
            for place, job, count in group:
                slots += [place.slot] * count
                lengths += [place.length] * count
                self._rows.seat(job, self._records.open(count))
            self._cache.join(place.shelf, slots, lengths)
        if seats:
            self._settle()

    def _settle(self) -> None:
        """A lone row, and few rows of a model that has a way of its own for them, are read in one piece."""
        rows, few = len(self._rows), self.model.stepper is not None
        if self._cache.shelves and (rows == 1 or (few and rows <= FEW and self._cache.lengths.sum() <= COPIED)):
            self._cache.own()

    def _postprocess(self, logits_RV: Tensor) -> Drawn:
        tokens_R, logp_2R = self._draw(logits_RV)
        if np.isnan(logp_2R).any():
            raise self.not_numbers()
        tokens = tokens_R.numpy()
        self._records.write(self._rows.lines, self._rows.counts, tokens, logp_2R)
        self._rows.counts = self._rows.counts + 1
        stopped = (tokens[:, None] == self._rows.stop).any(1)
        if self._rows.special.any():
            self._look(logits_RV, tokens, stopped)
        ended = stopped | (self._rows.counts >= self._rows.rooms)
        self._last_R = tokens_R
        rows = self._rows
        drawn = Drawn(rows.jobs, rows.samples, rows.lines, rows.counts, {})
        for row in np.flatnonzero(ended).tolist():
            drawn.ended[row] = self._trace(row, "stop" if stopped[row] else "length")
        if drawn.ended:
            self._leave(ended)
        return drawn

    def _draw(self, logits_RV: Tensor) -> tuple[Tensor, npt.NDArray[np.float64]]:
        """Tokens [R] and log-probabilities [2, R]: the model's, and those of the distribution drawn from."""
        noise_R = noise(self._rows.seeds, self._rows.samples, self._rows.offsets + self._rows.counts)
        kinds = np.unique(self._rows.which)
        if len(kinds) == 1:
            tokens_R, logp_2R = self._sample(logits_RV, noise_R, np.arange(len(self._rows.which)))
        else:
            tokens_R, logp_2R = torch.empty(len(noise_R), dtype=torch.int64), torch.empty(2, len(noise_R))
            for kind in kinds:
                rows = np.flatnonzero(self._rows.which == kind)
                index = torch.from_numpy(rows)
                tokens_R[index], logp_2R[:, index] = self._sample(logits_RV[index], noise_R[rows], rows)
        return tokens_R, logp_2R.double().numpy()

    def _sample(
        self, logits_RV: Tensor, noise_R: npt.NDArray[np.float64], rows: npt.NDArray[np.int64]
    ) -> tuple[Tensor, Tensor]:
        """As ``sample``, for rows that are all drawn alike."""
        seen, sampling = None, self._rows.samplings[self._rows.which[rows[0]]]
        if needs_seen(sampling):
            size = logits_RV.shape[1]
            said = [self._records.tokens[self._rows.lines[row], : self._rows.counts[row]] for row in rows]
            counts = token_counts(said, size)
            prompts = token_counts([np.array(self._rows.jobs[row].request.prompt) for row in rows], size)
            seen = Seen(counts + prompts, counts)
        return sample(logits_RV, sampling, noise_R, seen)

    def _look(self, logits_RV: Tensor, tokens: npt.NDArray[np.int64], stopped: npt.NDArray[np.bool_]) -> None:
        """Rows that asked for distributions or for stop texts."""
        special = np.flatnonzero(self._rows.special).tolist()
        for top, group in groupby(sorted(special, key=self._top_of), key=self._top_of):
            rows = list(group)
            if not top:
                continue
            listed = distributions(logits_RV[rows].float().log_softmax(-1), top)
            for row, q in zip(rows, listed, strict=True):
                self._records.distributions.setdefault(int(self._rows.lines[row]), []).append(q)
        for row in special:
            request, line = self._rows.jobs[row].request, int(self._rows.lines[row])
            if request.stop_texts:
                assert self.decode_bytes is not None
                text = self._records.texts.setdefault(line, bytearray())
                added = self.decode_bytes(int(tokens[row]))
                text += added
                for stop in request.stop_texts:
                    sought = stop.encode()
                    stopped[row] |= sought in text[-len(sought) - len(added) :]

    def _top_of(self, row: int) -> int:
        return int(self._rows.jobs[row].request.top)

    def _trace(self, row: int, ended: Ended) -> Trace:
        job, line, count = self._rows.jobs[row], int(self._rows.lines[row]), int(self._rows.counts[row])
        request = job.request
        trace = Trace(
            prompt=request.prompt,
            steps=self._records.steps(line, count),
            sampling=request.sampling,
            seed=request.seed,
            sample=int(self._rows.samples[row]),
            model=self.label,
            ended=ended,
            passes=count,
            seconds=self.clock() - job.started,
        )
        job.traces.append(trace)
        return trace

    def _leave(self, ended: npt.NDArray[np.bool_]) -> None:
        for line in self._rows.lines[ended].tolist():
            self._records.close(line)
        if ended.all():
            self._clear_rows()
            return
        order = self._cache.remove(ended)
        self._last_R = self._last_R[torch.from_numpy(order)]
        self._rows.take(order)
        if self.model.stepper is not None:
            self._settle()

    def _clear_rows(self) -> None:
        self._cache = Cache.of(self.model)
        self._rows = Rows.none()
        self._last_R = torch.zeros(0, dtype=torch.int64)

    def _check_fresh(self) -> None:
        if self._changes() != self._fingerprint:
            if len(self.prefixes) or len(self._rows):
                raise KlypeError(
                    "The model's weights have changed since this was computed: call refresh(version) first."
                )
            self._fingerprint = self._changes()

    def _changes(self) -> int:
        """Grows whenever a weight is written in place (torch counts it)."""
        return sum(p._version for p in self._weights)


def operations(model: Transformer, rows: int) -> float:
    """What the mean matrix product of a step of so many rows takes, in operations of float32: numbers of half the size
    take half as long, and few rows wait for the matrix to come from memory."""
    config = model.config
    numbers = config.flops_per_token / 2 / (PRODUCTS * config.layers + 1)
    return numbers * model.embed.weight.element_size() * max(rows / 2, FETCHED)
