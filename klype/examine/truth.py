"""The true next-token distribution after any prefix of an answer, and how far a model's is from it. Nats."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from klype.answers import distribution_bounds
from klype.examine.intervals import ends, ratio_of_means
from klype.values import Distribution, Figure, Floats, Ints, Tokens


class Truth(Protocol):
    """The exact next-token distribution after the tokens pushed so far. A shallow copy is a snapshot."""

    def next(self) -> Mapping[int, float]: ...

    def push(self, token: int) -> float:
        """Appends a token; returns its probability, 0 for an error."""
        ...


class Reader:
    """The truth of one question after any prefix of an answer; every prefix is computed once."""

    def __init__(self, start: Callable[[], Truth]) -> None:
        self._truths: dict[Tokens, tuple[Truth, bool]] = {(): (start(), True)}
        self._next: dict[Tokens, Mapping[int, float]] = {}

    def next(self, tokens: Tokens) -> Mapping[int, float]:
        """{token: p} after these tokens; its keys are the tokens that can follow, A(x)."""
        if tokens not in self._next:
            self._next[tokens] = self._at(tokens)[0].next()
        return self._next[tokens]

    def is_right(self, tokens: Tokens) -> bool:
        """Whether the last of these tokens could follow the others."""
        return self._at(tokens)[1]

    def first_error(self, tokens: Tokens) -> int | None:
        """The position (1, 2, …) of the first token that could not follow."""
        return next((t for t in range(1, len(tokens) + 1) if not self.is_right(tokens[:t])), None)

    def _at(self, tokens: Tokens) -> tuple[Truth, bool]:
        """The truth after these tokens, and whether the last of them could follow the others."""
        known = len(tokens)
        while tokens[:known] not in self._truths:
            known -= 1
        for t in range(known, len(tokens)):
            # a snapshot: other answers continue the same prefix with other tokens
            truth = copy.copy(self._truths[tokens[:t]][0])
            self._truths[tokens[: t + 1]] = truth, truth.push(tokens[t]) > 0.0
        return self._truths[tokens]


def among(ids_K: Ints, tokens: Sequence[int] | Mapping[int, float]) -> npt.NDArray[np.bool_]:
    """Which of these ids are in a set of tokens, [K]."""
    wanted = np.fromiter(tokens, np.int64, len(tokens))
    # a table over the vocabulary: np.isin takes three times as long for 4,096 ids
    is_in = np.zeros(1 + max(ids_K.max(initial=-1), wanted.max(initial=-1)), bool)
    is_in[wanted] = True
    return np.asarray(is_in[ids_K])


def mass(q: Distribution, temperature: float, tokens: Sequence[int] | Mapping[int, float]) -> float:
    """The probability of a set of tokens under a whole distribution at a temperature (0: all on the most probable)."""
    return min(1.0, float(distribution_bounds.temperature_bounds(q, temperature, 0).low_K[among(q.ids, tokens)].sum()))


PARTIAL = "the model returned only its most probable tokens"


@dataclass(frozen=True, slots=True)
class PrefixTruth:
    """How a model's distribution q compares with the true p at one prefix.

    ``s_low``, ``s_high``: bounds of the mass on possible tokens, equal when q is whole. When q is partial, all other
    fields, which need all of q, are None.
    """

    s_low: float
    s_high: float
    kl: float | None
    kl_acceptable: float | None
    jensen_shannon: float | None
    overlap: float | None
    log_score: float | None
    brier: float | None


def point(p: Mapping[int, float], q: Distribution) -> PrefixTruth:
    """Compares p and q at one prefix. ``kl`` is infinite when q gives a possible token no probability."""
    ids_A, p_A = possible(p)
    logq_A = logp_of(q, ids_A)
    q_A = np.exp(logq_A)
    s = min(1.0, float(q_A.sum()))
    if not q.whole:
        unlisted = int(np.isneginf(logq_A).sum())
        smallest = float(np.exp(q.logp[-1])) if len(q.logp) else 1.0
        return PrefixTruth(s, min(1.0, s + min(q.rest, unlisted * smallest)), None, None, None, None, None, None)
    cross = float(-(p_A * logq_A).sum())
    log_p_A = np.log(p_A)
    # of nearly equal distributions, the difference of sums may be just below 0
    kl = max(0.0, cross + float((p_A * log_p_A).sum()))
    within = q_A[q_A > 0] / s if s > 0 else q_A[:0]
    kl_acceptable = float((within * (np.log(within) - log_p_A[q_A > 0])).sum()) if s > 0 else math.inf
    middle_A = (p_A + q_A) / 2
    js = float((p_A * (log_p_A - np.log(middle_A))).sum())
    js += float((q_A[q_A > 0] * np.log(q_A[q_A > 0] / middle_A[q_A > 0])).sum()) + (1 - s) * math.log(2)
    square = float((np.exp(q.logp) ** 2).sum())
    return PrefixTruth(
        s_low=s,
        s_high=s,
        kl=kl,
        kl_acceptable=max(0.0, kl_acceptable),
        jensen_shannon=min(math.log(2), max(0.0, js / 2)),
        overlap=min(1.0, float(np.minimum(p_A, q_A).sum())),
        log_score=cross,
        brier=square - 2 * float((p_A * q_A).sum()) + 1.0,
    )


def possible(p: Mapping[int, float]) -> tuple[Ints, Floats]:
    """(ids, probabilities) of the tokens that can follow, [A] each."""
    ids_A, p_A = np.fromiter(p.keys(), np.int64, len(p)), np.fromiter(p.values(), float, len(p))
    # copied only where something is left out
    return (ids_A, p_A) if p_A.min(initial=1.0) > 0.0 else (ids_A[p_A > 0], p_A[p_A > 0])


def logp_of(q: Distribution, ids_A: Ints) -> Floats:
    """The log-probabilities of these tokens, [A]; −∞ where one is not listed."""
    logq_V = np.full(1 + max(q.ids.max(initial=-1), ids_A.max(initial=-1)), -math.inf)
    logq_V[q.ids] = q.logp
    return np.asarray(logq_V[ids_A])


@dataclass(frozen=True, slots=True)
class DocumentTruth:
    """A document with the truth before each of its tokens but the first, as flat arrays: before token ``at_E`` + 1,
    token ``ids_E`` has probability ``p_E``. ``words``: the number of words, counting the end."""

    tokens: Sequence[int]
    ids_E: Ints
    p_E: Floats
    at_E: Ints
    words: int

    @staticmethod
    def of(tokens: Sequence[int], following: Sequence[Mapping[int, float]], words: int) -> "DocumentTruth":
        """From the true next-token distributions (``following``) before each token but the first."""
        found = [possible(p) for p in following]
        ids_E, p_E = (np.concatenate(parts) for parts in zip(*found, strict=True))
        at_E = np.repeat(np.arange(len(found)), [len(ids) for ids, _ in found])
        return DocumentTruth(tokens, ids_E, p_E, at_E, words)


def s_and_kl(documents: Sequence[DocumentTruth], logp_DTV: Sequence[Floats]) -> dict[str, Figure]:
    """S and KL(p‖q) over documents: what ``point`` computes, vectorised. ``logp_DTV``: a model's log-probabilities for
    each document."""
    mass, lost = [], []
    for read, logp_TV in zip(documents, logp_DTV, strict=True):
        logq_E = logp_TV[read.at_E, read.ids_E].astype(float)
        s_T = np.bincount(read.at_E, np.exp(logq_E))
        kl_T = np.bincount(read.at_E, read.p_E * (np.log(read.p_E) - logq_E))
        mass.append(float(np.minimum(s_T, 1.0).sum()))
        lost.append(float(np.maximum(kl_T, 0.0).sum()))
    s = ratio_of_means(mass, [len(read.tokens) - 1 for read in documents], "share a token")
    return {"s": s, "kl": ratio_of_means(lost, [read.words for read in documents], "nats a word")}


def s_corpus(documents: Sequence[Sequence[PrefixTruth]]) -> Figure:
    """S over true prefixes (ratio of means); between bounds when q is partial."""
    counts, unit = [len(document) for document in documents], "share a word"
    low, high = (
        ratio_of_means([sum(getattr(at, side) for at in document) for document in documents], counts, unit)
        for side in ("s_low", "s_high")
    )
    if low.value is None or high.value is None or low.value == high.value:
        return low
    least, most = ends(low)[0], ends(high)[1]
    return Figure((low.value + high.value) / 2, least, most, low.n, unit, why=PARTIAL)


def divergence(documents: Sequence[Sequence[PrefixTruth]], name: str) -> Figure:
    """The mean per prefix of one field of ``PrefixTruth``."""
    unit = {"overlap": "share", "brier": "squared probability"}.get(name, "nats a word")
    values = [[getattr(at, name) for at in document] for document in documents]
    if any(value is None for document in values for value in document):
        return Figure(None, n=len(documents), unit=unit, why=PARTIAL)
    return ratio_of_means([sum(document) for document in values], [len(document) for document in values], unit)
