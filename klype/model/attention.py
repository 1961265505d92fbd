"""Attention, rotary positions and the short convolution in torch: whole sequences, as in training."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from klype.model.config import ModelConfig, RopeScaling

MATERIALISED = 512
"""Up to this many positions a mask of scores is kept at hand."""


def written_up_to(dtype: torch.dtype) -> int:
    """Up to how many positions the scores are written out, forward and backward being faster than a fused kernel's.

    Measured on a CPU with AVX-512 (torch 2.13, widths 64 to 384): in float32 only the shortest texts; in bfloat16 the
    fused kernel's backward is 1.6 times (512 positions) to 3 times (75) slower.
    """
    return 80 if dtype == torch.float32 else MATERIALISED


def attend(q_HBTK: Tensor, k_GBTK: Tensor, v_GBTK: Tensor, mask: Tensor | None) -> Tensor:
    """Causal attention, heads first; H query heads share G key heads. ``mask`` [T,T] or [B,T,T] is added to the scores.

    ``None`` means plain causal attention by a fused kernel. Returns [B, T, H * K].
    """
    H, B, T, K = q_HBTK.shape
    if mask is None or written_up_to(q_HBTK.dtype) < T:
        y_HBTK = _fused(q_HBTK, k_GBTK, v_GBTK, mask)
    elif k_GBTK.shape[0] == H:
        y_HBTK = _written(q_HBTK, k_GBTK, v_GBTK, mask)
    else:
        groups = H // k_GBTK.shape[0]
        k, v = k_GBTK.repeat_interleave(groups, 0), v_GBTK.repeat_interleave(groups, 0)
        y_HBTK = _written(q_HBTK, k, v, mask)
    return y_HBTK.permute(1, 2, 0, 3).reshape(B, T, H * K)


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
        shifted = pad(x_BTD[:, : T - j], (0, 0, j, 0)) * (position_BT >= j)[..., None]
        u_BTD = torch.addcmul(u_BTD, shifted, taps_JD[j - 1])
    return u_BTD


class _Convolution(torch.autograd.Function):
    """Fused by hand: autograd through pads and sums takes three times as many kernels, which rule at this size."""

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


def _written(q_NBTK: Tensor, k_NBTK: Tensor, v_NBTK: Tensor, mask: Tensor) -> Tensor:
    N, B, T, K = q_NBTK.shape
    added = mask.expand(N * B, T, T) if mask.dim() == 2 else mask.expand(N, B, T, T).reshape(N * B, T, T)
    q, k, v = (z.reshape(N * B, T, K) for z in (q_NBTK, k_NBTK, v_NBTK))
    weights = torch.baddbmm(added, q, k.mT, alpha=K**-0.5).softmax(-1)
    return torch.bmm(weights, v).view(N, B, T, K)


def _fused(q_HBTK: Tensor, k_GBTK: Tensor, v_GBTK: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (z.transpose(0, 1) for z in (q_HBTK, k_GBTK, v_GBTK))
    gqa = q.shape[1] != k.shape[1]
    if mask is None:
        y = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
    else:
        added = mask if mask.dim() == 2 else mask[:, None]
        y = scaled_dot_product_attention(q, k, v, attn_mask=added, enable_gqa=gqa)
    return y.transpose(0, 1)


def rope_table(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos_PH and sin_PH, P positions up to the window, H head_dim; the sign of ``rotate``'s first half is in sin."""
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / (config.rope_theta**half)
    if config.rope_scaling is not None:
        frequencies = _scaled(frequencies, config.rope_scaling)
    angles_PF = torch.outer(torch.arange(config.window, dtype=torch.float32), frequencies)
    cos, sin = angles_PF.cos(), angles_PF.sin()
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the last dimension by its position's angles; cos and sin broadcast against x."""
    half = x.shape[-1] // 2
    return torch.addcmul(x * cos, torch.cat((x[..., half:], x[..., :half]), -1), sin)


def _scaled(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    wavelengths = 2 * math.pi / frequencies
    low, high, old = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_window
    blend = ((old / wavelengths - low) / (high - low)).clamp(0, 1)
    return (1 - blend) * frequencies / scaling.factor + blend * frequencies
