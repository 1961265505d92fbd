"""What the model remembers of texts it has read: keys, values and convolution inputs, a length per row.

A row's text is a *shared* part, stored once on a shelf and read by any number of rows, and an *own* part. Shapes:
R rows, L layers, G key heads, g query heads a key head, S own positions, P shelf positions, N shelf slots,
n rows a slot, T new tokens, K head width, D model width, J convolution taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from klype.errors import KlypeError
from klype.model.cached_attention import Pass, prepare
from klype.model.compiled import Fused, OneMore, Tables, seated
from klype.model.config import ModelConfig
from klype.model.shelf import Groups, Shelf, group_rows, placed

if TYPE_CHECKING:
    from klype.model.transformer import Transformer

Indices = npt.NDArray[np.int64]
BLOCK = 32
"""Own positions are allocated in blocks of this many."""


class Cache:
    """Rows of text that ``Transformer.hidden`` continues. Rows join, leave, fork and are cut; nothing is recomputed."""

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
        self.shared: Indices = np.zeros(rows, np.int64)  # how much of it lies on a shelf
        self.shelves: list[Shelf] = []
        self.shelf_of: Indices = np.full(rows, -1, np.int64)
        self.slot_of: Indices = np.zeros(rows, np.int64)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.inputs: list[Tensor] = []
        self.groups: list[Groups] | None = None
        self.tables: Tables | None = None
        self._allocate(rows, 0)

    @staticmethod
    def of(model: Transformer, rows: int = 0) -> Cache:
        """Rows of no text, for this model: in its precision, where it computes."""
        weight = model.embed.weight
        return Cache(model.config, rows, dtype=weight.dtype, device=weight.device)

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes held, shelves included (each once)."""
        own = sum(t.numel() * t.element_size() for t in (*self.keys, *self.values, *self.inputs))
        return own + sum(shelf.nbytes for shelf in self.shelves)

    def join(self, shelf: Shelf, slots: Sequence[int], lengths: Sequence[int]) -> None:
        """Add rows that continue the first ``lengths`` tokens of these slots; only the last J inputs are copied."""
        assert all(length <= shelf.lengths[slot] for slot, length in zip(slots, lengths, strict=True))
        if not any(known is shelf for known in self.shelves):
            self.shelves.append(shelf)
        index = next(i for i, known in enumerate(self.shelves) if known is shelf)
        first, count = self.rows, len(slots)
        self.lengths = np.concatenate((self.lengths, np.asarray(lengths, np.int64)))
        self.shared = np.concatenate((self.shared, np.asarray(lengths, np.int64)))
        self.shelf_of = np.concatenate((self.shelf_of, np.full(count, index, np.int64)))
        self.slot_of = np.concatenate((self.slot_of, np.asarray(slots, np.int64)))
        self._reserve(first + count, 0)
        self._lead(np.arange(first, first + count))
        self._merge_shelves()
        self._rearranged()

    def remove(self, ended: npt.NDArray[np.bool_]) -> Indices:
        """Drop rows at once; returns the old index of every row that stays, in its new order.

        Rows from the end fill the holes, so that only as many rows are copied as have left.
        """
        stays = int((~ended).sum())
        order = np.arange(stays)
        holes = np.flatnonzero(ended[:stays])
        movers = stays + np.flatnonzero(~ended[stays:])
        order[holes] = movers
        if len(holes):
            to, source = placed(holes, self.device), placed(movers, self.device)
            for store in (*self.keys, *self.values, *self.inputs):
                store[to] = store[source]
        self._take(order)
        return order

    def select(self, rows: Sequence[int] | Indices) -> Cache:
        """A new cache of these rows, in this order; a row may be named several times (a fork)."""
        chosen = np.asarray(rows, np.int64)
        other = Cache(self.config, 0, dtype=self.dtype, device=self.device)
        other.shelves = list(self.shelves)
        index = placed(chosen, self.device)
        other.keys, other.values, other.inputs = (
            [store.index_select(0, index) for store in stores] for stores in (self.keys, self.values, self.inputs)
        )
        other.lengths, other.shared = self.lengths, self.shared
        other.shelf_of, other.slot_of = self.shelf_of, self.slot_of
        other._take(chosen)
        return other

    def truncate(self, lengths: Sequence[int] | Indices) -> None:
        """Cut every row to its length; what is cut is forgotten."""
        new = np.asarray(lengths, np.int64)
        assert new.shape == self.lengths.shape
        assert ((new >= 0) & (new <= self.lengths)).all()
        inside = np.flatnonzero(new < self.shared)
        self.lengths = new
        if len(inside):
            self.shared = np.minimum(self.shared, new)
            self._lead(inside)
            self._rearranged()

    def shelve(self) -> Shelf:
        """These rows as a shelf that others share. Without shared parts no copy is made: do not continue this cache."""
        if (self.shared == 0).all():
            P = int(self.lengths.max(initial=0))
            J = self.config.conv
            return Shelf(
                [k[: self.rows, :, :P] for k in self.keys],
                [v[: self.rows, :, :P] for v in self.values],
                [x[: self.rows, : J + P] for x in self.inputs],
                self.lengths.copy(),
            )
        return self._flattened()

    def own(self) -> None:
        """Copy what lies on shelves into the rows: one that nobody shares is then read in one piece, and faster."""
        whole = self._flattened()
        self.keys, self.values, self.inputs = whole.keys, whole.values, whole.inputs
        self.shared, self.shelves = np.zeros_like(self.shared), []
        self.shelf_of, self.slot_of = np.full_like(self.shelf_of, -1), np.zeros_like(self.slot_of)
        self._rearranged()

    def share(self) -> None:
        """The way back: the rows' texts go on a shelf, so that rows that join need not be as wide as the longest."""
        whole = self.shelve()
        self.lengths = self.shared = np.zeros(0, np.int64)
        self.shelf_of, self.slot_of, self.shelves = np.zeros(0, np.int64), np.zeros(0, np.int64), []
        self._allocate(0, 0)
        self.join(whole, range(len(whole.lengths)), whole.lengths.tolist())

    def begin(self, T: int) -> Pass:
        """Make room for T more tokens a row and prepare what all layers need. Positions past the window are padding."""
        if self.rows and (self.lengths.min() + T > self.config.window or self.lengths.max() > self.config.window):
            raise KlypeError(f"The text has grown past the model's window of {self.config.window} tokens.")
        own = self.lengths - self.shared
        self._reserve(self.rows, int(own.max(initial=0)) + T)
        if self.groups is None:
            self.groups = group_rows(self.shelves, self.shelf_of, self.slot_of, self.shared)
        return prepare(self, own, T)

    def begin_one(self, fused: Fused, rope: tuple[Tensor, Tensor] | None) -> OneMore:
        """As ``begin`` for one token, for C; no row fills the window yet."""
        self._reserve(self.rows, int((self.lengths - self.shared).max()) + 1)
        if self.tables is None:
            self.tables = seated(self.shelves, np.where(self.shared > 0, self.shelf_of, -1), self.slot_of, self.config)
        return OneMore(self, self.tables, fused, rope)

    def extend(self, T: int) -> Tensor:
        """Make room for T more tokens a row, which has nothing on a shelf; their positions [R, T]."""
        assert not self.shared.any()
        assert (self.lengths + T <= self.config.window).all()
        self._reserve(self.rows, int(self.lengths.max(initial=0)) + T)
        positions_RT = self.lengths[:, None] + np.arange(T)
        self.lengths = self.lengths + T
        return torch.from_numpy(positions_RT)

    def _rearranged(self) -> None:
        """Who reads what has changed."""
        self.groups = self.tables = None

    def _take(self, order: Indices) -> None:
        self.lengths, self.shared = self.lengths[order], self.shared[order]
        self.shelf_of, self.slot_of = self.shelf_of[order], self.slot_of[order]
        self._rearranged()
        self._tidy_shelves()

    def _tidy_shelves(self) -> None:
        """Forget shelves nobody reads, and copy the living half of one that is mostly unread."""
        kept: list[Shelf] = []
        for index, shelf in enumerate(self.shelves):
            readers = np.flatnonzero(self.shelf_of == index)
            if not len(readers):
                continue
            slots, renamed = np.unique(self.slot_of[readers], return_inverse=True)
            if 2 * len(slots) <= len(shelf.lengths):
                shelf = shelf.take(slots)
                self.slot_of[readers] = renamed
            self.shelf_of[readers] = len(kept)
            kept.append(shelf)
        self.shelves = kept

    def _merge_shelves(self) -> None:
        """Put shelves of alike length and size together, so that a busy server has few of them, at amortised cost."""
        index = len(self.shelves) - 1
        while index > 0:
            last = self.shelves[index]
            alike = [i for i in range(index) if self.shelves[i].alike(last)]
            if not alike:
                return
            first = alike[-1]
            moved = self.shelf_of == index
            self.slot_of[moved] += len(self.shelves[first].lengths)
            self.shelf_of[moved] = first
            self.shelves[first] = self.shelves[first].joined(last)
            self.shelves.pop()
            if first != index - 1:  # the merged one becomes the last, to be compared again
                self.shelves[first], self.shelves[-1] = self.shelves[-1], self.shelves[first]
                swap = np.arange(len(self.shelves))
                swap[[first, index - 1]] = index - 1, first
                self.shelf_of = np.where(self.shelf_of >= 0, swap[self.shelf_of], -1)
            index -= 1

    def _lead(self, rows: Indices) -> None:
        """Copy the J convolution inputs that precede each row's own part."""
        J = self.config.conv
        if not J:
            return
        for index, shelf in enumerate(self.shelves):
            here = rows[self.shelf_of[rows] == index]
            if len(here):
                slot = placed(self.slot_of[here, None], self.device)
                column = placed(self.shared[here, None] + np.arange(J), self.device)
                row = placed(here, self.device)
                for mine, theirs in zip(self.inputs, shelf.inputs, strict=True):
                    mine[row, :J] = theirs[slot, column]

    def _flattened(self) -> Shelf:
        J, P, R = self.config.conv, int(self.lengths.max(initial=0)), self.rows
        keys, values, inputs = [], [], []
        for layer in range(self.config.layers):
            k = self.keys[layer].new_zeros(R, self.config.kv_heads, P, self.config.head_dim)
            v = torch.zeros_like(k)
            x = k.new_zeros(R, J + P, self.config.width) if J else k.new_zeros(0)
            for row in range(R):
                shared, own = int(self.shared[row]), int(self.lengths[row] - self.shared[row])
                if shared:
                    shelf, slot = self.shelves[self.shelf_of[row]], int(self.slot_of[row])
                    k[row, :, :shared] = shelf.keys[layer][slot, :, :shared]
                    v[row, :, :shared] = shelf.values[layer][slot, :, :shared]
                k[row, :, shared : shared + own] = self.keys[layer][row, :, :own]
                v[row, :, shared : shared + own] = self.values[layer][row, :, :own]
                if J:
                    if shared:
                        x[row, J : J + shared] = shelf.inputs[layer][slot, J : J + shared]
                    x[row, J + shared : J + shared + own] = self.inputs[layer][row, J : J + own]
            keys.append(k)
            values.append(v)
            if J:
                inputs.append(x)
        return Shelf(keys, values, inputs, self.lengths.copy())

    def _allocate(self, rows: int, columns: int) -> None:
        c = self.config
        shape = (rows, c.kv_heads, columns, c.head_dim)
        inputs, taps = (rows, c.conv + columns, c.width), range(c.layers if c.conv else 0)
        self.keys = [torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(c.layers)]
        self.values = [torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(c.layers)]
        self.inputs = [torch.zeros(inputs, dtype=self.dtype, device=self.device) for _ in taps]

    def _reserve(self, rows: int, columns: int) -> None:
        """Grow by half, at least to what is asked, columns in whole blocks. Zeros, since a masked NaN stays a NaN."""
        R, _, S, _ = self.keys[0].shape
        if rows <= R and columns <= S:
            return
        new_rows = max(rows, R + R // 2) if rows > R else R
        new_columns = -(-max(columns, S + S // 2) // BLOCK) * BLOCK if columns > S else S
        old = (self.keys, self.values, self.inputs)
        self._allocate(new_rows, new_columns)
        for before, after in zip(old, (self.keys, self.values, self.inputs), strict=True):
            for b, a in zip(before, after, strict=True):
                if b.dim() == 4:
                    a[:R, :, :S] = b
                else:
                    a[:R, : b.shape[1]] = b
