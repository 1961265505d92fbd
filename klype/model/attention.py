"""Attention, rotary positions and the short convolution: the interface of backends, and the backend in torch.

A forward pass computes either whole texts, as in training, or new tokens of the rows of a cache, as in decoding. Either
way a backend makes one ``AttentionPass`` for all layers. Shapes: B batch, T (new) tokens of a row, N = B * T; H query
heads share G key heads, g each, of width K; D model width, J convolution taps; of a cache see ``klype.model.cache``.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention, silu

from klype.model.cache import Cache, Readers, to_device
from klype.model.config import ModelConfig
from klype.model.packed_texts import PackedTexts

# cos and sin for every position [window, K], or gathered so that they broadcast against heads
Rope = tuple[Tensor, Tensor]
# masks of up to this many positions are kept in memory
MATERIALISED = 512
# up to this many scores per layer are written out in decoding; above, torch's fused kernel is used unless KV is shared
WRITTEN = 1 << 24
# torch 2.13 computes batched products of fewer multiplications per matrix in a plain loop, three times slower
SMALLEST = 400


class AttentionPass:
    """Attention metadata of one forward pass, and what its layers compute between matrix products (here in torch).

    States are [N, D], the tokens of all texts one after the other.
    """

    def __init__(self, config: ModelConfig, rope: Rope | None) -> None:
        """``rope``: gathered at the tokens' positions."""
        self.config = config
        self.rope = rope

    def norm(
        self, x_ND: Tensor, added_ND: Tensor | None, norm: nn.RMSNorm, taps_JD: Tensor | None = None, layer: int = 0
    ) -> tuple[Tensor, Tensor]:
        """x + added, and its norm, which is convolved if there are ``taps_JD``."""
        if added_ND is not None:
            x_ND = x_ND + added_ND
        u_ND: Tensor = norm(x_ND)
        return x_ND, u_ND if taps_JD is None else self.convolve(u_ND, taps_JD, layer)

    def heads(self, heads_MBTK: Tensor, norms: Sequence[nn.RMSNorm | None]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [H, B, T, K], keys and values [G, B, T, K] of all M = H + 2 G heads, normed and rotated."""
        H, G = self.config.heads, self.config.kv_heads
        qk, (q_norm, k_norm) = heads_MBTK[: H + G], norms
        if q_norm is not None and k_norm is not None:
            qk = torch.cat((q_norm(qk[:H]), k_norm(qk[H:])))
        if self.rope is not None:
            qk = rotate(qk, *self.rope)
        return qk[:H], qk[H:], heads_MBTK[H + G :]

    def convolve(self, u_ND: Tensor, taps_JD: Tensor, layer: int) -> Tensor:
        """The short convolution of each text."""
        raise NotImplementedError

    def attend(self, qkv_NE: Tensor, norms: Sequence[nn.RMSNorm | None], layer: int) -> Tensor:
        """The output of attention, [N, H * K]. ``norms``: of the queries and of the keys."""
        raise NotImplementedError

    def swiglu(self, gate_up_NF: Tensor) -> Tensor:
        """silu(gate) * up."""
        gate, up = gate_up_NF.chunk(2, -1)
        return silu(gate) * up

    def add(self, x_ND: Tensor, added_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        """The residual stream and the term still to be added to it: a kernel can add it while it norms the sum."""
        return x_ND + added_ND, None  # added here, a layer keeps one tensor where activations are recomputed


class Backend:
    """Computes attention; chosen when a model is opened. This one is torch's, for every shape, dtype and device: it
    packs no texts, but computes rows of equal length with a mask."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # copies of a model share it

    def supports(self, config: ModelConfig, longest: int, weight: Tensor) -> bool:
        """Whether it computes packed texts of at most ``longest`` tokens in the weight's dtype and on its device."""
        return False

    def packed_pass(self, config: ModelConfig, texts: PackedTexts, rope: Rope | None) -> AttentionPass:
        """Whole texts packed end to end (varlen), where it ``supports`` them."""
        raise NotImplementedError

    def decode(self, cache: Cache, T: int, rope: Rope | None) -> AttentionPass:
        """T new tokens of every row of a cache, which has reserved room for them."""
        return CachedRows(cache, T, rope)


TORCH = Backend()


class FusedDecoder(Protocol):
    """Computes a forward pass over few new tokens of a cache, all layers in one call."""

    def supports(self, cache: Cache, T: int) -> bool:
        """Whether T new tokens per row are few enough and inside the window."""

    def hidden(self, x_BTD: Tensor, cache: Cache) -> Tensor:
        """States after the last norm, [B, T, D], of these embeddings, whose keys and values are stored."""


class WholeTexts(AttentionPass):
    """Whole texts as rows of equal length. ``mask`` [T, T] or [B, T, T] is added to the scores; None: plain causal
    attention by a fused kernel. ``at_BT``: positions, where rows hold several documents."""

    def __init__(
        self, config: ModelConfig, rope: Rope | None, shape: tuple[int, int], mask: Tensor | None, at_BT: Tensor | None
    ) -> None:
        super().__init__(config, rope)
        self.shape, self.mask, self.position_BT = shape, mask, at_BT

    def convolve(self, u_ND: Tensor, taps_JD: Tensor, layer: int) -> Tensor:
        return convolve(u_ND.view(*self.shape, -1), taps_JD, self.position_BT).flatten(0, 1)

    def attend(self, qkv_NE: Tensor, norms: Sequence[nn.RMSNorm | None], layer: int) -> Tensor:
        (B, T), H, K, mask = self.shape, self.config.heads, self.config.head_dim, self.mask
        heads_MBTK = qkv_NE.view(B, T, -1, K).permute(2, 0, 1, 3).contiguous()
        q_HBTK, k_GBTK, v_GBTK = self.heads(heads_MBTK, norms)
        g = H // self.config.kv_heads
        if mask is None or longest_written(q_HBTK.dtype) < T:
            q, k, v = (z.transpose(0, 1) for z in (q_HBTK, k_GBTK, v_GBTK))
            added = mask if mask is None or mask.dim() == 2 else mask[:, None]
            y = scaled_dot_product_attention(q, k, v, attn_mask=added, is_causal=mask is None, enable_gqa=g > 1)
            y_HBTK = y.transpose(0, 1)
        else:
            if g > 1:
                k_GBTK, v_GBTK = k_GBTK.repeat_interleave(g, 0), v_GBTK.repeat_interleave(g, 0)
            added = mask.expand(H * B, T, T) if mask.dim() == 2 else mask.expand(H, B, T, T).reshape(H * B, T, T)
            q, k, v = (z.reshape(H * B, T, K) for z in (q_HBTK, k_GBTK, v_GBTK))
            weights = torch.baddbmm(added, q, k.mT, alpha=K**-0.5).softmax(-1)
            y_HBTK = torch.bmm(weights, v).view(H, B, T, K)
        return y_HBTK.permute(1, 2, 0, 3).reshape(B * T, H * K)


def longest_written(dtype: torch.dtype) -> int:
    """Largest number of positions for which written-out scores are faster, forward and backward, than a fused kernel.

    Measured on a CPU with AVX-512 (torch 2.13, widths 64 to 384): in float32 only the shortest texts; in bfloat16 the
    fused kernel's backward is 1.6 times (512 positions) to 3 times (75) slower.
    """
    return 80 if dtype == torch.float32 else MATERIALISED


def document_mask(document_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """[B,T,T], 0 where a position may look (same document, not later), -inf elsewhere."""
    T = document_BT.shape[1]
    same = document_BT[:, :, None] == document_BT[:, None, :]
    allowed = same & torch.ones(T, T, dtype=torch.bool, device=same.device).tril()
    return torch.zeros(allowed.shape, dtype=dtype, device=same.device).masked_fill_(~allowed, float("-inf"))


def document_positions(document_BT: Tensor) -> Tensor:
    """Position of every token within its own run of equal document ids."""
    index = torch.arange(document_BT.shape[1], device=document_BT.device).expand_as(document_BT)
    starts = torch.ones_like(document_BT, dtype=torch.bool)
    starts[:, 1:] = document_BT[:, 1:] != document_BT[:, :-1]
    return index - torch.where(starts, index, 0).cummax(1).values


def convolve(x_BTD: Tensor, taps_JD: Tensor, position_BT: Tensor | None) -> Tensor:
    """u_t = x_t + sum over j = 1..J of s_j * x_{t-j}, channel by channel, never beyond the start of a document.

    Source: Primer's depth-wise convolution (So et al. 2021, arXiv:2109.08668) and "canon layers" (Allen-Zhu 2025).
    """
    if position_BT is None:
        out: Tensor = _Convolution.apply(x_BTD, taps_JD)  # type: ignore[no-untyped-call]
        return out
    u_BTD, T = x_BTD, x_BTD.shape[1]
    for j in range(1, min(taps_JD.shape[0], T - 1) + 1):
        # a tap that would reach across the start of its document sees nothing
        shifted = pad(x_BTD[:, : T - j], (0, 0, j, 0)) * (position_BT >= j)[..., None]
        u_BTD = torch.addcmul(u_BTD, shifted, taps_JD[j - 1])
    return u_BTD


class _Convolution(torch.autograd.Function):
    """The convolution with a hand-written gradient: autograd needs three times as many kernels, which dominate at this
    size."""

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, taps_JD: Tensor) -> Tensor:
        ctx.save_for_backward(x_BTD, taps_JD)
        u, T = x_BTD.clone(), x_BTD.shape[1]
        for j in range(1, min(taps_JD.shape[0], T - 1) + 1):
            u[:, j:].addcmul_(x_BTD[:, : T - j], taps_JD[j - 1])
        return u

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (grad_BTD,) = grads
        x_BTD, taps_JD = ctx.saved_tensors
        grad_x, grad_taps, T = grad_BTD.clone(), torch.zeros_like(taps_JD), x_BTD.shape[1]
        for j in range(1, min(taps_JD.shape[0], T - 1) + 1):
            grad_x[:, : T - j].addcmul_(grad_BTD[:, j:], taps_JD[j - 1])
            grad_taps[j - 1] = (grad_BTD[:, j:] * x_BTD[:, : T - j]).sum((0, 1))
        return grad_x, grad_taps


def rope_table(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos_PH and sin_PH, P positions up to the window, H head_dim; the sign of ``rotate``'s first half is in sin."""
    angles_PF = torch.outer(torch.arange(config.window, dtype=torch.float32), rope_frequencies(config))
    cos, sin = angles_PF.cos(), angles_PF.sin()
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def rope_frequencies(config: ModelConfig) -> Tensor:
    """Radians per position for each pair of a head's dimensions, [K / 2]."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies, scaling = 1.0 / (config.rope_theta**half), config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    wavelengths = 2 * math.pi / frequencies
    low, high, old = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_window
    blend = ((old / wavelengths - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the last dimension by its position's angles; cos and sin broadcast against x."""
    half = x.shape[-1] // 2
    return torch.addcmul(x * cos, torch.cat((x[..., half:], x[..., :half]), -1), sin)


class CachedRows(AttentionPass):
    """T new tokens of every row of a cache.

    ``start`` is the own length of every row when all agree (plain slices then); else None and flat indices:
    ``places`` of keys [R*T*G], of convolution inputs [R*T] and of the window that the convolution looks at [R*(J+T)].
    ``mask`` [R or 1, T, P + S].
    """

    def __init__(self, cache: Cache, T: int, rope: Rope | None) -> None:
        own, readers = cache.lengths - cache.shared, cache.readers()
        R, J = cache.rows, cache.config.conv
        G, capacity = cache.config.kv_heads, cache.keys.shape[-2]
        self.cache, self.readers, self.T = cache, readers, T
        self.S, self.P = int(own.max(initial=0)) + T, max((g.P for g in readers), default=0)
        enough = -(-SMALLEST // cache.config.head_dim)
        if T == 1 and enough > self.S:  # a few unused positions more, lest torch takes its slow loop (see SMALLEST)
            self.S = min(enough, capacity)
        same = bool((own == own[:1]).all())
        self.start = int(own.max(initial=0)) if same else None
        columns_RT = own[:, None] + np.arange(T)
        if not same:
            row = np.arange(R)[:, None]
            head_RTG = (row * G)[:, :, None] + np.arange(G)
            self.places = to_device((head_RTG * capacity + columns_RT[:, :, None]).ravel(), cache.device)
            if J:
                self.input_places = to_device((row * (J + capacity) + J + columns_RT).ravel(), cache.device)
                window = row * (J + capacity) + own[:, None] + np.arange(J + T)
                self.window_places = to_device(window.ravel(), cache.device)
        # rows of equal lengths have one mask
        rows = slice(0, 1) if same and (cache.shared == cache.shared[:1]).all() else slice(None)
        seen = np.arange(self.S) <= columns_RT[rows, :, None]
        before = np.broadcast_to(np.arange(self.P) < cache.shared[rows, None, None], (*seen.shape[:2], self.P))
        seen = np.concatenate((before, seen), -1)
        self.mask: Tensor | None = None
        if not seen.all():
            zeros = torch.zeros(seen.shape, dtype=cache.dtype, device=cache.device)
            self.mask = zeros.masked_fill_(to_device(~seen, cache.device), float("-inf"))
        # padding may lie past the window, where the table has no angles
        at = to_device(np.minimum(cache.shared[:, None] + columns_RT, cache.config.window - 1), cache.device)
        super().__init__(cache.config, None if rope is None else (rope[0][at], rope[1][at]))

    def convolve(self, u_ND: Tensor, taps_JD: Tensor, layer: int) -> Tensor:
        """The short convolution over new inputs and those in the cache, which keeps the new ones."""
        stored = self.cache.inputs[layer]
        J, R, D = taps_JD.shape[0], self.cache.rows, u_ND.shape[1]
        x_RTD = u_ND.view(R, self.T, D)
        if self.start is not None:
            stored[:R, J + self.start : J + self.start + self.T] = x_RTD
            past_RWD = stored[:R, self.start : self.start + J + self.T]
        else:
            flat = stored.view(-1, D)
            flat.index_copy_(0, self.input_places, x_RTD.reshape(-1, D))
            past_RWD = flat.index_select(0, self.window_places).view(R, J + self.T, D)
        if self.T == 1:
            return u_ND + (past_RWD[:, :J] * taps_JD.flip(0)).sum(1)
        u_RTD = x_RTD.clone()
        for j in range(1, J + 1):
            u_RTD.addcmul_(past_RWD[:, J - j : J - j + self.T], taps_JD[j - 1])
        return u_RTD.view(-1, D)

    def attend(self, qkv_NE: Tensor, norms: Sequence[nn.RMSNorm | None], layer: int) -> Tensor:
        """Store the new keys and values, then attend to the whole row."""
        R, T, K = self.cache.rows, self.T, self.config.head_dim
        q_HRTK, k_GRTK, v_GRTK = self.heads(qkv_NE.view(R, T, -1, K).permute(2, 0, 1, 3), norms)
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        for kept, new_GRTK in ((keys, k_GRTK), (values, v_GRTK)):
            if self.start is not None:
                kept[:R, :, self.start : self.start + T] = new_GRTK.transpose(0, 1)
            else:
                kept.view(-1, K).index_copy_(0, self.places, new_GRTK.permute(1, 2, 0, 3).reshape(-1, K))
        keys, values = keys[:R, :, : self.S], values[:R, :, : self.S]
        H, G = self.config.heads, self.config.kv_heads
        g, scale = H // G, K**-0.5
        if T == 1 and not self.readers and self.mask is None:  # the query heads of a key head as so many positions
            q = q_HRTK.view(G, g, R, K).permute(2, 0, 1, 3)
            return scaled_dot_product_attention(q, keys, values).reshape(R, H * K)
        if not self.readers and T > 1 and R * H * T * self.S > WRITTEN:
            mask = None if self.mask is None else self.mask[:, None]
            q = q_HRTK.transpose(0, 1)
            y = scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=g > 1)
            return y.transpose(1, 2).reshape(R * T, H * K)
        q = (q_HRTK * scale).view(G, g, R, T, K).permute(2, 0, 1, 3, 4).reshape(R, G, g * T, K)
        own = torch.bmm(q.flatten(0, 1), keys.flatten(0, 1).mT).view(R, G, g * T, self.S)
        scores = torch.cat((self._shared_scores(layer, q), own), -1) if self.readers else own
        if self.mask is not None:
            scores.view(R, G * g, T, -1).add_(self.mask[:, None])
        weights = scores.softmax(-1)
        y = torch.bmm(weights[..., self.P :].flatten(0, 1), values.flatten(0, 1)).view(R, G, g * T, K)
        for group in self.readers:
            shared = group.store.values[layer][:, :, : group.P].reshape(group.N * G, group.P, K)
            w = _by_store(group, weights[..., : group.P]).reshape(group.N * G, group.n * g * T, group.P)
            back = _by_row(group, torch.bmm(w, shared).view(group.N, G, group.n, g * T, K))
            if group.rows is None:
                y += back
            else:
                y.index_add_(0, group.rows, back)
        return y.view(R, G * g, T, K).transpose(1, 2).reshape(R * T, H * K)

    def _shared_scores(self, layer: int, q_RGQK: Tensor) -> Tensor:
        """[R, G, g*T, P]: every row's queries against the shared keys, all readers of a slot in one product."""
        R, G, Q, K = q_RGQK.shape
        # in the usual case, one store that every row reads, nothing has to be filled up
        whole = len(self.readers) == 1 and self.readers[0].rows is None
        out = q_RGQK if whole else q_RGQK.new_full((R, G, Q, self.P), float("-inf"))
        for group in self.readers:
            keys = group.store.keys[layer][:, :, : group.P]
            q = _by_store(group, q_RGQK).reshape(group.N * G, group.n * Q, K)
            scores = torch.bmm(q, keys.reshape(group.N * G, group.P, K).mT)
            back = _by_row(group, scores.view(group.N, G, group.n, Q, group.P))
            if whole:
                return back
            assert group.P <= self.P
            if group.rows is None:
                out[..., : group.P] = back
            else:
                out[group.rows, ..., : group.P] = back
        return out


def _by_store(group: Readers, x_RGQC: Tensor) -> Tensor:
    """Rows in their places, [N, G, n, Q, C]."""
    x_PGQC = x_RGQC if group.row_of_place is None else x_RGQC.index_select(0, group.row_of_place)
    return x_PGQC.view(group.N, group.n, *x_PGQC.shape[1:]).transpose(1, 2)


def _by_row(group: Readers, x_NGnQC: Tensor) -> Tensor:
    """Places back in rows, [rows, G, Q, C]."""
    x_PGQC = x_NGnQC.transpose(1, 2).flatten(0, 1)
    return x_PGQC if group.place_of_row is None else x_PGQC.index_select(0, group.place_of_row)
