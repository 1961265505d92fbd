"""The report of an experiment in all languages: findings, pictures, tables, and an explanation of the arms."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

from klype.examine import html
from klype.examine.charts import Cell, Option, Panel, Picture, whiskers
from klype.examine.html import Document, Glossary, Part, Section, Table, Text, texts
from klype.examine.run_facts import FigureFacts
from klype.examine.say import Say
from klype.experiments.framework import SHARE, B, Experiment, Row
from klype.words import Words, words

OTHER = "muted"


@dataclass(frozen=True, slots=True)
class ArmNames:
    """Names and cells in one language. ``noun``: what the experiment calls an arm. ``own``: its words. ``colours``: of
    the arms that have curves; tables have all arms."""

    noun: str
    say: Say
    own: Words
    colours: Mapping[str, str] = field(default_factory=dict)

    def name(self, arm: str) -> str:
        return self.own(f"{self.noun}.{arm}")

    def column(self, key: str) -> str:
        return self.own(f"column.{key}")

    def figure(self, figures: Mapping[str, FigureFacts], key: str) -> str:
        """A figure as text, empty if there is none."""
        figure = figures.get(key)
        if figure is None or figure["value"] is None:
            return ""
        return self.say.figure(figure, "right" if figure.get("unit") == SHARE else key)

    def ends(self) -> list[str]:
        """The names of the last columns of a picture's table (see ``cells``)."""
        return [self.say("end.low"), self.say("end.high")]

    def cells(self, arm: str, figure: FigureFacts, *place: Cell) -> list[Cell]:
        """A row of a picture's table: arm, ``place``, value, and the ends of the interval."""
        return [self.name(arm), *place, figure["value"], figure.get("low"), figure.get("high")]

    def picture(
        self, key: str, panels: list[Panel], columns: Sequence[str], rows: list[list[Cell]], title: str = ""
    ) -> Picture:
        """A picture with its table. ``columns``: those after the arm's name."""
        title, how = title or self.own(f"picture.{key}"), self.own(f"picture.{key}_how")
        return Picture(key, title, how, panels, [self.column(self.noun), *columns], rows, True)

    def whiskers(
        self, key: str, rows: Sequence[tuple[str, FigureFacts]], x: Option, at: float, name: str = ""
    ) -> Picture | None:
        """A picture of the arms' figures with their intervals, None without rows. ``at``: where to draw a line."""
        if not rows:
            return None
        drawn = [(self.name(arm), f, self.say.figure(f, name), self.colours.get(arm, OTHER)) for arm, f in rows]
        panel = Panel("", whiskers(drawn, x, at), 70 + 44 * len(rows))
        return self.picture(key, [panel], [self.column(key), *self.ends()], [self.cells(arm, f) for arm, f in rows])


@dataclass(frozen=True)
class Report(Generic[B]):
    """How an experiment is shown.

    ``verdict``: the findings as sentences. ``draws``: functions that make the pictures, in the arms' ``colours``.
    ``notes``: keys of the small print. ``last``: key of the last column, and its cell in a row. ``special``: cells that
    are not just a figure. ``narrow``: the columns in a terminal, if not all. ``running``: sentences about what is being
    trained. ``told``: what is added to the explanation of an arm.
    """

    experiment: Experiment[B]
    verdict: Callable[[B, Say, Words], list[str]]
    draws: Sequence[Callable[[B, ArmNames], Picture | None]]
    colours: Mapping[str, str]
    notes: Sequence[str]
    last: tuple[str, Callable[[Any], str]]
    special: Mapping[str, Callable[[Row, ArmNames], str]] = field(default_factory=dict)
    narrow: Sequence[str] = ()
    running: Callable[[B, Words], list[str]] = lambda board, own: []
    told: Callable[[str, Words], str] = lambda arm, own: ""

    def render(self, board: B, lang: str) -> str:
        """The page as HTML; ``lang``: the language that is shown first."""

        def page(say: Say) -> Document:
            own = words(say.lang, self.experiment.name)
            tables = [Table(own("table", documents=say.count(n)), *self.table(board, n, say, own))
                      for n in reversed(board.documents)]  # fmt: skip
            name = ArmNames(self.experiment.noun, say, own).name
            arms = Glossary([(name(arm), own(f"what.{arm}") + self.told(arm, own)) for arm in board.kinds])
            found: list[Part] = [*texts(self.verdict(board, say, own), "verdict"), *self.pictures(board, say, own)]
            measured: list[Part] = [*tables, Text(" ".join(map(own, self.notes)), "small"), arms]
            sections = [Section(found), Section(measured, own("measured"))]
            lead = own("lead", seeds=board.seeds, steps=say.count(board.steps))
            return Document(say, own("title"), f"{lead} {own(f'lead_{board.source}')}", sections)

        return html.render(page, lang)

    def pictures(self, board: B, say: Say, own: Words) -> list[Picture]:
        """All pictures for which there are data."""
        tell = ArmNames(self.experiment.noun, say, own, self.colours)
        return [picture for draw in self.draws if (picture := draw(board, tell)) is not None]

    def table(
        self, board: B, documents: int, say: Say, own: Words, only: Sequence[str] = ()
    ) -> tuple[list[str], list[list[str]]]:
        """Columns and rows of all figures (or ``only`` of these) at one number of documents."""
        tell = ArmNames(self.experiment.noun, say, own)
        rows = [row for row in board.rows if row.documents == documents]
        kept = [key for key in only or self.experiment.measures if any(key in row.figures for row in rows)]
        columns = [tell.column(tell.noun), *map(tell.column, kept)] + ([] if only else [own(self.last[0])])
        cells = []
        for row in rows:
            texts = {key: tell.figure(row.figures, key) for key in kept}
            texts |= {key: more(row, tell) for key, more in self.special.items() if texts.get(key)}
            cells.append([tell.name(row.arm), *texts.values()] + ([] if only else [self.last[1](row)]))
        return columns, cells
