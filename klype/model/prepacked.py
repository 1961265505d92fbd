"""Matrices prepacked for inference: in oneDNN's blocked layout (float32, bfloat16), or as 8-bit integers.

A prepacked matrix replaces the original in memory, except for embeddings that are also the head. Prepacked models
cannot be trained; their weights never change.

With a C compiler, a pass over a few tokens is one call of C (``few_tokens.c``), where torch makes hundreds of calls per
token, some 5,000 for 8-bit integers. It is optional: without one, or for a shape that is not supported, torch computes.
"""

import ctypes
import math
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from klype.device import Precision
from klype.errors import KlypeError
from klype.model.cache import Cache
from klype.model.compiler import COUNT, POINTER, Struct, call, library, struct_fields
from klype.model.config import ModelConfig
from klype.model.transformer import MATRICES, Transformer

# dtype of the activations for each precision of the matrices; with int8, attention in float32 is faster and more exact
STREAMS: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}
PRECISIONS = tuple(STREAMS)
SOURCE = Path(__file__).with_name("few_tokens.c")
# up to this many tokens per pass the C code is at least as fast as torch
FEW = 16
# every width of the model must be a multiple of this
WIDTH = 16
# must equal BLOCK in few_tokens.c
BLOCK = 64
# matrices with fewer elements gain nothing from prepacking
SMALL = 1 << 14
# torch 2.13's int8 product reads past the end of matrices whose sides are not multiples of this
INT8_BLOCK = 32
# of a layer, in the order of the fields in few_tokens.c
NORMS = ("attention_norm", "mlp_norm", "q_norm", "k_norm")
# up to this many rows torch's int8 product is bound by memory; above, matrices are converted to float32 once per pass
FEW_ROWS = 16


class Matrix(Struct):
    """few_tokens.c: Matrix."""

    _fields_ = (
        *struct_fields(POINTER, "weight", "scale", "bias"),
        *struct_fields(COUNT, "rows", "columns", "bits"),
        ("rows_of_file", POINTER),
    )


class LayerFields(Struct):
    """few_tokens.c: Layer."""

    _fields_ = (
        *struct_fields(POINTER, *NORMS),
        *struct_fields(Matrix, *MATRICES),
        *struct_fields(POINTER, "keys", "values"),
    )


class ModelFields(Struct):
    """few_tokens.c: Model."""

    _fields_ = (
        *struct_fields(POINTER, "layers", "norm", "cos", "sin"),
        *struct_fields(COUNT, "layers_count", "width", "heads", "kv_heads", "head_dim", "hidden"),
        *struct_fields(COUNT, "positions", "kept_bits"),
        ("norm_eps", ctypes.c_float),
    )


@dataclass(frozen=True)
class Kernel:
    """The library of ``few_tokens.c``. ``block``: how many rows of a matrix lie side by side."""

    library: ctypes.CDLL
    block: int = BLOCK

    def supports(self, x: Tensor) -> bool:
        """Whether x has few enough rows for it."""
        return 0 < x.numel() <= FEW * x.shape[-1]

    def product(self, matrix: Matrix, x: Tensor) -> Tensor:
        """x [..., in] times the matrix, [..., out], computed in float32 and returned in x's dtype."""
        rows, out = x.float().contiguous(), torch.empty(*x.shape[:-1], matrix.rows)
        call(self.library, "klype_product", matrix, rows, out, x.numel() // x.shape[-1])
        return out.to(x.dtype)


def kernel(folder: Path, announce: Callable[[], None] = lambda: None) -> Kernel | None:
    """The library of ``few_tokens.c``; None where it cannot be compiled."""
    found = library((SOURCE,), folder, announce)
    return None if found is None else Kernel(found)


def decodes(config: ModelConfig) -> bool:
    """Whether models of this shape decode in C: without convolution, all widths multiples of 16."""
    return not config.conv and not any(size % WIDTH for size in (config.width, config.head_dim, config.hidden))


def blocks_of(weight_OI: Tensor, block: int) -> Tensor:
    """A matrix in the layout of few_tokens.c, [O / B, I, B], in bfloat16 [O / B, I / 2, B, 2]; the last block is padded
    with zeros."""
    rows, columns = weight_OI.shape
    beside = 2 if weight_OI.dtype == torch.bfloat16 else 1
    filled = pad(weight_OI, (0, 0, 0, -rows % block))
    return filled.view(-1, block, columns // beside, beside).transpose(1, 2).contiguous()


class CompiledDecoder:
    """Computes a prepacked model's passes over at most ``FEW`` tokens of rows without shared KV, each in one call of C.

    Activations are float32; the cache is in the model's dtype.
    """

    def __init__(self, model: Transformer, kernel: Kernel) -> None:
        self.kernel = kernel
        self.config = model.config
        self.kept: list[Tensor] = []
        c, rotated = model.config, model.config.rope_theta > 0
        self.layers = (LayerFields * c.layers)()
        for fields, layer in zip(self.layers, model.layers, strict=True):
            norms = ((name, getattr(layer, name)) for name in NORMS)
            fields.put(**{name: None if norm is None else self._float32(norm.weight) for name, norm in norms})
            fields.put(**{name: getattr(layer, name).fields for name in MATRICES})
        sizes = {name: getattr(c, name) for name in ("width", "heads", "kv_heads", "head_dim", "hidden", "norm_eps")}
        self.fields = ModelFields(
            layers=ctypes.addressof(self.layers),
            norm=self._float32(model.norm.weight),
            cos=self._float32(model.cos) if rotated else None,
            sin=self._float32(model.sin) if rotated else None,
            layers_count=c.layers,
            **sizes,
        )

    def supports(self, cache: Cache, T: int) -> bool:
        few = 0 < T * cache.rows <= FEW and not cache.shared.any()
        return few and bool(cache.lengths.max() + T <= self.config.window)

    def hidden(self, x_BTD: Tensor, cache: Cache) -> Tensor:
        """States after the last norm, [B, T, D], of embeddings, which it may overwrite."""
        B, T, _ = x_BTD.shape
        x, dtype = x_BTD.float().contiguous(), x_BTD.dtype
        positions_BT = torch.from_numpy(cache.lengths[:, None] + np.arange(T))
        rows_BT = torch.arange(B)[:, None].expand(B, T).contiguous()
        for fields, keys, values in zip(self.layers, cache.keys, cache.values, strict=True):
            fields.keys, fields.values = keys.data_ptr(), values.data_ptr()
        self.fields.put(positions=cache.keys.shape[-2], kept_bits=8 * cache.keys.element_size())
        out_BTD = torch.empty_like(x)
        call(self.kernel.library, "klype_pass", self.fields, x, out_BTD, rows_BT, positions_BT, B * T)
        return out_BTD.to(dtype)

    def _float32(self, weight: Tensor) -> Tensor:
        self.kept.append(weight.detach().float().contiguous())
        return self.kept[-1]


class BlockedLinear(nn.Module):
    """A linear layer in oneDNN's blocked layout; results differ from ``nn.Linear``'s by rounding only.

    A ``kernel`` computes few rows, where oneDNN chose the layout that it reads.
    """

    matrix: Tensor
    bias: Tensor | None
    kernel: Kernel | None

    def __init__(self, weight: Tensor, bias: Tensor | None, kernel: Kernel | None = None) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None))
        self.register_buffer("bias", bias)
        self.wide_bias = None if bias is None else bias.float()
        address, size = torch.ops.mkldnn.data_ptr(self.matrix), torch.ops.mkldnn._nbytes(self.matrix)
        self.kernel = None
        if kernel is not None and weight.shape[1] % WIDTH == 0:
            # oneDNN does not choose the layout that the kernel reads on every processor
            wanted, found = blocks_of(weight, kernel.block), (ctypes.c_char * size).from_address(address)
            if wanted.nbytes == size and torch.equal(wanted.flatten(), torch.frombuffer(found, dtype=wanted.dtype)):
                self.kernel = kernel
        (rows, columns), bits = weight.shape, 8 * weight.element_size()
        self.fields = Matrix(weight=address, bias=self.wide_bias, rows=rows, columns=columns, bits=bits)

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel is not None and self.kernel.supports(x):
            return self.kernel.product(self.fields, x)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.matrix, self.bias, "none", [], "")
        return out


class Int8Linear(nn.Module):
    """A linear layer of 8-bit integers with one bfloat16 scale per row. Only weights are quantised: products are in
    float32, except for few rows without a ``kernel``, which torch computes in bfloat16. A ``kernel`` has a layout of
    its own."""

    matrix: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, kernel: Kernel | None = None) -> None:
        super().__init__()
        scale_O1 = (weight.float().abs().amax(1, keepdim=True) / 127).clamp_min(1e-12).bfloat16()
        matrix_OI = (weight.float() / scale_O1.float()).round_().clamp_(-127, 127).to(torch.int8)
        self.register_buffer("matrix", matrix_OI if kernel is None else blocks_of(matrix_OI, kernel.block))
        self.register_buffer("scale", scale_O1[:, 0].contiguous())
        self.register_buffer("bias", None if bias is None else bias.bfloat16())
        self.in_blocks = weight.device.type == "cpu" and all(size % INT8_BLOCK == 0 for size in weight.shape)
        self.kernel = kernel
        self.wide_scale, self.wide_bias = self.scale.float(), None if self.bias is None else self.bias.float()
        (rows, columns), scale = weight.shape, self.wide_scale
        self.fields = Matrix(weight=self.matrix, scale=scale, bias=self.wide_bias, rows=rows, columns=columns, bits=8)

    def to_float32(self) -> Tensor:
        """The integers as float32, [I, O]."""
        if self.kernel is None:
            return self.matrix.float().T
        columns_IBR = self.matrix[..., 0].transpose(0, 1)
        wide = torch.empty(columns_IBR.shape).copy_(columns_IBR)
        return wide.flatten(1)[:, : len(self.scale)]

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel is not None and self.kernel.supports(x):
            return self.kernel.product(self.fields, x)
        rows_MI = x.reshape(-1, x.shape[-1])
        if self.in_blocks and rows_MI.shape[0] <= FEW_ROWS and self.kernel is None:
            out_MO = torch._weight_int8pack_mm(rows_MI.bfloat16(), self.matrix, self.scale)
        else:
            out_MO = (rows_MI.float() @ self.to_float32()).mul_(self.wide_scale)
        if self.bias is not None:
            out_MO += self.bias
        return out_MO.view(*x.shape[:-1], -1).to(x.dtype)


def prepack(model: Transformer, precision: Precision, kernel: Kernel | None = None) -> Transformer:
    """Prepack a model's matrices in place for inference in "float32", "bfloat16" or "int8"; returns the model to use.

    Matrices that are too small to gain or on an accelerator stay as they are, and so do all without oneDNN. For int8
    load the model in float32, so that its weights are rounded once. With a ``kernel`` that supports the shape, a pass
    over few tokens is one call of C. KlypeError for other precisions, and for a model that is prepacked already.
    """
    if precision not in PRECISIONS:
        raise KlypeError(f"A model cannot be packed as {precision!r}.", "Choose float32, bfloat16 or int8.")
    if is_prepacked(model):
        raise KlypeError("This model is packed already.", "Load it again to pack it otherwise.")
    model.requires_grad_(False)
    kernel = kernel if decodes(model.config) and model.device.type == "cpu" else None
    with torch.no_grad():
        model.to(STREAMS[precision])
        for parent in [*model.layers, model]:
            for name, part in list(parent.named_children()):
                if isinstance(part, nn.Linear):
                    setattr(parent, name, _pack_layer(part, precision, kernel))
    parts = [part for layer in model.layers for part in layer.children() if not isinstance(part, nn.RMSNorm)]
    if kernel is None or any(getattr(part, "kernel", None) is None for part in parts):  # it reads every matrix or none
        return model.with_backend(model.backend)
    return model.with_backend(model.backend, CompiledDecoder(model, kernel))


def fastest_alone(times: int = 20, kernel: Kernel | None = None) -> Precision:
    """The precision that answers one user soonest here: each is timed on one row against a matrix of 16 MB, its fastest
    product of so many counts. A coarser one has to be a quarter faster to be worth its loss."""
    best: tuple[Precision, float] = ("float32", math.inf)
    for precision in PRECISIONS:
        plain = nn.Linear(512, 8192, bias=False).requires_grad_(False)
        layer = _pack_layer(plain.to(STREAMS[precision]), precision, kernel)
        row_MI = torch.randn(1, 512).to(STREAMS[precision])
        with torch.inference_mode():
            took = min(timeit.repeat(partial(layer, row_MI), number=1, repeat=times))
        if took < 0.8 * best[1]:
            best = precision, took
    return best[0]


def _pack_layer(layer: nn.Linear, precision: Precision, kernel: Kernel | None) -> nn.Module:
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if precision == "int8":
        return Int8Linear(weight, bias, kernel)
    if (weight.numel() < SMALL and kernel is None) or weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return layer
    dtype = getattr(torch, precision)
    return BlockedLinear(weight.to(dtype), None if bias is None else bias.to(dtype), kernel)


def is_prepacked(model: Transformer) -> bool:
    """Whether the model was prepacked: it can be neither trained nor saved."""
    return any(isinstance(part, BlockedLinear | Int8Linear) for part in model.modules())
