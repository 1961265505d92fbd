"""Texts that many rows share: keys, values and convolution inputs that never change once they are on the shelf."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad

Indices = npt.NDArray[np.int64]


def placed(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """The array as a tensor where the model computes."""
    return torch.from_numpy(array).to(device)


@dataclass(frozen=True, eq=False)
class Shelf:
    """N slots. Per layer: keys and values [N, G, P, K]; inputs [N, J + P, D], J leading zeros (none without taps)."""

    keys: list[Tensor]
    values: list[Tensor]
    inputs: list[Tensor]
    lengths: Indices

    @property
    def device(self) -> torch.device:
        return self.keys[0].device

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values, *self.inputs))

    def take(self, slots: Indices) -> Shelf:
        """A copy of some slots, cut to their longest."""
        index, lengths = placed(slots, self.device), self.lengths[slots]
        P = int(lengths.max(initial=0))
        lead = self.inputs[0].shape[1] - self.keys[0].shape[2] if self.inputs else 0
        return Shelf(
            [k[:, :, :P].index_select(0, index) for k in self.keys],
            [v[:, :, :P].index_select(0, index) for v in self.values],
            [x[:, : lead + P].index_select(0, index) for x in self.inputs],
            lengths,
        )

    def alike(self, other: Shelf) -> bool:
        """Same power of two of positions, and sizes within a factor of two: worth one shelf."""
        long, short = sorted((int(self.lengths.max(initial=1)), int(other.lengths.max(initial=1))), reverse=True)
        many, few = sorted((len(self.lengths), len(other.lengths)), reverse=True)
        return long <= max(2 * short, 32) and many <= 2 * few

    def joined(self, other: Shelf) -> Shelf:
        """Both shelves' slots, the other's last."""

        def cat(a: Tensor, b: Tensor) -> Tensor:
            length = max(a.shape[-2], b.shape[-2])
            return torch.cat([pad(t, (0, 0, 0, length - t.shape[-2])) for t in (a, b)])

        return Shelf(
            [cat(a, b) for a, b in zip(self.keys, other.keys, strict=True)],
            [cat(a, b) for a, b in zip(self.values, other.values, strict=True)],
            [cat(a, b) for a, b in zip(self.inputs, other.inputs, strict=True)],
            np.concatenate((self.lengths, other.lengths)),
        )


@dataclass(frozen=True, eq=False)
class Groups:
    """Who reads one shelf: its N slots with room for n rows each, so that a slot's keys meet all its readers at once.

    ``row_of_place`` [N*n] is the reader in each place (any row in an empty one); ``place_of_row`` the way back, for
    ``rows`` (None: all rows). Both None when row i sits in place i.
    """

    shelf: Shelf
    P: int
    N: int
    n: int
    rows: Tensor | None
    row_of_place: Tensor | None
    place_of_row: Tensor | None
    lengths: Indices


def group_rows(shelves: Sequence[Shelf], shelf_of: Indices, slot_of: Indices, shared: Indices) -> list[Groups]:
    groups = []
    for index, shelf in enumerate(shelves):
        rows = np.flatnonzero((shelf_of == index) & (shared > 0))
        if not len(rows):
            continue
        slots = slot_of[rows]
        N = len(shelf.lengths)
        counts = np.bincount(slots, minlength=N)
        n = int(counts.max())
        order = np.argsort(slots, kind="stable")
        starts = np.cumsum(counts) - counts
        place = np.empty(len(rows), np.int64)
        place[order] = slots[order] * n + np.arange(len(rows)) - starts[slots[order]]
        everyone = len(rows) == len(shelf_of)
        row_of_place = np.zeros(N * n, np.int64)
        row_of_place[place] = rows
        straight = everyone and N * n == len(rows) and bool((place == np.arange(len(rows))).all())
        groups.append(
            Groups(
                shelf,
                int(shared[rows].max()),
                N,
                n,
                None if everyone else placed(rows, shelf.device),
                None if straight else placed(row_of_place, shelf.device),
                None if straight else placed(place, shelf.device),
                shared[rows],
            )
        )
    return groups
