"""The report's pictures of an experiment on a page, of as much as there is so far; redrawn in place as it grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nicegui import ui

from klype.examine.charts import Cell, Picture
from klype.examine.say import Say
from klype.experiments.bias import report
from klype.experiments.bias.experiment import Board
from klype.studio.charts import redraw
from klype.studio.pictures import picture
from klype.studio.visit import Visit
from klype.words import Words

ORDER = ("bars", "training", "gap", "documents", "compute")
"""What is seen first: what a target does to one sentence; then how it came about, and what it costs."""


def found(board: Board, say: Say, own: Words) -> list[Picture]:
    """The pictures of what there is: of each, the most documents that have been trained on so far."""
    rows = so_far(board, [row.documents for row in board.rows])
    curves = so_far(board, [curve.documents for curve in board.curves])
    made = {picture.id: picture for picture in report.pictures(rows, say, own)} if rows is not None else {}
    if curves is not None:
        made |= {p.id: p for p in report.pictures(curves, say, own) if p.id in ("training", "bars")}
    return [made[name] for name in ORDER if name in made]


def so_far(board: Board, documents: Sequence[int]) -> Board | None:
    """The board as if these had been all numbers of documents; None when there is none."""
    known = tuple(sorted(set(documents)))
    return board.model_copy(update={"documents": known}) if known else None


def figures(board: Board, say: Say, own: Words) -> tuple[int, list[str], list[list[str]]] | None:
    """Of the most documents of which there are any: their number, columns, rows."""
    rows = so_far(board, [row.documents for row in board.rows])
    return None if rows is None else (rows.documents[-1], *report.REPORT.table(board, rows.documents[-1], say, own))


@dataclass
class Pictures:
    """What stands there: charts that are redrawn while the same panels are there, and laid anew when there are more."""

    visit: Visit
    drawn: dict[str, tuple[object, list[ui.echart]]] = field(default_factory=dict)
    now: dict[str, Picture] = field(default_factory=dict)
    boxes: dict[str, ui.element] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ORDER:
            self.boxes[name] = ui.element("div")

    def show(self, pictures: Sequence[Picture]) -> None:
        self.now = {picture.id: picture for picture in pictures}
        for name in ORDER:
            one = self.now.get(name)
            if one is None:
                self.boxes[name].clear()
                self.drawn.pop(name, None)
                continue
            shape = (one.title, [(panel.title, panel.height) for panel in one.panels])
            known = self.drawn.get(name)
            if known is None or known[0] != shape:
                self.boxes[name].clear()
                with self.boxes[name]:
                    self.drawn[name] = (shape, picture(self.visit, one, self._rows(name)))
            else:
                for drawn, panel in zip(known[1], one.panels, strict=True):
                    redraw(drawn, panel.option, self.visit.lang)

    def _rows(self, name: str) -> Callable[[], Sequence[Sequence[Cell]]]:
        return lambda: self.now[name].rows
