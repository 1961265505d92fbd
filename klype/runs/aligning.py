"""The last two stages: a model that imitates the annotator, and answers that please it, held near what they were."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from klype.engine.engine import Engine
from klype.errors import UsageError
from klype.examine.intervals import mean_by_question, paired
from klype.examine.repetition import repeated
from klype.model.lora import frozen
from klype.model.transformer import Transformer
from klype.planner import StepBudget, StepPlan, ThreadConfig
from klype.runs import ranking
from klype.runs.adapting import learner, learnt
from klype.runs.judging import agreement, judge_the_judge, tau_ceiling
from klype.runs.options import InputOptions, RunOptions
from klype.runs.recipe import Recipe
from klype.runs.record import Record
from klype.runs.say import RunListener
from klype.runs.stages import Run, learn, precision_of, seconds_for, session_of
from klype.runs.task import AnswerSettings, Task, draw_answers
from klype.runs.validating import BestWeights
from klype.train.objectives import Objective
from klype.train.policy import ActorCritic, align_objective, method
from klype.train.preference import RankedAnswers, RankingBatches, RankingSettings, informative
from klype.train.reward_model import ABOUT, RewardModel, fit_reward
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
from klype.train.rollout import RolloutBatches, RolloutSettings, kl_an_answer
from klype.train.scoring import answers_batch, reference_logp
from klype.values import Batch, Batches, Figure, Question, Reward, end
from klype.words import number, percent

TIMES, ASKED = 10, 64


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the watch saw after ``step`` steps. ``truth`` is the annotator's score of each question's answer; ``reward``
    the mean of what is learnt from; ``kl`` in nats an answer; ``length`` in tokens; ``repetition`` a share of 4-grams;
    ``rewards`` each reward of each answer, by name."""

    step: int
    truth: tuple[float, ...]
    reward: float
    kl: float
    length: float
    finished: float
    repetition: float
    rewards: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        means = {name: float(np.mean(each)) for name, each in self.rewards.items()}
        return {**asdict(self), "truth": float(np.mean(self.truth)), "rewards": means}


class RewardHacking(Exception):  # noqa: N818 - an end that was asked for
    """The two scores went apart: nothing more is to be learnt from this reward."""


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Who is asked what, and who judges. ``rewards`` is None where nothing rewards an answer."""

    task: Task
    questions: Sequence[Question]
    reference: Transformer
    rewards: WeightedRewards | None

    @torch.no_grad()
    def look(self, model: Transformer, step: int) -> Evaluation:
        groups = draw_answers(self.task, model, self.questions, AnswerSettings(1.0))
        traces = [group[0] for group in groups]
        prompts, answers = [t.prompt for t in traces], [t.tokens for t in traces]
        batch = answers_batch(prompts, answers)
        own, reference = (reference_logp(m, batch) for m in (model, self.reference))
        texts = [self.task.chat.tokenizer.decode_answer(t.tokens) for t in traces]
        ended = [t.ended == "stop" for t in traces]
        judged = zip(self.questions, texts, ended, strict=True)
        worth = self.rewards or WeightedRewards({})
        each = worth.each([QuestionPrompt(p, q) for p, q in zip(prompts, self.questions, strict=True)], answers)
        repeats = [r for text in texts if (r := repeated(tuple(text.split()))) is not None]
        return Evaluation(
            step,
            tuple(self.task.judge(q, text, done).score for q, text, done in judged),
            float(worth.total(each).mean()) if each else 0.0,
            kl_an_answer(own.float(), reference.float()),
            float(np.mean([len(a) for a in answers])),
            float(np.mean(ended)),
            float(np.mean(repeats)) if repeats else 0.0,
            {name: found.tolist() for name, found in each.items()},
        )


class EvaluatedBatches:
    """A stage's batches, with a look at the model every ``every`` steps; its weights at the best look are kept."""

    def __init__(
        self, batches: Batches, watch: Evaluator, model: Transformer, every: int, folder: Path, stops: bool
    ) -> None:
        self._batches, self._watch, self._model = batches, watch, model
        self.every, self._stops = every, stops
        self.seen: list[Evaluation] = []
        self._index = 0
        self._best = BestWeights(model, folder)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._index % self.every == 0:
            self.look()
            if self._stops and parted(self.seen):
                raise RewardHacking
        batch = next(self._batches)
        self._index += 1
        if self.seen:
            last = self.seen[-1]
            shown = {"truth": float(np.mean(last.truth)), "watched_kl": last.kl, "watched_reward": last.reward}
            batch.extra["metrics"] = {**batch.extra.get("metrics", {}), **shown}
        return batch

    def look(self) -> None:
        """Looks at the model as it is; the best so far is kept."""
        if self.seen and self.seen[-1].step == self._index:
            return
        self._model.eval()
        self.seen.append(self._watch.look(self._model, self._index))
        self._model.train()
        if best(self.seen) is self.seen[-1]:
            self._best.keep()

    def back_to_the_best(self) -> None:
        """KlypeError when a resumed run's best weights are gone from the disk."""
        self._best.restore(best(self.seen).step, "Align again.")

    def forget(self) -> None:
        """Removes what was kept on the disk: nothing is left to resume."""
        self._best.forget()

    def state(self) -> dict[str, Any]:
        if self.seen:
            self._best.save(best(self.seen).step)
        return {"index": self._index, "seen": [asdict(s) for s in self.seen], "batches": self._batches.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self._index = state["index"]
        self.seen = [Evaluation(**{**s, "truth": tuple(s["truth"])}) for s in state["seen"]]
        self._batches.restore(state["batches"])

    def close(self) -> None:
        end(self._batches)


def best(seen: Sequence[Evaluation]) -> Evaluation:
    """The look at which the annotator was happiest; the first of equals."""
    return max(seen, key=lambda s: float(np.mean(s.truth)))


def parted(seen: Sequence[Evaluation]) -> bool:
    """The annotator likes the newest answers less than the best ones, beyond chance; the reward is no less."""
    top, last = best(seen), seen[-1]
    if last is top or last.reward < top.reward:
        return False
    high = paired(top.truth, last.truth, range(len(top.truth))).high
    return high is not None and high < 0


SLACK = 1.5  # times its part of the time is what the reward model may take before it gets fewer steps


def reward(run: Run) -> None:
    """A model that imitates the annotator; how well is measured on questions it has not seen."""
    trunk = run.model("finetune")
    ranked = ranking.load(run.task, run.folder / "rank")
    useful = informative(ranked.train)
    fit = run.recipe.reward.fit
    run.say.stage_start("reward", fit.steps)
    seconds = seconds_for(run, "reward") if isinstance(run.options, RunOptions) else 0.0
    known = StepPlan(fit.steps, SLACK * seconds, ThreadConfig()).json()
    budget = StepBudget(known, time.perf_counter(), most=fit.steps)
    model = budget.follow(
        lambda: fit_reward(
            trunk,
            useful,
            fit.model_copy(update={"steps": budget.plan.steps}),
            run.folder / "reward",
            session_of(run, "reward", None, None, budget),
        )
    )
    run.save("reward", trunk, {"parent": "finetune", "what": "the trunk of a reward model; its head lies beside"})
    model.save(run.folder / "reward", {"annotator": ranked.annotator})
    run.models.pop("reward")
    run.record.content["reward"] = _examined(run, model, ranked)
    accuracy = run.record.content["reward"]["pair_accuracy"]["value"]
    share = "none" if accuracy is None else percent(accuracy, "en")
    run.say.stage_end(f"agrees with the annotator on {share} of held-out pairs")


def examined(run: Run) -> dict[str, Any]:
    """The figures of the run's reward model, for a run that brought it along."""
    model = RewardModel.load(run.folder / "reward", run.model("finetune"))
    return _examined(run, model, ranking.load(run.task, run.folder / "rank"))


def _examined(run: Run, model: RewardModel, ranked: ranking.RankedSets) -> dict[str, Any]:
    figures = agreement(model, ranked, run.task, run.options.seed)
    found: dict[str, Any] = {name: figure.json() for name, figure in figures.items()}
    found |= judge_the_judge(model, ranked.held_out)

    def score(question: Question, answer: str) -> float:
        return run.task.judge(question, answer, True).score

    return found | {"tau_ceiling": tau_ceiling(ranked.exact, ranked.noise, score, run.options.seed).json()}


def align(run: Run) -> None:
    """The model learns to answer as the annotator likes, held near what it was, and watched while it does."""
    section = run.recipe.align
    row = method(section.how.method)
    if section.how.updates > 1 and not row.stale:
        raise UsageError(
            f"The way to align called {row.name} learns from fresh answers only.",
            "Leave out align.how.updates, or use grpo or ppo.",
        )
    whole = run.model("finetune").requires_grad_(False)
    rewards = _rewards(run, whole)
    if run.recipe.lora.rank:  # the reference is the same weights without the adapters
        reference = frozen(whole, getattr(torch, precision_of(run, "align")))
        model = learner(run.recipe, run.options.seed, reference)
    else:
        reference = whole
        start = copy.deepcopy(whole).requires_grad_(True)
        model = ActorCritic.of(start) if row.critic else start
    watch = Evaluator(run.task, [run.task.questions(3)(i) for i in range(ASKED)], reference, rewards)
    ranked, known = _ranked(run, rewards)
    watched: list[EvaluatedBatches] = []

    def build(twin: nn.Module, planned: StepPlan | None) -> tuple[Objective, Batches]:
        assert isinstance(twin, Transformer)
        batches = _batches(run, twin, reference, rewards, ranked)
        if planned is None:
            return align_objective(section.how), batches
        every = max(1, planned.steps // TIMES)
        stops = section.stops and known
        watched.append(EvaluatedBatches(batches, watch, twin, every, run.folder / "align", stops))
        return align_objective(section.how), watched[-1]

    stopped = False
    try:
        steps = learn(run, "align", model, build, run.recipe.training("align")).steps
        watched[-1].look()
    except RewardHacking:
        stopped = True
        watched[-1].back_to_the_best()
        steps = best(watched[-1].seen).step
        run.say.stage_end(f"stopped: reward rose while the annotator's score fell; restored step {steps}")
    model.eval()
    seen = watched[-1].seen
    run.record.content["watch"] = {"stopped": stopped, "seen": [s.json() for s in seen]}
    run.record.content["rewards"] = _worth(run, seen[0], best(seen) if stopped else seen[-1])
    run.say.table("during alignment", COLUMNS, [_row(s, run.options.lang) for s in seen])
    aligned = model.actor() if isinstance(model, ActorCritic) else learnt(model, whole)
    run.save("align", aligned, {"steps": steps, "parent": "finetune", "method": row.name})
    watched[-1].forget()


def functions_of(recipe: Recipe, options: InputOptions, record: Record, say: RunListener) -> dict[str, Reward]:
    """The recipe's rewards that are functions; run.json says which source they had, and a change is told."""
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


def _rewards(run: Run, trunk: Transformer) -> WeightedRewards | None:
    """What answers are given; where rankings are learnt from as they are, their reward model only watches."""
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


def _ranked(run: Run, rewards: WeightedRewards | None) -> tuple[list[RankedAnswers], bool]:
    """The rankings that are learnt from (for methods that do), and whether an annotator is known to judge the reward
    by: the one whose rankings the reward model imitates, or the world's."""
    section = run.recipe.align
    directly = method(section.how.method).learns_from == "rankings"
    given = None if section.replaces_model else ranking.load(run.task, run.folder / "rank")
    ranked = given.train if given is not None else []
    if directly and section.rewards:
        assert rewards is not None
        ranked = ranked_by(rewards, ranking.unranked(run.task, run.folder / "rank"))
    known = run.recipe.kind == "world" if given is None else given.noise is not None
    return ranked, known and rewards is not None


def ranked_by(rewards: AnswerReward, found: Sequence[tuple[Question, RankedAnswers]]) -> list[RankedAnswers]:
    """Answers in the order of their rewards, equal ones tied."""
    asked = [QuestionPrompt(one.prompt, question) for question, one in found for _ in one.answers]
    worth = iter(rewards(asked, [answer for _, one in found for answer in one.answers]).tolist() if asked else [])
    ranked = []
    for _, one in found:
        own = [next(worth) for _ in one.answers]
        order = sorted(set(own), reverse=True)
        ranked.append(replace(one, ranks=tuple(order.index(value) for value in own)))
    return ranked


def _worth(run: Run, before: Evaluation, after: Evaluation) -> dict[str, Any]:
    """Each reward with its weight, and its mean over the watched questions' answers before and after."""
    digests = run.record.content.get("functions", {})
    return {
        name: {
            "weight": weight,
            **({"sha256": digests[name]} if digests.get(name) else {}),
            "before": _mean(before.rewards[name]).json(),
            "after": _mean(after.rewards[name]).json(),
            "gain": paired(before.rewards[name], after.rewards[name], range(ASKED)).json(),
        }
        for name, weight in run.recipe.align.weights.items()
        if name in before.rewards  # not in a state of an earlier klype
    }


def _mean(each: Sequence[float]) -> Figure:
    return mean_by_question(each, range(len(each)), "reward")


COLUMNS = ("step", "annotator", "reward", "KL", "tokens", "repeated")


def _row(seen: Evaluation, lang: str) -> tuple[str, ...]:
    shown = seen.json()
    return (str(seen.step), *(number(shown[k], lang) for k in ("truth", "reward", "kl", "length", "repetition")))


def _batches(
    run: Run, twin: Transformer, reference: Transformer, rewards: WeightedRewards | None, ranked: list[RankedAnswers]
) -> RolloutBatches | RankingBatches:
    """What the method learns from: fresh answers and their rewards, or the rankings themselves."""
    section, tokenizer = run.recipe.align, run.task.chat.tokenizer
    row, how = method(section.how.method), section.how
    asked = run.task.questions(2)
    seed = run.options.seed % 2**20
    rehearsed = run.task.rehearsal(section.rehearsal_rows) if section.rehearsal_rows else None

    def rehearsal(step: int) -> Batch:
        assert rehearsed is not None
        rehearsed.restore({"position": step})
        return next(rehearsed)

    def ask(step: int) -> list[QuestionPrompt]:
        questions = [asked(step * section.rows + i) for i in range(section.rows)]
        return [QuestionPrompt(tuple(run.task.chat.prompt(q.messages())), q) for q in questions]

    beside = rehearsal if rehearsed else None
    if row.learns_from == "rankings":
        settings = RankingSettings(questions=section.rows, marks=row.name == "kto", seed=seed)
        return RankingBatches(ranked, reference, settings, beside)
    assert rewards is not None
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
    return RolloutBatches(rollouts, ask, Engine(twin), rewards, reference, beside)
