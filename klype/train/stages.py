"""The stages of a life, in order, and the methods of the last one, as tables: a new one is a new row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from pydantic import Field

from klype import config
from klype.errors import UsageError
from klype.train.loop import Settings
from klype.train.objectives import Objective, cross_entropy, with_rehearsal
from klype.train.optimizer import OptimizerSettings
from klype.train.policy import PolicySettings, Scaling, grpo, ppo, rloo
from klype.train.preference import PreferenceSettings, preference
from klype.train.rewards import RewardSettings, rank_features
from klype.train.schedule import Schedule

Material = Literal["text", "instructions", "questions", "rankings"]
Model = Literal["pretrain", "finetune", "reward"]


MethodName = Literal["grpo", "rloo", "ppo", "expert", "dpo", "ipo", "kto"]


class AlignSettings(config.Settings):
    """Which method aligns, and what each kind of method takes.

    ``target_kl`` (nats an answer): the leash is led so that the model stays about so far from where it was; 0 keeps it
    as ``policy.beta`` says. ``updates``: steps on the same answers, for methods that weigh how stale these are.
    """

    method: MethodName = "grpo"
    policy: PolicySettings = PolicySettings()
    preference: PreferenceSettings = PreferenceSettings()
    rehearsal_weight: float = Field(default=0.5, ge=0)
    target_kl: float = Field(default=0.0, ge=0)
    updates: int = Field(default=1, ge=1)


@dataclass(frozen=True, slots=True)
class Method:
    """One way to align. ``learns_from``: fresh rollouts and their rewards, or rankings that are there already.

    ``stale``: whether several updates may be made on the same answers; ``critic``: whether it needs a value head.
    """

    name: str
    says: str
    learns_from: Literal["rollouts", "rankings"]
    scaling: Scaling | None
    objective: Callable[[AlignSettings], Objective]
    stale: bool = False
    critic: bool = False


METHODS = (
    Method(
        "grpo",
        "answers better than their group's mean become likelier, in clipped steps, on a leash",
        "rollouts",
        "batch",
        lambda settings: partial(grpo, settings=settings.policy),
        stale=True,
    ),
    Method(
        "rloo",
        "the plain policy gradient, with the mean of the other answers as baseline",
        "rollouts",
        "rloo",
        lambda settings: partial(rloo, settings=settings.policy),
    ),
    Method(
        "ppo",
        "token by token, against what a value head expected, in clipped steps, on a leash",
        "rollouts",
        "none",
        lambda settings: partial(ppo, settings=settings.policy),
        stale=True,
        critic=True,
    ),
    Method(
        "expert",
        "the best answer of each group is imitated, again and again: best-of-n made a habit",
        "rollouts",
        "best",
        lambda settings: partial(rloo, settings=settings.policy),
    ),
    Method(
        "dpo",
        "rankings are learnt directly, with no reward model: Plackett-Luce on log-ratios to the reference",
        "rankings",
        None,
        lambda settings: partial(preference, settings=settings.preference.model_copy(update={"kind": "dpo"})),
    ),
    Method(
        "ipo",
        "as dpo, with a squared loss that stops at a margin instead of pushing on",
        "rankings",
        None,
        lambda settings: partial(preference, settings=settings.preference.model_copy(update={"kind": "ipo"})),
    ),
    Method(
        "kto",
        "answers marked good or bad, one by one, with no pairs",
        "rankings",
        None,
        lambda settings: partial(preference, settings=settings.preference.model_copy(update={"kind": "kto"})),
    ),
)


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: what it does, the material and the models of earlier stages it needs, and how it trains by default.

    ``training`` is None for a stage that trains nothing; ``steps`` in it is for the plan to set.
    """

    name: str
    says: str
    material: tuple[Material, ...]
    models: tuple[Model, ...]
    training: Settings | None
    objective: Callable[[AlignSettings], Objective] | None


STAGES = (
    Stage(
        "pretrain",
        "learns to continue text: next-token cross-entropy on documents",
        ("text",),
        (),
        Settings(steps=0),
        lambda settings: cross_entropy,
    ),
    Stage(
        "finetune",
        "learns to answer: cross-entropy on answers only, with text rehearsed",
        ("instructions",),
        ("pretrain",),
        Settings(
            steps=0,
            optimizer=OptimizerSettings(matrix_rate=0.007, rate=3e-3),
            schedule=Schedule(warmup=0.05, flat=0.3),
        ),
        lambda settings: with_rehearsal(cross_entropy, cross_entropy, settings.rehearsal_weight),
    ),
    Stage(
        "rank",
        "answers questions many times over, and lets an annotator rank the answers",
        ("questions",),
        ("finetune",),
        None,
        None,
    ),
    Stage(
        "reward",
        "learns to imitate the annotator: Plackett-Luce on the rankings",
        ("rankings",),
        ("finetune",),
        RewardSettings(),
        lambda settings: rank_features,
    ),
    Stage(
        "align",
        "learns to answer as the annotator likes: rewards on fresh answers, on a leash, with text rehearsed",
        ("questions",),
        ("finetune", "reward"),
        Settings(
            steps=0,
            optimizer=OptimizerSettings(kind="adamw", rate=7e-4, betas=(0.9, 0.98)),
            schedule=Schedule(warmup=0.05, flat=0.5),
        ),
        lambda settings: align_objective(settings),
    ),
)


def stage(name: str) -> Stage:
    """The row of this name; UsageError for a name there is none of."""
    for row in STAGES:
        if row.name == name:
            return row
    near = config.nearest(name, [row.name for row in STAGES])
    hint = f"Did you mean {near}?" if near else f"Stages are: {', '.join(row.name for row in STAGES)}."
    raise UsageError(f"There is no stage {name}.", hint)


def method(name: str) -> Method:
    """The row of this name; UsageError for a name there is none of."""
    for row in METHODS:
        if row.name == name:
            return row
    raise UsageError(
        f"There is no way to align called {name}.", f"There are: {', '.join(row.name for row in METHODS)}."
    )


def align_objective(settings: AlignSettings) -> Objective:
    """The method's objective, with rehearsal beside it when the batches bring some."""
    return with_rehearsal(method(settings.method).objective(settings), cross_entropy, settings.rehearsal_weight)
