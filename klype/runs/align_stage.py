"""The alignment stage: trains on rewards or rankings near a reference model, and evaluates the model meanwhile."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from klype.data.batches import WithRehearsal
from klype.engine.engine import Engine
from klype.errors import UsageError
from klype.examine.intervals import mean_by_question, mean_change
from klype.examine.repetition import repeated_share
from klype.model.lora import frozen_model
from klype.model.transformer import Transformer
from klype.planner import StepPlan
from klype.runs.best_weights import BestWeights
from klype.runs.reward import rankings_to_learn, rewards_of
from klype.runs.stages import RunContext, merged_model, precision_of, run_training, trainable_model
from klype.runs.task import Task, draw_answers
from klype.train.objectives import Objective, answers_batch, reference_logp
from klype.train.policy import ActorCritic, AnswerUse, align_objective, method
from klype.train.preference import RankedAnswers, RankingBatches, RankingSettings
from klype.train.rewards import QuestionPrompt, WeightedRewards
from klype.train.rollout import RolloutBatches, RolloutSettings, kl_an_answer
from klype.values import Batch, Batches, Question, end
from klype.words import number

TIMES, ASKED = 10, 64  # evaluations, and questions in each
COLUMNS = ("step", "annotator", "reward", "KL", "tokens", "repeated")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Measurements of the model after ``step`` steps. ``truth``: the annotator's score of each question's answer;
    ``reward``: mean weighted reward; ``kl``: nats per answer; ``length``: tokens; ``repetition``: share of repeated
    4-grams; ``rewards``: by name, each answer's."""

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

    def row(self, lang: str) -> tuple[str, ...]:
        """A row of the table whose columns are COLUMNS."""
        shown = self.json()
        return (str(self.step), *(number(shown[k], lang) for k in ("truth", "reward", "kl", "length", "repetition")))


class RewardHacking(Exception):  # noqa: N818 - ends training as asked for
    """Raised when the annotator's score falls while the reward does not: the reward no longer measures the taste."""


@torch.no_grad()
def evaluation(
    task: Task,
    questions: Sequence[Question],
    model: Transformer,
    reference: Transformer,
    rewards: WeightedRewards | None,
    step: int,
) -> Evaluation:
    """Evaluates the model after ``step`` steps by one answer to each question. ``rewards``: None where there are
    none."""
    model.eval()
    traces = [trace for (trace,) in draw_answers(task, model, questions, 1.0)]
    prompts, answers = [t.prompt for t in traces], [t.tokens for t in traces]
    batch = answers_batch(prompts, answers)
    own, before = (reference_logp(m, batch) for m in (model, reference))
    texts = [task.chat.tokenizer.decode_answer(tokens) for tokens in answers]
    ended = [t.ended == "stop" for t in traces]
    worth = rewards or WeightedRewards({})
    each = worth.each([QuestionPrompt(p, q) for p, q in zip(prompts, questions, strict=True)], answers)
    model.train()
    repeats = [r for text in texts if (r := repeated_share(tuple(text.split()))) is not None]
    return Evaluation(
        step,
        tuple(task.judge(*judged).score for judged in zip(questions, texts, ended, strict=True)),
        float(worth.total(each).mean()) if each else 0.0,
        kl_an_answer(own.float(), before.float()),
        float(np.mean([len(a) for a in answers])),
        float(np.mean(ended)),
        float(np.mean(repeats)) if repeats else 0.0,
        {name: found.tolist() for name, found in each.items()},
    )


class EvaluatedBatches(Batches):
    """Batches with an evaluation (``evaluate(step)``) every ``every`` steps; the weights with the annotator's highest
    score are kept. ``stops``: raise RewardHacking when reward and annotator disagree (``parted``)."""

    def __init__(
        self, batches: Batches, evaluate: Callable[[int], Evaluation], best: BestWeights, every: int, stops: bool
    ) -> None:
        self._batches, self._evaluate, self.best, self.every, self._stops = batches, evaluate, best, every, stops
        self.seen: list[Evaluation] = []
        self._index = 0

    def __next__(self) -> Batch:
        if self._index % self.every == 0:
            self.look()
            if self._stops and scores_diverged(self.seen):
                raise RewardHacking
        batch = next(self._batches)
        self._index += 1
        last = self.seen[-1]
        shown = {"truth": float(np.mean(last.truth)), "watched_kl": last.kl, "watched_reward": last.reward}
        batch.extra["metrics"] = {**batch.extra.get("metrics", {}), **shown}
        return batch

    def look(self) -> None:
        """Evaluates the current model, once per step; keeps its weights if they are the best so far."""
        if self.seen and self.seen[-1].step == self._index:
            return
        self.seen.append(self._evaluate(self._index))
        if best(self.seen) is self.seen[-1]:
            self.best.keep()

    def restore_best(self) -> int:
        """Restores the best weights and returns their step. KlypeError when a resumed run's are gone from the disk."""
        step = best(self.seen).step
        self.best.restore(step, "Align again.")
        return step

    def state(self) -> dict[str, Any]:
        if self.seen:
            self.best.save(best(self.seen).step)
        return {"index": self._index, "seen": [asdict(s) for s in self.seen], "batches": self._batches.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self._index = state["index"]
        self.seen = [Evaluation(**{**s, "truth": tuple(s["truth"])}) for s in state["seen"]]
        self._batches.restore(state["batches"])

    def close(self) -> None:
        end(self._batches)


def best(seen: Sequence[Evaluation]) -> Evaluation:
    """The evaluation with the highest mean annotator score; the first of equals."""
    return max(seen, key=lambda s: float(np.mean(s.truth)))


def scores_diverged(seen: Sequence[Evaluation]) -> bool:
    """Whether the annotator's score is significantly below its best while the reward is not."""
    top, last = best(seen), seen[-1]
    if last is top or last.reward < top.reward:
        return False
    high = mean_change(top.truth, last.truth, range(len(top.truth))).high
    return high is not None and high < 0


def align(run: RunContext) -> None:
    """Trains the model on its rewards or on rankings, with a KL penalty to the fine-tuned model; evaluates it about
    ``TIMES`` times, and goes back to its best weights when it starts to exploit the reward."""
    section = run.recipe.align
    row = method(section.how.method)
    if section.how.updates > 1 and not row.stale:
        raise UsageError(
            f"The way to align called {row.name} learns from fresh answers only.",
            "Leave out align.how.updates, or use grpo or ppo.",
        )
    whole = run.model("finetune").requires_grad_(False)
    rewards = rewards_of(run, whole)
    if run.recipe.lora.rank:  # the reference is the same weights without the adapters
        reference = frozen_model(whole, getattr(torch, precision_of(run, "align")))
        model = trainable_model(run, reference)
    else:
        reference = whole
        start = copy.deepcopy(whole).requires_grad_(True)
        model = ActorCritic.of(start) if row.critic else start
    ranked, known = rankings_to_learn(run, rewards)
    questions = [run.task.questions(3)(i) for i in range(ASKED)]  # the same in every evaluation
    watched: list[EvaluatedBatches] = []

    def build(twin: nn.Module, planned: StepPlan | None) -> tuple[Objective, Batches]:
        assert isinstance(twin, Transformer)
        objective, batches = align_objective(section.how), batches_of(run, twin, reference, rewards, ranked)
        if section.rehearsal_rows:
            batches = WithRehearsal(batches, run.task.rehearsal(section.rehearsal_rows))
        if planned is None:
            return objective, batches
        look = partial(evaluation, run.task, questions, twin, reference, rewards)
        best = BestWeights(twin, run.folder / "align")
        every, stops = max(1, planned.steps // TIMES), section.stops and known
        watched[:] = [EvaluatedBatches(batches, look, best, every, stops)]
        return objective, watched[0]

    stopped = False
    try:
        steps = run_training(run, "align", model, build)
        watched[0].look()
    except RewardHacking:
        stopped = True
        steps = watched[0].restore_best()
        run.say.stage_end(f"stopped: reward rose while the annotator's score fell; restored step {steps}")
    model.eval()
    seen = watched[0].seen
    first, last, asked = seen[0].rewards, (best(seen) if stopped else seen[-1]).rewards, range(ASKED)
    change = mean_change(seen[0].truth, seen[-1].truth, asked).json()  # of the annotator's score, question by question
    run.record.content["watch"] = {"stopped": stopped, "seen": [s.json() for s in seen], "change": change}
    digests = run.record.content.get("functions", {})
    run.record.content["rewards"] = {
        name: {
            "weight": weight,
            **({"sha256": digests[name]} if digests.get(name) else {}),
            "before": mean_by_question(first[name], asked, "reward").json(),
            "after": mean_by_question(last[name], asked, "reward").json(),
            "gain": mean_change(first[name], last[name], asked).json(),
        }
        for name, weight in section.weights.items()
        if name in first  # not in a state of an earlier klype
    }
    run.say.table("during alignment", COLUMNS, [s.row(run.options.lang) for s in seen])
    aligned = model.actor() if isinstance(model, ActorCritic) else merged_model(model, whole)
    run.save("align", aligned, {"steps": steps, "parent": "finetune", "method": row.name})
    watched[0].best.forget()  # nothing is left to resume


def batches_of(
    run: RunContext,
    twin: Transformer,
    reference: Transformer,
    rewards: WeightedRewards | None,
    ranked: list[RankedAnswers],
) -> Batches:
    """The method's batches: new answers with their rewards, or rankings."""
    section, how = run.recipe.align, run.recipe.align.how
    row, asked, seed = method(how.method), run.task.questions(2), run.options.seed % 2**20
    if row.learns_from == "rankings":
        settings = RankingSettings(questions=section.rows, marks=row.name == "kto", seed=seed)
        return RankingBatches(ranked, reference, settings)
    assert rewards is not None
    assert row.scaling is not None

    def ask(step: int) -> list[QuestionPrompt]:
        questions = [asked(step * section.rows + i) for i in range(section.rows)]
        return [QuestionPrompt(tuple(run.task.chat.prompt(q.messages())), q) for q in questions]

    rollouts = RolloutSettings(
        answers=section.answers,
        limit=section.limit,
        scaling=row.scaling,
        beta=how.policy.beta,
        seed=seed,
        stop=run.task.chat.tokenizer.ends,
        **how.model_dump(include=set(AnswerUse.model_fields)),
    )
    return RolloutBatches(rollouts, ask, Engine(twin), rewards, reference)
