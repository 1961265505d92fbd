"""``report.html`` of an experiment, both languages in it: what was found, pictures, tables, and what the rows are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klype.answers.traces import replace
from klype.examine.charts import Cell, Picture
from klype.examine.facts import FigureFacts
from klype.examine.report import page
from klype.examine.say import Say
from klype.words import Words, words


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class View:
    """One language's. ``notes``: small print below the tables; ``described``: the rows' names, and what they are."""

    say: Say
    own: Words
    lead: str
    verdict: Sequence[str]
    pictures: Sequence[Picture]
    tables: Sequence[Table]
    notes: str
    described: Sequence[tuple[str, str]]


def render(views: Sequence[View], catalogue: str, lang: str) -> str:
    """The page; ``catalogue`` holds its title."""
    return page("experiment.html.jinja", [_told(view) for view in views], lang, title=words(lang, catalogue)("title"))


def write(folder: Path, text: str) -> Path:
    """Whole or not at all."""
    replace(folder / "report.html", text.encode())
    return folder / "report.html"


def figure_cells(name: str, figure: FigureFacts, *place: Cell) -> list[Cell]:
    """A row of a picture's table, with the ends of the interval."""
    return [name, *place, figure["value"], figure.get("low"), figure.get("high")]


def _told(view: View) -> dict[str, Any]:
    say = view.say
    return {
        "lang": say.lang,
        "say": say,
        "own": view.own,
        "lead": view.lead,
        "verdict": view.verdict,
        "pictures": {picture.id: picture for picture in view.pictures},
        "tables": view.tables,
        "notes": view.notes,
        "described": view.described,
        "script_words": {"zero": say("formula.zero"), "half": say("formula.half", n="{n}"), "save": say("tools.save")},
    }
