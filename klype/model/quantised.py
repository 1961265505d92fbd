"""Matrices as a GGUF file holds them: mapped, and expanded to float32 a few numbers at a time, in registers.

So a start is a mapping, memory is the file's size, and a token takes as long as the file's bytes take to be read. The
numbers are exactly the file's; ``step.c`` computes in float32, one token or many. Where there is no C compiler, and for
types of blocks that it does not read, matrices are expanded when they are loaded (``GGUFFile.get``).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from klype.model.convert import pieces
from klype.model.gguf import SCALES, GGUFFile, Stored, StoredWeights
from klype.model.prepacked import Kernel, Matrix, address_of, decodes, pointer_to
from klype.model.transformer import Transformer

# must equal ROWS in step.c
ROWS = 8


class Quantised(nn.Module):
    """A matrix of one or several weights of a file, one below the other."""

    bias: Tensor | None

    def __init__(self, weights: Sequence[Stored], kernel: Kernel, bias_O: Tensor | None = None) -> None:
        super().__init__()
        self.kernel, self.kept, tables = kernel, [], []
        for number, weight in enumerate(weights):
            self.register_buffer(f"blocks{number}", weight.blocks)
            rest = len(weight.blocks) % ROWS
            last = pad(weight.blocks[-rest:], (0, 0, 0, ROWS - rest)) if rest else None  # C reads so many
            tables.append(_rows(weight, last))
            self.kept.append(last)
        self.register_buffer("bias", None if bias_O is None else bias_O.detach().float().contiguous())
        self.rows = np.concatenate(tables)
        self.size = sum(weight.blocks.numel() for weight in weights)
        self.shape = sum(len(weight.blocks) for weight in weights), weights[0].columns
        self.fields = Matrix(None, None, address_of(self.bias), *self.shape, 0, self.rows.ctypes.data)


def _rows(weight: Stored, last: Tensor | None) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """step.c: Rows: the address of the first of ROWS rows, the step to the next, and the type. ``last``: the rows
    that begin after whole ROWS, filled up."""
    number, size = weight.blocks.shape
    first, step = np.arange(0, number, ROWS), 1
    if weight.paired:  # in a head of K rows, row i of half h lies at 2 i + h
        half, row = np.divmod(first % weight.paired, weight.paired // 2)
        first, step = first - first % weight.paired + 2 * row + half, 2
    table = np.empty((len(first), 3), np.int64)
    table[:, 0] = weight.blocks.data_ptr() + first * size
    table[:, 1:] = step * size, weight.kind
    if last is not None:
        table[-1, 0] = last.data_ptr()
    return table


class QuantisedLinear(Quantised):
    """A linear layer, of however many rows."""

    def forward(self, x: Tensor) -> Tensor:
        return self.kernel.product(self.fields, x)


class QuantisedEmbedding(Quantised):
    """An embedding whose rows are expanded when they are asked for."""

    def forward(self, tokens: Tensor) -> Tensor:
        ids, (rows, columns) = tokens.contiguous(), self.shape
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < rows:
            raise IndexError(f"There are {rows} tokens, and another one was asked for.")
        out, count = torch.empty(*ids.shape, columns), ctypes.c_int64(ids.numel())
        self.kernel.library.klype_expand(ctypes.byref(self.fields), pointer_to(ids), count, pointer_to(out))
        return out


def quantised_weights(opened: GGUFFile) -> StoredWeights:
    """What ``step.c`` reads as it lies: our names of weights, and what the file has of each."""
    if not decodes(opened.config):
        return {}
    theirs = {name: their for name, their, _ in pieces(opened.config)}
    return {
        name: [opened.stored(one) for one in their]
        for name, their in theirs.items()
        if all(opened.kind(one) in SCALES for one in their)
    }


def put_quantised(model: Transformer, weights: StoredWeights, kernel: Kernel) -> None:
    """Give the model these matrices in the place of its own, which need not be there."""
    for name, stored in weights.items():
        at = name.removesuffix(".weight")
        if at == "embed":
            model.embed = QuantisedEmbedding(stored, kernel)  # type: ignore[assignment]
            at = "head" if model.config.tie else ""
        if at:
            model.set_submodule(at, QuantisedLinear(stored, kernel, getattr(model.get_submodule(at), "bias", None)))
