"""Interpolated Kneser–Ney over tokens: a distribution from what followed the same context, backing off to shorter ones.

p_n(v | c) = max(count(c v) − D, 0) / count(c) + D · kinds(c) / count(c) · p_{n−1}(v | c without its first token);
below the longest, count(c v) is the number of different tokens seen before c v; below the unigram lies the uniform
distribution. Kneser and Ney 1995; interpolation: Chen and Goodman 1999, section 3.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Row = tuple[npt.NDArray[np.int64], Floats, float]
"""Of a context: its followers, their discounted shares, and the mass left to shorter contexts."""
FOLDS = 8


class KneserNey:
    """Learnt from token documents, whose first token (the begin mark) is a context but never a target."""

    def __init__(self, documents: Sequence[Sequence[int]], size: int, order: int = 4) -> None:
        assert min(size, order) >= 1
        self._uniform = np.full(size, 1 / size, np.float32)
        self._order = order
        grams: Counter[tuple[int, ...]] = Counter()
        for document in documents:
            for t in range(1, len(document)):
                grams[tuple(document[max(0, t - order + 1) : t + 1])] += 1
        levels = [Counter({g: n for g, n in grams.items() if len(g) == order})]
        for n in range(order - 1, 0, -1):
            before: dict[tuple[int, ...], set[int]] = defaultdict(set)
            for gram in levels[-1]:
                before[gram[1:]].add(gram[0])
            level = Counter({gram: len(tokens) for gram, tokens in before.items()})
            level.update({g: count for g, count in grams.items() if len(g) == n})  # at the start nothing is before
            levels.append(level)
        self._rows = [_rows(level) for level in reversed(levels)]

    def next(self, prefix: Sequence[int]) -> Floats:
        """p_V after a prefix (begin mark included); sums to one."""
        p_V = self._uniform
        for n, rows in enumerate(self._rows[: len(prefix) + 1]):
            row = rows.get(tuple(prefix[len(prefix) - n :]))
            if row is None:
                break  # nor after any longer context
            ids, shares, left = row
            p_V = p_V * left
            p_V[ids] += shares
        return p_V

    def table(self, documents: Sequence[Sequence[int]]) -> Floats:
        """p at every target of the documents, [N, V]."""
        return np.stack([self.next(d[max(0, t - self._order + 1) : t]) for d in documents for t in range(1, len(d))])


def cross_fitted(documents: Sequence[Sequence[int]], size: int, order: int = 4, folds: int = FOLDS) -> Floats:
    """[N, V]: each document's targets by what all *other* folds say. What saw a target itself would only repeat it."""
    folds = min(folds, len(documents))
    assert folds >= 2
    tables = [
        KneserNey([d for i, d in enumerate(documents) if i % folds != f], size, order).table(documents[f::folds])
        for f in range(folds)
    ]
    lengths = [len(d) - 1 for d in documents]
    ends = np.cumsum([0, *lengths])
    out = np.empty((int(ends[-1]), size), np.float16)
    for f, table in enumerate(tables):
        at = 0
        for i in range(f, len(documents), folds):
            out[ends[i] : ends[i + 1]] = table[at : at + lengths[i]]
            at += lengths[i]
    return out


def _rows(level: Counter[tuple[int, ...]]) -> dict[tuple[int, ...], Row]:
    followers: dict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)
    for gram, count in level.items():
        followers[gram[:-1]].append((gram[-1], count))
    once, twice = (sum(count == k for count in level.values()) for k in (1, 2))
    discount = once / (once + 2 * twice) if once and twice else 0.5
    table: dict[tuple[int, ...], Row] = {}
    for context, pairs in followers.items():
        total = sum(count for _, count in pairs)
        shares = np.array([count - discount for _, count in pairs], np.float32) / total
        table[context] = (np.array([i for i, _ in pairs], np.int64), shares, discount * len(pairs) / total)
    return table
