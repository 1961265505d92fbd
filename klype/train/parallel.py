"""Collective operations over torch.distributed; with one process, which needs no group, they return at once.

Ranks take the same steps in the same order: whatever a clock, a signal or a disk tells one of them, all agree on before
any of them acts on it.
"""

import errno
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from klype.device import rank_device
from klype.errors import KlypeError
from klype.values import Batch

# how long a rank waits for the others: the first may be preparing data; one that dies is noticed at once
LONGEST = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class ProcessRank:
    """Rank and world size as torchrun gives them; ``local`` is the number of processes on this machine."""

    rank: int
    ranks: int
    local_rank: int = 0
    local: int = 1
    restarts: int = 0


@contextmanager
def process_group(team: ProcessRank | None) -> Iterator[None]:
    """Context in which this process belongs to the process group that torchrun's environment variables name.

    KlypeError when another process of the group has ended or cannot be reached.
    """
    if team is None or team.ranks == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if rank_device(team.local_rank).type == "cuda" else "gloo"
    try:
        store, rank, ranks = next(iter(rendezvous("env://", timeout=LONGEST)))
        # an earlier start left addresses in the store that are no longer valid
        life = dist.distributed_c10d.PrefixStore(f"start-{team.restarts}", store)
        dist.init_process_group(backend, store=life, rank=rank, world_size=ranks, timeout=LONGEST)
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or re.search("gloo|Gloo|NCCL|nccl", str(error))):
            raise
        raise KlypeError(
            f"Process {team.rank} of {team.ranks} has lost another one, which ended or cannot be reached.",
            "What was saved last is whole: --resume goes on from there (torchrun's --max-restarts does it by itself).",
        ) from error
    finally:
        leave_group()


def device() -> torch.device:
    """Device of this rank."""
    if "nccl" in str(dist.get_backend_config()):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def leave_group() -> None:
    """Leaves the process group."""
    if ranks() > 1:
        dist.destroy_process_group()


def ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if ranks() > 1 else 0


def is_first() -> bool:
    """Whether this rank is the one that writes and speaks."""
    return rank() == 0


def sum_over_ranks(values: dict[str, float]) -> dict[str, float]:
    """Sums of the values over all ranks, by name."""
    if ranks() == 1:
        return values
    # float64: float32 does not count as many tokens exactly
    total = torch.tensor(list(values.values()), dtype=torch.float64)
    dist.all_reduce(total)
    return dict(zip(values, total.tolist(), strict=True))


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank; returns when all ranks have called it."""
    if ranks() == 1:
        return flag
    # a sum, for which every rank waits for all others
    count = torch.tensor([int(flag)])
    dist.all_reduce(count)
    return bool(count)


def broadcast(value: Any) -> Any:
    """The first rank's value, on all ranks."""
    values = [value]
    if ranks() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def broadcast_(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrites the tensors of all ranks with the first rank's."""
    if ranks() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


@contextmanager
def main_process_first() -> Iterator[None]:
    """Context that the first rank goes through before all others, which find what it left."""
    if not is_first():
        any_rank(False)  # waits for every other rank
    yield
    if is_first():
        any_rank(False)


def on_all_ranks(work: Callable[[], None]) -> None:
    """Calls ``work`` on every rank; an OSError of one of them is an OSError on all."""
    failed: OSError | None = None
    try:
        work()
    except OSError as error:
        failed = error
    if any_rank(failed is not None):
        # a rank that went on alone would wait for the others forever
        raise failed or OSError(errno.EIO, "another process could not")


def own_batches(batches: Sequence[Batch], rank: int, ranks: int) -> list[Batch]:
    """The micro-batches of a step that a rank computes: equally many on every rank, since all take part in every
    exchange. Where they cannot be divided evenly, some ranks get one whose weights are all 0.
    """
    most = -(-len(batches) // ranks)
    own = list(batches[rank::ranks])
    return own + [_idle(batches[0])] * (most - len(own))


def _idle(batch: Batch) -> Batch:
    extra = {name: _idle(value) if isinstance(value, Batch) else value for name, value in batch.extra.items()}
    return replace(batch, weights_BT=torch.zeros_like(batch.weights_BT), extra=extra)
