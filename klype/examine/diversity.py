"""How many different answers a question has: entropies, what was not seen, what two answers share. Nats."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import combinations

from klype.examine.intervals import NORMAL
from klype.values import Figure


def chao_shen(classes: Sequence[Hashable]) -> float | None:
    """Entropy of classes from a sample, those unseen allowed for (Chao & Shen 2003). None: fewer than two draws.

    The sample's coverage is 1 − n₁/N (n₁: seen once); when all were seen once, N − 1 of them are taken for it.
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
    """1 − Σ over different answers of their known probability: (answer, its log-probability as drawn)."""
    return max(0.0, 1.0 - math.fsum(math.exp(value) for value in dict(logp).values()))


def good_turing(classes: Sequence[Hashable]) -> Figure:
    """The probability of what was not seen, n₁/N, with Esty's (1983) interval, four draws added: two of answers seen
    once, two that make answers seen once into seen twice (without, ten draws that all differ had no width at all)."""
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
    """How many first words two different draws share, in the mean. None: fewer than two."""
    pairs = list(combinations(answers, 2))
    if not pairs:
        return None
    return sum(shared(a, b) for a, b in pairs) / len(pairs)


def shared(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
