"""Memory layout of the trained weights: flat buffers on one process, shards on several.

The optimizer works on flat buffers in which every parameter has its place, so that gradients are collected, the
momentum and AdamW moved in one sweep each, whatever the number of parameters: for a tiny model that is the difference
between an optimizer that is noticed and one that is not. On one process (``Layout``) the parameters are views of such a
buffer; on several (sharded.py) each process has its own rows of each parameter in it, and nothing of the others'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch.autograd.graph import increment_version

from klype.train.objectives import Objective

# elements processed at a time: small enough for several passes to stay in one core's cache
STRETCH = 1 << 17
# below this many chunks the work is done before another thread has woken up
FEW = 8

T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """A pool of ``number`` threads, each with the creator's number of torch threads; with one, the caller's thread does
    the work."""

    def __init__(self, number: int = 1) -> None:
        self.number = number
        self._pool: ThreadPoolExecutor | None = None
        if number > 1:
            threads = torch.get_num_threads()  # OpenMP keeps a number for each thread that asks
            self._pool = ThreadPoolExecutor(number, "worker", initializer=lambda: torch.set_num_threads(threads))

    def each(self, work: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """The results of all items, in their order; whoever is free takes the next one."""
        if self._pool is None or len(items) < 2:
            return [work(item) for item in items]
        records = torch.is_grad_enabled()  # a setting of each thread's own

        def recorded(item: T) -> R:
            with torch.set_grad_enabled(records):
                return work(item)

        return list(self._pool.map(recorded, items))

    def sweep(self, work: Callable[[slice], R], region: slice) -> list[R]:
        """``work`` on each stretch of a region of a buffer."""
        stretches = [slice(at, min(at + STRETCH, region.stop)) for at in range(region.start, region.stop, STRETCH)]
        return self.each(work, stretches) if len(stretches) > FEW else [work(at) for at in stretches]

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


ALIGN = 16  # parameters start at multiples of 64 bytes, where vector instructions like them

Parts = Mapping[str, Sequence[int]]

# a region of the flat weights, and the function that updates a slice of it
Change = tuple[slice, Callable[[slice], object]]


@dataclass(frozen=True, slots=True)
class FlatOffsets:
    """Offsets of tensors in a flat buffer, region after region, and where each region ends."""

    shapes: tuple[torch.Size, ...]
    offsets: tuple[int, ...]
    ends: tuple[int, ...]

    @staticmethod
    def of(regions: Sequence[Sequence[torch.Tensor]]) -> FlatOffsets:
        offsets, ends, position = [], [], 0
        for region in regions:
            for tensor in region:
                offsets.append(position)
                position += -(-tensor.numel() // ALIGN) * ALIGN
            ends.append(position)
        return FlatOffsets(tuple(t.shape for region in regions for t in region), tuple(offsets), tuple(ends))

    def views(self, flat: torch.Tensor, which: slice = slice(None)) -> list[torch.Tensor]:
        """The tensors (or some on end) in a buffer that begins with the first of them."""
        shapes, offsets = self.shapes[which], self.offsets[which]
        return [
            flat[start - offsets[0] : start - offsets[0] + shape.numel()].view(shape)
            for start, shape in zip(offsets, shapes, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class WholeMatrices:
    """Matrices that a process computes on, by name. ``gather`` fills them with the rows of all processes, ``scatter``
    sends the rows back; one process alone has them already.
    """

    names: Sequence[str]
    tensors: Sequence[torch.Tensor]
    gather: Callable[[], None] = lambda: None
    scatter: Callable[[], None] = lambda: None


class Layout:
    """The layout of one process, which has all weights; ``ShardedLayout`` is that of several (sharded.py).

    ``model`` is what computes. With ``dtype`` bfloat16 it does so with rounded weights, while a float32 master is what
    is updated and saved. A parameter's *own* tensor is what of it is here.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32, workers: Workers | None = None) -> None:
        self.model = model
        self.workers = workers or Workers()
        self._dtype = dtype
        self._device = next(model.parameters()).device

    def objective(self, objective: Objective) -> Objective:
        """The objective as ``model`` computes it."""
        return lambda model, batch: objective(model, batch.to(self._device))

    def own(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.data

    def fill(self, tensor: torch.Tensor, whole: torch.Tensor) -> None:
        """Copies a whole tensor, or this process's rows of it, into a tensor that ``named`` returned."""
        tensor.copy_(whole)

    def named(self, parameter: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """A tensor of the parameter's shape of which ``own`` is what is here."""
        return own

    def bind(
        self, parameters: Sequence[nn.Parameter], places: FlatOffsets, flat: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Lets the model compute with the flat weights; returns the flat tensor that its gradient is added to."""
        self._buffers = round_buffers(self.model, self._dtype)
        self._parameters, self._places = parameters, places
        self._master, gradient = flat
        whole = self._dtype == torch.float32
        self._low = self._master if whole else self._master.to(self._dtype)
        return self.twin(parameters, gradient if whole else None)

    def twin(self, parameters: Sequence[nn.Parameter], gradient: torch.Tensor | None = None) -> torch.Tensor:
        """Lets a copy of the model use the same weights; returns its flat gradient, where none is given a new one."""
        gradient = torch.zeros_like(self._low) if gradient is None else gradient
        views = zip(parameters, self._places.views(self._low), self._places.views(gradient), strict=True)
        for parameter, weight, own in views:
            parameter.data, parameter.grad = weight, own
        return gradient

    def whole_matrices(self, named: Sequence[tuple[str, nn.Parameter]], own: Sequence[torch.Tensor]) -> WholeMatrices:
        """The matrices that this process orthogonalises; ``own`` are its parts of all of them."""
        return WholeMatrices([name for name, _ in named], own)

    def norm(self, gradient: torch.Tensor) -> torch.Tensor:
        """Norm of the whole gradient, from this process's part."""
        norms = self.workers.sweep(lambda at: torch.linalg.vector_norm(gradient[at]), slice(0, len(gradient)))
        norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm

    def change(self, changes: Sequence[Change]) -> None:
        """Changes the flat weights, region by region, and lets the model have them.

        A stretch is rounded while it is in a core's cache. Torch knows that the weights changed (whoever caches can
        tell).
        """

        def rounding(work: Callable[[slice], object]) -> Callable[[slice], object]:
            return lambda at: (work(at), self._low[at].copy_(self._master[at]))

        rounded = self._low is not self._master
        for region, work in changes:
            self.workers.sweep(rounding(work) if rounded else work, region)
        increment_version(self._parameters)

    def publish(self) -> None:
        """Lets the model have weights that were changed by others."""
        self.change([(slice(0, len(self._master)), lambda at: None)])

    def weights(self) -> dict[str, torch.Tensor]:
        """Those that the model computes with, whole, float32, on the CPU; on the first process only."""
        return weights_of(self.model)

    def release(self) -> None:
        """Gives the model that was to be trained float32 weights of its own, and its buffers back."""
        for module, name, buffer in self._buffers:
            setattr(module, name, buffer)
        for parameter, view in zip(self._parameters, self._places.views(self._master), strict=True):
            parameter.grad = None
            parameter.data = view.clone()

    def abandon(self) -> None:
        """Like ``release``, after an error in perhaps one process: nothing here may need the others."""
        self.release()


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the model's weights, float32, on the CPU."""
    return {k: v.detach().to("cpu", torch.float32, copy=True) for k, v in model.state_dict().items()}


def round_buffers(model: nn.Module, dtype: torch.dtype) -> list[tuple[nn.Module, str, torch.Tensor]]:
    """Gives the model buffers (masks, rotations) of the dtype it computes in; returns the ones it had."""
    if dtype == torch.float32:
        return []
    own = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point()
    ]
    rounded: dict[int, torch.Tensor] = {}  # tied ones stay tied
    for module, name, buffer in own:
        setattr(module, name, rounded.setdefault(id(buffer), buffer.to(dtype)))
    return own
