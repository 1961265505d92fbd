"""Packed (varlen) texts: end to end, so that nothing is padded; text s has the rows from ``cu_seqlens[s]`` on, of N.

With shared prefixes a text is a tree of pieces: a prefix, such as a prompt, and branches that go on from it, such as
its answers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

# the number of rows is rounded up to this: oneDNN compiles a kernel for each new number of rows, which takes a tenth of
# the product's time; one-token texts that nobody reads fill the gap
ROUND = 128


@dataclass(frozen=True)
class PackedTexts:
    """Row offsets of the pieces, [S + 1], and the length of the longest text (a prefix and one of its branches).

    ``trees``: tree i has the pieces ``trees[i]`` (its prefix) to ``trees[i + 1]``; None: each piece is a text.
    """

    cu_seqlens: Tensor
    max_seqlen: int
    trees: Tensor | None = None

    @property
    def number(self) -> int:
        """Number of trees."""
        return len(self.cu_seqlens if self.trees is None else self.trees) - 1


@dataclass(frozen=True)
class Packing:
    """Texts packed from a batch: for every packed row its index in the flattened batch, and the packed rows that are
    wanted (None: all, in order)."""

    texts: PackedTexts
    rows: Tensor
    wanted: Tensor | None


@dataclass(frozen=True)
class SharedPrefixes:
    """A batch whose rows come in groups of ``group``; those of group q begin with the same ``lengths[q]`` tokens."""

    group: int
    lengths: Tensor


def pack(wanted_BT: Tensor, document_BT: Tensor | None = None) -> Packing:
    """Pack every row up to its last wanted position, split where documents end, and pad to a multiple of ROUND."""
    T = wanted_BT.shape[1]
    lengths_B = _lengths(wanted_BT)
    used_BT = torch.arange(T) < lengths_B[:, None]
    rows = used_BT.flatten().nonzero()[:, 0]
    if document_BT is None:
        cu_seqlens = pad(lengths_B[lengths_B > 0].cumsum(0), (1, 0))
    else:
        first_BT = torch.ones_like(used_BT)
        first_BT[:, 1:] = document_BT[:, 1:] != document_BT[:, :-1]
        inside = first_BT.flatten()[rows].nonzero()[:, 0]
        cu_seqlens = torch.cat([inside, inside.new_tensor([len(rows)])])
    longest = int(cu_seqlens.diff().max()) if len(cu_seqlens) > 1 else 0
    wanted = wanted_BT.flatten()[rows].nonzero()[:, 0]
    return _pad(PackedTexts(cu_seqlens, longest), rows, wanted, len(wanted) == len(rows))


def pack_branches(wanted_BT: Tensor, prefixes: SharedPrefixes) -> Packing:
    """As ``pack``, with the shared prefix of a group stored once. ``wanted`` is in the order of ``wanted_BT``."""
    B, T = wanted_BT.shape
    G, Q = prefixes.group, len(prefixes.lengths)
    lengths_QG = _lengths(wanted_BT).view(Q, G)
    prefix_Q = torch.minimum(prefixes.lengths, lengths_QG.amax(1))
    # a tree's prefix, then its branches, which may be empty
    pieces_QE = torch.cat([prefix_Q[:, None], (lengths_QG - prefix_Q[:, None]).clamp(min=0)], 1)
    sizes = pieces_QE.flatten()
    cu_seqlens = pad(sizes.cumsum(0), (1, 0))
    piece_N = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    tree_N, branch_N = piece_N // (G + 1), piece_N % (G + 1) - 1
    column_N = torch.arange(len(piece_N)) - cu_seqlens[piece_N] + torch.where(branch_N >= 0, prefix_Q[tree_N], 0)
    # a prefix is read from the first row of its group
    rows = (tree_N * G + branch_N.clamp(min=0)) * T + column_N
    row_W, column_W = wanted_BT.nonzero(as_tuple=True)
    tree_W = row_W // G
    beyond_W = column_W - prefix_Q[tree_W]
    at_W = tree_W * (G + 1) + torch.where(beyond_W >= 0, row_W % G + 1, 0)
    wanted = cu_seqlens[at_W] + torch.where(beyond_W >= 0, beyond_W, column_W)
    longest = int((prefix_Q + pieces_QE[:, 1:].amax(1)).max()) if B else 0
    return _pad(PackedTexts(cu_seqlens, longest, torch.arange(0, Q * (G + 1) + 1, G + 1)), rows, wanted, False)


def _lengths(wanted_BT: Tensor) -> Tensor:
    """Length of each row up to and including its last wanted position, [B]."""
    return torch.where(wanted_BT, torch.arange(wanted_BT.shape[1]) + 1, 0).amax(1)


def _pad(texts: PackedTexts, rows: Tensor, wanted: Tensor, every: bool) -> Packing:
    """Pad with one-token texts to a multiple of ROUND. ``every``: all rows are wanted, in order."""
    spare = padding_rows(len(rows))
    if not spare and every:
        return Packing(texts, rows, None)
    more = torch.arange(1, spare + 1)
    trees = None if texts.trees is None else torch.cat([texts.trees, texts.trees[-1] + more])
    cu_seqlens = torch.cat([texts.cu_seqlens, more + len(rows)])
    return Packing(PackedTexts(cu_seqlens, texts.max_seqlen, trees), torch.cat([rows, rows.new_zeros(spare)]), wanted)


def padding_rows(rows: int) -> int:
    """Number of rows missing to a multiple of ROUND."""
    return -rows % ROUND
