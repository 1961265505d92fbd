"""The protocol by which a run reports progress. The terminal is one listener, ``progress=`` in Python another."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class RunListener(Protocol):
    """Receives a run's progress. Must not influence the run: no return values, no exceptions of its own."""

    def stage_start(self, name: str, total_steps: int) -> None:
        """A stage starts; ``total_steps`` is 0 if unknown. It lasts until ``stage_end``."""

    def step(self, metrics: Mapping[str, float]) -> None:
        """Called after each step. Known names: step (number of steps done), loss, tokens_per_second; others may be
        added."""

    def sample(self, text: str) -> None:
        """A sample of the model's current text."""

    def note(self, text: str) -> None:
        """One line of information."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A small table with cells as they are to be printed."""

    def stage_end(self, summary: str = "") -> None:
        """The stage has ended; ``summary`` is one line."""


class SilentListener:
    """A listener that ignores everything."""

    def note(self, *told: Any, **named: Any) -> None:
        """Does nothing."""

    stage_start = step = sample = table = stage_end = note
