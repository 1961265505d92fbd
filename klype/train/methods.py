"""The ways to align a model, as a table: a new one is a new row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from pydantic import Field

from klype import config
from klype.errors import UsageError
from klype.train.objectives import Objective, cross_entropy, with_rehearsal
from klype.train.policy import PolicySettings, Scaling, grpo, ppo, rloo
from klype.train.preference import PreferenceSettings, preference

MethodName = Literal["grpo", "rloo", "ppo", "expert", "dpo", "ipo", "kto"]


class AlignSettings(config.Settings):
    """Which method aligns, and what each kind of method takes.

    ``target_kl`` (nats an answer): the leash is led so that the model stays about so far from where it was; 0 keeps it
    as ``policy.beta`` says. ``updates``: steps on the same answers, for methods that weigh how stale these are.
    ``kl_in_reward`` and ``drop_equal``: see RolloutSettings.
    """

    method: MethodName = "grpo"
    policy: PolicySettings = PolicySettings()
    preference: PreferenceSettings = PreferenceSettings()
    rehearsal_weight: float = Field(default=0.5, ge=0)
    target_kl: float = Field(default=0.0, ge=0)
    updates: int = Field(default=1, ge=1)
    kl_in_reward: float = Field(default=0.0, ge=0)
    drop_equal: bool = False


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
