"""A source that remembers: whole answers are kept as traces and not asked for again; its work is counted and timed."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from klype.answers import trace_files as store
from klype.device import EnergyMeter
from klype.engine.engine import Event
from klype.sources.source import Source, SourceWrapper, answers
from klype.values import Distribution, Request, Trace


@dataclass(frozen=True, slots=True)
class Meters:
    """``clock``: seconds; ``joules``: what the machine has used so far, where that can be read."""

    clock: Callable[[], float] = time.perf_counter
    joules: Callable[[], float | None] = lambda: None


class Recorder(SourceWrapper):
    """``identity`` names the weights: what other weights said is not used. ``passes`` counts a forward pass for every
    token drawn, beginning read and answer scored, whether it was done now or remembered."""

    def __init__(self, source: Source, identity: str, folder: Path | None, meters: Meters) -> None:
        super().__init__(source)
        self._identity, self._folder, self._meters = identity, folder, meters
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="traces")  # disks are slow: the model does not wait
        self._saving: Future[None] | None = None
        self.passes, self.tokens, self.model_s = 0, 0, 0.0

    def next(self, prefixes: Sequence[Sequence[int]], top: int = -1) -> list[Distribution]:
        self.passes += len(prefixes)
        began = self._meters.clock()
        found = self._source.next(prefixes, top)
        self.model_s += self._meters.clock() - began
        return found

    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], top: int = 0) -> list[Trace]:
        asked = repr([[tuple(p) for p in prompts], [tuple(a) for a in answers], top])
        traces = self._kept("scored", asked, lambda: self._source.score(prompts, answers, top))
        self.passes += len(traces)
        self.tokens += sum(len(trace.steps) for trace in traces)
        return traces

    def generate(self, requests: Sequence[Request]) -> Iterator[Event]:
        """All answers are drawn first, then given out as ended."""
        asked = repr(list(requests))
        rest = iter(self._kept("drawn", asked, lambda: [t for g in answers(self._source, requests) for t in g]))
        for place, request in enumerate(requests):
            for _ in range(request.n):
                trace = next(rest)
                self.passes += len(trace.steps)
                self.tokens += len(trace.steps)
                yield Event(place, trace.sample, trace.steps[-1], trace)

    def _kept(self, kind: str, asked: str, ask: Callable[[], list[Trace]]) -> list[Trace]:
        about = {"identity": self._identity, "asked": hashlib.sha256(asked.encode()).hexdigest()}
        name = f"{kind}-{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]}"
        found = None if self._folder is None else store.load(self._folder, name, about)
        if found is not None:
            return found
        began, used = self._meters.clock(), self._meters.joules()
        traces = ask()
        took = self._meters.clock() - began
        self.model_s += took
        passes, now = sum(trace.passes for trace in traces), self._meters.joules()
        if used is not None and now is not None and passes:
            # answers made one at a time: their own seconds only, so that energy and time are of the same span
            share = min(1.0, sum(trace.seconds for trace in traces) / took) if took > 0 else 1.0
            spent = (now - used) * share
            traces = [replace(trace, joules=spent * trace.passes / passes) for trace in traces]
        self.finish()
        if self._folder is not None:
            self._saving = self._beside.submit(store.save, self._folder, name, traces, about)
        return traces

    def finish(self) -> None:
        """Wait until what was said is on disk. Errors: it could not be written."""
        if self._saving is not None:
            self._saving.result()
            self._saving = None


WATTS_PER_CORE = 10.0  # where energy cannot be read: about what a core at work takes, its share of the rest included


class Energy:
    """Joules since it was made: by the processor's counters, or else estimated from this process's processor time.

    Wall time times the threads that torch may use is no estimate: how many of them work changes with the batch, and
    energy rose where time fell.
    """

    def __init__(self) -> None:
        self._meter, self._cpu = EnergyMeter(), time.process_time()
        self.estimated = not self._meter.available
        self._meter.joules()

    def joules(self) -> float:
        """Used so far."""
        seconds = time.process_time() - self._cpu
        read = self._meter.joules()
        return seconds * WATTS_PER_CORE if read is None else read


@dataclass(frozen=True, slots=True)
class Shape:
    """``matrices``: parameters that are multiplied with (not looked-up embeddings); ``width``: of all query heads.
    ``weight_bytes`` are read in every pass, ``cache_bytes`` are kept for every token; 0: not known."""

    matrices: int
    layers: int
    width: int
    weight_bytes: int = 0
    cache_bytes: int = 0


def answer_flops(shape: Shape, prompt: int, answer: int) -> int:
    """A prompt and an answer of so many tokens; the last token is drawn, not fed."""
    length = prompt + answer - 1 if answer else 0
    return 2 * shape.matrices * length + 4 * shape.layers * shape.width * (length * (length + 1) // 2)


def answer_bytes(shape: Shape, prompt: int, answer: int) -> int:
    """What one answer alone moves between memory and processor: the weights once a pass, the cache of each token
    written once and read in every later pass. The prompt is one pass, and each token but the last is one more."""
    if answer == 0:
        return 0
    written = prompt + answer - 1
    read = sum(range(prompt, prompt + answer - 1))
    return answer * shape.weight_bytes + shape.cache_bytes * (written + read)
