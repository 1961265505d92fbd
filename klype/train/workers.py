"""Threads that compute side by side: micro-batches, matrices, stretches of flat buffers.

A small model's products are too small to be split between cores; several of them at once use all cores whole. Torch
lets go of Python's lock while it computes. Work is cut in the same way for any number of threads, which therefore gives
the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

STRETCH = 1 << 17
"""Numbers of a buffer that are worked on at once: some passes over so many stay in a core's cache."""
FEW = 8
"""So many stretches are done before another thread has woken."""

T = TypeVar("T")
R = TypeVar("R")


class Workers:
    """So many threads, each with as many of torch's own as whoever made them. One alone is the caller's thread."""

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
        results: dict[int, R] = {}
        waiting = iter(enumerate(items))

        def some() -> None:
            for index, item in waiting:
                results[index] = work(item)

        running = [self._pool.submit(_like(some)) for _ in range(min(self.number, len(items)))]
        for each in running:
            each.result()
        return [results[index] for index in range(len(items))]

    def sweep(self, work: Callable[[slice], R], region: slice) -> list[R]:
        """``work`` on each stretch of a region of a buffer."""
        stretches = [slice(at, min(at + STRETCH, region.stop)) for at in range(region.start, region.stop, STRETCH)]
        return self.each(work, stretches) if len(stretches) > FEW else [work(at) for at in stretches]

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


def _like(work: Callable[[], None]) -> Callable[[], None]:
    """The same on another thread, with gradients recorded there if they are here."""
    records = torch.is_grad_enabled()

    def recorded() -> None:
        with torch.set_grad_enabled(records):
            work()

    return recorded
