"""How a run tells what it is doing. The pipeline only knows this protocol; the terminal is one listener."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class RunListener(Protocol):
    """A listener. Nothing it does may change the run: no return values, no exceptions of its own."""

    def stage_start(self, name: str, total_steps: int) -> None:
        """A stage begins; ``total_steps`` is 0 when it is unknown. It lasts until ``stage_end``."""

    def step(self, metrics: Mapping[str, float]) -> None:
        """After a step. Known names: step (steps done so far), loss, tokens_per_second; others are shown by name."""

    def sample(self, text: str) -> None:
        """What the model says just now."""

    def note(self, text: str) -> None:
        """One line for the reader."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A small table; cells are ready to print."""

    def stage_end(self, summary: str = "") -> None:
        """The stage is over; the summary is one line."""


class SilentListener:
    """A listener that nobody hears."""

    def note(self, *told: Any, **named: Any) -> None:
        """What is told is let go."""

    stage_start = step = sample = table = stage_end = note
