"""What the tests of runs share: a listener that remembers what it was told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class Heard:
    """Says nothing aloud, remembers everything."""

    stages: list[tuple[str, int]] = field(default_factory=list)
    steps: list[dict[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def stage_start(self, name: str, total_steps: int) -> None:
        self.stages.append((name, total_steps))

    def step(self, metrics: Mapping[str, float]) -> None:
        self.steps.append(dict(metrics))

    def sample(self, text: str) -> None:
        return

    def note(self, text: str) -> None:
        self.notes.append(text)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        return

    def stage_end(self, summary: str = "") -> None:
        if summary:
            self.notes.append(summary)
