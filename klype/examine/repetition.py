"""Repetition within answers, between answers, and of the training text; how probable unseen answers are."""

import math
import operator
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, takewhile

import numpy as np
import numpy.typing as npt

from klype.examine.intervals import NORMAL
from klype.values import Figure


def repeated_share(words: Sequence[str], n: int = 4) -> float | None:
    """seq-rep-n: the share of an answer's n-grams that repeat an earlier one (Welleck et al. 2019). None: too short."""
    grams = ngrams(words, n)
    return 1 - len(set(grams)) / len(grams) if grams else None


def distinct(texts: Sequence[Sequence[str]], n: int = 2) -> float | None:
    """distinct-n: different n-grams among all n-grams of several answers (Li et al. 2016). None: all too short."""
    grams = [gram for words in texts for gram in ngrams(words, n)]
    return len(set(grams)) / len(grams) if grams else None


def agreement(answers: Sequence[object]) -> float | None:
    """The share of pairs of answers that are equal: an unbiased estimate of Σ P². None: fewer than two answers."""
    n = len(answers)
    return sum(c * (c - 1) for c in Counter(answers).values()) / (n * (n - 1)) if n > 1 else None


def loop(words: Sequence[str]) -> int:
    """The number of words at the end that only repeat the words just before them, in whole repetitions."""
    best = 0
    for period in range(1, len(words) // 2 + 1):
        length = period
        while length < len(words) and words[-1 - length] == words[-1 - length + period]:
            length += 1
        repeats = length // period
        best = max(best, (repeats - 1) * period)
    return best


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def chao_shen(classes: Sequence[Hashable]) -> float | None:
    """The entropy (nats) of classes from a sample, corrected for unseen ones (Chao & Shen 2003). None: fewer than two.

    The sample's coverage is 1 − n₁/N (n₁: classes seen once); where all were seen once, n₁ is taken as N − 1.
    """
    n = len(classes)
    if n < 2:
        return None
    counts = list(Counter(classes).values())
    once = min(sum(count == 1 for count in counts), n - 1)
    coverage = 1 - once / n
    total = 0.0
    for count in counts:
        p = coverage * count / n
        total -= p * math.log(p) / -math.expm1(n * math.log1p(-p)) if p < 1 else 0.0
    return max(0.0, total)


def unseen_known(logp: Sequence[tuple[Hashable, float]]) -> float:
    """1 − Σ of the probabilities of the different answers, from (answer, log-probability) pairs."""
    return max(0.0, 1.0 - math.fsum(math.exp(value) for value in dict(logp).values()))


def good_turing(classes: Sequence[Hashable]) -> Figure:
    """The Good–Turing estimate of the probability of unseen classes, n₁/N, with Esty's (1983) interval.

    Four draws are added to the interval: two of classes seen once, and two of classes that are then seen twice. Without
    them, ten draws that all differ would have an interval of no width.
    """
    n = len(classes)
    if n == 0:
        return Figure(None, unit="share", why="nothing was measured")
    counts = list(Counter(classes).values())
    once, twice = (sum(count == k for count in counts) for k in (1, 2))
    value = once / n
    n_more, once_more = n + 4, once + 2
    centre = once_more / n_more
    half = NORMAL * math.sqrt(once_more * (1 - centre) + 2 * (twice + 2)) / n_more
    return Figure(value, max(0.0, min(value, centre - half)), min(1.0, max(value, centre + half)), n, "share")


def common_prefix(answers: Sequence[Sequence[Hashable]]) -> float | None:
    """The mean number of first words that two answers share. None: fewer than two answers."""
    shared = [sum(takewhile(bool, map(operator.eq, a, b))) for a, b in combinations(answers, 2)]
    return float(np.mean(shared)) if shared else None


WORD = re.compile(r"\w+|[^\w\s]")
SHORTEST = 5  # words of a run: shorter ones belong to the language rather than to a text
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class CopiedText:
    """What an answer has copied. ``longest``: words of the longest run, and ``text`` that run; ``share`` of all words
    that lie in runs of at least ``SHORTEST``."""

    longest: int
    share: float
    text: str


class Index:
    """An index of training texts that finds runs of at least ``SHORTEST`` words.

    It takes twelve bytes per word: words are numbers, and hashes of SHORTEST words in a row are sorted. A hit is
    compared word by word.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._numbers: dict[str, int] = {}
        numbered: list[npt.NDArray[np.int32]] = []
        for text in texts:  # 0 between texts is no word's number: no run crosses it
            found = [self._numbers.setdefault(word, len(self._numbers) + 1) for word in WORD.findall(text)]
            numbered.append(np.array([*found, 0], np.int32))
        self._words_N = np.concatenate(numbered) if numbered else np.zeros(0, np.int32)
        hashes_N = _sequences(self._words_N)
        self._places_N = np.argsort(hashes_N, kind="stable").astype(np.int32)
        self._hashes_N = hashes_N[self._places_N]

    def run(self, said: Sequence[str], at: int) -> int:
        """The length of the longest run from word ``at`` on that occurs in a text; 0 if shorter than SHORTEST."""
        numbers = np.array([self._numbers.get(word, -1) for word in said[at:]], np.int32)
        if len(numbers) < SHORTEST or (numbers[:SHORTEST] < 0).any():
            return 0
        wanted = _sequences(numbers[:SHORTEST])[0]
        first, last = (int(np.searchsorted(self._hashes_N, wanted, side)) for side in ("left", "right"))
        best = 0
        for place in self._places_N[first:last]:
            text = self._words_N[place : place + len(numbers)]
            same = text == numbers[: len(text)]
            best = max(best, len(same) if same.all() else int(np.argmin(same)))
        return best if best >= SHORTEST else 0


def find_copied(answer: str, index: Index) -> CopiedText | None:
    """What the answer has copied from the indexed texts; None if it is too short to tell."""
    said = WORD.findall(answer)
    if len(said) < SHORTEST:
        return None
    longest, start, inside, end = 0, 0, 0, 0
    for at in range(len(said)):
        length = index.run(said, at)
        if at + length > end:  # not merely the tail of the run before
            longest, start = max((longest, start), (length, at))
            inside += max(0, at + length - max(end, at))
            end = max(end, at + length)
    return CopiedText(longest, inside / len(said), " ".join(said[start : start + longest]))


def _sequences(numbers_N: npt.NDArray[np.int32]) -> Hashes:
    """A hash of every SHORTEST numbers in a row (polynomial, modulo 2⁶⁴)."""
    length = max(0, len(numbers_N) - SHORTEST + 1)
    hashes_N = np.zeros(length, np.uint64)
    for i in range(SHORTEST):
        hashes_N = hashes_N * _FACTOR + numbers_N[i : i + length].astype(np.uint64)
    return hashes_N
