"""How good a reward model is on rankings that it has not seen: its order, its certainty, what it leans on."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

from klype.examine.calibration import bins, calibration_error
from klype.examine.intervals import mean_by_question, ratio_of_means
from klype.preferences.agreement import with_itself
from klype.preferences.annotators import Scorer, rank_simulated, ranks
from klype.runs.ranking import RankedSets
from klype.runs.task import Task
from klype.train.preference import RankedAnswers
from klype.train.reward_model import RewardModel, bias_audit, pairs_by_ranking
from klype.values import Figure, Question, Ranking

BINS = 8
TAU = (-1.0, 1.0)  # what Kendall's τ-b can be
AGAIN = 5  # how often the annotator ranks twice


def judge_the_judge(model: RewardModel, held_out: Sequence[RankedAnswers]) -> dict[str, Any]:
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
        "tau": mean_by_question([t for _, t in taus], [i for i, _ in taus], "tau-b", within=TAU).json(),
        "calibration_error": calibration_error(said, won, asked, BINS).json(),
        "calibration": [{"p": p, "observed": observed.json()} for p, observed in bins(said, won, asked, BINS)],
    }


def tau_ceiling(
    exact: Sequence[Ranking], noise: float | None, score: Callable[[Question, str], float], seed: int
) -> Figure:
    """Kendall's τ-b of two rankings of the annotator's own, each with its noise; of people nobody knows theirs."""
    if noise is None:
        return Figure(None, why="a person's own noise is known only from repeats")
    annotator, rng = Scorer("ceiling", score), random.Random(seed)
    taus = []
    for index, ranking in enumerate(exact):
        for _ in range(AGAIN):
            one, two = (
                ranks(rank_simulated(annotator, ranking.question, ranking.candidates, noise, rng)) for _ in range(2)
            )
            if np.isfinite(tau := stats.kendalltau(one, two).statistic):
                taus.append((index, float(tau)))
    if not taus:
        return Figure(None, why="no held-out pair is ordered")
    return mean_by_question([t for _, t in taus], [i for i, _ in taus], "tau-b", within=TAU)


def pairs(scored: Sequence[tuple[Sequence[int], Sequence[float]]]) -> tuple[list[float], list[float], list[int]]:
    """Of (ranks, scores) a question, every pair once: σ(s_i - s_j), 1 when i was placed before j (tied: ½), and where.

    Every other pair is turned round, so that candidates listed by quality would not all be winners.
    """
    said, won, asked = [], [], []
    for index, (places, scores) in enumerate(scored):
        for i in range(len(places)):
            for j in range(i):
                a, b = (i, j) if (i + j) % 2 else (j, i)
                said.append(float(1 / (1 + np.exp(min(50.0, max(-50.0, scores[b] - scores[a]))))))
                won.append(1.0 if places[a] < places[b] else 0.5 if places[a] == places[b] else 0.0)
                asked.append(index)
    return said, won, asked


def agreement(model: RewardModel, ranked: RankedSets, task: Task, seed: int) -> dict[str, Figure]:
    """Held-out pair accuracy, the annotator's agreement with itself, and what the reward leans on beside the taste."""
    pairs = [found for found in pairs_by_ranking(model, ranked.held_out) if found[1]]
    figures = {"pair_accuracy": _share_right(pairs), "ceiling": _ceiling(ranked, task, seed)}
    if ranked.held_out:
        # partial correlations of the reward with length and politeness, given the annotator's score
        scores, quality, length, polite, groups = [], [], [], [], []
        for index, (tokens, ranking) in enumerate(zip(ranked.held_out, ranked.exact, strict=True)):
            scores += model.score([tokens.prompt] * len(tokens.answers), tokens.answers).tolist()
            for text in ranking.candidates:
                verdict = task.judge(ranking.question, text, True)
                quality.append(verdict.score)
                length.append(float(verdict.words))
                polite.append(float(bool(verdict.polite)))
                groups.append(index)
        found = bias_audit(scores, quality, {"length": length, "politeness": polite}, groups)
        figures |= {f"leans_on_{name}": figure for name, figure in found.items()}
    return figures


def _share_right(pairs: Sequence[tuple[float, float]]) -> Figure:
    if not pairs:
        return Figure(None, why="no held-out pair is ordered")
    return ratio_of_means([right for right, _ in pairs], [of for _, of in pairs], "share of pairs")


def _ceiling(ranked: RankedSets, task: Task, seed: int) -> Figure:
    if ranked.noise is None:
        return Figure(None, why="a person's own noise is known only from repeats")
    noise = ranked.noise
    annotator = Scorer("ceiling", lambda question, answer: task.judge(question, answer, True).score)
    exact = ranked.exact

    def again(index: int, rng: random.Random) -> Ranking:
        return rank_simulated(annotator, exact[index].question, exact[index].candidates, noise, rng)

    return _share_right([found for found in with_itself(again, len(exact), seed, repeats=5) if found[1]])
