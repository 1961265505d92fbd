"""Figures as rows of the tables that stand below pictures."""

from __future__ import annotations

from collections.abc import Sequence

from klype.examine.charts import Cell
from klype.examine.facts import Facts, FigureFacts, StageName
from klype.examine.say import Say

STAGES: tuple[StageName, ...] = ("base", "finetuned", "aligned")
Row = tuple[str, str, FigureFacts]
"""What was measured, of what, and the figure."""


def by_stage(facts: Facts, name: str) -> list[tuple[StageName, FigureFacts]]:
    found = [(stage, (facts["stages"].get(stage) or {}).get(name)) for stage in STAGES]
    return [(stage, figure) for stage, figure in found if figure is not None and figure["value"] is not None]


def figure_table(say: Say, what: str, place: str, rows: Sequence[Row]) -> tuple[list[str], list[list[Cell]]]:
    """Columns and rows, ``what`` and ``place`` the first columns' names; with who judged where a figure says it."""
    judged = any(figure.get("judge") for _, _, figure in rows)
    columns = [what, place, *(say(f"column.{key}") for key in ("value", "low", "high", "n", "judge")[: 4 + judged])]
    return columns, [
        [name, at, f["value"], f.get("low"), f.get("high"), f.get("n"), *([say.judge(f.get("judge", ""))] * judged)]
        for name, at, f in rows
    ]
