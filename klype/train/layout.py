"""Where the trained weights of a model live while they are trained, chosen once for a run.

The optimizer works on flat buffers in which every parameter has its place, so that gradients are collected, the
momentum and AdamW moved in one sweep each, whatever the number of parameters: for a tiny model that is the difference
between an optimizer that is noticed and one that is not. On one process (``Whole``) the parameters are views of such a
buffer; on several (sharded.py) each process has its own rows of each parameter in it, and nothing of the others'.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.autograd.graph import increment_version

from klype.errors import KlypeError
from klype.train.muon import Group, grouped, orthogonalise_
from klype.train.objectives import Objective
from klype.train.workers import Workers

ALIGN = 16  # parameters start at multiples of 64 bytes, where vector instructions like them

Parts = Mapping[str, Sequence[int]]

Change = tuple[slice, Callable[[slice], object]]
"""A region of the flat weights, and what changes a stretch of it."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where each of so many tensors lies in a flat buffer, region after region; where each region ends."""

    shapes: tuple[torch.Size, ...]
    offsets: tuple[int, ...]
    ends: tuple[int, ...]

    @staticmethod
    def of(regions: Sequence[Sequence[torch.Tensor]]) -> Places:
        offsets, ends, position = [], [], 0
        for region in regions:
            for tensor in region:
                offsets.append(position)
                position += -(-tensor.numel() // ALIGN) * ALIGN
            ends.append(position)
        return Places(tuple(t.shape for region in regions for t in region), tuple(offsets), tuple(ends))

    def views(self, flat: torch.Tensor, which: slice = slice(None)) -> list[torch.Tensor]:
        """The tensors (or some on end) in a buffer that begins with the first of them."""
        shapes, offsets = self.shapes[which], self.offsets[which]
        return [
            flat[start - offsets[0] : start - offsets[0] + shape.numel()].view(shape)
            for start, shape in zip(offsets, shapes, strict=True)
        ]


class Home(Protocol):
    """What ``backward`` leaves gradients in: a flat buffer that it adds to."""

    gradient: torch.Tensor

    def backward(self, total: torch.Tensor) -> None:
        """Adds the gradient of ``total``; of a constant there is none."""
        ...


class Layout(Protocol):
    """``model`` is what computes. A parameter's *own* tensor is what of it is here."""

    model: nn.Module
    workers: Workers

    def objective(self, objective: Objective) -> Objective:
        """The objective as ``model`` computes it."""
        ...

    def own(self, tensor: torch.Tensor) -> torch.Tensor: ...

    def own_of(self, whole: torch.Tensor) -> torch.Tensor:
        """What of a tensor that is whole would be here."""
        ...

    def named(self, parameter: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """A tensor of the parameter's shape of which ``own`` is what is here."""
        ...

    def bind(self, parameters: Sequence[nn.Parameter], places: Places, flat: tuple[torch.Tensor, torch.Tensor]) -> Home:
        """Lets the model compute with the flat weights, and its gradient be added to the flat gradient."""
        ...

    def twin(self, parameters: Sequence[nn.Parameter]) -> Home:
        """Lets a copy of the model use the same weights, with a buffer for gradients of its own."""
        ...

    def orthogonaliser(
        self, named: Sequence[tuple[str, nn.Parameter]], own: Sequence[torch.Tensor], parts: Parts
    ) -> Callable[[torch.dtype], None]:
        """What replaces these matrices by their orthogonalised selves, of which ``own`` is what is here."""
        ...

    def norm(self, gradient: torch.Tensor) -> torch.Tensor:
        """Of the whole gradient, of which this is what is here."""
        ...

    def change(self, changes: Sequence[Change]) -> None:
        """Changes the flat weights, region by region, and lets the model have them."""
        ...

    def publish(self) -> None:
        """Lets the model have weights that were changed by others."""
        ...

    def release(self) -> None:
        """Gives the model that was to be trained float32 weights of its own, and its buffers back."""
        ...

    def abandon(self) -> None:
        """The same after an error, which may be one process's alone: nothing that needs the others."""
        ...


class Whole:
    """One process has everything. With ``dtype`` bfloat16 the model computes with rounded weights, while a float32
    master is what is updated and saved.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32, workers: Workers | None = None) -> None:
        self.model = model
        self.workers = workers or Workers()
        self._dtype = dtype
        self._device = next(model.parameters()).device

    def objective(self, objective: Objective) -> Objective:
        return lambda model, batch: objective(model, batch.to(self._device))

    def own(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.data

    def own_of(self, whole: torch.Tensor) -> torch.Tensor:
        return whole

    def named(self, parameter: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        return own

    def bind(self, parameters: Sequence[nn.Parameter], places: Places, flat: tuple[torch.Tensor, torch.Tensor]) -> Home:
        self._buffers = round_buffers(self.model, self._dtype)
        self._parameters, self._places = parameters, places
        self._master, gradient = flat
        whole = self._dtype == torch.float32
        self._low = self._master if whole else self._master.to(self._dtype)
        return _Views(parameters, places, self._low, gradient if whole else torch.zeros_like(self._low))

    def twin(self, parameters: Sequence[nn.Parameter]) -> Home:
        return _Views(parameters, self._places, self._low, torch.zeros_like(self._low))

    def orthogonaliser(
        self, named: Sequence[tuple[str, nn.Parameter]], own: Sequence[torch.Tensor], parts: Parts
    ) -> Callable[[torch.dtype], None]:
        found = groups([n for n, _ in named], own, parts)
        return lambda dtype: orthogonalise_(found, dtype, self.workers)

    def norm(self, gradient: torch.Tensor) -> torch.Tensor:
        norms = self.workers.sweep(lambda at: torch.linalg.vector_norm(gradient[at]), slice(0, len(gradient)))
        norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm

    def change(self, changes: Sequence[Change]) -> None:
        """A stretch is rounded while it is in a core's cache. Torch knows that the weights changed (whoever caches can
        tell).
        """

        def rounding(work: Callable[[slice], object]) -> Callable[[slice], object]:
            return lambda at: (work(at), self._low[at].copy_(self._master[at]))

        rounded = self._low is not self._master
        for region, work in changes:
            self.workers.sweep(rounding(work) if rounded else work, region)
        increment_version(self._parameters)

    def publish(self) -> None:
        self.change([(slice(0, len(self._master)), lambda at: None)])

    def release(self) -> None:
        for module, name, buffer in self._buffers:
            setattr(module, name, buffer)
        for parameter, view in zip(self._parameters, self._places.views(self._master), strict=True):
            parameter.grad = None
            parameter.data = view.clone()

    def abandon(self) -> None:
        self.release()


class _Views:
    """The home of a model whose parameters are views of flat weights, and their gradients of a flat gradient."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], places: Places, weights: torch.Tensor, gradient: torch.Tensor
    ) -> None:
        self.gradient = gradient
        self._owned = list(zip(parameters, places.views(gradient), strict=True))
        for (parameter, own), weight in zip(self._owned, places.views(weights), strict=True):
            parameter.data, parameter.grad = weight, own

    def backward(self, total: torch.Tensor) -> None:
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
        for parameter, own in self._owned:
            if parameter.grad is not own:  # somebody cleared or replaced it
                if parameter.grad is not None:
                    own.copy_(parameter.grad)
                parameter.grad = own


def groups(names: Sequence[str], matrices: Sequence[torch.Tensor], parts: Parts) -> list[Group]:
    """The parts of the matrices that are made orthogonal apart, by equal shapes."""
    views: list[torch.Tensor] = []
    for name, matrix in zip(names, matrices, strict=True):
        rows = next((tuple(sizes) for end, sizes in parts.items() if name.endswith(end)), (matrix.shape[0],))
        if sum(rows) != matrix.shape[0]:
            raise KlypeError(f"The parts {rows} of {name} do not add up to its {matrix.shape[0]} rows.")
        views += torch.split(matrix, list(rows))
    return grouped(views)


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
