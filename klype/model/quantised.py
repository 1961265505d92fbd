"""Quantised matrices of a GGUF file: memory-mapped, and dequantised to float32 in registers, a few numbers at a time.

Opening a model is then one mmap, it takes as much memory as the file, and a token takes as long as reading the file's
bytes does. Weights are exactly the file's; ``few_tokens.c`` computes in float32. Without a C compiler, and for types of
blocks that it does not support, matrices are dequantised when they are loaded (``GGUFFile.get``).
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from klype.model.compiler import call
from klype.model.convert import pieces
from klype.model.gguf import SCALES, GGUFFile, StoredMatrix, StoredWeights
from klype.model.prepacked import Kernel, Matrix, decodes
from klype.model.transformer import Transformer

# must equal ROWS in few_tokens.c
ROWS = 8


class QuantisedMatrix(nn.Module):
    """A matrix made of one or several weights of a file, stacked by rows."""

    bias: Tensor | None

    def __init__(self, weights: Sequence[StoredMatrix], kernel: Kernel, bias_O: Tensor | None = None) -> None:
        super().__init__()
        self.kernel, self.kept, tables = kernel, [], []
        for number, weight in enumerate(weights):
            self.register_buffer(f"blocks{number}", weight.blocks)
            rows, size = weight.blocks.shape
            first, step = np.arange(0, rows, ROWS), 1
            if weight.paired:  # in a head of K rows, row i of half h lies at 2 i + h
                half, row = np.divmod(first % weight.paired, weight.paired // 2)
                first, step = first - first % weight.paired + 2 * row + half, 2
            # few_tokens.c: Rows: the address of the first of ROWS rows, the step to the next, and the type
            table = np.empty((len(first), 3), np.int64)
            table[:, 0] = weight.blocks.data_ptr() + first * size
            table[:, 1:] = step * size, weight.kind
            if rest := rows % ROWS:  # C reads whole ROWS
                self.kept.append(pad(weight.blocks[-rest:], (0, 0, 0, ROWS - rest)))
                table[-1, 0] = self.kept[-1].data_ptr()
            tables.append(table)
        self.register_buffer("bias", None if bias_O is None else bias_O.detach().float().contiguous())
        self.rows = np.concatenate(tables)
        self.size = sum(weight.blocks.numel() for weight in weights)
        self.shape = rows, columns = sum(len(weight.blocks) for weight in weights), weights[0].columns
        self.fields = Matrix(bias=self.bias, rows=rows, columns=columns, rows_of_file=self.rows.ctypes.data)


class QuantisedLinear(QuantisedMatrix):
    """A linear layer, for any number of rows."""

    def forward(self, x: Tensor) -> Tensor:
        return self.kernel.product(self.fields, x)


class QuantisedEmbedding(QuantisedMatrix):
    """An embedding whose rows are dequantised when they are looked up."""

    def forward(self, tokens: Tensor) -> Tensor:
        ids, (rows, columns) = tokens.contiguous(), self.shape
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < rows:
            raise IndexError(f"There are {rows} tokens, and another one was asked for.")
        out = torch.empty(*ids.shape, columns)
        call(self.kernel.library, "klype_expand", self.fields, ids, ids.numel(), out)
        return out


def quantised_weights(opened: GGUFFile) -> StoredWeights:
    """The weights that ``few_tokens.c`` computes with as the file stores them, by our names."""
    if not decodes(opened.config):
        return {}
    return {
        name: [opened.stored_matrix(one) for one in their]
        for name, their, _ in pieces(opened.config)
        if all(opened.kind(one) in SCALES for one in their)
    }


def put_quantised(model: Transformer, weights: StoredWeights, kernel: Kernel) -> None:
    """Replace the model's matrices with these; its own may be on the meta device."""
    for name, stored in weights.items():
        at = name.removesuffix(".weight")
        if at == "embed":
            model.embed = QuantisedEmbedding(stored, kernel)  # type: ignore[assignment]
            at = "head" if model.config.tie else ""
        if at:
            model.set_submodule(at, QuantisedLinear(stored, kernel, getattr(model.get_submodule(at), "bias", None)))
