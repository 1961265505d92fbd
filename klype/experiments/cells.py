"""Cells of an experiment side by side, each on one thread in a process of its own, looked at every second."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from klype.children import end_with
from klype.device import memory_policy, set_threads, thread_policy
from klype.errors import KlypeError


@contextmanager
def side_by_side(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes for the cells. KlypeError when one of them ends unasked; what has not begun is then left out."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_alone, initargs=(os.getpid(),)) as pool:
        try:
            yield pool
        except BrokenProcessPool:
            raise KlypeError(
                "One of the processes that train ended unasked (out of memory, perhaps).",
                "The same command with --resume goes on; what is finished is kept.",
            ) from None
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def follow(running: Iterable[Future[Any]], look: Callable[[], object]) -> None:
    """Looks every second until all have ended; what failed in one is raised here."""
    left = set(running)
    while left:
        ended, left = wait(left, timeout=1.0)
        for one in ended:
            one.result()
        look()


def _alone(parent: int) -> None:
    end_with(parent)
    thread_policy()
    memory_policy()
    set_threads(1)
