"""The last two stages: a model that imitates the ranker, and answers that please it, held near what they were."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from klype.engine.engine import Engine
from klype.errors import UsageError
from klype.model.lora import frozen
from klype.model.transformer import Transformer
from klype.runs import ranking
from klype.runs.adapting import learner, learnt
from klype.runs.judging import judge_the_judge, tau_ceiling
from klype.runs.lessons import messages
from klype.runs.plan import Planned
from klype.runs.stages import Run, learn, precision_of, session_of
from klype.runs.watch import ASKED, TIMES, Parted, Seen, Watch, Watched, best
from klype.train.methods import align_objective, method
from klype.train.objectives import Objective
from klype.train.pairs import RankingBatches, RankingSettings
from klype.train.policy import ActorCritic
from klype.train.rewards import ABOUT, Ranked, RewardModel, fit_reward, teaching
from klype.train.rollout import Asked, Players, RolloutBatches, RolloutSettings, by_model
from klype.values import Batch, Batches, Question


def reward(run: Run) -> None:
    """A model that imitates the ranker; how well is measured on questions it has not seen."""
    trunk = run.model("finetune")
    ranked = ranking.load(run.subject, run.folder / "rank")
    useful = teaching(ranked.train)
    fit = run.recipe.reward.fit
    run.say.stage_start("reward", fit.steps)
    session = session_of(run, "reward", None, None, None)
    model = fit_reward(trunk, useful, fit, run.folder / "reward", session)
    run.save("reward", trunk, {"parent": "finetune", "what": "the trunk of a reward model; its head lies beside"})
    model.save(run.folder / "reward", {"annotator": ranked.annotator})
    run.models.pop("reward")
    run.record.content["reward"] = _examined(run, model, ranked)
    accuracy = run.record.content["reward"]["pair_accuracy"]["value"]
    share = "none" if accuracy is None else f"{100 * accuracy:.0f} %"
    run.say.stage_end(f"agrees with the ranker on {share} of held-out pairs")


def examined(run: Run) -> dict[str, Any]:
    """The figures of the run's reward model, for a run that brought it along."""
    model = RewardModel.load(run.folder / "reward", run.model("finetune"))
    return _examined(run, model, ranking.load(run.subject, run.folder / "rank"))


def _examined(run: Run, model: RewardModel, ranked: ranking.RankedSets) -> dict[str, Any]:
    figures = ranking.agreement(model, ranked, run.subject, run.options.seed)
    found: dict[str, Any] = {name: figure.json() for name, figure in figures.items()}
    found |= judge_the_judge(model, ranked.held_out)

    def score(question: Question, answer: str) -> float:
        return run.subject.judge(question, answer, True).score

    return found | {"tau_ceiling": tau_ceiling(ranked.exact, ranked.noise, score, run.options.seed).json()}


def align(run: Run) -> None:
    """The model learns to answer as the ranker likes, held near what it was, and watched while it does."""
    section = run.recipe.align
    row = method(section.how.method)
    if section.how.updates > 1 and not row.stale:
        raise UsageError(
            f"The way to align called {row.name} learns from fresh answers only.",
            "Leave out align.how.updates, or use grpo or ppo.",
        )
    whole = run.model("finetune").requires_grad_(False)
    judge = None
    if row.learns_from == "rollouts" or (run.folder / "reward" / ABOUT).exists():
        judge = RewardModel.load(run.folder / "reward", whole)
    if run.recipe.lora.rank:  # the reference is the same weights without the adapters
        reference = frozen(whole, getattr(torch, precision_of(run, "align")))
        model = learner(run.recipe, run.options.seed, reference)
    else:
        reference = whole
        start = copy.deepcopy(whole).requires_grad_(True)
        model = ActorCritic.of(start) if row.critic else start
    watch = Watch(run.subject, [run.subject.questions(3)(i) for i in range(ASKED)], reference, judge)
    ranked = ranking.load(run.subject, run.folder / "rank")
    watched: list[Watched] = []

    def build(twin: nn.Module, planned: Planned | None) -> tuple[Objective, Batches]:
        assert isinstance(twin, Transformer)
        batches = _batches(run, twin, reference, judge, ranked.train)
        if planned is None:
            return align_objective(section.how), batches
        every = max(1, planned.steps // TIMES)
        stops = section.stops and judge is not None and ranked.noise is not None
        watched.append(Watched(batches, watch, twin, every, run.folder / "align", stops))
        return align_objective(section.how), watched[-1]

    stopped = False
    try:
        steps = learn(run, "align", model, build, run.recipe.training("align")).steps
        watched[-1].look()
    except Parted:
        stopped = True
        watched[-1].back_to_the_best()
        steps = best(watched[-1].seen).step
        run.say.stage_end(f"stopped: reward and annotator part; back to step {steps}")
    model.eval()
    seen = watched[-1].seen
    run.record.content["watch"] = {"stopped": stopped, "seen": [s.json() for s in seen]}
    run.say.table("while it aligned", COLUMNS, [_row(s) for s in seen])
    aligned = model.actor() if isinstance(model, ActorCritic) else learnt(model, whole)
    run.save("align", aligned, {"steps": steps, "parent": "finetune", "method": row.name})
    watched[-1].forget()


COLUMNS = ("step", "annotator", "reward model", "KL", "tokens", "repeated")


def _row(seen: Seen) -> tuple[str, ...]:
    shown = seen.json()
    return (str(seen.step), *(f"{shown[k]:.2f}" for k in ("truth", "reward", "kl", "length", "repetition")))


def _batches(
    run: Run, twin: Transformer, reference: Transformer, judge: RewardModel | None, ranked: list[Ranked]
) -> RolloutBatches | RankingBatches:
    """What the method learns from: fresh answers and their rewards, or the rankings themselves."""
    section, tokenizer = run.recipe.align, run.subject.chat.tokenizer
    row, how = method(section.how.method), section.how
    asked = run.subject.questions(2)
    seed = run.options.seed % 2**20
    rehearsed = run.subject.rehearsal(section.rehearsal_rows) if section.rehearsal_rows else None

    def rehearsal(step: int) -> Batch:
        assert rehearsed is not None
        rehearsed.restore({"position": step})
        return next(rehearsed)

    def ask(step: int) -> list[Asked]:
        questions = [asked(step * section.rows + i) for i in range(section.rows)]
        return [Asked(tuple(run.subject.chat.prompt(messages(q))), q) for q in questions]

    beside = rehearsal if rehearsed else None
    if row.learns_from == "rankings":
        settings = RankingSettings(questions=section.rows, marks=row.name == "kto", seed=seed)
        return RankingBatches(ranked, reference, settings, beside)
    assert judge is not None
    assert row.scaling is not None
    rollouts = RolloutSettings(
        answers=section.answers,
        limit=section.limit,
        scaling=row.scaling,
        updates=how.updates,
        beta=how.policy.beta,
        target_kl=how.target_kl,
        kl_in_reward=how.kl_in_reward,
        drop_equal=how.drop_equal,
        seed=seed,
        stop=tokenizer.ends,
    )
    return RolloutBatches(Players(ask, Engine(twin), by_model(judge), reference, beside), rollouts)
