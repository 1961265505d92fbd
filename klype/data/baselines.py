"""What a model of text must beat: xz of the held-out text alone, and a byte 5-gram learnt from the training text."""

from __future__ import annotations

import lzma
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint64]


def xz_bits_per_byte(text: bytes) -> float:
    """Bits per byte of ``text`` compressed alone by xz -6e (its window of 8 MiB holds a held-out text)."""
    return 8 * len(lzma.compress(text, preset=6 | lzma.PRESET_EXTREME)) / max(1, len(text))


def ngram_bits_per_byte(train: bytes, text: bytes, order: int = 5) -> float:
    """Cross-entropy in bits per byte of ``text`` under a byte n-gram of ``train``."""
    return float(ngram_bits(train, text, order).mean()) if text else 0.0


def ngram_bits(train: bytes, text: bytes, order: int = 5) -> npt.NDArray[np.float64]:
    """Bits of each byte of ``text`` under a byte n-gram of ``train``: interpolated, modified Kneser–Ney.

    Chen and Goodman 1999, section 3; below the unigram lies the uniform distribution, so nothing has probability 0.
    """
    assert 1 <= order <= 8
    codes_N = _codes(text, order)
    p_N = np.full(len(text), 1 / 256)
    for n, table in enumerate(_tables(train, order), 1):
        at = slice(min(n - 1, len(text)), None)  # the first bytes have no context that long
        p_N[at] = table.interpolate(codes_N[at] & _mask(n), p_N[at])
    bits_N: npt.NDArray[np.float64] = -np.log2(p_N)
    return bits_N


@dataclass(frozen=True, slots=True)
class _Table:
    """n-grams of one length and their counts; for contexts their totals and the mass that goes to shorter ones."""

    grams: Codes
    discounted: npt.NDArray[np.float64]
    contexts: Codes
    total: npt.NDArray[np.float64]
    left: npt.NDArray[np.float64]

    def interpolate(self, codes_N: Codes, shorter_N: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        seen_N, gram_N = _find(self.grams, codes_N)
        known_N, context_N = _find(self.contexts, codes_N >> np.uint64(8))
        own_N = np.where(seen_N, self.discounted[gram_N], 0.0) + self.left[context_N] * shorter_N
        return np.where(known_N, own_N / self.total[context_N], shorter_N)


def _tables(train: bytes, order: int) -> list[_Table]:
    """Tables of lengths 1 … order: raw counts for the longest, numbers of different bytes before for the others."""
    codes = _codes(train, order)[order - 1 :]
    if not len(codes):
        return []
    grams, counts = np.unique(codes, return_counts=True)
    tables = [_table(grams, counts)]
    for n in range(order - 1, 0, -1):
        grams, counts = np.unique(grams & _mask(n), return_counts=True)
        tables.append(_table(grams, counts))
    return tables[::-1]


def _table(grams: Codes, counts: npt.NDArray[np.int64]) -> _Table:
    discounts_4 = _discounts(counts)
    discount_G = discounts_4[np.minimum(counts, 3)]
    context_G = grams >> np.uint64(8)
    starts = np.flatnonzero(np.concatenate([[True], context_G[1:] != context_G[:-1]]))
    total, left = np.add.reduceat(counts, starts).astype(np.float64), np.add.reduceat(discount_G, starts)
    return _Table(grams, counts - discount_G, context_G[starts], total, left)


def _discounts(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Discounts of counts 0, 1, 2 and 3 or more; a half where the counts of counts do not tell."""
    n1, n2, n3, n4 = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return np.array([0.0, 0.5, 0.5, 0.5])
    y = n1 / (n1 + 2 * n2)
    found = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    clipped: npt.NDArray[np.float64] = np.clip(found, [0.0, 0.05, 0.05, 0.05], [0.0, 0.95, 1.9, 2.8])
    return clipped


def _codes(text: bytes, order: int) -> Codes:
    """Each position's last ``order`` bytes in one integer (zeros before the start)."""
    byte_N = np.frombuffer(text, np.uint8).astype(np.uint64)
    codes_N = byte_N.copy()
    for back in range(1, min(order, len(text))):
        codes_N[back:] |= byte_N[:-back] << np.uint64(8 * back)
    return codes_N


def _mask(n: int) -> np.uint64:
    return np.uint64(2 ** (8 * n) - 1)


def _find(table: Codes, codes_N: Codes) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    at_N = np.minimum(np.searchsorted(table, codes_N), len(table) - 1)
    found_N: npt.NDArray[np.bool_] = table[at_N] == codes_N
    return found_N, at_N
