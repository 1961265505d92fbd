"""n-gram baselines: interpolated Kneser–Ney over tokens or bytes.

p_n(v | c) = max(count(c v) − D, 0) / count(c) + left(c) / count(c) · p_{n−1}(v | c without its first token)

left(c) is the sum of the discounts of c's followers. For all but the longest n-grams, count(c v) is the number of
different tokens seen before c v (an n-gram that begins a document has its own count); the unigrams are interpolated
with the uniform distribution, so that nothing has probability 0. Kneser and Ney 1995; Chen and Goodman 1999, section 3.

Shapes: N all targets of some documents in order, V tokens, G n-grams of one length, C their contexts.
"""

import lzma
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# n-grams, each packed into one integer, last token in the lowest bits
Codes = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def one_discount(counts_G: Counts) -> Floats:
    """Discounts of counts 0 to 3 as Kneser and Ney have them, one for all; ½ if the counts of counts are 0."""
    once, twice = (int((counts_G == k).sum()) for k in (1, 2))
    discount = once / (once + 2 * twice) if once and twice else 0.5
    return np.array([0.0, discount, discount, discount])


def three_discounts(counts_G: Counts) -> Floats:
    """Discounts of counts 0 to 3 of modified Kneser–Ney; ½ if a count of counts is 0."""
    n1, n2, n3, n4 = (int((counts_G == k).sum()) for k in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return np.array([0.0, 0.5, 0.5, 0.5])
    y = n1 / (n1 + 2 * n2)
    found = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    clipped: Floats = np.clip(found, [0.0, 0.05, 0.05, 0.05], [0.0, 0.95, 1.9, 2.8])
    return clipped


class KneserNey:
    """An n-gram model of documents of token ids below ``size``. The targets of a document begin at ``first``; tokens
    before it (a begin token) are context only. ``discounts``: a function from the counts of the n-grams of one length
    to the discounts of counts 0, 1, 2 and 3 or more."""

    def __init__(
        self,
        documents: Iterable[npt.ArrayLike],
        size: int,
        order: int = 4,
        discounts: Callable[[Counts], Floats] = one_discount,
        first: int = 1,
    ) -> None:
        self._size, self._order, self._first = size, order, first
        self._bits = max(1, (size - 1).bit_length())
        assert 1 <= order <= 64 // self._bits
        codes_N, length_N = self._read(documents)
        levels, grams = [], np.zeros(0, np.uint64)
        for n in range(order, 0, -1):
            # shorter n-grams occur by themselves only at the start of a document
            met = np.concatenate([grams & self._mask(n), codes_N[length_N == n]])
            grams, counts_G = np.unique(met, return_counts=True)
            if len(grams):
                levels.append(_Level.of(grams, counts_G, discounts(counts_G)[np.minimum(counts_G, 3)], self._bits))
        self._levels = levels[::-1]

    def of(self, documents: Iterable[npt.ArrayLike]) -> Floats:
        """Probabilities [N] of the documents' targets."""
        codes_N, length_N = self._read(documents)
        p_N = np.full(len(codes_N), 1 / self._size)
        for n, level in enumerate(self._levels, 1):
            grams_N = codes_N & self._mask(n)
            known_N, context_N = _find(level.contexts, grams_N >> np.uint64(self._bits))
            seen_N, gram_N = _find(level.grams, grams_N)
            own_N = np.where(seen_N, level.shares[gram_N], 0.0) + level.left[context_N] * p_N
            p_N = np.where(known_N & (length_N >= n), own_N, p_N)
        return p_N

    def table(self, documents: Iterable[npt.ArrayLike]) -> npt.NDArray[np.float32]:
        """Probabilities [N, V] of every token at each target of the documents; rows sum to one."""
        codes_N, length_N = self._read(documents)
        p_NV = np.full((len(codes_N), self._size), 1 / self._size, np.float32)
        for n, level in enumerate(self._levels, 1):
            known_N, context_N = _find(level.contexts, (codes_N & self._mask(n)) >> np.uint64(self._bits))
            for i in np.flatnonzero(known_N & (length_N >= n)):
                followers = slice(*level.starts[context_N[i] : context_N[i] + 2])
                p_NV[i] *= level.left[context_N[i]]
                p_NV[i, level.grams[followers] & self._mask(1)] += level.shares[followers]
        return p_NV

    def _read(self, documents: Iterable[npt.ArrayLike]) -> tuple[Codes, Counts]:
        """For every target: the last ``order`` tokens, itself included, as a code, and how many there are."""
        codes, lengths = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        for document in documents:
            tokens = np.asarray(document, np.uint64)
            own = tokens.copy()
            for back in range(1, min(self._order, len(tokens))):
                own[back:] |= tokens[:-back] << np.uint64(self._bits * back)
            codes.append(own[self._first :])
            lengths.append(np.minimum(np.arange(1, len(tokens) + 1), self._order)[self._first :])
        return np.concatenate(codes), np.concatenate(lengths)

    def _mask(self, n: int) -> np.uint64:
        return np.uint64(2 ** (self._bits * n) - 1)


@dataclass(frozen=True, slots=True)
class _Level:
    """The n-grams of one length: sorted codes and their discounted shares of their contexts' counts; sorted contexts,
    where their n-grams start in ``grams`` (with its length at the end), and the share left to shorter n-grams."""

    grams: Codes
    shares: Floats
    contexts: Codes
    starts: Counts
    left: Floats

    @staticmethod
    def of(grams: Codes, counts_G: Counts, discount_G: Floats, bits: int) -> "_Level":
        contexts, starts, kinds = np.unique(grams >> np.uint64(bits), return_index=True, return_counts=True)
        total = np.add.reduceat(counts_G, starts)
        shares = (counts_G - discount_G) / np.repeat(total, kinds)
        left = np.add.reduceat(discount_G, starts) / total
        return _Level(grams, shares, contexts, np.append(starts, len(grams)), left)


def _find(table: Codes, codes_N: Codes) -> tuple[npt.NDArray[np.bool_], Counts]:
    """Whether each code is in the sorted table, and its index there."""
    at_N = np.minimum(np.searchsorted(table, codes_N), len(table) - 1)
    found_N: npt.NDArray[np.bool_] = table[at_N] == codes_N
    return found_N, at_N


def xz_bits_per_byte(text: bytes) -> float:
    """Bits per byte of ``text`` compressed by xz -6e (whose window of 8 MiB holds a whole held-out text)."""
    return 8 * len(lzma.compress(text, preset=6 | lzma.PRESET_EXTREME)) / max(1, len(text))


def ngram_bits_per_byte(train: bytes, text: bytes) -> float:
    """Cross-entropy in bits per byte of ``text`` under a byte 5-gram of ``train``."""
    return float(ngram_bits(train, text).mean()) if text else 0.0


def ngram_bits(train: bytes, text: bytes, order: int = 5) -> npt.NDArray[np.float64]:
    """Bits of each byte of ``text`` under a byte n-gram model of ``train``: interpolated, modified Kneser–Ney."""
    learnt, asked = (np.frombuffer(part, np.uint8).astype(np.uint64) for part in (train, text))
    bits_N: npt.NDArray[np.float64] = -np.log2(KneserNey([learnt], 256, order, three_discounts, first=0).of([asked]))
    return bits_N
