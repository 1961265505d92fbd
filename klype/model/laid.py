"""Texts laid end to end, so that nothing is padded: text s has the rows ``starts[s]`` to ``starts[s + 1]`` of N."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROUND = 128
"""Rows are laid out by so many: oneDNN makes a kernel for every number of rows that it has not met before, which takes
as long as a tenth of the product. Texts of one token each, which nobody wants, fill them up."""


@dataclass(frozen=True)
class Texts:
    """Where texts begin and end, [S + 1], and the length of the longest."""

    starts: Tensor
    longest: int

    @staticmethod
    def alone(rows: int) -> Texts:
        """So many texts of one token each."""
        return Texts(torch.arange(rows + 1), 1)


@dataclass(frozen=True)
class Laid:
    """Texts laid end to end: their positions in the flattened rows, and which of those are wanted (None: all)."""

    texts: Texts
    rows: Tensor
    wanted: Tensor | None


def laid_out(wanted_BT: Tensor, document_BT: Tensor | None = None) -> Laid:
    """The rows up to their last wanted position, cut where a document ends, and filled up to a round number."""
    T = wanted_BT.shape[1]
    index_T = torch.arange(T)
    lengths_B = torch.where(wanted_BT, index_T + 1, 0).amax(1)
    used_BT = index_T < lengths_B[:, None]
    rows = used_BT.flatten().nonzero()[:, 0]
    if document_BT is None:
        lengths = lengths_B[lengths_B > 0]
        starts = torch.zeros(len(lengths) + 1, dtype=torch.int64)
        torch.cumsum(lengths, 0, out=starts[1:])
    else:
        first_BT = torch.ones_like(used_BT)
        first_BT[:, 1:] = document_BT[:, 1:] != document_BT[:, :-1]
        inside = first_BT.flatten()[rows].nonzero()[:, 0]
        starts = torch.cat([inside, inside.new_tensor([len(rows)])])
        lengths = starts.diff()
    wanted = wanted_BT.flatten()[rows]
    longest, spare = int(lengths.max()) if len(lengths) else 0, missing(len(rows))
    if not spare and bool(wanted.all()):
        return Laid(Texts(starts, longest), rows, None)
    filled = torch.cat([starts, torch.arange(1, spare + 1) + len(rows)])
    return Laid(Texts(filled, longest), torch.cat([rows, rows.new_zeros(spare)]), wanted.nonzero()[:, 0])


def missing(rows: int) -> int:
    """How many more make a round number."""
    return -rows % ROUND
