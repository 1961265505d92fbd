"""Entropy (nats) of a distribution of which only a part is known: between certain bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from klype.values import Floats


def entropy_bounds(
    low: Sequence[float], unexplored: float, opened: tuple[Floats, Floats] | None = None, most: int = 0
) -> tuple[float, float]:
    """Entropy (nats) of a distribution whose masses are at least ``low`` and which has ``unexplored`` beside them.

    Least: all of it on the largest. Most: shared out among ``most`` classes like water, where their number is known;
    else the entropy of classes and open parts together, and what each part (``opened``: masses, nats) can add.
    """
    masses = sorted((mass for mass in low if mass > 0), reverse=True)
    least = _entropy([(masses[0] if masses else 0.0) + unexplored, *masses[1:]])
    if most:
        return least, max(least, min(math.log(most), _entropy(_levelled(masses, unexplored, most))))
    if opened is None:
        return least, least if unexplored == 0.0 else math.inf
    mass_N, behind_N = opened
    more = float((mass_N * behind_N).sum()) if len(mass_N) else 0.0
    return least, max(least, _entropy(masses) + float(-(mass_N * np.log(mass_N)).sum()) + more)


def _levelled(masses: Sequence[float], water: float, classes: int) -> list[float]:
    """Raise the lowest of so many classes to one level, until the water is used."""
    rising = sorted([*masses, *(0.0,) * max(0, classes - len(masses))])
    for lowest in range(1, len(rising) + 1):
        level = (math.fsum(rising[:lowest]) + water) / lowest
        if lowest == len(rising) or level <= rising[lowest]:
            return [level] * lowest + rising[lowest:]
    return rising


def _entropy(masses: Sequence[float]) -> float:
    return math.fsum(-mass * math.log(mass) for mass in masses if mass > 0)
