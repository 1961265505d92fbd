"""Fits work into the minutes requested, for training, rankings, examinations and experiments.

Costs are measured, never guessed, and a plan is corrected by what its first part took.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from klype.errors import TrainingInterrupted

T = TypeVar("T")
Precision = Literal["float32", "bfloat16"]

MEASURED = (0.15, 0.3)  # fractions of the steps between which a training's pace is measured
MIN_STEPS = 4  # in a stage, however short its time
CHANGED = 0.04  # a plan that is off by a smaller fraction is kept
MAX_RESERVED = 0.5  # fraction of the time left that may be reserved for parts without steps of their own


def first_that_fits(choices: Iterable[T], cost: Callable[[T], float], most: float) -> T:
    """The first choice that costs at most ``most``, or else the last one. ``choices``: at least one, in order of
    preference."""
    for choice in choices:
        if cost(choice) <= most:
            break
    return choice


def divide(seconds: float, shares: Mapping[str, float], needs: Mapping[str, float]) -> dict[str, float]:
    """Divides the seconds among the remaining parts, by their shares.

    ``needs``: the measured seconds of parts without steps of their own (examinations, rankings), the most important
    first. Such a part gets them if they are more than its share, up to ``MAX_RESERVED`` of all together; the others
    share the rest.
    """
    total = sum(shares.values())
    own = {name: seconds * share / total for name, share in shares.items()}
    left = max(MAX_RESERVED * seconds, sum(own[name] for name in needs))
    given: dict[str, float] = {}
    for name, need in needs.items():
        given[name] = min(max(own[name], need), left)
        left -= given[name]
    others = sum(share for name, share in shares.items() if name not in needs)
    rest = seconds - sum(given.values())
    return {name: given[name] if name in needs else rest * share / others for name, share in shares.items()}


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The number of training steps and how they are computed.

    ``seconds``: the time they are planned for; 0 if the user asked for this number of steps. ``workers``: micro-batches
    computed at the same time, with ``threads`` threads in each matrix product. Threads, precision and compiled code
    (``fused``) are fixed by the plan because rounding, and so the weights, depend on them; they do not depend on the
    number of workers.
    """

    steps: int
    seconds: float
    workers: int = 1
    threads: int = 1
    precision: Precision = "float32"
    fused: bool = False

    def json(self) -> dict[str, Any]:
        """The plan as run.json holds it."""
        own = {"steps": self.steps, "planned_s": round(self.seconds, 1), "precision": self.precision}
        return {**own, "fused": self.fused, "workers": self.workers, "threads": self.threads}

    @staticmethod
    def parse(known: Mapping[str, Any]) -> "StepPlan":
        """The plan whose ``json`` this is."""
        split = known["workers"], known["threads"]
        return StepPlan(known["steps"], known["planned_s"], *split, known["precision"], known.get("fused", False))

    def longer(self, seconds: float) -> "StepPlan":
        """The plan extended by some seconds, at the same pace."""
        more = max(0, int(self.steps * seconds / self.seconds)) if self.seconds else 0
        return replace(self, steps=self.steps + more, seconds=self.seconds * (1 + more / self.steps))

    def at_most(self, steps: int) -> "StepPlan":
        """The plan capped at ``steps``."""
        kept = min(steps, self.steps)
        return replace(self, steps=kept, seconds=self.seconds * kept / self.steps)


class StepBudget:
    """Fits a training's steps into its seconds, by correcting their number once, after 30 % of them.

    By then, other load on the machine and the cost of making batches show, and no schedule has changed yet. ``known``:
    the plan's ``json``; the corrected plan is stored in it under "then", and ``keep()`` saves it, so that a resumed run
    changes plans at the same step. ``at``: the step that training resumes from. ``most``: maximum number of steps.
    ``agree(steps)``: of several processes, the number of the first one.
    """

    def __init__(
        self,
        known: dict[str, Any],
        now: float,
        keep: Callable[[], None] = lambda: None,
        at: int = -1,
        most: int = sys.maxsize,
        agree: Callable[[int], int] = lambda steps: steps,
    ) -> None:
        self._known, self._began, self._keep, self._agree = known, now, keep, agree
        self.plan, self.changed, self.resumes = StepPlan.parse(known), False, False
        self._from_step, self._check_at = (max(1, round(share * self.plan.steps)) for share in MEASURED)
        self._measures = self.plan.seconds > 0 and self._check_at - self._from_step >= 5  # steps asked for are kept
        self._from: float | None = None
        self._most = max(most, self._check_at + 1)
        if "then" in known and at >= known["then"]["at"]:
            self._go_on()

    def watch(self, step: int, now: float) -> None:
        """To be called after each step; sets ``changed`` if training is to stop and continue with another plan."""
        if "then" in self._known:
            self.changed = self.plan.steps != self._known["then"]["steps"] and step >= self._known["then"]["at"]
        elif step == self._from_step:
            self._from = now
        elif step == self._check_at and self._measures and self._from is not None:
            pace = (now - self._from) / (step - self._from_step)
            left = self.plan.seconds - (now - self._began)
            steps = self._agree(min(step + max(MIN_STEPS, round(left / pace)), self._most))
            if abs(steps / self.plan.steps - 1) > CHANGED:
                self._known["then"] = {"at": step, "steps": steps}
                self._keep()
                self.changed = True

    def follow(self, train: Callable[[], T], tell: Callable[[], None] = lambda: None) -> T:
        """Calls ``train``, which trains by ``plan``, and again when ``plan`` changes, to resume; returns its result."""
        while True:
            try:
                return train()
            except TrainingInterrupted as stop:
                if stop.asked or not self.changed:
                    raise
                self._go_on()
                tell()

    def _go_on(self) -> None:
        self.plan = replace(self.plan, steps=self._known["then"]["steps"])
        self.changed, self.resumes = False, True
