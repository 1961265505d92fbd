"""Figures as rows of the tables that stand below pictures."""

from __future__ import annotations

from klype.examine.charts import Cell
from klype.examine.facts import Facts, FigureFacts, StageName
from klype.examine.say import Say

STAGES: tuple[StageName, ...] = ("base", "finetuned", "aligned")


def by_stage(facts: Facts, name: str) -> list[tuple[StageName, FigureFacts]]:
    found = [(stage, (facts["stages"].get(stage) or {}).get(name)) for stage in STAGES]
    return [(stage, figure) for stage, figure in found if figure is not None and figure["value"] is not None]


def figure_columns(say: Say) -> list[str]:
    names = ("column.measure", "column.model", "column.value", "column.low", "column.high", "column.n", "column.judge")
    return [say(name) for name in names]


def figure_row(say: Say, name: str, place: str, figure: FigureFacts) -> list[Cell]:
    judge = say.judge(figure.get("judge", ""))
    return [name, place, figure["value"], figure.get("low"), figure.get("high"), figure.get("n"), judge]
