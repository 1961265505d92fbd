"""How much fits in the minutes asked: a short probe of speed before each stage, turned into steps, then kept.

Every stage gets its part of what is left, so that what one takes too much is made good by the next. The plan is in
run.json: a resumed run replays it, so that resumed = straight.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from klype.device import gemm_gflops, trim_memory
from klype.errors import Interrupted
from klype.model.attention import TORCH
from klype.train import parallel
from klype.train.loop import Session, Settings, train
from klype.train.objectives import Objective
from klype.values import Batch, Batches, end

WARM, PROBED = 3, 10  # steps of a probe: those that warm up, and those that count
PROBE, FEWEST = 0.05, 4  # the part of the time that one crew's probe may take, with so many steps at least that count

Precision = Literal["float32", "bfloat16"]

Build = Callable[[nn.Module], tuple[Objective, Batches]]
"""A stage's objective and fresh batches for a model (a copy, in a probe)."""


@dataclass(frozen=True, slots=True)
class Crew:
    """Who computes: ``workers`` micro-batches side by side, ``threads`` in each product."""

    workers: int = 1
    threads: int = 1


def crews(cores: int, micro_batches: int) -> list[Crew]:
    """Those worth a try: one worker alone, one on all cores, and as many workers as there are micro-batches (a process
    that works with others has one).
    """
    workers = min(cores, micro_batches) if parallel.ranks() == 1 else 1
    return list(dict.fromkeys((Crew(1, 1), Crew(1, cores), Crew(workers, cores // workers))))


@dataclass(frozen=True, slots=True)
class Planned:
    """Threads, precision and who computes between the products (``fused``: compiled code) belong to the plan: others
    add up to other weights. ``workers``, micro-batches side by side, do not."""

    steps: int
    seconds: float
    crew: Crew
    precision: Precision = "float32"
    fused: bool = False

    def json(self) -> dict[str, Any]:
        planned: dict[str, Any] = {"steps": self.steps, "planned_s": round(self.seconds, 1)}
        crew = {"workers": self.crew.workers, "threads": self.crew.threads}
        return {**planned, "precision": self.precision, "fused": self.fused, **crew}

    @staticmethod
    def parse(known: dict[str, Any]) -> Planned:
        """From what ``json`` gave."""
        crew = Crew(known["workers"], known["threads"])
        return Planned(known["steps"], known["planned_s"], crew, known["precision"], known.get("fused", False))

    def longer(self, seconds: float) -> Planned:
        """With so much more time at the same pace."""
        more = max(0, int(self.steps * seconds / self.seconds)) if self.seconds else 0
        return replace(self, steps=self.steps + more, seconds=self.seconds * (1 + more / self.steps))

    def at_most(self, steps: int) -> Planned:
        """Without the steps beyond."""
        kept = min(steps, self.steps)
        return replace(self, steps=kept, seconds=self.seconds * kept / self.steps)

    def training(self, settings: Settings) -> Settings:
        """The stage's settings as planned. Muon's iteration is coarse where the rest is."""
        coarse = settings.optimizer.model_copy(update={"coarse": self.precision == "bfloat16"})
        return settings.model_copy(update={"steps": self.steps, "precision": self.precision, "optimizer": coarse})


def plan(
    model: nn.Module, build: Build, training: Settings, seconds: float, cores: int, precision: Precision
) -> Planned:
    """The steps that fit into ``seconds`` (the probe's own time is part of them) with the fastest crew, for the model
    as it is: with compiled code or without.
    """
    own, began, found = torch.get_num_threads(), time.perf_counter(), []
    try:
        for crew in crews(cores, training.micro_batches):
            tried = Planned(WARM + PROBED, 0.0, crew, precision)
            found.append((seconds_per_step(model, build, tried, training, cores, PROBE * seconds), crew))
            trim_memory()  # threads keep heaps of their own, and the next crew has others
    finally:
        torch.set_num_threads(own)
    taken, best = min(found, key=lambda row: row[0])
    left = max(0.0, seconds - (time.perf_counter() - began))
    steps = max(10, round(left / taken))
    return Planned(steps, steps * taken, best, precision, getattr(model, "backend", TORCH) is not TORCH)


def look(model: nn.Module, build: Build, training: Settings, seconds: float, cores: int, precision: Precision) -> float:
    """How long a step takes on all cores (seconds), by a short probe: of a training that may take ``seconds``."""
    tried = Planned(WARM + PROBED, 0.0, crews(cores, training.micro_batches)[-1], precision)
    return seconds_per_step(model, build, tried, training, cores, PROBE * seconds)


def best_precision(device: torch.device | None = None) -> Precision:
    """bfloat16 where its matrix products are half as fast again as float32's: elsewhere it gains nothing.

    The best of a few looks at each, by turns: another program's moment must not decide.
    """
    looks = [[gemm_gflops(dtype, seconds=0.05, device=device) for dtype in ("bfloat16", "float32")] for _ in range(4)]
    coarse, fine = (max(found) for found in zip(*looks, strict=True))
    return "bfloat16" if coarse > 1.5 * fine else "float32"


def seconds_per_step(
    model: nn.Module, build: Build, tried: Planned, training: Settings, cores: int, longest: float = math.inf
) -> float:
    """The mean of a few steps of the real loop on a copy, the fastest and the slowest left out; of fewer steps when
    they take longer than ``longest`` seconds.

    Leaves the model and torch's generator as they were.

    Batches that are made in a process beside take their part of the cores.
    """
    torch.set_num_threads(tried.crew.threads)
    generator = torch.get_rng_state()
    twin = copy.deepcopy(model)
    objective, batches = build(twin)
    stamps = [time.perf_counter()]

    def enough() -> bool:
        return len(stamps) > WARM + FEWEST and stamps[-1] - stamps[0] > longest

    settings = tried.training(training)
    with tempfile.TemporaryDirectory() as folder:
        session = Session(
            on_step=lambda step, metrics: stamps.append(time.perf_counter()),
            stop=enough,
            workers=tried.crew.workers,
            keeps=False,
        )
        try:
            train(twin, objective, batches, settings, Path(parallel.from_first(folder)), session)
        except Interrupted:
            if not parallel.any_rank(enough()):  # a person wants it
                raise KeyboardInterrupt from None
        finally:
            torch.set_rng_state(generator)
    taken = sorted(b - a for a, b in pairwise(stamps[WARM:]))[1:-1]
    step = sum(taken) / len(taken)
    if not isinstance(batches, Cycle):
        return step
    used = tried.crew.workers * tried.crew.threads
    return max(step, (step * used + batches.making * settings.micro_batches) / cores)


class Cycle:
    """A few batches over and over: a probe of the training step alone, and of what a batch costs to make (seconds)."""

    def __init__(self, batches: Batches, n: int) -> None:
        began = time.perf_counter()
        self._kept: list[Batch] = [next(batches) for _ in range(n)]
        self.making = (time.perf_counter() - began) / n / getattr(batches, "passes", 1)
        self._at = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = self._kept[self._at % len(self._kept)]
        self._at += 1
        return batch

    def state(self) -> dict[str, Any]:
        return {"at": self._at}

    def restore(self, state: dict[str, Any]) -> None:
        self._at = state["at"]


class WithRehearsal:
    """Batches that bring rehearsal along: the main batch's ``extra["rehearsal"]``."""

    def __init__(self, main: Batches, rehearsal: Batches) -> None:
        self._main, self._rehearsal = main, rehearsal

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._main)
        return Batch(
            batch.tokens_BT, batch.targets_BT, batch.weights_BT, {**batch.extra, "rehearsal": next(self._rehearsal)}
        )

    def state(self) -> dict[str, Any]:
        return {"main": self._main.state(), "rehearsal": self._rehearsal.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self._main.restore(state["main"])
        self._rehearsal.restore(state["rehearsal"])

    def close(self) -> None:
        end(self._main)
        end(self._rehearsal)
