"""How well two rankings of the same candidates agree, and how well an annotator agrees with itself."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from klype.errors import KlypeError
from klype.preferences.annotator import ranks
from klype.values import Ranking


def pair_agreement(judge: Ranking, other: Ranking) -> tuple[float, int]:
    """Of the pairs that ``judge`` orders, how many ``other`` orders the same way (a tie: half), and how many pairs."""
    a, b = _places(judge, other)
    right, pairs = 0.0, 0
    for i, place in enumerate(a):
        for j, worse in enumerate(a):
            if place < worse:
                pairs += 1
                right += 1.0 if b[i] < b[j] else 0.5 if b[i] == b[j] else 0.0
    return right, pairs


def kendall_tau_b(one: Ranking, two: Ranking) -> float | None:
    """Kendall's rank correlation with ties counted out (τ-b); None when one of them ties everything."""
    a, b = _places(one, two)
    signed = untied_a = untied_b = 0
    for i in range(len(a)):
        for j in range(i):
            x, y = _sign(a[i] - a[j]), _sign(b[i] - b[j])
            signed += x * y
            untied_a += x != 0
            untied_b += y != 0
    return signed / math.sqrt(untied_a * untied_b) if untied_a and untied_b else None


def with_itself(
    rank: Callable[[int, random.Random], Ranking], questions: int, seed: int, repeats: int = 20
) -> list[tuple[float, float]]:
    """How two rankings of one annotator who errs agree, question by question: (right, pairs), means of ``repeats``.

    ``rank(question's index, rng)`` ranks once more, with errors. No bound for an imitator: held-out rankings without
    errors can be met by more, and even those with errors by whoever has the taste and does not err.
    """
    out = []
    for index in range(questions):
        rng = random.Random(f"{seed} {index}")
        found = [pair_agreement(rank(index, rng), rank(index, rng)) for _ in range(repeats)]
        out.append((sum(right for right, _ in found) / repeats, sum(pairs for _, pairs in found) / repeats))
    return out


def _places(one: Ranking, two: Ranking) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Both rankings' places of the first one's candidates."""
    if one.candidates == two.candidates:
        return ranks(one), ranks(two)
    if len(set(one.candidates)) < len(one.candidates) or set(one.candidates) != set(two.candidates):
        raise KlypeError(f"Two rankings of {one.question.question!r} are compared that have other candidates.")
    there = dict(zip(two.candidates, ranks(two), strict=True))
    return ranks(one), tuple(there[candidate] for candidate in one.candidates)


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)
