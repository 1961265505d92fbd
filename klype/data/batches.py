"""Training batches: packed windows of text and padded rows of examples, deterministic functions of seed and state."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from klype.data.documents import Documents
from klype.data.example_batches import Arrays, Example, PoolProcess, Pools, PoolSettings, Sample, pad
from klype.data.seeds import Permutation, mix
from klype.errors import KlypeError
from klype.values import Batch, Batches, NumberedBatches, end


class PackedBatches(Batches):
    """Endless batches of full windows [B rows, T tokens] of text. Each target occurs exactly once per epoch.

    Documents are cut into pieces of at most T targets, at positions that differ from epoch to epoch; the pieces fill
    row after row in a seeded order, which differs as well. ``extra["document_BT"]`` numbers the pieces of a row:
    attention must not cross from one to the next. A token and its target are always of the same document.
    """

    def __init__(self, documents: Documents, rows: int, window: int, seed: int = 0) -> None:
        self._documents, self._rows, self._window, self._seed = documents, rows, window, seed
        self._targets_D = np.maximum(documents.lengths - 1, 0)
        if not self._targets_D.sum():
            raise KlypeError("There is no text to train on.", "Give a file that holds some text.")
        self._go_to(0)

    def __next__(self) -> Batch:
        shape = (self._rows, self._window)
        tokens_BT, targets_BT, document_BT = (np.zeros(shape, np.int64) for _ in range(3))
        for row in range(self._rows):
            filled = number = 0
            while filled < self._window:
                piece = self._piece(self._window - filled)
                stop = filled + len(piece) - 1
                tokens_BT[row, filled:stop], targets_BT[row, filled:stop] = piece[:-1], piece[1:]
                document_BT[row, filled:stop] = number
                filled, number = stop, number + 1
        arrays = (tokens_BT, targets_BT, np.ones(shape, np.float32))
        return _batch(arrays, {"document_BT": torch.from_numpy(document_BT)})

    def state(self) -> dict[str, Any]:
        """The position, as plain integers."""
        return {"epoch": self._epoch, "piece": self._next, "offset": self._offset}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes to a position of batches with the same documents, shape and seed."""
        self._go_to(state["epoch"], state["piece"], state["offset"])

    def _go_to(self, epoch: int, piece: int = 0, offset: int = 0) -> None:
        """Sets the position, and the epoch's shift of the cuts, first piece of each document, and order of pieces."""
        self._epoch, self._next, self._offset = epoch, piece, offset
        self._shift = mix(self._seed, epoch, 1) % self._window
        pieces_D = np.where(self._targets_D > 0, -(-(self._targets_D + self._shift) // self._window), 0)
        self._firsts = np.concatenate([[0], np.cumsum(pieces_D)])
        self._order = Permutation(int(self._firsts[-1]), mix(self._seed, epoch, 2))

    def _piece(self, room: int) -> npt.NDArray[np.integer[Any]]:
        """The next targets of one document, at most ``room``, with the token before the first of them."""
        number = self._order(self._next)
        document = int(np.searchsorted(self._firsts, number, side="right")) - 1
        at = (number - int(self._firsts[document])) * self._window - self._shift
        start = max(0, at) + self._offset
        stop = min(int(self._targets_D[document]), at + self._window)
        taken = min(room, stop - start)
        if start + taken < stop:
            self._offset += taken
        else:
            self._offset, self._next = 0, self._next + 1
        piece = self._documents[document][start : start + taken + 1]
        if self._next == self._order.size:
            self._go_to(self._epoch + 1)
        return piece


class PaddedBatches(NumberedBatches):
    """Endless batches of examples, padded on the right; ``sample(i)`` is a pure function of i.

    Examples are sorted by length within small pools. ``background`` makes the pools in another process (``sample``
    must then be picklable), which ``close`` ends; the batches are the same.
    """

    def __init__(self, sample: Sample, settings: PoolSettings, background: bool = False) -> None:
        self._pools, self._background = Pools(sample, settings), background
        self._pool: tuple[int, list[Arrays]] | None = None
        self._process: PoolProcess | None = None

    def batch(self, index: int) -> Batch:
        number, at = divmod(index, self._pools.settings.batches)
        if self._pool is None or self._pool[0] != number:
            if self._background and (self._process is None or self._process.next != number):
                self.close()
                self._process = PoolProcess(self._pools.sample, number, self._pools.settings)
            self._pool = (number, self._process.get() if self._process else self._pools(number))
        return _batch(self._pool[1][at], {})

    @property
    def passes(self) -> int:
        """How many times each example occurs."""
        return self._pools.settings.passes

    def close(self) -> None:
        """End the background process."""
        if self._process is not None:
            self._process.close()
            self._process = None


class WithRehearsal(Batches):
    """Batches with ``rehearsal(i)`` in ``extra["rehearsal"]`` of batch number i."""

    def __init__(self, main: Batches, rehearsal: Callable[[int], Batch]) -> None:
        self._main, self._rehearsal, self._index = main, rehearsal, 0

    def __next__(self) -> Batch:
        batch, again = next(self._main), self._rehearsal(self._index)
        self._index += 1
        return replace(batch, extra={**batch.extra, "rehearsal": again})

    def state(self) -> dict[str, Any]:
        return {"main": self._main.state(), "index": self._index}

    def restore(self, state: dict[str, Any]) -> None:
        # an earlier klype's position had another name, or, in alignment, was that of the main batches
        self._main.restore(state.get("main", state))
        self._index = state["rehearsal"]["position"] if "rehearsal" in state else state["index"]

    def close(self) -> None:
        end(self._main)


def epochs(examples: Sequence[Example], seed: int) -> Sample:
    """The ``sample`` function of a finite list of examples: each once per epoch, in a seeded order of that epoch."""

    def sample(index: int) -> Example:
        epoch, at = divmod(index, len(examples))
        return examples[Permutation(len(examples), mix(seed, epoch))(at)]

    return sample


def conversation_batches(examples: Sequence[Example], settings: PoolSettings) -> PaddedBatches:
    """Endless batches of a list of conversations (ids, weights). KlypeError when none has a target with a weight."""
    usable = _with_answers(examples)
    if not usable:
        raise KlypeError("No conversation holds an answer that fits.", "Give instructions with answers.")
    return PaddedBatches(epochs(usable, settings.seed), settings)


def once(examples: Sequence[Example], settings: PoolSettings) -> list[Batch]:
    """Batches of ``settings.rows`` conversations in their order, each once; those without weights are left out."""
    usable = _with_answers(examples)
    starts = range(0, len(usable), settings.rows)
    return [_batch(pad(usable[start : start + settings.rows], settings), {}) for start in starts]


def _with_answers(examples: Sequence[Example]) -> list[Example]:
    return [(tokens, weights) for tokens, weights in examples if len(tokens) > 1 and any(weights[1:])]


def fit(example: Example, window: int) -> Example:
    """The example cut to at most ``window`` inputs; of a longer one the end is kept, where the answer is."""
    tokens, weights = example
    return (tokens, weights) if len(tokens) <= window + 1 else (tokens[-window - 1 :], weights[-window - 1 :])


def _batch(arrays: Arrays, extra: dict[str, Any]) -> Batch:
    tokens_BT, targets_BT, weights_BT = map(torch.from_numpy, arrays)
    return Batch(tokens_BT, targets_BT, weights_BT, extra)
