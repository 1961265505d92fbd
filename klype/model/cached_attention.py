"""One pass over new tokens of cached rows: what all layers need is prepared once. Shapes: see ``klype.model.cache``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from klype.model.shelf import Groups, placed

if TYPE_CHECKING:
    from klype.model.cache import Cache

Indices = npt.NDArray[np.int64]
WRITTEN = 1 << 24
"""Up to this many scores a layer they are written out; above, a fused kernel is used where no shelf is read."""

SMALLEST = 400
"""Products of fewer multiplications than this a matrix go to a plain loop in torch, three times slower (2.13)."""


@dataclass(frozen=True, eq=False)
class Pass:
    """``start`` is the own length of every row when all agree (plain slices then); else None and flat indices.

    ``positions`` [R, T]; ``mask`` [R or 1, T, P + S]; ``places`` of keys [R*T*G], of convolution inputs [R*T] and of
    the window that the convolution looks at [R*(J+T)].
    """

    cache: Cache
    groups: list[Groups]
    T: int
    S: int
    P: int
    start: int | None
    positions: Tensor
    mask: Tensor | None
    places: Tensor | None
    input_places: Tensor | None
    window_places: Tensor | None

    def end(self) -> None:
        """The new tokens are part of every row from here on."""
        self.cache.lengths = self.cache.lengths + self.T

    def convolve(self, layer: int, x_RTD: Tensor, taps_JD: Tensor) -> Tensor:
        """The short convolution, its past taken from the cache."""
        stored = self.cache.inputs[layer]
        J, R, D = taps_JD.shape[0], x_RTD.shape[0], x_RTD.shape[2]
        if self.start is not None:
            stored[:R, J + self.start : J + self.start + self.T] = x_RTD
            past_RWD = stored[:R, self.start : self.start + J + self.T]
        else:
            flat = stored.view(-1, D)
            assert self.input_places is not None
            assert self.window_places is not None
            flat.index_copy_(0, self.input_places, x_RTD.reshape(-1, D))
            past_RWD = flat.index_select(0, self.window_places).view(R, J + self.T, D)
        if self.T == 1:
            return x_RTD + (past_RWD[:, :J] * taps_JD.flip(0)).sum(1, keepdim=True)
        u_RTD = x_RTD.clone()
        for j in range(1, J + 1):
            u_RTD.addcmul_(past_RWD[:, J - j : J - j + self.T], taps_JD[j - 1])
        return u_RTD

    def attend(self, layer: int, q_HRTK: Tensor, k_GRTK: Tensor, v_GRTK: Tensor) -> Tensor:
        """Store the new keys and values, then attend to all of the row. Returns [R, T, H * K]."""
        keys, values = self._stored(layer, k_GRTK, v_GRTK)
        H, R, T, K = q_HRTK.shape
        G = k_GRTK.shape[0]
        g, scale = H // G, K**-0.5
        if T == 1 and not self.groups and self.mask is None:  # the query heads of a key head as so many positions
            q = q_HRTK.view(G, g, R, K).permute(2, 0, 1, 3)
            return scaled_dot_product_attention(q, keys, values).reshape(R, 1, H * K)
        if not self.groups and T > 1 and R * H * T * self.S > WRITTEN:
            mask = None if self.mask is None else self.mask[:, None]
            q = q_HRTK.transpose(0, 1)
            y = scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=g > 1)
            return y.transpose(1, 2).reshape(R, T, H * K)
        q = (q_HRTK * scale).view(G, g, R, T, K).permute(2, 0, 1, 3, 4).reshape(R, G, g * T, K)
        own = torch.bmm(q.flatten(0, 1), keys.flatten(0, 1).mT).view(R, G, g * T, self.S)
        scores = torch.cat((self._shelf_scores(layer, q), own), -1) if self.groups else own
        if self.mask is not None:
            scores.view(R, G * g, T, -1).add_(self.mask[:, None])
        weights = scores.softmax(-1)
        y = torch.bmm(weights[..., self.P :].flatten(0, 1), values.flatten(0, 1)).view(R, G, g * T, K)
        for group in self.groups:
            self._add_shelf(layer, group, weights, y)
        return y.view(R, G * g, T, K).transpose(1, 2).reshape(R, T, H * K)

    def _stored(self, layer: int, k_GRTK: Tensor, v_GRTK: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        R, K = k_GRTK.shape[1], k_GRTK.shape[3]
        if self.start is not None:
            span = slice(self.start, self.start + self.T)
            keys[:R, :, span] = k_GRTK.transpose(0, 1)
            values[:R, :, span] = v_GRTK.transpose(0, 1)
        else:
            assert self.places is not None
            keys.view(-1, K).index_copy_(0, self.places, k_GRTK.permute(1, 2, 0, 3).reshape(-1, K))
            values.view(-1, K).index_copy_(0, self.places, v_GRTK.permute(1, 2, 0, 3).reshape(-1, K))
        return keys[:R, :, : self.S], values[:R, :, : self.S]

    def _shelf_scores(self, layer: int, q_RGQK: Tensor) -> Tensor:
        """[R, G, g*T, P]: every row's queries against the shared keys, all readers of a slot in one product."""
        R, G, Q, K = q_RGQK.shape
        whole = len(self.groups) == 1 and self.groups[0].rows is None
        out = q_RGQK if whole else q_RGQK.new_full((R, G, Q, self.P), float("-inf"))
        for group in self.groups:
            keys = group.shelf.keys[layer][:, :, : group.P]
            q = _seated(group, q_RGQK).reshape(group.N * G, group.n * Q, K)
            scores = torch.bmm(q, keys.reshape(group.N * G, group.P, K).mT)
            back = _unseated(group, scores.view(group.N, G, group.n, Q, group.P))
            if whole:
                return back
            assert group.P <= self.P
            if group.rows is None:
                out[..., : group.P] = back
            else:
                out[group.rows, ..., : group.P] = back
        return out

    def _add_shelf(self, layer: int, group: Groups, weights_RGQC: Tensor, y_RGQK: Tensor) -> None:
        _, G, Q, K = y_RGQK.shape
        values = group.shelf.values[layer][:, :, : group.P]
        w = _seated(group, weights_RGQC[..., : group.P]).reshape(group.N * G, group.n * Q, group.P)
        y = torch.bmm(w, values.reshape(group.N * G, group.P, K))
        back = _unseated(group, y.view(group.N, G, group.n, Q, K))
        if group.rows is None:
            y_RGQK += back
        else:
            y_RGQK.index_add_(0, group.rows, back)


def prepare(cache: Cache, own: Indices, T: int) -> Pass:
    """What every layer of one pass over T new tokens a row needs; ``own`` are the own lengths before it."""
    assert cache.groups is not None
    R, J = cache.rows, cache.config.conv
    G, capacity = cache.config.kv_heads, cache.keys[0].shape[2]
    S, P = _span(int(own.max(initial=0)) + T, T, cache), max((g.P for g in cache.groups), default=0)
    same = R == 0 or bool((own == own[0]).all())
    columns_RT = own[:, None] + np.arange(T)
    positions = np.minimum(cache.shared[:, None] + columns_RT, cache.config.window - 1)
    places = input_places = window_places = None
    if not same:
        row = np.arange(R)[:, None]
        head_RTG = (row * G)[:, :, None] + np.arange(G)
        places = placed((head_RTG * capacity + columns_RT[:, :, None]).ravel(), cache.device)
        if J:
            input_places = placed((row * (J + capacity) + J + columns_RT).ravel(), cache.device)
            window = row * (J + capacity) + own[:, None] + np.arange(J + T)
            window_places = placed(window.ravel(), cache.device)
    start = (int(own[0]) if R else 0) if same else None
    mask = _mask(cache, own, (T, S, P), same)
    at = placed(positions, cache.device)
    return Pass(cache, cache.groups, T, S, P, start, at, mask, places, input_places, window_places)


def _span(needed: int, T: int, cache: Cache) -> int:
    """Own positions to look at: a few unused ones too, where torch's kernel for the smallest products is slow."""
    enough = -(-SMALLEST // cache.config.head_dim)
    return min(enough, cache.keys[0].shape[2]) if T == 1 and needed < enough else needed


def _mask(cache: Cache, own: Indices, sizes: tuple[int, int, int], same: bool) -> Tensor | None:
    """[R or 1, T, P+S] to add to the scores, or None when every position may be seen."""
    T, S, P = sizes
    assert cache.groups is not None
    ragged = any(group.rows is None and bool((group.lengths != group.P).any()) for group in cache.groups)
    partial = bool(cache.groups) and (len(cache.groups) > 1 or cache.groups[0].rows is not None)
    if T == 1 and same and not ragged and not partial and (cache.rows == 0 or own[0] + 1 == S):
        return None
    last = (own[:1] if same and not ragged and not partial else own)[:, None, None] + np.arange(T)[:, None]
    seen = np.arange(S) <= last
    if P:
        shared = cache.shared if seen.shape[0] != 1 or cache.rows == 1 else np.full(1, P)
        front = np.broadcast_to((np.arange(P) < shared[:, None])[:, None, :], (seen.shape[0], T, P))
        seen = np.concatenate((front, seen), -1)
    allowed = placed(seen, cache.device)
    zeros = torch.zeros(allowed.shape, dtype=cache.dtype, device=cache.device)
    return zeros.masked_fill_(~allowed, float("-inf"))


def _seated(group: Groups, x_RGQC: Tensor) -> Tensor:
    """Rows to their places: [N, G, n, Q, C]."""
    placed = x_RGQC if group.row_of_place is None else x_RGQC.index_select(0, group.row_of_place)
    return placed.view(group.N, group.n, *placed.shape[1:]).transpose(1, 2)


def _unseated(group: Groups, x_NGnQC: Tensor) -> Tensor:
    """Places back to rows: [rows, G, Q, C]."""
    placed = x_NGnQC.transpose(1, 2).flatten(0, 1)
    return placed if group.place_of_row is None else placed.index_select(0, group.place_of_row)
