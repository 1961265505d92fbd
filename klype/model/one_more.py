"""One more token of every row of a cache: what lies between a layer's matrix products is C's (``rows.c``).

torch's way is a dozen passes over memory a layer. Shapes: see ``klype.model.cache``.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from klype.model.config import ModelConfig
from klype.model.fused import COUNT, POINTER, Fused, at
from klype.model.laid import Texts
from klype.model.shelf import Shelf

if TYPE_CHECKING:
    from klype.model.cache import Cache
    from klype.model.transformer import Layer

Indices = npt.NDArray[np.int64]
SEATS = 32
"""Most readers of one text that sit at a table."""
SHARES = 4
"""So many pieces of work a thread, or more, so that none waits long for another."""


class RowsFields(ctypes.Structure):
    """rows.c: Rows."""

    _fields_ = (
        *((name, POINTER) for name in ("in", "out", "q_norm", "k_norm", "cos", "sin", "keys", "values")),
        *((name, POINTER) for name in ("own", "shared", "rows", "starts", "shelf_keys", "shelf_values", "strides")),
        *((name, COUNT) for name in ("tables", "H", "G", "K", "S", "most", "longest", "widest")),
        ("eps", ctypes.c_float),
    )


@dataclass(frozen=True, eq=False)
class Tables:
    """Who sits together: rows [R] in the order of seats, of which table t has ``starts[t]`` to ``starts[t + 1]``.

    ``keys`` and ``values`` [layers, tables] are where the text of each table lies, ``strides`` [tables] how many
    numbers there are from one head to the next; 0 where nothing is shared. They hold as long as the shelves do.
    """

    rows: Tensor
    starts: Tensor
    most: int
    keys: Indices
    values: Indices
    strides: Tensor


def seated(shelves: list[Shelf], shelf_of: Indices, slot_of: Indices, config: ModelConfig) -> Tables:
    """Tables for these rows."""
    R = len(shelf_of)
    pieces = SHARES * torch.get_num_threads()
    most = max(1, min(SEATS, R * config.kv_heads // pieces))
    rows = np.lexsort((slot_of, shelf_of))
    shelf, slot = shelf_of[rows], slot_of[rows]
    fresh = np.ones(R, bool)
    fresh[1:] = (shelf[1:] != shelf[:-1]) | (slot[1:] != slot[:-1])
    firsts = np.flatnonzero(fresh)
    seat = np.arange(R) - np.repeat(firsts, np.diff(firsts, append=R))
    starts = np.append(np.flatnonzero(seat % most == 0), R)
    heads = starts[:-1]
    keys, values, strides = (np.zeros((config.layers, len(heads)), np.int64) for _ in range(3))
    for index, one in enumerate(shelves):
        here = np.flatnonzero(shelf[heads] == index)
        for layer in range(config.layers if len(here) else 0):
            for to, stored in ((keys, one.keys[layer]), (values, one.values[layer])):
                slots, positions, size = stored.stride(0), stored.stride(2), stored.element_size()
                assert positions == config.head_dim
                to[layer, here] = stored.data_ptr() + slot[heads][here] * slots * size
            strides[layer, here] = one.keys[layer].stride(1)
    assert (strides == strides[:1]).all()
    return Tables(torch.from_numpy(rows), torch.from_numpy(starts), most, keys, values, torch.from_numpy(strides[0]))


class OneMore:
    """What all layers of a pass need."""

    def __init__(self, cache: Cache, tables: Tables, fused: Fused, rope: tuple[Tensor, Tensor] | None) -> None:
        """``rope``: cos and sin [window, K]."""
        own = cache.lengths - cache.shared
        self.cache = cache
        self.fused = fused
        self.tables = tables
        self.own_R, shared_R = torch.from_numpy(own), torch.from_numpy(cache.shared)
        positions_R = torch.from_numpy(cache.lengths)
        self.rope = None if rope is None else tuple(table[positions_R].float() for table in rope)
        self.texts = Texts.alone(cache.rows)
        c = cache.config
        self.fields = RowsFields(
            own=at(self.own_R),
            shared=at(shared_R),
            rows=at(self.tables.rows),
            starts=at(self.tables.starts),
            strides=at(self.tables.strides),
            tables=len(self.tables.starts) - 1,
            H=c.heads,
            G=c.kv_heads,
            K=c.head_dim,
            S=cache.keys[0].shape[2],
            most=self.tables.most,
            longest=int(own.max()) + 1,
            widest=int(cache.shared.max()),
            eps=c.norm_eps,
        )
        self._kept = shared_R
        if self.rope is not None:
            self.fields.cos, self.fields.sin = map(at, self.rope)

    def end(self) -> None:
        """The new tokens are part of every row from here on."""
        self.cache.lengths = self.cache.lengths + 1

    def convolve(self, index: int, x_RD: Tensor, taps_JD: Tensor) -> Tensor:
        """The short convolution, its past taken from the cache."""
        inputs, u_RD = self.cache.inputs[index], torch.empty_like(x_RD)
        (R, D), J = x_RD.shape, len(taps_JD)
        sizes = COUNT(R), COUNT(J), COUNT(inputs.shape[1] - J), COUNT(D)
        pointers = at(x_RD), at(taps_JD.detach()), at(inputs), at(u_RD), at(self.own_R)
        self.fused.call("klype_rows_convolve", *pointers, *sizes, like=x_RD)
        return u_RD

    def attend(self, index: int, qkv_RE: Tensor, layer: Layer) -> Tensor:
        """Stores the new keys and values, then attends to all of the row: [R, H * K]."""
        fields, c = self.fields, self.cache.config
        out_RE = qkv_RE.new_empty(len(qkv_RE), c.heads * c.head_dim)
        norms = [None if norm is None else norm.weight.detach().float() for norm in (layer.q_norm, layer.k_norm)]
        fields.q_norm, fields.k_norm = map(at, norms)
        setattr(fields, "in", at(qkv_RE))
        fields.out, fields.keys, fields.values = map(at, (out_RE, self.cache.keys[index], self.cache.values[index]))
        fields.shelf_keys = self.tables.keys[index].ctypes.data
        fields.shelf_values = self.tables.values[index].ctypes.data
        self.fused.call("klype_rows_attend", ctypes.byref(fields), like=qkv_RE)
        return out_RE


def suits(fused: Fused, cache: Cache, x_RTD: Tensor) -> bool:
    """Whether a pass is one token of rows that do not fill the window, of a model that C computes."""
    c = cache.config
    if x_RTD.shape[1] != 1 or not cache.rows or cache.lengths.max() >= c.window or torch.is_grad_enabled():
        return False
    return fused.fits(c) and fused.takes(x_RTD)
