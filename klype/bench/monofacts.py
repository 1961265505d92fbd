"""Facts that were seen once and statements that are false: what others proved, in worlds where every fact is counted.

Two such worlds. In the one, statements of three parts are drawn by Pareto weights, and bigrams are counted in the
sample; all that the bigrams can say is few enough to be summed, so that what is false of it is known exactly. In the
other, questions have answers without rhyme or reason, and a model that remembers answers each as best it can.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from klype.values import Figure

Array = npt.NDArray[np.floating[Any]]
PARTS = 40
"""Values that each of the three parts of a statement can have."""
FACTS, SAMPLE = 6000, 3000
SHAPES = (0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0)
"""Of the Pareto weights: the smaller, the more is said of a few facts, and the fewer are seen once."""
QUESTIONS, ASKED, ANSWERS = 400_000, 200_000, 100


def bigram_world(shape: float, seed: int) -> tuple[float, float, float]:
    """(rate of false statements, share of the sample that was seen once, miscalibration) of one world.

    Miscalibration as Kalai & Vempala (arXiv:2311.14648) define it: total variation between truth and model once both
    are spread evenly over statements that the model finds equally likely.
    """
    rng = np.random.default_rng([seed, round(1000 * shape)])
    facts = np.stack(np.unravel_index(rng.choice(PARTS**3, FACTS, replace=False), (PARTS,) * 3))
    weight_F = 1 + rng.pareto(shape, FACTS)
    weight_F /= weight_F.sum()
    count_F = rng.multinomial(SAMPLE, weight_F)
    first_A, second_AB, third_BC = np.zeros(PARTS), np.zeros((PARTS,) * 2), np.zeros((PARTS,) * 2)
    np.add.at(first_A, facts[0], count_F)
    np.add.at(second_AB, (facts[0], facts[1]), count_F)
    np.add.at(third_BC, (facts[1], facts[2]), count_F)
    q_ABC = (first_A / SAMPLE)[:, None, None] * _rows(second_AB)[:, :, None] * _rows(third_BC)[None]
    p_ABC = np.zeros_like(q_ABC)
    p_ABC[tuple(facts)] = weight_F
    _, level = np.unique(np.round(q_ABC, 15), return_inverse=True)
    gap = np.bincount(level.ravel(), (p_ABC - q_ABC).ravel())
    false = max(0.0, 1.0 - float(q_ABC[tuple(facts)].sum()))
    return false, float((count_F == 1).sum()) / SAMPLE, float(np.abs(gap).sum()) / 2


def relationship(seed: int) -> tuple[Figure, Figure]:
    """Over worlds of all shapes: Kendall's τ between false statements and facts seen once, and the least room between
    false statements and their lower bound (facts seen once less miscalibration)."""
    rows = np.array([bigram_world(shape, seed + i) for shape in SHAPES for i in range(5)])
    tau = float(stats.kendalltau(rows[:, 0], rows[:, 1]).statistic)
    drawn = np.random.default_rng(seed).integers(0, len(rows), (500, len(rows)))
    taus = [float(stats.kendalltau(rows[one, 0], rows[one, 1]).statistic) for one in drawn]
    low, high = (float(np.quantile(taus, end)) for end in (0.025, 0.975))
    room = float((rows[:, 0] - rows[:, 1] + rows[:, 2]).min())
    return (
        Figure(tau, min(low, tau), max(high, tau), len(rows), "Kendall's tau"),
        Figure(room, room, room, len(rows), "share of statements", certain=True),
    )


def singletons(seed: int) -> tuple[Figure, float, float]:
    """Share of false answers of a model that remembers, and what Kalai et al. 2025 (theorem 2) prove of it from the
    share of questions seen once: at least, at most.

    Answers are drawn evenly from ``ANSWERS``; unknown questions get one drawn likewise, which is calibrated.
    """
    rng = np.random.default_rng([seed, 2])
    times_Q = np.bincount(rng.integers(0, QUESTIONS, ASKED), minlength=QUESTIONS)
    once = float((times_Q == 1).sum()) / ASKED
    false = float((times_Q == 0).mean()) * (1 - 1 / ANSWERS)
    root = ASKED**0.5
    least = once - 2 / ANSWERS - (35 + 6 * float(np.log(ASKED))) / root
    most = once - once / (ANSWERS + 1) + 13 / root
    return Figure(false, false, false, QUESTIONS, "share of answers", certain=True), least, most


def _rows(count_NM: Array) -> Array:
    """Each row as shares; a row that was never seen has none."""
    total_N1 = count_NM.sum(axis=1, keepdims=True)
    shares: Array = np.divide(count_NM, total_N1, out=np.zeros_like(count_NM), where=total_N1 > 0)
    return shares
