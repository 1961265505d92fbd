"""A plan of steps that is put right once, by how fast they really go."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from klype.errors import Interrupted
from klype.runs.plan import Planned
from klype.train import parallel

MEASURED = (0.15, 0.3)  # from here to there the pace is measured

T = TypeVar("T")


class Pace:
    """The plan of one training, put right after three tenths of its steps.

    Other work on the machine, or batches that are dear to make, are only seen then (and no rate or lesson changes
    before). ``known`` is what the plan's ``json`` gave; the second plan is put beside the first there, and ``keep``
    makes it last, so that a resumed run changes over at the same step. ``at``: the step that is gone on from.
    ``most``: steps that are not passed.
    """

    def __init__(
        self,
        known: dict[str, Any],
        now: float,
        keep: Callable[[], None] = lambda: None,
        at: int = -1,
        most: int = sys.maxsize,
    ) -> None:
        self._known, self._began, self._keep = known, now, keep
        self.planned, self.changed, self.resumes = Planned.parse(known), False, False
        self._from_step, self._check_at = (max(1, round(share * self.planned.steps)) for share in MEASURED)
        self._measures = self.planned.seconds > 0 and self._check_at - self._from_step >= 5  # steps asked for are kept
        self._from: float | None = None
        self._most = max(most, self._check_at + 1)
        if "then" in known and at >= known["then"]["at"]:
            self._go_on()

    def watch(self, step: int, now: float) -> None:
        """After each step; ``changed`` then tells whether the loop is to stop, so that it goes on by another plan."""
        if "then" in self._known:
            self.changed = self.planned.steps != self._known["then"]["steps"] and step >= self._known["then"]["at"]
        elif step == self._from_step:
            self._from = now
        elif step == self._check_at and self._measures and self._from is not None:
            taken = (now - self._from) / (step - self._from_step)
            left = self.planned.seconds - (now - self._began)
            steps = parallel.from_first(min(step + max(10, round(left / taken)), self._most))
            if abs(steps / self.planned.steps - 1) > 0.04:
                self._known["then"] = {"at": step, "steps": steps}
                self._keep()
                self.changed = True

    def follow(self, train: Callable[[], T], tell: Callable[[], None] = lambda: None) -> T:
        """What training by ``planned`` comes to. It is called again, to resume, when the plan has changed."""
        while True:
            try:
                return train()
            except Interrupted as stop:
                if stop.asked or not self.changed:
                    raise
                self._go_on()
                tell()

    def _go_on(self) -> None:
        self.planned = replace(self.planned, steps=self._known["then"]["steps"])
        self.changed, self.resumes = False, True
