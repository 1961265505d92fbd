"""Sharded training by FSDP2: each process has some rows of every parameter, and of its gradient, master and moments.

A layer's weights are whole only while it computes: gathered from all before, let go of after, forward and backward; its
gradient is summed as it is scattered. Muon needs whole matrices: each is made whole on one process, which all have a
fair part of, made orthogonal there, and its rows sent back.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard

from klype.model.transformer import Transformer
from klype.train.layout import Change, Home, Parts, Places, groups, round_buffers
from klype.train.muon import orthogonalise_
from klype.train.objectives import LossBeside, Objective
from klype.train.workers import Workers
from klype.values import Batch, Loss


class Sharded:
    """The layout of several processes. The model that is to be trained lends its weights until ``release``; a copy of
    it, in shards, computes. With ``dtype`` bfloat16 what is gathered is rounded; shards and sums are float32.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, device: torch.device, compiles: bool = False) -> None:
        self._lender, self._device, self.workers = model, device, Workers()
        self._mesh = init_device_mesh(device.type, (dist.get_world_size(),))
        self.model = copy.deepcopy(model)
        round_buffers(self.model, dtype)
        rounded = None if dtype == torch.float32 else dtype
        policy = MixedPrecisionPolicy(rounded, torch.float32, cast_forward_inputs=False)
        self._whole = _Objective(self.model)
        for layer in self.model.layers if isinstance(self.model, Transformer) else ():
            if compiles:
                setattr(layer, "forward", torch.compile(layer.forward, dynamic=False))  # noqa: B010
            fully_shard(layer, mesh=self._mesh, mp_policy=policy)
            register_fsdp_forward_method(layer, "laid")
        fully_shard(self._whole, mesh=self._mesh, mp_policy=policy)
        for module in self._whole.modules():
            if isinstance(module, FSDPModule):  # losses are sums, and so are their gradients
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.new_empty(0)

    def objective(self, objective: Objective) -> Objective:
        def sharded(model: nn.Module, batch: Batch) -> Loss:
            loss: Loss = self._whole(objective, batch.to(self._device))[0]
            return loss

        return sharded

    def own(self, tensor: torch.Tensor) -> torch.Tensor:
        own: torch.Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        return own.detach()

    def own_of(self, whole: torch.Tensor) -> torch.Tensor:
        return whole[_rows(len(whole), dist.get_rank())]

    def named(self, parameter: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        like: dict[str, Any] = {"shape": parameter.shape, "stride": parameter.stride()}
        named: torch.Tensor = DTensor.from_local(own, self._mesh, (Shard(0),), run_check=False, **like)
        return named

    def bind(self, parameters: Sequence[nn.Parameter], places: Places, flat: tuple[torch.Tensor, torch.Tensor]) -> Home:
        self._parameters = parameters
        self._master = places.views(flat[0])
        return _Shards(parameters, flat[1], places)

    def twin(self, parameters: Sequence[nn.Parameter]) -> Home:
        raise AssertionError("several processes have one model each")

    def orthogonaliser(
        self, named: Sequence[tuple[str, nn.Parameter]], own: Sequence[torch.Tensor], parts: Parts
    ) -> Callable[[torch.dtype], None]:
        return _Exchange(named, own, parts).orthogonalise_

    def norm(self, gradient: torch.Tensor) -> torch.Tensor:
        square = torch.linalg.vector_norm(gradient).square()
        dist.all_reduce(square)
        norm: torch.Tensor = square.sqrt()
        return norm

    def change(self, changes: Sequence[Change]) -> None:
        for region, work in changes:
            self.workers.sweep(work, region)
        self.publish()

    def publish(self) -> None:
        with torch.no_grad():
            _copy([self.own(p) for p in self._parameters], self._master)

    def release(self) -> None:
        """Every process gives its model all weights back."""
        lent = [p for p in self._lender.parameters() if p.requires_grad]
        sharded = [p for p in self.model.parameters() if p.requires_grad]
        masters = dict(zip(self._parameters, self._master, strict=True))
        for whole, parameter in zip(lent, sharded, strict=True):
            master = self.named(parameter, masters[parameter])
            assert isinstance(master, DTensor)
            whole.data = master.full_tensor().to(whole.device, copy=True)

    def abandon(self) -> None:
        """The weights are where the last state is: to gather them would need all processes."""


class _Objective(nn.Module):
    """An objective as a module around its model: what of the model is in no layer is whole for as long as it takes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, objective: Objective, batch: Batch) -> tuple[Loss, list[torch.Tensor]]:
        """The loss, and what of it backward begins at: there the weights are gathered again."""
        loss = objective(self.model, batch)
        return loss, [loss.total, *([loss.beside.total] if isinstance(loss, LossBeside) else [])]


class _Shards:
    """The home of a sharded model: the rows of the gradient that are this process's, summed over all processes."""

    def __init__(self, parameters: Sequence[nn.Parameter], gradient: torch.Tensor, places: Places) -> None:
        self.gradient = gradient
        self._owned = list(zip(parameters, places.views(gradient), strict=True))

    def backward(self, total: torch.Tensor) -> None:
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
        for parameter, own in self._owned:
            if isinstance(parameter.grad, DTensor):
                own.add_(parameter.grad.to_local())
            parameter.grad = None


class _Job(NamedTuple):
    """A matrix that this process makes orthogonal, and how many of its rows come from each process."""

    name: str
    shape: torch.Size


class _Exchange:
    """Matrices in shards, each made whole on one process, orthogonalised and sent back in one exchange for all."""

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], own: Sequence[torch.Tensor], parts: Parts) -> None:
        ranks, rank = dist.get_world_size(), dist.get_rank()
        owners = _fair([p.shape for _, p in named], ranks)
        order = sorted(range(len(named)), key=lambda i: owners[i])
        self._own = [own[i] for i in order]
        self._sent = [sum(own[i].numel() for i in order if owners[i] == r) for r in range(ranks)]
        jobs = [_Job(named[i][0], named[i][1].shape) for i in order if owners[i] == rank]
        device = own[0].device if own else None
        self._out = torch.empty(sum(self._sent), device=device)
        self._whole = [torch.empty(job.shape, device=device) for job in jobs]
        rows = [[matrix[_rows(len(matrix), r)] for matrix in self._whole] for r in range(ranks)]
        self._received = [sum(piece.numel() for piece in pieces) for pieces in rows]
        self._in = torch.empty(sum(self._received), device=device)
        self._rows = [piece for pieces in rows for piece in pieces]
        self._groups = groups([job.name for job in jobs], self._whole, parts)

    def orthogonalise_(self, dtype: torch.dtype) -> None:
        pieces, incoming = _cut(self._out, self._own), _cut(self._in, self._rows)
        _copy(pieces, self._own)
        dist.all_to_all_single(self._in, self._out, self._received, self._sent)
        _copy(self._rows, incoming)
        orthogonalise_(self._groups, dtype)
        _copy(incoming, self._rows)
        dist.all_to_all_single(self._out, self._in, self._sent, self._received)
        _copy(self._own, pieces)


def _copy(into: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor]) -> None:
    if into:
        torch._foreach_copy_(list(into), list(tensors))


def _cut(flat: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """A flat buffer as tensors of these shapes, one after the other."""
    pieces = torch.split(flat, [tensor.numel() for tensor in like])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


def _fair(shapes: Sequence[torch.Size], ranks: int) -> list[int]:
    """Who makes which matrix orthogonal: the dearest first, each to whoever has least to do."""
    costs = [shape.numel() * min(shape) for shape in shapes]
    owners, busy = [0] * len(shapes), [0] * ranks
    for index in sorted(range(len(shapes)), key=lambda i: -costs[i]):
        owners[index] = busy.index(min(busy))
        busy[owners[index]] += costs[index]
    return owners


def _rows(length: int, rank: int) -> slice:
    """The rows of a parameter that a process has: as FSDP2 cuts them, the last ones being fewer or none."""
    each = -(-length // dist.get_world_size())
    return slice(min(rank * each, length), min((rank + 1) * each, length))
