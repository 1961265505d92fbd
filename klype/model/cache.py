"""The KV cache: keys, values and convolution inputs of the texts read so far, with a length per row.

The text of a row is a *shared* part, stored once in shared KV that any number of rows read, and an *own* part. Shapes:
R rows, L layers, G key heads, g query heads a key head, S own positions, P shared positions, N slots of shared KV,
n rows a slot, T new tokens, K head width, D model width, J convolution taps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

from klype.errors import KlypeError
from klype.model.config import ModelConfig

Indices = npt.NDArray[np.int64]
# each row's own positions are allocated in blocks of this size
BLOCK = 32


def to_device(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """The array as a tensor on a device."""
    return torch.from_numpy(array).to(device)


@dataclass(frozen=True, eq=False)
class SharedKV:
    """Read-only KV of texts that rows share: N slots, one text each.

    Keys and values [L, N, G, P, K]; convolution inputs [L, N, J + P, D] with J leading zeros ([0, …] without taps).
    """

    keys: Tensor
    values: Tensor
    inputs: Tensor
    lengths: Indices

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.keys, self.values, self.inputs

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors)

    def map_tensors(self, change: Callable[[Tensor], Tensor], lengths: Indices, P: int) -> "SharedKV":
        """A new SharedKV: each tensor cut to P positions and passed through ``change``; ``lengths`` of its slots."""
        spare = self.keys.shape[-2] - P
        keys, values, inputs = (change(t.narrow(-2, 0, t.shape[-2] - spare)) for t in self.tensors)
        return SharedKV(keys, values, inputs, lengths)

    def take(self, slots: Indices) -> "SharedKV":
        """A copy of some slots, cut to the longest of them."""
        index, lengths = to_device(slots, self.keys.device), self.lengths[slots]
        return self.map_tensors(lambda t: t.index_select(1, index), lengths, int(lengths.max(initial=0)))

    def alike(self, other: "SharedKV") -> bool:
        """Whether both are worth one store: longest texts and numbers of slots within a factor of two."""
        long, short = sorted((int(self.lengths.max(initial=1)), int(other.lengths.max(initial=1))), reverse=True)
        many, few = sorted((len(self.lengths), len(other.lengths)), reverse=True)
        return long <= max(2 * short, 32) and many <= 2 * few

    def concat(self, other: "SharedKV") -> "SharedKV":
        """The slots of both, the other's last."""
        pairs = zip(self.tensors, other.tensors, strict=True)
        longest = ((max(t.shape[-2] for t in pair), pair) for pair in pairs)
        keys, values, inputs = (
            torch.cat([pad(t, (0, 0, 0, most - t.shape[-2])) for t in pair], 1) for most, pair in longest
        )
        return SharedKV(keys, values, inputs, np.concatenate((self.lengths, other.lengths)))


class Cache:
    """Rows of text that ``Transformer.hidden`` continues. Rows join, leave, fork and are cut without recomputation.

    ``keys``, ``values`` and ``inputs`` are shaped as in ``SharedKV`` and hold the rows' own parts.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int = 0,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device = torch.device("cpu"),
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.device = device
        self.lengths: Indices = np.zeros(rows, np.int64)  # whole length of every row
        self._share_nothing()
        self._allocate(rows, 0)

    def _share_nothing(self) -> None:
        self.shared: Indices = np.zeros_like(self.lengths)  # how much of each row is shared
        self.stores: list[SharedKV] = []
        self.store_of: Indices = np.full_like(self.lengths, -1)
        self.slot_of: Indices = np.zeros_like(self.lengths)
        self.plans: dict[str, Any] = {}  # tables of who reads what, by the backend that uses them, until that changes

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.keys, self.values, self.inputs

    def append(self, store: SharedKV, slots: Sequence[int], lengths: Sequence[int]) -> None:
        """Add rows that continue the first ``lengths`` tokens of these slots. Keys and values are read where they are;
        only the last J convolution inputs are copied."""
        assert all(length <= store.lengths[slot] for slot, length in zip(slots, lengths, strict=True))
        if store not in self.stores:
            self.stores.append(store)
        index = self.stores.index(store)
        first, count = self.rows, len(slots)
        self.lengths = np.concatenate((self.lengths, np.asarray(lengths, np.int64)))
        self.shared = np.concatenate((self.shared, np.asarray(lengths, np.int64)))
        self.store_of = np.concatenate((self.store_of, np.full(count, index, np.int64)))
        self.slot_of = np.concatenate((self.slot_of, np.asarray(slots, np.int64)))
        self._reserve(first + count, 0)
        self._lead(np.arange(first, first + count))
        self._merge_stores()
        self.plans = {}

    def remove(self, ended: npt.NDArray[np.bool_]) -> Indices:
        """Drop rows; returns the old index of every row that stays, in the new order.

        Rows from the end fill the holes, so that only as many rows are copied as have left.
        """
        stays = int((~ended).sum())
        order = np.arange(stays)
        holes = np.flatnonzero(ended[:stays])
        movers = stays + np.flatnonzero(~ended[stays:])
        order[holes] = movers
        if len(holes):
            to, source = to_device(holes, self.device), to_device(movers, self.device)
            for own in self.tensors:
                own[:, to] = own[:, source]
        self.lengths, self.shared = self.lengths[order], self.shared[order]
        self.store_of, self.slot_of = self.store_of[order], self.slot_of[order]
        self.plans = {}
        # stores without readers are dropped; of a store that is mostly unread, the slots still read are copied
        kept: list[SharedKV] = []
        for index, store in enumerate(self.stores):
            readers = np.flatnonzero(self.store_of == index)
            if not len(readers):
                continue
            slots, renamed = np.unique(self.slot_of[readers], return_inverse=True)
            # each copy at least halves the store, so that copying stays linear in what was ever stored
            if 2 * len(slots) <= len(store.lengths):
                store = store.take(slots)
                self.slot_of[readers] = renamed
            self.store_of[readers] = len(kept)
            kept.append(store)
        self.stores = kept
        return order

    def truncate(self, lengths: Sequence[int] | Indices) -> None:
        """Cut every row to its length."""
        new = np.asarray(lengths, np.int64)
        assert new.shape == self.lengths.shape
        assert ((new >= 0) & (new <= self.lengths)).all()
        inside = np.flatnonzero(new < self.shared)
        self.lengths = new
        # the own part of a row that is cut inside its shared part now begins after other convolution inputs
        if len(inside):
            self.shared = np.minimum(self.shared, new)
            self._lead(inside)
            self.plans = {}

    def to_shared(self) -> SharedKV:
        """These rows as shared KV. Without shared parts it is a view: do not continue this cache."""
        if self.shared.any():
            return self._flatten()
        own = SharedKV(self.keys, self.values, self.inputs, self.lengths)
        return own.map_tensors(lambda t: t[:, : self.rows], self.lengths.copy(), int(self.lengths.max(initial=0)))

    def unshare(self) -> None:
        """Copy shared parts into the rows: text that is in one piece is read faster."""
        whole = self._flatten()
        self.keys, self.values, self.inputs = whole.tensors
        self._share_nothing()

    def share(self) -> None:
        """Move the rows' texts into shared KV, so that rows added later need not be as wide as the longest."""
        whole = self.to_shared()
        self.lengths = np.zeros(0, np.int64)
        self._share_nothing()
        self._allocate(0, 0)
        self.append(whole, range(len(whole.lengths)), whole.lengths.tolist())

    def reserve(self, T: int) -> None:
        """Make room for T new tokens per row. Positions past the window are padding; KlypeError if no row has T."""
        if self.rows and (self.lengths.min() + T > self.config.window or self.lengths.max() > self.config.window):
            raise KlypeError(f"The text has grown past the model's window of {self.config.window} tokens.")
        self._reserve(self.rows, int((self.lengths - self.shared).max(initial=0)) + T)

    def advance(self, T: int) -> None:
        """Count the T tokens that were stored as part of every row."""
        self.lengths = self.lengths + T

    def readers(self) -> "list[Readers]":
        """The readers of each store."""
        if "readers" in self.plans:
            known: list[Readers] = self.plans["readers"]
            return known
        groups = self.plans["readers"] = list[Readers]()
        for index, store in enumerate(self.stores):
            rows = np.flatnonzero((self.store_of == index) & (self.shared > 0))
            if not len(rows):
                continue
            slots = self.slot_of[rows]
            N = len(store.lengths)
            counts = np.bincount(slots, minlength=N)
            n = int(counts.max())
            # slot s has the places s*n to s*n + n - 1, filled in the order of its rows
            order = np.argsort(slots, kind="stable")
            starts = np.cumsum(counts) - counts
            place = np.empty(len(rows), np.int64)
            place[order] = slots[order] * n + np.arange(len(rows)) - starts[slots[order]]
            everyone = len(rows) == len(self.store_of)
            row_at = np.zeros(N * n, np.int64)
            row_at[place] = rows
            straight = everyone and N * n == len(rows) and bool((place == np.arange(len(rows))).all())
            place_of_row, row_of_place = (None if straight else to_device(a, self.device) for a in (place, row_at))
            some = None if everyone else to_device(rows, self.device)
            longest = int(self.shared[rows].max())
            groups.append(Readers(store, longest, N, n, some, row_of_place, place_of_row))
        return groups

    def _merge_stores(self) -> None:
        """Merge stores of similar length and size, at amortised cost, so that a busy server has few of them."""
        index = len(self.stores) - 1
        while index > 0:
            last = self.stores[index]
            # a store twice as large as the last is left alone, so that a position is moved O(log n) times
            alike = [i for i in range(index) if self.stores[i].alike(last)]
            if not alike:
                return
            first = alike[-1]
            moved = self.store_of == index
            self.slot_of[moved] += len(self.stores[first].lengths)
            self.store_of[moved] = first
            self.stores[first] = self.stores[first].concat(last)
            self.stores.pop()
            if first != index - 1:  # the merged store becomes the last one, which is compared next
                self.stores[first], self.stores[-1] = self.stores[-1], self.stores[first]
                swap = np.arange(len(self.stores))
                swap[[first, index - 1]] = index - 1, first
                self.store_of = np.where(self.store_of >= 0, swap[self.store_of], -1)
            index -= 1

    def _lead(self, rows: Indices) -> None:
        """Copy the J convolution inputs before each of these rows' own parts."""
        J = self.config.conv
        if not J:
            return
        for index, store in enumerate(self.stores):
            here = rows[self.store_of[rows] == index]
            if len(here):
                slot = to_device(self.slot_of[here, None], self.device)
                column = to_device(self.shared[here, None] + np.arange(J), self.device)
                self.inputs[:, to_device(here, self.device), :J] = store.inputs[:, slot, column]

    def _flatten(self) -> SharedKV:
        """A copy of every row's whole text, in one slot each."""
        S, P = self.keys.shape[-2], int(self.lengths.max(initial=0))
        shapes = [(len(t), self.rows, *t.shape[2:-2], t.shape[-2] - S + P, t.shape[-1]) for t in self.tensors]
        keys, values, inputs = map(self.keys.new_zeros, shapes)
        whole = SharedKV(keys, values, inputs, self.lengths.copy())
        for number, (mine, out) in enumerate(zip(self.tensors, whole.tensors, strict=True)):
            lead = mine.shape[-2] - S  # convolution inputs begin with J of what came before
            for row, (length, shared) in enumerate(zip(self.lengths.tolist(), self.shared.tolist(), strict=True)):
                if shared:
                    theirs = self.stores[self.store_of[row]].tensors[number][:, self.slot_of[row]]
                    out[:, row, ..., lead : lead + shared, :] = theirs[..., lead : lead + shared, :]
                own = mine[:, row, ..., lead : lead + length - shared, :]
                out[:, row, ..., lead + shared : lead + length, :] = own
        return whole

    def _allocate(self, rows: int, columns: int) -> None:
        c = self.config
        shape = (c.layers, rows, c.kv_heads, columns, c.head_dim)
        inputs = (c.layers if c.conv else 0, rows, c.conv + columns, c.width)
        self.keys, self.values, self.inputs = (
            torch.zeros(each, dtype=self.dtype, device=self.device) for each in (shape, shape, inputs)
        )

    def _reserve(self, rows: int, columns: int) -> None:
        """Grow by half or to what is asked, columns in whole blocks; with zeros, since a masked NaN stays a NaN."""
        _, R, _, S, _ = self.keys.shape
        if rows <= R and columns <= S:
            return
        new_rows = max(rows, R + R // 2) if rows > R else R
        new_columns = -(-max(columns, S + S // 2) // BLOCK) * BLOCK if columns > S else S
        old = self.tensors
        self._allocate(new_rows, new_columns)
        for before, after in zip(old, self.tensors, strict=True):
            after[:, :R, ..., : before.shape[-2], :] = before


@dataclass(frozen=True, eq=False)
class Readers:
    """The rows that read one store, in n places for each of its N slots, so that the keys of a slot and the queries of
    all its readers are one matrix product.

    ``row_of_place`` [N*n] is the reader in each place (any row in an empty one); ``place_of_row`` is its inverse for
    ``rows`` (None: all rows). Both are None when row i is in place i. ``P``: the longest prefix that is read.
    """

    store: SharedKV
    P: int
    N: int
    n: int
    rows: Tensor | None
    row_of_place: Tensor | None
    place_of_row: Tensor | None
