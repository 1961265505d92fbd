"""A source that stores its answers as traces, and counts and times its work; what an answer costs in operations."""

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

Joules = Callable[[], float | None]  # energy used so far; None where it cannot be read


class Recorder(SourceWrapper):
    """A source whose answers are stored in ``folder``, if given, and read from there when they are asked for again.

    ``identity`` names the weights: traces of other weights are not used. ``passes`` counts a forward pass for every
    token drawn, prefix read and answer scored, whether it was computed now or loaded.
    """

    def __init__(self, source: Source, identity: str, folder: Path | None, joules: Joules) -> None:
        super().__init__(source)
        self._identity, self._folder, self._joules = identity, folder, joules
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="traces")  # the model does not wait for the disk
        self._saving: Future[None] | None = None
        self.passes, self.tokens, self.model_s = 0, 0, 0.0

    def next(self, prefixes: Sequence[Sequence[int]], top: int = -1) -> list[Distribution]:
        self.passes += len(prefixes)
        began = time.perf_counter()
        found = self._source.next(prefixes, top)
        self.model_s += time.perf_counter() - began
        return found

    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], top: int = 0) -> list[Trace]:
        asked = repr([[tuple(p) for p in prompts], [tuple(a) for a in answers], top])
        traces = self._with_cache("scored", asked, lambda: self._source.score(prompts, answers, top))
        self.passes += len(traces)
        self.tokens += sum(len(trace.steps) for trace in traces)
        return traces

    def generate(self, requests: Sequence[Request]) -> Iterator[Event]:
        """Yields the last event of each answer, after all answers were drawn."""
        asked = repr(list(requests))
        rest = iter(self._with_cache("drawn", asked, lambda: [t for g in answers(self._source, requests) for t in g]))
        for place, request in enumerate(requests):
            for _ in range(request.n):
                trace = next(rest)
                self.passes += len(trace.steps)
                self.tokens += len(trace.steps)
                yield Event(place, trace.sample, trace.steps[-1], trace)

    def _with_cache(self, kind: str, asked: str, ask: Callable[[], list[Trace]]) -> list[Trace]:
        about = {"identity": self._identity, "asked": hashlib.sha256(asked.encode()).hexdigest()}
        name = f"{kind}-{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]}"
        found = None if self._folder is None else store.load(self._folder, name, about)
        if found is not None:
            return found
        began, used = time.perf_counter(), self._joules()
        traces = ask()
        took = time.perf_counter() - began
        self.model_s += took
        passes, now = sum(trace.passes for trace in traces), self._joules()
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
        """Waits until the traces are on disk; raises what went wrong in writing them."""
        if self._saving is not None:
            self._saving.result()
            self._saving = None


WATTS_PER_CORE = 10.0  # of a busy core, with its share of the rest of the machine; used where energy cannot be read


class Energy:
    """Energy used since the object was created: from the processor's counters, or estimated from processor time.

    Wall time times torch's threads is no estimate: how many threads are busy depends on the batch, and the estimate
    rose where the time fell.
    """

    def __init__(self) -> None:
        self._meter, self._cpu = EnergyMeter(), time.process_time()
        self.estimated = not self._meter.available

    def joules(self) -> float:
        """Joules since the object was created."""
        seconds = time.process_time() - self._cpu
        read = self._meter.joules()
        return seconds * WATTS_PER_CORE if read is None else read


@dataclass(frozen=True, slots=True)
class Shape:
    """What the cost of an answer is computed from. ``matrices``: parameters in matrix products (embedding look-ups
    excluded); ``width``: of all query heads together; ``weight_bytes``: read in every pass; ``cache_bytes``: of the
    key-value cache per token. 0: unknown."""

    matrices: int
    layers: int
    width: int
    weight_bytes: int = 0
    cache_bytes: int = 0


def answer_flops(shape: Shape, prompt: int, answer: int) -> int:
    """Floating-point operations for a prompt and an answer, given in tokens; the last token is not fed back."""
    length = prompt + answer - 1 if answer else 0
    return 2 * shape.matrices * length + 4 * shape.layers * shape.width * (length * (length + 1) // 2)


def answer_bytes(shape: Shape, prompt: int, answer: int) -> int:
    """Bytes that one answer alone moves between memory and processor: the weights once per pass, each token's cache
    written once and read in every later pass. The prompt is one pass; each token but the last is one more."""
    if answer == 0:
        return 0
    written = prompt + answer - 1
    read = sum(range(prompt, prompt + answer - 1))
    return answer * shape.weight_bytes + shape.cache_bytes * (written + read)
