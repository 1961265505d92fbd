"""Memory layout of the trained weights: flat buffers on one process, shards on several.

The optimizer works on flat buffers that hold all parameters one after the other, so that collecting gradients,
momentum and AdamW take one pass each, however many parameters there are; a tiny model would otherwise spend a
noticeable part of a step on it. On one process (``Layout``) the parameters are views of such a buffer; on several
(sharded.py) each process's buffer holds its own rows of every parameter.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch.autograd.graph import increment_version

from klype.errors import KlypeError
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
        """Results of ``work`` on each stretch (at most ``STRETCH`` elements) of a region of a flat buffer."""
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
    def of(regions: Sequence[Sequence[torch.Tensor]]) -> "FlatOffsets":
        offsets, ends, position = [], [], 0
        for region in regions:
            for tensor in region:
                offsets.append(position)
                position += -(-tensor.numel() // ALIGN) * ALIGN
            ends.append(position)
        return FlatOffsets(tuple(t.shape for region in regions for t in region), tuple(offsets), tuple(ends))

    def views(self, flat: torch.Tensor, which: slice = slice(None)) -> list[torch.Tensor]:
        """Views of a flat buffer as these tensors, or as some consecutive ones, the first of which begins it."""
        shapes, offsets = self.shapes[which], self.offsets[which]
        return [
            flat[start - offsets[0] : start - offsets[0] + shape.numel()].view(shape)
            for start, shape in zip(offsets, shapes, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class WholeMatrices:
    """The whole matrices that this process orthogonalises. ``gather`` fills them with the rows of all processes and
    ``scatter`` sends the rows back; with one process they are always whole.
    """

    names: Sequence[str]
    tensors: Sequence[torch.Tensor]
    gather: Callable[[], None] = lambda: None
    scatter: Callable[[], None] = lambda: None


class Layout:
    """The layout of one process, which has all weights; ``ShardedLayout`` is that of several (sharded.py).

    ``model`` computes in ``dtype``: in bfloat16 with rounded weights, while a float32 master is updated and saved. A
    parameter's *own* tensor is this process's part of it.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32, workers: Workers | None = None) -> None:
        self.model = model
        self.workers = workers or Workers()
        self._dtype = dtype
        self._device = next(model.parameters()).device

    def objective(self, objective: Objective) -> Objective:
        """The objective for batches on the CPU, which are moved to the model's device."""
        return lambda model, batch: objective(model, batch.to(self._device))

    def own_part(self, tensor: torch.Tensor) -> torch.Tensor:
        """This process's part of a parameter, detached."""
        return tensor.data

    def as_parameter(self, parameter: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """``own``, this process's part, as a tensor of the parameter's shape."""
        return own

    def bind(
        self, parameters: Sequence[nn.Parameter], places: FlatOffsets, flat: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Makes the model use the flat weights; returns the flat buffer that its ``backward`` adds the gradient to."""
        self._buffers = round_buffers(self.model, self._dtype)
        self._parameters, self._places = parameters, places
        self._master, gradient = flat
        whole = self._dtype == torch.float32
        self._low = self._master if whole else self._master.to(self._dtype)
        return self.twin(parameters, gradient if whole else None)

    def twin(self, parameters: Sequence[nn.Parameter], gradient: torch.Tensor | None = None) -> torch.Tensor:
        """Makes a copy of the model use the same weights; returns its flat gradient, a new one unless given."""
        gradient = torch.zeros_like(self._low) if gradient is None else gradient
        views = zip(parameters, self._places.views(self._low), self._places.views(gradient), strict=True)
        for parameter, weight, own in views:
            parameter.data, parameter.grad = weight, own
        return gradient

    def whole_matrices(self, named: Sequence[tuple[str, nn.Parameter]], own: Sequence[torch.Tensor]) -> WholeMatrices:
        """The matrices that this process orthogonalises; ``own`` are its parts of all matrices."""
        return WholeMatrices([name for name, _ in named], own)

    def norm(self, gradient: torch.Tensor) -> torch.Tensor:
        """Norm of the whole gradient, from this process's part."""
        norms = self.workers.sweep(lambda at: torch.linalg.vector_norm(gradient[at]), slice(0, len(gradient)))
        norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm

    def update(self, changes: Sequence[Change]) -> None:
        """Updates the flat weights region by region, and the model's weights with them.

        A stretch is rounded while it is in a core's cache. The parameters' version counters are increased, by which
        caches of weights notice the change.
        """

        def rounding(work: Callable[[slice], object]) -> Callable[[slice], object]:
            return lambda at: (work(at), self._low[at].copy_(self._master[at]))

        rounded = self._low is not self._master
        for region, work in changes:
            self.workers.sweep(rounding(work) if rounded else work, region)
        increment_version(self._parameters)

    def publish(self) -> None:
        """Updates the model's weights after the flat ones were written to, as when a state is loaded."""
        self.update([(slice(0, len(self._master)), lambda at: None)])

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights that the model computes with: whole, float32, on the CPU; on the first process only."""
        return weights_of(self.model)

    def release(self) -> None:
        """Gives the trained model float32 weights of its own, and its original buffers."""
        for module, name, buffer in self._buffers:
            setattr(module, name, buffer)
        for parameter, view in zip(self._parameters, self._places.views(self._master), strict=True):
            parameter.grad = None
            parameter.data = view.clone()

    def abandon(self) -> None:
        """``release`` after an error, which other processes may not have had: nothing here waits for them."""
        self.release()


def check_shapes(saved: Mapping[str, torch.Size], own: Mapping[str, torch.Tensor]) -> None:
    """Raises KlypeError unless a saved optimizer state has the names and shapes of ``own``."""
    if saved != {name: tensor.shape for name, tensor in own.items()}:
        raise KlypeError("The saved optimizer state belongs to a model of another shape; start in another folder.")


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
