"""How much fits in the minutes asked: a short probe of speed before each stage, turned into steps, then kept.

Every stage gets its part of what is left, so that what one takes too much is made good by the next. The plan is in
run.json: a resumed run replays it, so that resumed = straight.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from klype.device import gemm_gflops
from klype.train.loop import Session, Settings, train
from klype.train.objectives import Objective
from klype.values import Batch, Batches

PROBED = 8  # steps of a probe, of which the first three warm up

Precision = Literal["float32", "bfloat16"]

Build = Callable[[nn.Module], tuple[Objective, Batches]]
"""A stage's objective and fresh batches for a model (a copy, in a probe)."""


@dataclass(frozen=True, slots=True)
class Planned:
    """Threads and precision belong to the plan: others add up to other weights."""

    steps: int
    seconds: float
    threads: int
    precision: Precision = "float32"

    def json(self) -> dict[str, Any]:
        planned = {"steps": self.steps, "planned_s": round(self.seconds, 1)}
        return {**planned, "threads": self.threads, "precision": self.precision}

    def training(self, settings: Settings) -> Settings:
        """The stage's settings as planned. Muon's iteration is coarse where the rest is."""
        coarse = settings.optimizer.model_copy(update={"coarse": self.precision == "bfloat16"})
        return settings.model_copy(update={"steps": self.steps, "precision": self.precision, "optimizer": coarse})


def plan(
    model: nn.Module, build: Build, training: Settings, seconds: float, threads: Sequence[int], precision: Precision
) -> Planned:
    """The steps that fit into ``seconds`` (the probe's own time is part of them) at the fastest of ``threads``."""
    own, began, found = torch.get_num_threads(), time.perf_counter(), []
    try:
        for n in dict.fromkeys(threads):
            tried = Planned(PROBED, 0.0, n, precision)
            found.append((seconds_per_step(model, build, tried.training(training), n), tried))
    finally:
        torch.set_num_threads(own)
    taken, best = min(found, key=lambda row: row[0])
    left = max(0.0, seconds - (time.perf_counter() - began))
    steps = max(10, round(left / taken))
    return Planned(steps, steps * taken, best.threads, precision)


def best_precision() -> Precision:
    """bfloat16 where its matrix products are half as fast again as float32's: elsewhere it gains nothing."""
    return "bfloat16" if gemm_gflops("bfloat16", seconds=0.1) > 1.5 * gemm_gflops("float32", seconds=0.1) else "float32"


def seconds_per_step(model: nn.Module, build: Build, training: Settings, threads: int) -> float:
    """The median over a few steps of the real loop on a copy. Leaves the model and torch's generator as they were."""
    torch.set_num_threads(threads)
    generator = torch.get_rng_state()
    twin = copy.deepcopy(model)
    objective, batches = build(twin)
    stamps = [time.perf_counter()]
    settings = training.model_copy(update={"save_seconds": 0.0, "save_every": 0})
    with tempfile.TemporaryDirectory() as folder:
        on_step = Session(on_step=lambda step, metrics: stamps.append(time.perf_counter()))
        train(twin, objective, batches, settings, Path(folder), on_step)
    torch.set_rng_state(generator)
    taken = sorted(b - a for a, b in pairwise(stamps[3:]))
    return taken[len(taken) // 2]


class Cycle:
    """A few batches over and over: a probe of the training step alone, without what it costs to make batches."""

    def __init__(self, batches: Batches, n: int = 6) -> None:
        self._kept: list[Batch] = [next(batches) for _ in range(n)]
        self._at = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self._at += 1
        return self._kept[self._at % len(self._kept)]

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
