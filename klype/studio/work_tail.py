"""A growing metrics.jsonl, read on from where it was left, and thinned to what a chart can show."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from klype.jsons import steps

MOST = 240
"""Points of a curve: more cannot be told apart on a screen."""


@dataclass
class Tail:
    """``columns`` hold the numbers of every row by name, NaN where a row has none; ``steps`` are the rows' steps."""

    file: Path
    steps: list[int] = field(default_factory=list)
    columns: dict[str, list[float]] = field(default_factory=dict)
    _at: int = 0
    _rest: bytes = b""

    def read(self) -> bool:
        """Whether anything is new. A file that was begun anew is read anew; half a row waits for its other half."""
        try:
            size = self.file.stat().st_size
            if size < self._at:
                self.steps, self.columns, self._at, self._rest = [], {}, 0, b""
            if size == self._at:
                return False
            with self.file.open("rb") as file:
                file.seek(self._at)
                data = file.read()
        except OSError:
            return False
        self._at += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for row in steps(lines):
            self._add(row)
        return bool(lines)

    def last(self, name: str) -> float | None:
        """The newest number of this name."""
        column = self.columns.get(name, [])
        return next((value for value in reversed(column) if not math.isnan(value)), None)

    def at(self, name: str, place: int) -> float | None:
        """The number of this name in a row; None where it has none."""
        column = self.columns.get(name, [])
        return column[place] if place < len(column) and not math.isnan(column[place]) else None

    def curve(self, name: str, most: int = MOST) -> list[list[float]]:
        """(step, value), each the mean of as many neighbours as it takes to be ``most`` points."""
        known = [(s, v) for s, v in zip(self.steps, self.columns.get(name, []), strict=False) if not math.isnan(v)]
        size = max(1, math.ceil(len(known) / most))
        out = []
        for start in range(0, len(known), size):
            part = known[start : start + size]
            out.append([float(part[-1][0]), sum(v for _, v in part) / len(part)])
        return out

    def _add(self, row: dict[str, float]) -> None:
        """Resumed training writes steps again that it had lost: the later row holds."""
        step = int(row["step"])
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            for column in self.columns.values():
                del column[len(self.steps) :]
        for name, value in row.items():
            if name != "step":
                column = self.columns.setdefault(name, [])
                column.extend([math.nan] * (len(self.steps) - len(column)))
                column.append(float(value))
        self.steps.append(step)
