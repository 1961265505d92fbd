"""How a run tells what it is doing. The pipeline only knows this protocol; the terminal is one listener."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


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


@dataclass
class Silent:
    """Says nothing aloud, remembers everything: for tests and for work in a process of its own."""

    stages: list[tuple[str, int]] = field(default_factory=list)
    steps: list[dict[str, float]] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tables: list[tuple[str, Sequence[str], Sequence[Sequence[str]]]] = field(default_factory=list)

    def stage_start(self, name: str, total_steps: int) -> None:
        self.stages.append((name, total_steps))

    def step(self, metrics: Mapping[str, float]) -> None:
        self.steps.append(dict(metrics))

    def sample(self, text: str) -> None:
        self.samples.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.tables.append((title, columns, rows))

    def stage_end(self, summary: str = "") -> None:
        if summary:
            self.notes.append(summary)
