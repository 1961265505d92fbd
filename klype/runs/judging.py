"""How good a reward model is on rankings that it has not seen: its order, and whether its certainty is deserved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from klype.examine.calibration import bins, calibration_error
from klype.examine.intervals import mean_by_question
from klype.train.rewards import Ranked, RewardModel
from klype.values import Figure

BINS = 8


def judge_the_judge(model: RewardModel, held_out: Sequence[Ranked]) -> dict[str, Any]:
    """``tau`` (Kendall's τ-b a question), ``calibration`` (bins of σ(Δs) beside the observed rate of winning) and
    ``calibration_error``: the root mean square gap between the two."""
    scored = [(r, model.scores([r.prompt] * len(r.answers), r.answers) * model.spread) for r in held_out]
    said, won, asked = pairs([(r.ranks, s_NH.mean(1).tolist()) for r, s_NH in scored])
    if not said:
        why = Figure(None, why="no held-out pair is ordered").json()
        return {"tau": why, "calibration_error": why, "calibration": []}
    taus = [
        (index, float(tau))
        for index, (r, s_NH) in enumerate(scored)
        if np.isfinite(tau := stats.kendalltau(-np.array(r.ranks), s_NH.mean(1)).statistic)
    ]
    return {
        "tau": mean_by_question([t for _, t in taus], [i for i, _ in taus], "tau-b").json(),
        "calibration_error": calibration_error(said, won, asked, BINS).json(),
        "calibration": [{"p": p, "observed": observed.json()} for p, observed in bins(said, won, asked, BINS)],
    }


def pairs(scored: Sequence[tuple[Sequence[int], Sequence[float]]]) -> tuple[list[float], list[float], list[int]]:
    """Of (ranks, scores) a question, every pair once: σ(s_i - s_j), 1 when i was placed before j (tied: ½), and where.

    Every other pair is turned round, so that candidates listed by quality would not all be winners.
    """
    said, won, asked = [], [], []
    for index, (ranks, scores) in enumerate(scored):
        for i in range(len(ranks)):
            for j in range(i):
                a, b = (i, j) if (i + j) % 2 else (j, i)
                said.append(float(1 / (1 + np.exp(min(50.0, max(-50.0, scores[b] - scores[a]))))))
                won.append(1.0 if ranks[a] < ranks[b] else 0.5 if ranks[a] == ranks[b] else 0.0)
                asked.append(index)
    return said, won, asked
