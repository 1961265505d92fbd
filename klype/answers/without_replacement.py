"""Answers drawn without replacement: never the same twice, each with its probability, so that what is unseen is known.

Stochastic beam search (Kool, van Hoof & Welling 2019, arXiv:1903.06059): every answer gets the key log P + Gumbel
noise; the k + 1 largest keys are found from above, each beginning's key being the greatest of those below it. The
(k + 1)-th key κ makes the weights unbiased: E Σ P(y) / (1 − exp(−exp(log P(y) − κ))) · f(y) = E f (the same paper,
§4.2; compare Shi, Bieber & Sutton 2020 for the same over a trie).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import numpy as np

from klype.answers.tree import TreeSettings, continuations
from klype.engine.sampling import noise
from klype.sources.source import Source
from klype.values import Floats, Ints

STREAM = 7  # of the noise: apart from the stream that answers are drawn with


@dataclass(frozen=True, slots=True)
class Unique:
    """One answer: ``p``: its probability; ``weight``: what it stands for in an estimate; ``ended``: not cut."""

    tokens: tuple[int, ...]
    p: float
    weight: float
    ended: bool


@dataclass(frozen=True, slots=True)
class Uniques:
    """Most probable key first. ``unseen`` = 1 − Σ p, exactly."""

    answers: tuple[Unique, ...]
    unseen: float
    expansions: int

    def estimate(self, value: Callable[[Unique], float]) -> float:
        """Unbiased for E value(answer)."""
        return math.fsum(answer.weight * value(answer) for answer in self.answers)


class Beam(NamedTuple):
    key: float
    logp: float
    tokens: tuple[int, ...]
    ended: bool


def without_replacement(
    source: Source, prompt: Sequence[int], k: int, settings: TreeSettings, seed: int = 0
) -> Uniques:
    """``k`` different answers (token sequences, the end included), or all there are. One that the limit cuts counts
    as an answer. Needs whole distributions: with partial ones, of what is listed only."""
    settings.check()
    assert k > 0
    beams, expansions = [Beam(float(_gumbel(seed, 0, np.arange(1))[0]), 0.0, (), False)], 0
    for depth in range(settings.limit):
        opened = [beam for beam in beams if not beam.ended]
        if not opened:
            break
        grown = [beam for beam in beams if beam.ended]
        listed = continuations(source.next([[*prompt, *beam.tokens] for beam in opened], -1), settings)
        expansions += len(opened)
        for beam, (ids, p_K, _) in zip(opened, listed, strict=True):
            logp_K = beam.logp + np.log(p_K)
            # a beginning as a number, so that its continuations have noise of their own
            number = reduce(lambda value, token: (value * 1_000_003 + token + 1) & 0xFFFFFFFFFFFFFFF, beam.tokens, 0)
            key_K = _below(beam.key, logp_K + _gumbel(seed ^ number, depth + 1, ids))
            # one more than answers: the last key is the threshold of the weights
            for at in np.argsort(-key_K)[: k + 1].tolist():
                token = int(ids[at])
                ended = token in source.codec.stop
                grown.append(Beam(float(key_K[at]), float(logp_K[at]), (*beam.tokens, token), ended))
        beams = heapq.nlargest(k + 1, grown, key=lambda beam: beam.key)
    beams = sorted(beams, key=lambda beam: -beam.key)
    threshold, answers = beams[k].key if len(beams) > k else -math.inf, list[Unique]()
    for beam in beams[:k]:
        # the chance that an answer's key exceeds the threshold; exp() overflows beyond 709
        included = 1.0 if threshold == -math.inf else -math.expm1(-math.exp(min(700.0, beam.logp - threshold)))
        p = math.exp(beam.logp)
        answers.append(Unique(beam.tokens, p, p / included, beam.ended))
    return Uniques(tuple(answers), max(0.0, 1.0 - math.fsum(answer.p for answer in answers)), expansions)


def _below(key: float, free_K: Floats) -> Floats:
    """Keys of continuations given that the greatest of them is ``key`` (the paper's stable form, app. B)."""
    greatest = float(free_K.max())
    below_K = free_K < greatest
    found: Floats = np.full(len(free_K), key)
    v_K = key - free_K[below_K] + np.log1p(-np.exp(free_K[below_K] - greatest))
    found[below_K] = key - np.maximum(0.0, v_K) - np.log1p(np.exp(-np.abs(v_K)))
    return found


def _gumbel(seed: int, position: int, ids: Ints) -> Floats:
    found: Floats = -np.log(-np.log(noise(seed, ids, position, STREAM)))
    return found
