"""The compiled CPU backend: all that lies between a layer's matrix products, each in one pass over memory.

Packed texts, forward and backward, are ``train.c``'s; one new token of every row of a cache (fused decode) is
``rows.c``'s. torch's own way is several passes, each with a table of its own and a call from Python; a tiny model's
step is made of them. Nobody needs it: where there is no C compiler, or a shape is not supported, torch computes.

Shapes as in attention.py and cache.py; float32 or bfloat16, sums in float32.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from klype.model.attention import TORCH, AttentionPass, Backend, Rope
from klype.model.cache import Cache, Indices, SharedKV
from klype.model.compiler import library
from klype.model.config import ModelConfig
from klype.model.packed import PackedTexts

SOURCES = tuple(Path(__file__).with_name(name) for name in ("vectors.h", "train.c", "rows.c"))
# width and hidden must be multiples of this, head_dim a multiple of half of it
WIDTH = 16
# attention scores are written out, so texts may have at most this many positions
LONGEST = 512
POINTER, COUNT = ctypes.c_void_p, ctypes.c_int64
# at most this many readers of one shared text are computed together
SEATS = 32
# pieces of work per thread at least, so that no thread waits long for another
SHARES = 4


class NormFields(ctypes.Structure):
    """train.c: Norm."""

    _fields_ = (
        *((name, POINTER) for name in ("x", "delta", "weight", "taps", "sum", "u", "scale")),
        *((name, POINTER) for name in ("sum_gradient", "u_gradient", "x_gradient", "weight_gradient")),
        *((name, POINTER) for name in ("starts", "trees")),
        *((name, COUNT) for name in ("number", "D", "J")),
        ("eps", ctypes.c_float),
    )


class AttentionFields(ctypes.Structure):
    """train.c: Attention."""

    _fields_ = (
        *((name, POINTER) for name in ("in", "out", "spread", "cos", "sin", "out_gradient", "in_gradient")),
        *((name, POINTER) for name in ("starts", "trees")),
        *((name, COUNT) for name in ("number", "H", "G", "K", "longest")),
    )


class RowsFields(ctypes.Structure):
    """rows.c: Rows."""

    _fields_ = (
        *((name, POINTER) for name in ("in", "out", "q_norm", "k_norm", "cos", "sin", "keys", "values")),
        *((name, POINTER) for name in ("own", "shared", "rows", "starts", "shared_keys", "shared_values", "strides")),
        *((name, COUNT) for name in ("tables", "H", "G", "K", "S", "most", "longest", "widest")),
        ("eps", ctypes.c_float),
    )


def compiled_backend(folder: Path, announce: Callable[[], None] = lambda: None) -> Backend:
    """C, compiled now or before (see compiler.library); torch where it cannot be."""
    found = library(SOURCES, folder, announce)
    return TORCH if found is None else CompiledBackend(found)


@dataclass(frozen=True)
class CompiledBackend(Backend):
    """The backend in C."""

    library: ctypes.CDLL

    def supports(self, config: ModelConfig, longest: int, weight: Tensor) -> bool:
        return not config.qk_norm and longest <= LONGEST and _supports_widths(config) and self.supports_numbers(weight)

    def supports_numbers(self, x: Tensor) -> bool:
        """Whether it computes with such numbers."""
        return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)

    def packed(self, config: ModelConfig, texts: PackedTexts, rope: Rope | None) -> AttentionPass:
        return _PackedPass(self, config, texts, None if rope is None else (rope[0].float(), rope[1].float()))

    def decode(self, cache: Cache, T: int, rope: Rope | None) -> AttentionPass:
        fits = T == 1 and cache.rows and cache.lengths.max() < cache.config.window and _supports_widths(cache.config)
        if not fits or torch.is_grad_enabled() or not self.supports_numbers(cache.keys[0]):
            return TORCH.decode(cache, T, rope)
        return _FusedDecode(self, cache, rope)

    def cross_entropy(self, logits_NV: Tensor, targets_N: Tensor, weights_N: Tensor) -> Tensor:
        """Σ w·(−log p(target)), float32. The logits are **overwritten** by their gradient: use them no more."""
        total: Tensor = _Entropy.apply(logits_NV, targets_N, weights_N, self)  # type: ignore[no-untyped-call]
        return total

    def call(self, name: str, *arguments: Any, like: Tensor) -> None:
        """A function of the library, for numbers like this tensor's."""
        low = int(like.dtype == torch.bfloat16)
        if getattr(self.library, name)(*arguments, ctypes.c_int(low), ctypes.c_int(torch.get_num_threads())):
            raise MemoryError


class DeferredBackend(Backend):
    """A backend made when it is first needed: it takes seconds to compile, and a model whose passes over few tokens are
    computed whole (prepacked.CompiledDecoder) answers one question without it."""

    def __init__(self, make: Callable[[], Backend]) -> None:
        self._make = make

    @cached_property
    def made(self) -> Backend:
        """The backend itself."""
        return self._make()

    def supports(self, config: ModelConfig, longest: int, weight: Tensor) -> bool:
        return self.made.supports(config, longest, weight)

    def packed(self, config: ModelConfig, texts: PackedTexts, rope: Rope | None) -> AttentionPass:
        return self.made.packed(config, texts, rope)

    def decode(self, cache: Cache, T: int, rope: Rope | None) -> AttentionPass:
        # C has no pass for several tokens
        return self.made.decode(cache, T, rope) if T == 1 else super().decode(cache, T, rope)


def _supports_widths(config: ModelConfig) -> bool:
    """Whether widths are whole vectors."""
    return not (config.width % WIDTH or config.hidden % WIDTH or config.head_dim % (WIDTH // 2))


class _PackedPass(AttentionPass):
    """Packed texts. What is to be added to the stream stays beside it until the next norm adds it."""

    def __init__(self, backend: CompiledBackend, config: ModelConfig, texts: PackedTexts, rope: Rope | None) -> None:
        """``rope``: cos and sin [window, K], float32."""
        super().__init__(config, rope)
        self.backend, self.texts = backend, texts

    def norm(
        self, x_ND: Tensor, added_ND: Tensor | None, norm: nn.RMSNorm, taps_JD: Tensor | None = None, layer: int = 0
    ) -> tuple[Tensor, Tensor]:
        rest = self.texts, norm.eps or 0.0, self.backend
        got: tuple[Tensor, Tensor] = _Norm.apply(x_ND, added_ND, norm.weight, taps_JD, rest)  # type: ignore[no-untyped-call]
        return got

    def attend(self, qkv_NE: Tensor, norms: Sequence[nn.RMSNorm | None], layer: int) -> Tensor:
        """Causal within each text, queries and keys rotated; a branch sees its prefix."""
        out: Tensor = _Attention.apply(qkv_NE, self.config, self.rope, self.texts, self.backend)  # type: ignore[no-untyped-call]
        return out

    def swiglu(self, gate_up_NF: Tensor) -> Tensor:
        out: Tensor = _SwiGLU.apply(gate_up_NF, self.backend)  # type: ignore[no-untyped-call]
        return out

    def add(self, x_ND: Tensor, added_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        return x_ND, added_ND


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        delta_ND: Tensor | None,
        weight_D: Tensor,
        taps_JD: Tensor | None,
        rest: tuple[PackedTexts, float, CompiledBackend],
    ) -> tuple[Tensor, Tensor]:
        sum_ND, u_ND, scale_N = _normed(x_ND, delta_ND, weight_D, taps_JD, rest)
        ctx.save_for_backward(sum_ND, weight_D, taps_JD, scale_N)
        ctx.set_materialize_grads(False)
        ctx.rest = *rest, delta_ND is not None
        return sum_ND, u_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, sum_gradient_ND: Tensor | None, u_gradient_ND: Tensor | None) -> tuple[Tensor | None, ...]:
        texts, eps, backend, added = ctx.rest
        if u_gradient_ND is None:
            return (sum_gradient_ND, sum_gradient_ND if added else None, None, None, None)
        sum_ND, weight_D, taps_JD, scale_N = ctx.saved_tensors
        gradient_ND = torch.empty_like(sum_ND)
        J, D = (0 if taps_JD is None else len(taps_JD)), sum_ND.shape[1]
        sums = torch.zeros(torch.get_num_threads(), 1 + J, D, dtype=torch.float32)
        fields = _norm_fields(sum_ND, weight_D, taps_JD, texts, eps, scale_N)
        kept = [None if g is None else g.contiguous() for g in (sum_gradient_ND, u_gradient_ND)]
        fields.sum_gradient, fields.u_gradient = map(at, kept)
        fields.x_gradient, fields.weight_gradient = at(gradient_ND), at(sums)
        backend.call("klype_norm", ctypes.byref(fields), ctypes.c_int(1), like=sum_ND)
        low = sums[0].to(weight_D.dtype)
        return gradient_ND, gradient_ND if added else None, low[0], low[1:] if J else None, None


def _normed(
    x_ND: Tensor,
    delta_ND: Tensor | None,
    weight_D: Tensor,
    taps_JD: Tensor | None,
    rest: tuple[PackedTexts, float, CompiledBackend],
) -> tuple[Tensor, Tensor, Tensor]:
    """x + delta, its norm (convolved where there are taps), and what the norm scaled each row by."""
    texts, eps, backend = rest
    sum_ND = x_ND if delta_ND is None else torch.empty_like(x_ND)
    u_ND, scale_N = torch.empty_like(x_ND), x_ND.new_empty(len(x_ND), dtype=torch.float32)
    fields = _norm_fields(x_ND, weight_D, taps_JD, texts, eps, scale_N)
    fields.delta, fields.sum, fields.u = at(delta_ND), at(sum_ND), at(u_ND)
    backend.call("klype_norm", ctypes.byref(fields), ctypes.c_int(0), like=x_ND)
    return sum_ND, u_ND, scale_N


def _norm_fields(
    x_ND: Tensor, weight_D: Tensor, taps_JD: Tensor | None, texts: PackedTexts, eps: float, scale_N: Tensor
) -> NormFields:
    return NormFields(
        x=at(x_ND),
        weight=at(weight_D),
        taps=at(taps_JD),
        scale=at(scale_N),
        starts=at(texts.cu_seqlens),
        trees=at(texts.trees),
        number=texts.number,
        D=x_ND.shape[1],
        J=0 if taps_JD is None else len(taps_JD),
        eps=eps,
    )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv_NE: Tensor, config: ModelConfig, rope: Rope | None, texts: PackedTexts, backend: CompiledBackend
    ) -> Tensor:
        N = len(qkv_NE)
        out_NE = qkv_NE.new_empty(N, config.heads * config.head_dim)
        spread_NH = qkv_NE.new_empty(N, config.heads, dtype=torch.float32)
        fields = _attention_fields(qkv_NE, out_NE, spread_NH, config, rope, texts)
        backend.call("klype_attention", ctypes.byref(fields), ctypes.c_int(0), like=qkv_NE)
        ctx.save_for_backward(qkv_NE, out_NE, spread_NH)
        ctx.rest = config, rope, texts, backend
        return out_NE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NE: Tensor) -> tuple[Tensor | None, ...]:
        qkv_NE, out_NE, spread_NH = ctx.saved_tensors
        config, rope, texts, backend = ctx.rest
        gradient_NE, qkv_gradient_NE = gradient_NE.contiguous(), torch.empty_like(qkv_NE)
        fields = _attention_fields(qkv_NE, out_NE, spread_NH, config, rope, texts)
        fields.out_gradient, fields.in_gradient = at(gradient_NE), at(qkv_gradient_NE)
        backend.call("klype_attention", ctypes.byref(fields), ctypes.c_int(1), like=qkv_NE)
        return qkv_gradient_NE, None, None, None, None


def _attention_fields(
    qkv_NE: Tensor,
    out_NE: Tensor,
    spread_NH: Tensor,
    config: ModelConfig,
    rope: Rope | None,
    texts: PackedTexts,
) -> AttentionFields:
    cos, sin = rope if rope is not None else (None, None)
    return AttentionFields(
        at(qkv_NE),
        at(out_NE),
        at(spread_NH),
        cos=at(cos),
        sin=at(sin),
        starts=at(texts.cu_seqlens),
        trees=at(texts.trees),
        number=texts.number,
        H=config.heads,
        G=config.kv_heads,
        K=config.head_dim,
        longest=texts.max_seqlen,
    )


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up_NF: Tensor, backend: CompiledBackend) -> Tensor:
        ctx.save_for_backward(gate_up_NF)
        ctx.backend = backend
        return _swiglu(gate_up_NF, backend)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NF: Tensor) -> tuple[Tensor, None]:
        (gate_up_NF,) = ctx.saved_tensors
        gradient_NF, out_NF = gradient_NF.contiguous(), torch.empty_like(gate_up_NF)
        N, F = gradient_NF.shape
        pointers = at(gate_up_NF), at(gradient_NF), at(out_NF)
        ctx.backend.call("klype_swiglu", *pointers, COUNT(N), COUNT(F), like=gate_up_NF)
        return out_NF, None


def _swiglu(gate_up_NF: Tensor, backend: CompiledBackend) -> Tensor:
    N, F = len(gate_up_NF), gate_up_NF.shape[1] // 2
    out_NF = gate_up_NF.new_empty(N, F)
    backend.call("klype_swiglu", at(gate_up_NF), None, at(out_NF), COUNT(N), COUNT(F), like=gate_up_NF)
    return out_NF


class _Entropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor, weights_N: Tensor, backend: CompiledBackend) -> Tensor:
        N, V = logits_NV.shape
        targets_N, weights_N = targets_N.contiguous(), weights_N.contiguous()
        loss_N = logits_NV.new_empty(N, dtype=torch.float32)
        pointers = at(logits_NV), at(targets_N), at(weights_N), at(loss_N)
        wants = ctypes.c_int(ctx.needs_input_grad[0])
        backend.call("klype_entropy", *pointers, COUNT(N), COUNT(V), wants, like=logits_NV)
        ctx.gradient_NV = logits_NV.detach()
        return loss_N.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        if float(gradient) != 1.0:
            ctx.gradient_NV.mul_(gradient.to(ctx.gradient_NV.dtype))
        return ctx.gradient_NV, None, None, None


@dataclass(frozen=True, eq=False)
class Tables:
    """Rows grouped by the shared text that they read: group t has rows ``starts[t]`` to ``starts[t + 1]`` of ``rows``
    [R].

    ``keys`` and ``values`` [layers, tables] are where the text of each table lies, ``strides`` [tables] how many
    numbers there are from one head to the next; 0 where nothing is shared. They hold as long as the stores do.
    """

    rows: Tensor
    starts: Tensor
    most: int
    keys: Indices
    values: Indices
    strides: Tensor


def seated(stores: list[SharedKV], store_of: Indices, slot_of: Indices, config: ModelConfig) -> Tables:
    """Tables for these rows."""
    R = len(store_of)
    pieces = SHARES * torch.get_num_threads()
    most = max(1, min(SEATS, R * config.kv_heads // pieces))
    rows = np.lexsort((slot_of, store_of))
    store, slot = store_of[rows], slot_of[rows]
    fresh = np.ones(R, bool)
    fresh[1:] = (store[1:] != store[:-1]) | (slot[1:] != slot[:-1])
    firsts = np.flatnonzero(fresh)
    seat = np.arange(R) - np.repeat(firsts, np.diff(firsts, append=R))
    starts = np.append(np.flatnonzero(seat % most == 0), R)
    heads = starts[:-1]
    keys, values, strides = (np.zeros((config.layers, len(heads)), np.int64) for _ in range(3))
    for index, one in enumerate(stores):
        here = np.flatnonzero(store[heads] == index)
        for layer in range(config.layers if len(here) else 0):
            for to, stored in ((keys, one.keys[layer]), (values, one.values[layer])):
                slots, positions, size = stored.stride(0), stored.stride(2), stored.element_size()
                assert positions == config.head_dim
                to[layer, here] = stored.data_ptr() + slot[heads][here] * slots * size
            strides[layer, here] = one.keys[layer].stride(1)
    assert (strides == strides[:1]).all()
    return Tables(torch.from_numpy(rows), torch.from_numpy(starts), most, keys, values, torch.from_numpy(strides[0]))


class _FusedDecode(_PackedPass):
    """One new token of every row of a cache: texts of one token each, which see what the cache holds."""

    def __init__(self, backend: CompiledBackend, cache: Cache, rope: Rope | None) -> None:
        """``rope``: cos and sin [window, K]."""
        c, own = cache.config, cache.lengths - cache.shared
        super().__init__(backend, c, PackedTexts.single(cache.rows), None)
        if "tables" not in cache.plans:
            store_of = np.where(cache.shared > 0, cache.store_of, -1)
            cache.plans["tables"] = seated(cache.stores, store_of, cache.slot_of, c)
        self.cache, self.tables = cache, cache.plans["tables"]
        positions_R = torch.from_numpy(cache.lengths)
        self._kept = [torch.from_numpy(own), torch.from_numpy(cache.shared)]  # pointers to them are in the fields
        self._kept += [] if rope is None else [table[positions_R].float() for table in rope]
        pointers = dict(zip(("own", "shared", "cos", "sin"), map(at, self._kept), strict=False))
        self.fields = RowsFields(
            **pointers,
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

    def norm(
        self, x_ND: Tensor, added_ND: Tensor | None, norm: nn.RMSNorm, taps_JD: Tensor | None = None, layer: int = 0
    ) -> tuple[Tensor, Tensor]:
        x_ND, u_ND, _ = _normed(x_ND, added_ND, norm.weight, None, (self.texts, norm.eps or 0.0, self.backend))
        if taps_JD is None:
            return x_ND, u_ND
        inputs, out_ND = self.cache.inputs[layer], torch.empty_like(u_ND)
        (R, D), J = u_ND.shape, len(taps_JD)
        sizes = COUNT(R), COUNT(J), COUNT(inputs.shape[1] - J), COUNT(D)
        pointers = at(u_ND), at(taps_JD.detach()), at(inputs), at(out_ND), at(self._kept[0])
        self.backend.call("klype_rows_convolve", *pointers, *sizes, like=u_ND)
        return x_ND, out_ND

    def attend(self, qkv_NE: Tensor, norms: Sequence[nn.RMSNorm | None], layer: int) -> Tensor:
        """Stores the new keys and values, then attends to all of the row."""
        fields, c = self.fields, self.config
        out_NE = qkv_NE.new_empty(len(qkv_NE), c.heads * c.head_dim)
        weights = [None if norm is None else norm.weight.detach().float() for norm in norms]
        fields.q_norm, fields.k_norm = map(at, weights)
        setattr(fields, "in", at(qkv_NE))
        fields.out, fields.keys, fields.values = map(at, (out_NE, self.cache.keys[layer], self.cache.values[layer]))
        fields.shared_keys = self.tables.keys[layer].ctypes.data
        fields.shared_values = self.tables.values[layer].ctypes.data
        self.backend.call("klype_rows_attend", ctypes.byref(fields), like=qkv_NE)
        return out_NE

    def swiglu(self, gate_up_NF: Tensor) -> Tensor:
        return _swiglu(gate_up_NF, self.backend)


def at(tensor: Tensor | None) -> ctypes.c_void_p | None:
    """Pointer to a contiguous tensor's data."""
    if tensor is None:
        return None
    assert tensor.is_contiguous()
    return POINTER(tensor.data_ptr())
