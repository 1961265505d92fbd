"""A model's matrices laid out for inference: oneDNN's own blocks in float32 and bfloat16, or 8-bit integers.

A packed matrix takes the place of the one it was made from, so that memory holds one of them; only embeddings that
are also the head are kept beside it. Packed models compute and do not learn; their weights never change.
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor, nn

from klype.device import Precision
from klype.errors import KlypeError
from klype.model import native
from klype.model.native import Kernel, Stepper
from klype.model.transformer import Transformer

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8")
SMALL = 1 << 14
"""Matrices of fewer numbers gain nothing."""
BLOCK = 32
"""torch's 8-bit product (2.13) reads past the end of matrices of other sizes."""
FEW = 16
"""Up to this many rows the 8-bit product is bound by memory; above, matrices are widened once a pass."""


class BlockedLinear(nn.Module):
    """A linear layer in the order in which oneDNN reads its matrix. Same numbers as before but for rounding.

    With a ``kernel``, few rows go through it, where it can read oneDNN's order.
    """

    matrix: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, kernel: Kernel | None = None) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None))
        self.register_buffer("bias", bias)
        self.wide_bias = None if bias is None else bias.float()
        address, size = torch.ops.mkldnn.data_ptr(self.matrix), torch.ops.mkldnn._nbytes(self.matrix)
        known = kernel is not None and native.lies_in_blocks(weight, address, size, kernel.block)
        self.kernel = kernel if known else None
        self.fields = native.matrix_at(address, weight, self.wide_bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel is not None and self.kernel.takes(x):
            return self.kernel.product(self.fields, x)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.matrix, self.bias, "none", [], "")
        return out


class Int8Linear(nn.Module):
    """A linear layer of 8-bit integers, one scale a row, itself a bfloat16. Only the weights are rounded: products are
    float32's, many rows at once or, with a ``kernel``, which has its own order, few. Without one, torch computes few
    rows in bfloat16."""

    matrix: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, kernel: Kernel | None = None) -> None:
        super().__init__()
        scale_O1 = (weight.float().abs().amax(1, keepdim=True) / 127).clamp_min(1e-12).bfloat16()
        matrix_OI = (weight.float() / scale_O1.float()).round_().clamp_(-127, 127).to(torch.int8)
        self.register_buffer("matrix", matrix_OI if kernel is None else native.blocked(matrix_OI, kernel.block))
        self.register_buffer("scale", scale_O1[:, 0].contiguous())
        self.register_buffer("bias", None if bias is None else bias.bfloat16())
        self.in_blocks = weight.device.type == "cpu" and all(size % BLOCK == 0 for size in weight.shape)
        self.kernel = kernel
        self.wide_scale, self.wide_bias = self.scale.float(), None if self.bias is None else self.bias.float()
        self.fields = native.matrix_at(self.matrix.data_ptr(), matrix_OI, self.wide_bias, self.wide_scale)

    def widened(self) -> Tensor:
        """The integers as float32, [I, O]."""
        if self.kernel is None:
            return self.matrix.float().T
        columns_IBR = self.matrix[..., 0].transpose(0, 1)
        wide = torch.empty(columns_IBR.shape).copy_(columns_IBR)
        return wide.flatten(1)[:, : len(self.scale)]

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel is not None and self.kernel.takes(x):
            return self.kernel.product(self.fields, x)
        rows_MI = x.reshape(-1, x.shape[-1])
        if self.in_blocks and rows_MI.shape[0] <= FEW and self.kernel is None:
            out_MO = torch._weight_int8pack_mm(rows_MI.bfloat16(), self.matrix, self.scale)
        else:
            out_MO = (rows_MI.float() @ self.widened()).mul_(self.wide_scale)
        if self.bias is not None:
            out_MO += self.bias
        return out_MO.view(*x.shape[:-1], -1).to(x.dtype)


def pack(model: Transformer, precision: Precision, kernel: Kernel | None = None) -> Transformer:
    """The same model, changed in place, for inference in "float32", "bfloat16" or "int8".

    Matrices that are too small to gain, or on an accelerator, and machines without oneDNN, keep the plain ones. int8
    weights are read from the model as it is: load it in float32 so that they are rounded once. With a ``kernel``,
    passes over few tokens are one call of C each where the model suits. Raises KlypeError for other names.
    """
    if precision not in PRECISIONS:
        raise KlypeError(f"A model cannot be packed as {precision!r}.", "Choose float32, bfloat16 or int8.")
    if is_packed(model):
        raise KlypeError("This model is packed already.", "Load it again to pack it otherwise.")
    model.requires_grad_(False)
    kernel = kernel if native.suits(model.config) and model.embed.weight.device.type == "cpu" else None
    with torch.no_grad():
        model.to(_stream(precision))
        for parent in [*model.layers, model]:
            for name, part in list(parent.named_children()):
                if isinstance(part, nn.Linear):
                    setattr(parent, name, _packed(part, precision, kernel))
    if kernel is not None and all(_compiled(part) for layer in model.layers for part in layer.children()):
        model.stepper = Stepper(model, kernel)
    return model


def _compiled(part: nn.Module) -> bool:
    """Whether a layer's part is no matrix, or one that the kernel reads."""
    return isinstance(part, nn.RMSNorm) or getattr(part, "kernel", None) is not None


def _stream(precision: Precision) -> torch.dtype:
    """Of what is between the matrices: with int8, attention in float32 is both faster and more exact."""
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def fastest_alone(seconds: float = 0.05, kernel: Kernel | None = None) -> Precision:
    """The precision that answers one user soonest here: each is timed on one row against a matrix of 16 MB.

    A coarser one has to be a quarter faster to be worth its loss.
    """
    best: tuple[Precision, float] = ("float32", math.inf)
    for precision in PRECISIONS:
        plain = nn.Linear(512, 8192, bias=False).requires_grad_(False)
        layer = _packed(plain.to(_stream(precision)), precision, kernel)
        row_MI = torch.randn(1, 512).to(_stream(precision))
        took = _shortest(layer, row_MI, seconds)
        if took < 0.8 * best[1]:
            best = precision, took
    return best[0]


def _shortest(layer: nn.Module, row_MI: Tensor, seconds: float) -> float:
    shortest, end = math.inf, time.perf_counter() + seconds
    with torch.inference_mode():
        layer(row_MI)
        while time.perf_counter() < end or shortest == math.inf:
            start = time.perf_counter()
            layer(row_MI)
            shortest = min(shortest, time.perf_counter() - start)
    return shortest


def _packed(layer: nn.Linear, precision: Precision, kernel: Kernel | None) -> nn.Module:
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if precision == "int8":
        return Int8Linear(weight, bias, kernel)
    if (weight.numel() < SMALL and kernel is None) or weight.device.type != "cpu" or not torch._C._has_mkldnn:
        return layer
    dtype = getattr(torch, precision)
    return BlockedLinear(weight.to(dtype), None if bias is None else bias.to(dtype), kernel)


def is_packed(model: Transformer) -> bool:
    """Whether ``pack`` has been here: such a model can neither learn nor be saved."""
    return any(isinstance(part, BlockedLinear | Int8Linear) for part in model.modules())
