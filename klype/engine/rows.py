"""The running rows as plain arrays, one entry a row, so that a step costs a few array operations and no loop."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from klype.engine.records import Job
from klype.values import Sampling

Indices = npt.NDArray[np.int64]
MASK = 0xFFFFFFFFFFFFFFFF
KINDS = 64
"""More different samplings than this and the unused ones are forgotten."""


@dataclass
class Rows:
    """``offsets`` are prompt lengths, ``counts`` tokens drawn, ``rooms`` tokens at most.

    ``which`` indexes ``samplings``; ``lines`` are lines of the records; ``stop`` [R, S] holds stop tokens, -1 where a
    row has fewer; ``special`` rows want distributions or have stop texts.
    """

    jobs: npt.NDArray[np.object_]
    samples: Indices
    seeds: npt.NDArray[np.uint64]
    offsets: Indices
    counts: Indices
    rooms: Indices
    which: Indices
    lines: Indices
    special: npt.NDArray[np.bool_]
    stop: Indices
    samplings: list[Sampling]

    @staticmethod
    def none() -> Rows:
        def empty() -> Indices:
            return np.zeros(0, np.int64)

        jobs, seeds, special = np.empty(0, object), np.zeros(0, np.uint64), np.zeros(0, bool)
        stop = np.zeros((0, 1), np.int64)
        return Rows(jobs, empty(), seeds, empty(), empty(), empty(), empty(), empty(), special, stop, [])

    def __len__(self) -> int:
        return len(self.jobs)

    def append(self, job: Job, lines: Indices) -> None:
        """Add the job's next samples, one for each line of the records."""
        request, count = job.request, len(lines)
        jobs = np.empty(count, object)
        jobs[:] = job
        stop = np.full((count, max(self.stop.shape[1], len(request.stop))), -1, np.int64)
        stop[:, : len(request.stop)] = request.stop
        more = stop.shape[1] - self.stop.shape[1]
        new: dict[str, npt.NDArray[Any]] = {
            "jobs": jobs,
            "samples": job.next_sample + np.arange(count),
            "seeds": np.full(count, request.seed & MASK, np.uint64),
            "offsets": np.full(count, len(request.prompt)),
            "counts": np.zeros(count, np.int64),
            "rooms": np.full(count, job.room),
            "which": np.full(count, self._kind(request.sampling)),
            "lines": lines,
            "special": np.full(count, bool(request.top or request.stop_texts)),
            "stop": stop,
        }
        self.stop = np.pad(self.stop, ((0, 0), (0, more)), constant_values=-1)
        for name, value in new.items():
            setattr(self, name, np.concatenate((getattr(self, name), value)))
        job.waiting -= count

    def take(self, order: Indices) -> None:
        """Only these rows stay, in this order."""
        for entry in fields(self):
            if entry.name != "samplings":
                setattr(self, entry.name, getattr(self, entry.name)[order])

    def _kind(self, sampling: Sampling) -> int:
        if sampling in self.samplings:
            return self.samplings.index(sampling)
        if len(self.samplings) >= KINDS:
            used, self.which = np.unique(self.which, return_inverse=True)
            self.samplings = [self.samplings[kind] for kind in used]
        self.samplings.append(sampling)
        return len(self.samplings) - 1
