"""The reward stage, the reward model's figures on held-out rankings, and rewards that are functions."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from klype.errors import UsageError
from klype.examine.calibration import bins, calibration_error
from klype.examine.intervals import mean_by_question, ratio_of_means
from klype.model.transformer import Transformer
from klype.planner import StepBudget, StepPlan
from klype.preferences.agreement import kendall_tau_b, tau_b, with_itself
from klype.preferences.annotators import Scorer, rank_simulated
from klype.runs import ranking
from klype.runs.listener import RunListener
from klype.runs.recipe import Recipe
from klype.runs.run_json import Record
from klype.runs.run_options import InputOptions, RunOptions
from klype.runs.stages import RunContext, seconds_for, session_of
from klype.train.policy import method
from klype.train.preference import RankedAnswers, informative_rankings
from klype.train.reward_model import ABOUT, RewardModel, bias_audit, fit_reward, pairs_by_ranking
from klype.train.rewards import (
    MODEL,
    AnswerReward,
    QuestionPrompt,
    WeightedRewards,
    by_model,
    by_text,
    digest,
    load_function,
)
from klype.values import Figure, Question, Ranking, Reward
from klype.words import percent

SLACK = 1.5  # the reward model gets fewer steps when it would take more than this many times its part of the time


def reward(run: RunContext) -> None:
    """Fits a reward model to the rankings and measures it on held-out questions."""
    trunk = run.model("finetune")
    ranked = ranking.load(run.task, run.folder / "rank")
    useful = informative_rankings(ranked.train)
    fit = run.recipe.reward.fit
    run.say.stage_start("reward", fit.steps)
    seconds = seconds_for(run, "reward") if isinstance(run.options, RunOptions) else 0.0
    known = StepPlan(fit.steps, SLACK * seconds).json()
    budget = StepBudget(known, time.perf_counter(), most=fit.steps)

    def fitted() -> RewardModel:
        settings = fit.model_copy(update={"steps": budget.plan.steps})
        return fit_reward(trunk, useful, settings, run.folder / "reward", session_of(run, "reward", budget))

    model = budget.follow(fitted)
    run.save("reward", trunk, {"parent": "finetune", "what": "the trunk of a reward model; its head lies beside"})
    model.save(run.folder / "reward", {"annotator": ranked.annotator})
    run.models.pop("reward")
    run.record.content["reward"] = reward_figures(run)
    accuracy = run.record.content["reward"]["pair_accuracy"]["value"]
    share = "none" if accuracy is None else percent(accuracy, "en")
    run.say.stage_end(f"agrees with the annotator on {share} of held-out pairs")


def reward_figures(run: RunContext) -> dict[str, Any]:
    """The figures of the run's reward model: held-out pair accuracy, the annotator's agreement with itself, bias
    towards length and politeness, rank correlation and calibration."""
    model = RewardModel.load(run.folder / "reward", run.model("finetune"))
    ranked = ranking.load(run.task, run.folder / "rank")
    seed, judge, noise = run.options.seed, run.task.judge, ranked.noise
    annotator = Scorer("ceiling", lambda question, answer: judge(question, answer, True).score)
    figures = {"pair_accuracy": _pair_accuracy(pairs_by_ranking(model, ranked.held_out)), "ceiling": UNKNOWN}
    if noise is not None:

        def again(index: int, rng: random.Random) -> Ranking:
            one = ranked.exact[index]
            return rank_simulated(annotator, one.question, one.candidates, noise, rng)

        figures["ceiling"] = _pair_accuracy(with_itself(again, len(ranked.exact), seed, repeats=AGAIN))
    heads = [model.scores([r.prompt] * len(r.answers), r.answers) for r in ranked.held_out]  # [N, H] a question
    if heads:
        # partial correlations of the reward with length and politeness, given the annotator's score
        scores = [float(score) for score_NH in heads for score in score_NH.mean(1)]
        texts = [(i, one.question, text) for i, one in enumerate(ranked.exact) for text in one.candidates]
        verdicts = [judge(question, text, True) for _, question, text in texts]
        beside = {"length": [float(v.words) for v in verdicts], "politeness": [float(bool(v.polite)) for v in verdicts]}
        found = bias_audit(scores, [v.score for v in verdicts], beside, [i for i, *_ in texts])
        figures |= {f"leans_on_{name}": figure for name, figure in found.items()}
    shown: dict[str, Any] = {name: figure.json() for name, figure in figures.items()}
    ceiling = tau_ceiling(ranked.exact, noise, annotator, seed)
    # a difference of raw scores is the log-odds that the annotator prefers one answer to the other
    raw = [(score_NH * model.spread).mean(1).tolist() for score_NH in heads]
    return {**shown, **tau_and_calibration(raw, ranked.held_out), "tau_ceiling": ceiling.json()}


def functions_of(recipe: Recipe, options: InputOptions, record: Record, say: RunListener) -> dict[str, Reward]:
    """The recipe's reward functions by name. Records their source's hashes in run.json, and says when one has changed.
    UsageError for a function of a program that is not running."""
    found: dict[str, Reward] = {}
    for name in recipe.align.rewards:
        if name == MODEL:
            continue
        if name not in options.functions and ":" not in name:
            raise UsageError(
                f"The reward {name} is a function of the program that began this run.", "Go on from there."
            )
        found[name] = options.functions[name] if name in options.functions else load_function(name)
    now = {name: digest(function) for name, function in found.items()}
    for name, known in record.content.get("functions", {}).items():
        if now.get(name, known) != known:
            say.note(f"The reward {name} has changed since this run began.")
    if now:
        record.content["functions"] = now
    return found


def rewards_of(run: RunContext, trunk: Transformer) -> WeightedRewards | None:
    """The weighted rewards of the recipe. For a method that learns from rankings: the reward model, if there is one, to
    watch the training only."""
    weights = run.recipe.align.weights
    if not weights and (run.folder / "reward" / ABOUT).exists():
        weights = {MODEL: 1.0}
    parts: dict[str, tuple[AnswerReward, float]] = {}
    for name, weight in weights.items():
        if name == MODEL:
            reward = by_model(RewardModel.load(run.folder / "reward", trunk))
        else:
            reward = by_text(run.functions[name], run.task.chat.tokenizer.decode_answer, name)
        parts[name] = reward, weight
    return WeightedRewards(parts) if parts else None


def rankings_to_learn(run: RunContext, rewards: WeightedRewards | None) -> tuple[list[RankedAnswers], bool]:
    """The rankings to learn from, and whether there is an annotator of known taste to check the reward against: the one
    that the reward model imitates, or the demo world's."""
    section = run.recipe.align
    directly = method(section.how.method).learns_from == "rankings"
    given = None if section.replaces_model else ranking.load(run.task, run.folder / "rank")
    ranked = given.train if given is not None else []
    if directly and section.rewards:
        assert rewards is not None
        ranked = rank_by_reward(rewards, ranking.tied_answers(run.task, run.folder / "rank"))
    known = run.recipe.kind == "world" if given is None else given.noise is not None
    return ranked, known and rewards is not None


def rank_by_reward(rewards: AnswerReward, found: Sequence[tuple[Question, RankedAnswers]]) -> list[RankedAnswers]:
    """The answers ranked by their rewards, equal ones tied."""
    asked = [QuestionPrompt(one.prompt, question) for question, one in found for _ in one.answers]
    worth = iter(rewards(asked, [answer for _, one in found for answer in one.answers]).tolist() if asked else [])
    ranked = []
    for _, one in found:
        own = [next(worth) for _ in one.answers]
        order = sorted(set(own), reverse=True)
        ranked.append(replace(one, ranks=tuple(order.index(value) for value in own)))
    return ranked


# figures of a reward model: order and calibration

BINS = 8
AGAIN = 5  # pairs of rankings of each question, in which the annotator is compared with itself
UNKNOWN = Figure(None, why="a person's own noise is known only from repeats")
UNORDERED = Figure(None, why="no held-out pair is ordered")


def tau_and_calibration(scores: Sequence[Sequence[float]], held_out: Sequence[RankedAnswers]) -> dict[str, Any]:
    """``tau`` (mean Kendall's τ-b of a question), ``calibration`` (bins of σ(Δs) with the observed rate of winning) and
    ``calibration_error``: the root mean square gap between the two. ``scores``: of each ranking's answers."""
    said, won, asked = scored_pairs([(r.ranks, own) for r, own in zip(held_out, scores, strict=True)])
    if not said:
        return {"tau": UNORDERED.json(), "calibration_error": UNORDERED.json(), "calibration": []}
    taus = [tau_b([-rank for rank in r.ranks], own) for r, own in zip(held_out, scores, strict=True)]
    return {
        "tau": _mean_tau(taus, range(len(taus))).json(),
        "calibration_error": calibration_error(said, won, asked, count=BINS).json(),
        "calibration": [{"p": p, "observed": observed.json()} for p, observed in bins(said, won, asked, count=BINS)],
    }


def _mean_tau(taus: Sequence[float | None], asked: Sequence[int]) -> Figure:
    """The mean τ-b over the questions ``asked``; None, where all answers are tied, is left out."""
    known = [(tau, index) for tau, index in zip(taus, asked, strict=True) if tau is not None]
    if not known:
        return UNORDERED
    return mean_by_question([tau for tau, _ in known], [i for _, i in known], "tau-b", within=(-1.0, 1.0))


def tau_ceiling(exact: Sequence[Ranking], noise: float | None, annotator: Scorer, seed: int) -> Figure:
    """Mean Kendall's τ-b of two noisy rankings by the simulated annotator; unknown for people (``noise`` None)."""
    if noise is None:
        return UNKNOWN
    rng, asked = random.Random(seed), [index for index in range(len(exact)) for _ in range(AGAIN)]
    again: Callable[[Ranking], Ranking] = lambda r: rank_simulated(annotator, r.question, r.candidates, noise, rng)
    return _mean_tau([kendall_tau_b(again(exact[index]), again(exact[index])) for index in asked], asked)


def scored_pairs(scored: Sequence[tuple[Sequence[int], Sequence[float]]]) -> tuple[list[float], list[float], list[int]]:
    """For every pair of answers to a question: σ(s_i - s_j), the outcome (1: i ranks before j, ½: tied, 0), and the
    question's index. ``scored``: (ranks, scores) of each question.

    i and j are swapped in every other pair: else i would win all pairs of candidates that are listed by quality.
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


def _pair_accuracy(pairs: Sequence[tuple[float, float]]) -> Figure:
    """The share of pairs in the right order, of (right, pairs) per ranking; rankings without pairs are left out."""
    if not (ordered := [found for found in pairs if found[1]]):
        return UNORDERED
    right, of = zip(*ordered, strict=True)
    return ratio_of_means(right, of, "share of pairs")
