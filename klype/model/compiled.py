"""The compiled CPU backend: what a layer computes between its matrix products, each part in one pass over memory.

``packed_texts.c`` computes packed texts, forward and backward; ``cached_rows.c`` one new token of every row of a cache
(fused decode). torch needs several kernels for each part, whose calls from Python take most of a tiny model's step. The
backend is optional: without a C compiler, or for a shape that is not supported, torch computes.

Shapes as in attention.py and cache.py; float32 or bfloat16, sums in float32.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from klype.model.attention import TORCH, AttentionPass, Backend, Rope
from klype.model.cache import Cache, Indices, SharedKV
from klype.model.compiler import COUNT, POINTER, Struct, call, library, struct_fields
from klype.model.config import ModelConfig
from klype.model.packed_texts import PackedTexts

SOURCES = tuple(Path(__file__).with_name(name) for name in ("vectors.h", "packed_texts.c", "cached_rows.c"))
# width and hidden must be multiples of this, head_dim a multiple of half of it
WIDTH = 16
# attention scores are written out, so texts may have at most this many positions
LONGEST = 512
# at most this many readers of one shared text are computed together
SEATS = 32
# at least so many pieces of work per thread, so that no thread waits long for another
SHARES = 4


class NormFields(Struct):
    """packed_texts.c: Norm."""

    _fields_ = (
        *struct_fields(POINTER, "x", "delta", "weight", "taps", "sum", "u", "scale"),
        *struct_fields(POINTER, "sum_gradient", "u_gradient", "x_gradient", "weight_gradient", "starts", "trees"),
        *struct_fields(COUNT, "number", "D", "J"),
        ("eps", ctypes.c_float),
    )


class AttentionFields(Struct):
    """packed_texts.c: Attention."""

    _fields_ = (
        *struct_fields(POINTER, "qkv", "out", "spread", "cos", "sin", "out_gradient", "qkv_gradient"),
        *struct_fields(POINTER, "starts", "trees"),
        *struct_fields(COUNT, "number", "H", "G", "K", "longest"),
    )


class RowsFields(Struct):
    """cached_rows.c: Rows."""

    _fields_ = (
        *struct_fields(POINTER, "qkv", "out", "q_norm", "k_norm", "cos", "sin", "keys", "values"),
        *struct_fields(POINTER, "own", "shared", "rows", "starts", "shared_keys", "shared_values", "strides"),
        *struct_fields(COUNT, "tables", "H", "G", "K", "S", "most", "longest", "widest"),
        ("eps", ctypes.c_float),
    )


def compiled_library(folder: Path, announce: Callable[[], None] = lambda: None) -> ctypes.CDLL | None:
    """The library of ``packed_texts.c`` and ``cached_rows.c``; None where it cannot be compiled (compiler.library)."""
    return library(SOURCES, folder, announce)


def compiled_backend(folder: Path, announce: Callable[[], None] = lambda: None) -> Backend:
    """The compiled backend, or torch's where it cannot be compiled."""
    found = compiled_library(folder, announce)
    return TORCH if found is None else CompiledBackend(lambda: found)


class CompiledBackend(Backend):
    """The backend in C; torch computes where ``make`` returns no library.

    ``make`` is called when the library is first needed: compiling takes seconds, and a model with a decoder of its own
    (prepacked.CompiledDecoder) answers one question without it.
    """

    def __init__(self, make: Callable[[], ctypes.CDLL | None]) -> None:
        self._make = make

    @cached_property
    def library(self) -> ctypes.CDLL | None:
        """The compiled functions; None: torch computes."""
        return self._make()

    def supports(self, config: ModelConfig, longest: int, weight: Tensor) -> bool:
        return not config.qk_norm and longest <= LONGEST and _supports_widths(config) and self.supports_numbers(weight)

    def supports_numbers(self, x: Tensor) -> bool:
        """Whether it computes with this tensor's dtype and device."""
        numbers = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
        return numbers and self.library is not None

    def packed_pass(self, config: ModelConfig, texts: PackedTexts, rope: Rope | None) -> AttentionPass:
        return _PackedPass(self, config, texts, None if rope is None else (rope[0].float(), rope[1].float()))

    def decode(self, cache: Cache, T: int, rope: Rope | None) -> AttentionPass:
        fits = T == 1 and cache.rows and cache.lengths.max() < cache.config.window and _supports_widths(cache.config)
        if not fits or torch.is_grad_enabled() or not self.supports_numbers(cache.keys):
            return TORCH.decode(cache, T, rope)
        return _FusedDecode(self, cache, rope)

    def cross_entropy(self, logits_NV: Tensor, targets_N: Tensor, weights_N: Tensor) -> Tensor:
        """Σ w·(−log p(target)), float32. The logits are **overwritten** with their gradient."""
        total: Tensor = _Entropy.apply(logits_NV, targets_N, weights_N, self)  # type: ignore[no-untyped-call]
        return total

    def call(self, name: str, *arguments: Tensor | Struct | bool | int | None, like: Tensor) -> None:
        """Call a function of the library for the dtype of ``like``."""
        assert self.library is not None
        call(self.library, name, *arguments, like.dtype == torch.bfloat16)


def _supports_widths(config: ModelConfig) -> bool:
    """Whether all widths are whole vectors."""
    return not (config.width % WIDTH or config.hidden % WIDTH or config.head_dim % (WIDTH // 2))


class _PackedPass(AttentionPass):
    """Packed texts. What is to be added to the residual stream is added by the kernel of the next norm."""

    def __init__(self, backend: CompiledBackend, config: ModelConfig, texts: PackedTexts, rope: Rope | None) -> None:
        """``rope``: cos and sin [window, K], float32."""
        super().__init__(config, rope)
        self.backend, self.texts = backend, texts

    def norm(
        self, x_ND: Tensor, added_ND: Tensor | None, norm: nn.RMSNorm, taps_JD: Tensor | None = None, layer: int = 0
    ) -> tuple[Tensor, Tensor]:
        rest = self, norm.eps or 0.0
        got: tuple[Tensor, Tensor] = _Norm.apply(x_ND, added_ND, norm.weight, taps_JD, rest)  # type: ignore[no-untyped-call]
        return got

    def attend(self, qkv_NE: Tensor, norms: Sequence[nn.RMSNorm | None], layer: int) -> Tensor:
        """Causal attention within each text, queries and keys rotated; a branch also sees its prefix."""
        out: Tensor = _Attention.apply(qkv_NE, self)  # type: ignore[no-untyped-call]
        return out

    def swiglu(self, gate_up_NF: Tensor) -> Tensor:
        out: Tensor = _SwiGLU.apply(gate_up_NF, self.backend)  # type: ignore[no-untyped-call]
        return out

    def add(self, x_ND: Tensor, added_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        return x_ND, added_ND

    def normed(
        self, x_ND: Tensor, delta_ND: Tensor | None, weight_D: Tensor, taps_JD: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x + delta, its norm (convolved if there are taps), and the factor that the norm scaled each row by."""
        sum_ND = x_ND if delta_ND is None else torch.empty_like(x_ND)
        u_ND, scale_N = torch.empty_like(x_ND), x_ND.new_empty(len(x_ND), dtype=torch.float32)
        fields = self.norm_fields(x_ND, weight_D, taps_JD, scale_N, eps)
        fields.put(delta=delta_ND, sum=sum_ND, u=u_ND)
        self.backend.call("klype_norm", fields, False, like=x_ND)
        return sum_ND, u_ND, scale_N

    def norm_fields(
        self, x_ND: Tensor, weight_D: Tensor, taps_JD: Tensor | None, scale_N: Tensor, eps: float
    ) -> NormFields:
        texts, (D, J) = self.texts, (len(weight_D), 0 if taps_JD is None else len(taps_JD))
        where = {"starts": texts.cu_seqlens, "trees": texts.trees, "number": texts.number}
        return NormFields(x=x_ND, weight=weight_D, taps=taps_JD, scale=scale_N, D=D, J=J, eps=eps, **where)

    def attention_fields(self, qkv_NE: Tensor, out_NE: Tensor, spread_NH: Tensor) -> AttentionFields:
        texts, c, (cos, sin) = self.texts, self.config, self.rope or (None, None)
        where = {"starts": texts.cu_seqlens, "trees": texts.trees, "number": texts.number}
        sizes = {"H": c.heads, "G": c.kv_heads, "K": c.head_dim, "longest": texts.max_seqlen}
        return AttentionFields(qkv=qkv_NE, out=out_NE, spread=spread_NH, cos=cos, sin=sin, **where, **sizes)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_ND: Tensor,
        delta_ND: Tensor | None,
        weight_D: Tensor,
        taps_JD: Tensor | None,
        rest: tuple[_PackedPass, float],
    ) -> tuple[Tensor, Tensor]:
        sum_ND, u_ND, scale_N = rest[0].normed(x_ND, delta_ND, weight_D, taps_JD, rest[1])
        ctx.save_for_backward(sum_ND, weight_D, taps_JD, scale_N)
        ctx.set_materialize_grads(False)
        ctx.rest = *rest, delta_ND is not None
        return sum_ND, u_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, sum_gradient_ND: Tensor | None, u_gradient_ND: Tensor | None) -> tuple[Tensor | None, ...]:
        here, eps, added = ctx.rest
        if u_gradient_ND is None:
            return (sum_gradient_ND, sum_gradient_ND if added else None, None, None, None)
        sum_ND, weight_D, taps_JD, scale_N = ctx.saved_tensors
        gradient_ND, J = torch.empty_like(sum_ND), 0 if taps_JD is None else len(taps_JD)
        sums = torch.zeros(torch.get_num_threads(), 1 + J, len(weight_D), dtype=torch.float32)
        fields = here.norm_fields(sum_ND, weight_D, taps_JD, scale_N, eps)
        before_ND, u_gradient_ND = sum_gradient_ND, u_gradient_ND.contiguous()
        before_ND = None if before_ND is None else before_ND.contiguous()
        fields.put(sum_gradient=before_ND, u_gradient=u_gradient_ND, x_gradient=gradient_ND, weight_gradient=sums)
        here.backend.call("klype_norm", fields, True, like=sum_ND)
        low = sums[0].to(weight_D.dtype)
        return gradient_ND, gradient_ND if added else None, low[0], low[1:] if J else None, None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv_NE: Tensor, here: _PackedPass) -> Tensor:
        c = here.config
        out_NE = qkv_NE.new_empty(len(qkv_NE), c.heads * c.head_dim)
        spread_NH = qkv_NE.new_empty(len(qkv_NE), c.heads, dtype=torch.float32)
        fields = here.attention_fields(qkv_NE, out_NE, spread_NH)
        here.backend.call("klype_attention", fields, False, like=qkv_NE)
        ctx.save_for_backward(qkv_NE, out_NE, spread_NH)
        ctx.here = here
        return out_NE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NE: Tensor) -> tuple[Tensor, None]:
        qkv_NE, out_NE, spread_NH = ctx.saved_tensors
        gradient_NE, qkv_gradient_NE = gradient_NE.contiguous(), torch.empty_like(qkv_NE)
        fields = ctx.here.attention_fields(qkv_NE, out_NE, spread_NH)
        fields.put(out_gradient=gradient_NE, qkv_gradient=qkv_gradient_NE)
        ctx.here.backend.call("klype_attention", fields, True, like=qkv_NE)
        return qkv_gradient_NE, None


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
        ctx.backend.call("klype_swiglu", gate_up_NF, gradient_NF, out_NF, *gradient_NF.shape, like=gate_up_NF)
        return out_NF, None


def _swiglu(gate_up_NF: Tensor, backend: CompiledBackend) -> Tensor:
    out_NF = gate_up_NF.new_empty(len(gate_up_NF), gate_up_NF.shape[1] // 2)
    backend.call("klype_swiglu", gate_up_NF, None, out_NF, *out_NF.shape, like=gate_up_NF)
    return out_NF


class _Entropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor, weights_N: Tensor, backend: CompiledBackend) -> Tensor:
        targets_N, weights_N = targets_N.contiguous(), weights_N.contiguous()
        loss_N = logits_NV.new_empty(len(logits_NV), dtype=torch.float32)
        given = logits_NV, targets_N, weights_N, loss_N, *logits_NV.shape, bool(ctx.needs_input_grad[0])
        backend.call("klype_entropy", *given, like=logits_NV)
        ctx.gradient_NV = logits_NV.detach()
        return loss_N.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        if float(gradient) != 1.0:
            ctx.gradient_NV.mul_(gradient.to(ctx.gradient_NV.dtype))
        return ctx.gradient_NV, None, None, None


def reader_tables(
    stores: list[SharedKV], store_of: Indices, slot_of: Indices, config: ModelConfig
) -> tuple[dict[str, Any], Indices, Indices]:
    """Rows grouped into tables by the shared text that they read, as fields of ``RowsFields``; and the addresses of the
    keys and of the values of each table, [layers, tables].

    Table t has the rows ``starts[t]`` to ``starts[t + 1]`` of ``rows`` [R], at most ``most``; ``strides`` [tables] is
    the number of elements from one head to the next. Address and stride of a table that shares nothing are 0. Addresses
    are valid as long as the stores exist.
    """
    R = len(store_of)
    most = max(1, min(SEATS, R * config.kv_heads // (SHARES * torch.get_num_threads())))
    rows = np.lexsort((slot_of, store_of))
    store, slot = store_of[rows], slot_of[rows]
    fresh = np.ones(R, bool)
    fresh[1:] = (store[1:] != store[:-1]) | (slot[1:] != slot[:-1])
    firsts = np.flatnonzero(fresh)
    seat = np.arange(R) - np.repeat(firsts, np.diff(firsts, append=R))
    heads = np.flatnonzero(seat % most == 0)
    keys, values = (np.zeros((config.layers, len(heads)), np.int64) for _ in range(2))
    strides = np.zeros(len(heads), np.int64)
    for index, one in enumerate(stores):
        here = np.flatnonzero(store[heads] == index)
        for to, stored in ((keys, one.keys), (values, one.values)):
            layers, slots, strides[here], positions, _ = stored.stride()
            assert positions == config.head_dim
            numbers = np.arange(config.layers)[:, None] * layers + slot[heads][here] * slots
            to[:, here] = stored.data_ptr() + numbers * stored.element_size()
    arrays = {"rows": rows, "starts": np.append(heads, R), "strides": strides}
    fields = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return {**fields, "most": most, "tables": len(heads)}, keys, values


class _FusedDecode(_PackedPass):
    """One new token of every row of a cache, as packed texts of one token that see what the cache holds."""

    def __init__(self, backend: CompiledBackend, cache: Cache, rope: Rope | None) -> None:
        """``rope``: cos and sin [window, K]."""
        c, own = cache.config, cache.lengths - cache.shared
        super().__init__(backend, c, PackedTexts(torch.arange(cache.rows + 1), 1), None)
        if "tables" not in cache.plans:
            store_of = np.where(cache.shared > 0, cache.store_of, -1)
            cache.plans["tables"] = reader_tables(cache.stores, store_of, cache.slot_of, c)
        self.cache, self.tables = cache, cache.plans["tables"]
        positions_R = torch.from_numpy(cache.lengths)
        # the fields hold pointers to these
        self._kept = {"own": torch.from_numpy(own), "shared": torch.from_numpy(cache.shared)}
        if rope is not None:
            self._kept |= {"cos": rope[0][positions_R].float(), "sin": rope[1][positions_R].float()}
        sizes = {"H": c.heads, "G": c.kv_heads, "K": c.head_dim, "S": cache.keys.shape[-2]}
        longest = {"longest": int(own.max()) + 1, "widest": int(cache.shared.max())}
        self.fields = RowsFields(**self._kept, **self.tables[0], **sizes, **longest, eps=c.norm_eps)

    def norm(
        self, x_ND: Tensor, added_ND: Tensor | None, norm: nn.RMSNorm, taps_JD: Tensor | None = None, layer: int = 0
    ) -> tuple[Tensor, Tensor]:
        x_ND, u_ND, _ = self.normed(x_ND, added_ND, norm.weight, None, norm.eps or 0.0)
        if taps_JD is None:
            return x_ND, u_ND
        inputs, out_ND = self.cache.inputs[layer], torch.empty_like(u_ND)
        (R, D), J = u_ND.shape, len(taps_JD)
        given = u_ND, taps_JD.detach(), inputs, out_ND, self._kept["own"], R, J, inputs.shape[1] - J, D
        self.backend.call("klype_rows_convolve", *given, like=u_ND)
        return x_ND, out_ND

    def attend(self, qkv_NE: Tensor, norms: Sequence[nn.RMSNorm | None], layer: int) -> Tensor:
        """Store the new keys and values, then attend to the whole row."""
        c, cache = self.config, self.cache
        out_NE = qkv_NE.new_empty(len(qkv_NE), c.heads * c.head_dim)
        q_norm, k_norm = (None if norm is None else norm.weight.detach().float() for norm in norms)
        self.fields.put(qkv=qkv_NE, out=out_NE, q_norm=q_norm, k_norm=k_norm)
        self.fields.put(keys=cache.keys[layer], values=cache.values[layer])
        shared_keys, shared_values = (addresses[layer].ctypes.data for addresses in self.tables[1:])
        self.fields.put(shared_keys=shared_keys, shared_values=shared_values)
        self.backend.call("klype_rows_attend", self.fields, like=qkv_NE)
        return out_NE

    def swiglu(self, gate_up_NF: Tensor) -> Tensor:
        return _swiglu(gate_up_NF, self.backend)
