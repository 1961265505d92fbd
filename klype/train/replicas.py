"""Several micro-batches at once, each on a thread with a copy of the model that shares its weights.

A small model's products are too small to be split between cores; two micro-batches side by side use two cores whole.
Torch lets go of Python's lock while it computes. Gradients are added in the order of the micro-batches, so that any
number of workers gives the same bits.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import nn

from klype.train.layout import Home
from klype.train.objectives import LossBeside, Objective
from klype.train.optimizer import Optimizer
from klype.values import Batch


@dataclass(frozen=True, slots=True)
class Part:
    """What one micro-batch gave: sums (``loss``, ``loss_count``, …), and the gradient of the loss beside, if any.

    The gradient of the main loss is in the buffer of the home that computed it.
    """

    sums: dict[str, float]
    beside: torch.Tensor | None
    weight: float
    home: Home


class Replicas:
    """``workers`` copies of a model on threads. With one worker there is neither copy nor thread."""

    def __init__(self, optimizer: Optimizer, workers: int) -> None:
        model = optimizer.layout.model
        self._models = [(model, optimizer.home)]
        for _ in range(workers - 1):
            twin = copy.deepcopy(model)
            self._models.append((twin, optimizer.settle(twin)))
        self._pool: ThreadPoolExecutor | None = None
        if workers > 1:
            threads = torch.get_num_threads()  # OpenMP keeps a number for each thread that asks
            self._pool = ThreadPoolExecutor(workers, "replica", initializer=lambda: torch.set_num_threads(threads))

    def run(self, objective: Objective, batches: Sequence[Batch]) -> Iterator[Part]:
        """The parts of the micro-batches, in order. Each must be collected before the next one is asked for."""
        if self._pool is None:
            for batch in batches:
                yield _part(objective, *self._models[0], batch)
            return
        for start in range(0, len(batches), len(self._models)):
            wave = batches[start : start + len(self._models)]
            running = [
                self._pool.submit(_part, objective, model, home, batch)
                for (model, home), batch in zip(self._models, wave, strict=False)
            ]
            yield from [each.result() for each in running]

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


def _part(objective: Objective, model: nn.Module, home: Home, batch: Batch) -> Part:
    loss = objective(model, batch)
    home.backward(loss.total)
    sums = {"loss": float(loss.total.detach()), "loss_count": float(loss.count), **loss.metrics}
    if not isinstance(loss, LossBeside):
        return Part(sums, None, 0.0, home)
    sums["rehearsal"], sums["rehearsal_count"] = float(loss.beside.total.detach()), float(loss.beside.count)
    kept = home.gradient.clone()
    home.gradient.zero_()
    home.backward(loss.beside.total)
    beside = home.gradient.clone()
    home.gradient.copy_(kept)
    return Part(sums, beside, loss.weight, home)
