"""Pools of padded example arrays, made in this process or ahead in another, which starts fast without torch.

Example i is a pure function of i, and pool k of k, so both ways give the same arrays. Examples that are expensive to
make may be repeated: see ``PoolSettings.passes``.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection

import numpy as np
import numpy.typing as npt

from klype.child_processes import end_with, without_main_script
from klype.data.seeds import Permutation, mix
from klype.errors import KlypeError

# token ids and the loss weight of each as a target (the first token is never one)
Example = tuple[Sequence[int], Sequence[float]]

Sample = Callable[[int], Example]

# steps whose examples are sorted by length together: half as much padding as with eight, and still well mixed
STEPS = 16

# examples are repeated in blocks of this many pools: far enough apart, and few enough to keep in memory
BLOCK = 8

# tokens_BT, targets_BT, weights_BT
Arrays = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """``rows`` per batch and ``batches`` per pool; lengths are padded with ``pad`` to a multiple of ``multiple``.

    ``pieces`` consecutive batches have about the same length: the micro-batches of a step, which are computed at the
    same time. ``passes``: how often the examples of ``BLOCK`` pools are repeated, each time in other batches.
    """

    rows: int
    batches: int = STEPS
    pieces: int = 1
    pad: int = 0
    multiple: int = 8
    seed: int = 0
    passes: int = 1

    @property
    def size(self) -> int:
        """Examples in a pool."""
        return self.rows * self.batches

    def distinct(self, pools: int) -> int:
        """The number of distinct examples in the first ``pools`` pools."""
        blocks, rest = divmod(pools, BLOCK * self.passes)
        return (blocks * BLOCK + min(rest, BLOCK)) * self.size


class Pools:
    """A function from a pool's number to its batches, in a seeded order. Examples that are repeated are kept."""

    def __init__(self, sample: Sample, settings: PoolSettings) -> None:
        assert settings.batches % settings.pieces == 0
        self.sample, self.settings = sample, settings
        self._kept: dict[int, Example] = {}

    def __call__(self, number: int) -> list[Arrays]:
        settings, size = self.settings, self.settings.size
        turn, place = divmod(number % (BLOCK * settings.passes), BLOCK)
        first = number // (BLOCK * settings.passes) * BLOCK * size  # of the block
        self._kept = {i: kept for i, kept in self._kept.items() if i >= first and settings.passes > 1}
        # in order at the first pass, later in a seeded order
        again: Callable[[int], int] = Permutation(BLOCK * size, mix(settings.seed, first, turn)) if turn else int
        wanted = [first + again(i) for i in range(place * size, (place + 1) * size)]
        self._kept |= {i: self.sample(i) for i in wanted if i not in self._kept}
        # stable: ties stay in their order
        examples = sorted((self._kept[i] for i in wanted), key=lambda example: len(example[0]))
        steps, together = settings.batches // settings.pieces, settings.rows * settings.pieces
        order = Permutation(steps, settings.seed * 1_000_003 + number)
        groups = [examples[order(s) * together : (order(s) + 1) * together] for s in range(steps)]
        return [pad(group[i :: settings.pieces], settings) for group in groups for i in range(settings.pieces)]


def pad(examples: Sequence[Example], settings: PoolSettings) -> Arrays:
    """Examples as arrays of rows of equal length; padding is on the right and has weight 0."""
    longest = max(len(tokens) for tokens, _ in examples) - 1
    length = -(-max(longest, 1) // settings.multiple) * settings.multiple
    shape = (len(examples), length)
    tokens_BT, targets_BT = np.full(shape, settings.pad, np.int64), np.full(shape, settings.pad, np.int64)
    weights_BT = np.zeros(shape, np.float32)
    for row, (tokens, weights) in enumerate(examples):
        assert len(tokens) == len(weights)
        n = len(tokens) - 1
        tokens_BT[row, :n], targets_BT[row, :n], weights_BT[row, :n] = tokens[:-1], tokens[1:], weights[1:]
    return tokens_BT, targets_BT, weights_BT


class PoolProcess:
    """A process that makes pools ahead, from number ``next`` on; ``sample`` must be picklable."""

    def __init__(self, sample: Sample, first: int, settings: PoolSettings) -> None:
        context = multiprocessing.get_context("spawn")  # forking a process with threads may deadlock
        self.next = first
        self._pools, out = context.Pipe(duplex=False)
        job = (out, sample, first, settings, os.getpid())
        self._process = context.Process(target=make_pools, args=job, daemon=True)
        with without_main_script():
            self._process.start()
        out.close()  # the child has the only other copy, so that its end closes the pipe

    def get(self) -> list[Arrays]:
        """The next pool. Raises KlypeError when the process failed or ended."""
        try:
            got: list[Arrays] | str = self._pools.recv()
        except (EOFError, OSError):
            self._process.join()
            raise KlypeError(
                f"The process that prepares documents ended (exit code {self._process.exitcode}).",
                "Start again with --resume.",
            ) from None
        if isinstance(got, str):
            raise KlypeError(f"The process that prepares documents failed: {got}.", "Start again with --resume.")
        self.next += 1
        return got

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()
        self._pools.close()


def make_pools(out: Connection, sample: Sample, first: int, settings: PoolSettings, parent: int) -> None:
    """Sends the pools from ``first`` on; after an error its text. Runs in the child process."""
    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    pools = Pools(sample, settings)
    try:
        for number in count(first):
            out.send(pools(number))
    except Exception as error:  # whatever it is, the parent raises it
        out.send(f"{type(error).__name__}: {error}")
