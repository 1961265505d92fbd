"""Dull or lively: how much answers repeat themselves, and each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def repeated(words: Sequence[str], n: int = 4) -> float | None:
    """seq-rep-n: the share of an answer's n-grams that occurred in it before (Welleck et al. 2019). None: too short."""
    grams = ngrams(words, n)
    return 1 - len(set(grams)) / len(grams) if grams else None


def distinct(texts: Sequence[Sequence[str]], n: int = 2) -> float | None:
    """distinct-n: different n-grams among all n-grams of several answers (Li et al. 2016). None: all too short."""
    grams = [gram for words in texts for gram in ngrams(words, n)]
    return len(set(grams)) / len(grams) if grams else None


def agreement(answers: Sequence[object]) -> float | None:
    """The chance that two different draws are equal: the unbiased estimate of Σ P². None: fewer than two."""
    n = len(answers)
    return sum(c * (c - 1) for c in Counter(answers).values()) / (n * (n - 1)) if n > 1 else None


def loop(words: Sequence[str]) -> int:
    """How many words at the end only repeat the words just before them: the longest tail of whole repetitions."""
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
