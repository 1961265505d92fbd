"""Sharded training by FSDP2: each process has some rows of every parameter, and of its gradient, master and moments.

A layer's weights are gathered before its forward and backward and freed after them; its gradient is reduce-scattered.
Muon needs whole matrices: each is gathered on one process (they are divided fairly), orthogonalised there, and its rows
are sent back.

States to resume from are torch.distributed.checkpoint's, saved by N processes and loaded by M. They are in its
safetensors format, without pickle: a file's header says which rows of which tensor it holds.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from klype.model.transformer import Transformer
from klype.train import parallel
from klype.train.flat_parameters import Change, FlatOffsets, Layout, WholeMatrices, Workers, check_shapes, round_buffers
from klype.train.objectives import LossBeside, Objective
from klype.values import Batch, Loss


class ShardedLayout(Layout):
    """Layout of several processes. A sharded copy of the model computes; the model itself has no weights until
    ``release``. With ``dtype`` bfloat16, gathered weights are rounded; shards and sums are float32.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, device: torch.device, compiles: bool = False) -> None:
        self._lender, self._device, self._dtype, self.workers = model, device, dtype, Workers()
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

    def own_part(self, tensor: torch.Tensor) -> torch.Tensor:
        return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()

    def as_parameter(self, parameter: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        like: dict[str, Any] = {"shape": parameter.shape, "stride": parameter.stride()}
        return DTensor.from_local(own, self._mesh, (Shard(0),), run_check=False, **like)

    def bind(
        self, parameters: Sequence[nn.Parameter], places: FlatOffsets, flat: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        self._parameters = parameters
        self._masters = places.views(flat[0])
        for parameter, own in zip(parameters, places.views(flat[1]), strict=True):
            parameter.grad = self.as_parameter(parameter, own)  # FSDP2 adds to the gradient that is there
        return flat[1]

    def whole_matrices(self, named: Sequence[tuple[str, nn.Parameter]], own: Sequence[torch.Tensor]) -> WholeMatrices:
        """Each matrix is whole on one process; one exchange sends the rows of all matrices there, and one back."""
        ranks, rank = dist.get_world_size(), dist.get_rank()
        # the most expensive first, dealt to the processes in turn
        costs = [p.numel() * min(p.shape) for _, p in named]
        dearest = sorted(range(len(named)), key=lambda i: -costs[i])
        owners = {i: turn % ranks for turn, i in enumerate(dearest)}
        order = sorted(range(len(named)), key=lambda i: owners[i])
        shards = [own[i] for i in order]
        sent = [sum(own[i].numel() for i in order if owners[i] == r) for r in range(ranks)]
        jobs = [named[i] for i in order if owners[i] == rank]
        device = own[0].device if own else None
        whole = [torch.empty(parameter.shape, device=device) for _, parameter in jobs]
        by_rank = [[matrix[_rows(len(matrix), r)] for matrix in whole] for r in range(ranks)]
        received = [sum(rows.numel() for rows in each) for each in by_rank]
        rows = [piece for each in by_rank for piece in each]
        outgoing, incoming = torch.empty(sum(sent), device=device), torch.empty(sum(received), device=device)

        def gather() -> None:
            _copy(_cut(outgoing, shards), shards)
            dist.all_to_all_single(incoming, outgoing, received, sent)
            _copy(rows, _cut(incoming, rows))

        def scatter() -> None:
            _copy(_cut(incoming, rows), rows)
            dist.all_to_all_single(outgoing, incoming, sent, received)
            _copy(shards, _cut(outgoing, shards))

        return WholeMatrices([name for name, _ in jobs], whole, gather, scatter)

    def norm(self, gradient: torch.Tensor) -> torch.Tensor:
        square: torch.Tensor = torch.linalg.vector_norm(gradient).square()
        dist.all_reduce(square)
        return square.sqrt()

    def update(self, changes: Sequence[Change]) -> None:
        for region, work in changes:
            self.workers.sweep(work, region)
        self.publish()

    def publish(self) -> None:
        with torch.no_grad():
            _copy([self.own_part(p) for p in self._parameters], self._masters)

    def weights(self) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for name, tensor in self.model.state_dict().items():
            whole = tensor.full_tensor().to(self._dtype) if isinstance(tensor, DTensor) else tensor
            if parallel.is_first():
                found[name] = whole.detach().to("cpu", torch.float32, copy=True)
        return found

    def release(self) -> None:
        """Every process gives its model all weights back."""
        sharded = self.model.state_dict()
        for name, lent in self._lender.named_parameters():
            if lent.requires_grad:
                lent.data = sharded[name].full_tensor().to(lent.device, copy=True)

    def abandon(self) -> None:
        """Leaves the model without weights, which are in the last state: gathering them would need all processes."""


class _Objective(nn.Module):
    """An objective as a module, so that FSDP gathers the parameters outside the layers while it runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, objective: Objective, batch: Batch) -> tuple[Loss, list[torch.Tensor]]:
        """The loss, and the tensors that backward begins at, where FSDP's hooks gather the weights again."""
        loss = objective(self.model, batch)
        return loss, [loss.total, *([loss.beside.total] if isinstance(loss, LossBeside) else [])]


def _copy(into: Sequence[torch.Tensor], tensors: Sequence[torch.Tensor]) -> None:
    if into:
        torch._foreach_copy_(list(into), list(tensors))


def _cut(flat: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Views of a flat buffer as consecutive tensors of these shapes."""
    pieces = torch.split(flat, [tensor.numel() for tensor in like])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]


def _rows(length: int, rank: int) -> slice:
    """The rows of a parameter that a process has, as FSDP2 divides them: the last processes may have fewer or none."""
    each = -(-length // dist.get_world_size())
    return slice(min(rank * each, length), min((rank + 1) * each, length))


def write_shards(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes this process's rows to the disk; all processes call it. OSError when one of them cannot."""
    with _disk_errors():
        save(_present(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def read_shards(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Reads saved values into the tensors, however many processes wrote them. KlypeError for other shapes."""
    here = _present(tensors)
    reader = HuggingFaceStorageReader(str(folder))
    saved = reader.read_metadata().state_dict_metadata
    check_shapes({name: about.size for name, about in saved.items()}, tensors)  # type: ignore[union-attr]
    with _disk_errors(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that torch.distributed is not initialised: one process reads
        load(here, storage_reader=reader)


def sharded_like(tensors: Mapping[str, torch.Tensor], whole: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Whole tensors, which every process has, sharded as those of the same name are."""
    return {
        name: distribute_tensor(whole[name], tensor.device_mesh, tensor.placements, src_data_rank=None)
        if isinstance(tensor, DTensor)
        else whole[name]
        for name, tensor in tensors.items()
    }


def _present(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of which this process has rows."""
    return {
        name: tensor.detach()
        for name, tensor in tensors.items()
        if not isinstance(tensor, DTensor) or tensor.to_local().numel()
    }


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Raises the OSError of a process that caused a CheckpointException, if any, in its place."""
    try:
        yield
    except CheckpointException as error:
        causes = (cause for cause, _ in error.failures.values())
        raise next((cause for cause in causes if isinstance(cause, OSError)), error) from error
