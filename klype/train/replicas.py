"""Several micro-batches at once, each on a thread with a copy of the model that shares its weights.

Gradients are added in the order of the micro-batches, so that any number of threads gives the same bits.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
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
    """A copy of a model for each of the layout's workers but the first. With one worker there is no copy."""

    def __init__(self, optimizer: Optimizer) -> None:
        model, self._workers = optimizer.layout.model, optimizer.layout.workers
        self._models = [(model, optimizer.home)]
        for _ in range(self._workers.number - 1):
            twin = copy.deepcopy(model)
            self._models.append((twin, optimizer.settle(twin)))

    def run(self, objective: Objective, batches: Sequence[Batch]) -> Iterator[list[Part]]:
        """The parts of the micro-batches, in order, as many at a time as there are workers. They must be collected
        before the next ones are asked for.
        """
        for start in range(0, len(batches), len(self._models)):
            wave = list(zip(self._models, batches[start : start + len(self._models)], strict=False))
            yield self._workers.each(lambda one: _part(objective, *one[0], one[1]), wave)


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
