"""A tiny language for the hard-target experiment: a chain of eight words whose transitions are known."""

from __future__ import annotations

import random

import numpy as np
from scipy.sparse import csr_array

from klype.data.seeds import mix
from klype.experiments.corpus import Corpus, CorpusQuestion, TestSet, sparse_truth
from klype.values import Tokens

SIZE, END = 10, 1  # 0 begins, 1 ends, 2 … 9 are words


class Chain:
    """Each word is followed by three others, or the end, with graded probabilities."""

    knows = True
    vocabulary = ("<s>", "</s>", *"abcdefgh")

    def within(self, documents: tuple[int, ...]) -> tuple[int, ...]:
        return documents

    def corpus(self, seed: int, documents: int, held_out: int) -> Corpus:
        train = self.documents(mix(seed, 1), documents)
        return Corpus(self.vocabulary, END, train, self.documents(mix(seed, 2), held_out), self.truth(train))

    def test(self, documents: int = 30) -> TestSet:
        found = self.documents(mix(0, 3), documents)
        asked = tuple(CorpusQuestion((0, word), ((self.after(word)[0],),)) for word in range(2, 6))
        shown = ((0, 2), dict(zip(self.after(2), (0.6, 0.3, 0.1), strict=True)))
        return TestSet(found, self.truth(found), asked, shown)

    def initial_truth(self) -> ChainTruth:
        return ChainTruth()

    @staticmethod
    def after(word: int) -> tuple[int, int, int]:
        return tuple(2 + (word * step + step) % 8 for step in (1, 3, 5))  # type: ignore[return-value]

    def next(self, word: int) -> dict[int, float]:
        if word == 0:
            return {w: 1 / 8 for w in range(2, SIZE)}
        p: dict[int, float] = {END: 0.1}
        for follower, share in zip(self.after(word), (0.6, 0.3, 0.1), strict=True):
            p[follower] = p.get(follower, 0.0) + 0.9 * share
        return p

    def documents(self, seed: int, count: int) -> tuple[Tokens, ...]:
        rng = random.Random(seed)
        out = []
        for _ in range(count):
            ids = [0]
            while ids[-1] != END and len(ids) < 16:
                p = self.next(ids[-1])
                ids.append(rng.choices(list(p), list(p.values()))[0])
            out.append(tuple(ids))
        return tuple(out)

    def truth(self, documents: tuple[Tokens, ...]) -> csr_array:
        return sparse_truth([self.next(word) for document in documents for word in document[:-1]], SIZE)


class ChainTruth:
    """What the chain says after what was read; the end is followed by the end."""

    def __init__(self) -> None:
        self.last = 0

    def next(self) -> dict[int, float]:
        return Chain().next(self.last) if self.last < SIZE and self.last != END else {END: 1.0}

    def push(self, token: int) -> float:
        p = self.next().get(token, 0.0)
        self.last = token
        return p


def reference_kneser_ney(
    documents: list[tuple[int, ...]], context: tuple[int, ...], size: int, order: int
) -> np.ndarray:
    """The definition, word for word: counts are made anew from the documents for every question."""
    n = len(context) + 1
    grams = {}
    for document in documents:
        for t in range(1, len(document)):
            for length in range(1, order + 1):
                first = t - length + 1
                if first >= 0:
                    gram = document[first : t + 1]
                    starts = length < order and first == 0
                    if length == order or starts:
                        grams[gram] = grams.get(gram, 0) + 1
    # below the longest: how many different tokens stand before; what starts a document counts as often as it does
    for length in range(order - 1, 0, -1):
        longer = {g for g in grams if len(g) == length + 1}
        for gram in {g[1:] for g in longer}:
            grams[gram] = grams.get(gram, 0) + sum(g[1:] == gram for g in longer)
    lower = np.full(size, 1 / size) if n == 1 else reference_kneser_ney(documents, context[1:], size, order)
    level = {g: c for g, c in grams.items() if len(g) == n}
    once, twice = (sum(c == k for c in level.values()) for k in (1, 2))
    discount = once / (once + 2 * twice) if once and twice else 0.5
    followers = {g[-1]: c for g, c in level.items() if g[:-1] == context}
    if not followers:
        return lower
    total = sum(followers.values())
    own = np.array([max(followers.get(v, 0) - discount, 0) for v in range(size)]) / total
    return own + discount * len(followers) / total * lower
