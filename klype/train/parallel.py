"""Several processes as one, when torch.distributed has been initialised; otherwise nothing.

Ranks take the same steps in the same order: whatever a clock, a signal or a disk tells one of them is agreed on before
anybody acts on it.
"""

from __future__ import annotations

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
    """Context in which this process belongs to the process group, whose address torch finds where it looks for it."""
    if team is None or team.ranks == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if rank_device(team.local_rank).type == "cuda" else "gloo"
    try:
        store, rank, ranks = next(iter(rendezvous("env://", timeout=LONGEST)))
        # an earlier start left addresses where nobody is now
        life = dist.distributed_c10d.PrefixStore(f"start-{team.restarts}", store)
        dist.init_process_group(backend, store=life, rank=rank, world_size=ranks, timeout=LONGEST)
        yield
    except RuntimeError as error:
        lost = isinstance(error, dist.DistError) or re.search("gloo|Gloo|NCCL|nccl", str(error))
        if not lost:
            raise
        raise KlypeError(
            f"Process {team.rank} of {team.ranks} has lost another one, which ended or cannot be reached.",
            "What was saved last is whole: --resume goes on from there (torchrun's --max-restarts does it by itself).",
        ) from error
    finally:
        leave()


def device() -> torch.device:
    """Device of this rank."""
    if "nccl" in str(dist.get_backend_config()):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def leave() -> None:
    """From here on, this process is alone."""
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
    """The values of all ranks together."""
    if ranks() == 1:
        return values
    # in float64, for counts of tokens are larger than float32 counts exactly
    total = torch.tensor(list(values.values()), dtype=torch.float64)
    dist.all_reduce(total)
    return dict(zip(values, total.tolist(), strict=True))


def any_rank(flag: bool) -> bool:
    """Whether it is so on any rank."""
    if ranks() == 1:
        return flag
    # a sum says it to all; no rank can go on before it has heard from every other
    count = torch.tensor([int(flag)])
    dist.all_reduce(count)
    return bool(count)


def from_first(value: Any) -> Any:
    """The first rank's value, on all ranks."""
    values = [value]
    if ranks() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def share_(tensors: Iterable[torch.Tensor]) -> None:
    """Replaces every process's tensors by the first one's."""
    if ranks() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


@contextmanager
def first_alone() -> Iterator[None]:
    """The first rank goes through it alone, then all others, who find what it left."""
    if not is_first():
        any_rank(False)  # which hears from every other
    yield
    if is_first():
        any_rank(False)


def together(work: Callable[[], None]) -> None:
    """Does it on every rank; when the disk of one says no, it is an OSError on all."""
    failed: OSError | None = None
    try:
        work()
    except OSError as error:
        failed = error
    if any_rank(failed is not None):
        # all ranks leave together: one that went on alone would wait for the others for ever
        raise failed or OSError(errno.EIO, "another process could not")


def own_batches(batches: Sequence[Batch], rank: int, ranks: int) -> list[Batch]:
    """Those of a step's micro-batches that a rank computes: as many on every rank, for all take part in every
    exchange. Where they do not come out even, some rank gets one with nothing to learn.
    """
    most = -(-len(batches) // ranks)
    own = list(batches[rank::ranks])
    return own + [_idle(batches[0])] * (most - len(own))


def _idle(batch: Batch) -> Batch:
    extra = {name: _idle(value) if isinstance(value, Batch) else value for name, value in batch.extra.items()}
    return replace(batch, weights_BT=torch.zeros_like(batch.weights_BT), extra=extra)
