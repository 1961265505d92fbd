"""Child processes of tests."""

from __future__ import annotations

from multiprocessing.context import ForkServerContext

from torch import multiprocessing


def forked() -> ForkServerContext:
    """Forks of a process that did nothing but import klype.

    A fresh interpreter for each takes longer than what it does; a fork of the test's own process may inherit a lock
    that one of its threads holds, and wait for ever.
    """
    context: ForkServerContext = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["klype.train.loop", "torch.distributed.fsdp", "klype.train.sharded", "train_toys"])
    return context
