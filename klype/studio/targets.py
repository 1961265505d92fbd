"""Fasit / Targets: one right word, cures, and the truth as what a model is trained towards; seen while they train."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from nicegui import ui

from klype.errors import KlypeError
from klype.examine.say import visible
from klype.experiments.bias.experiment import Board
from klype.experiments.bias.report import running, verdict
from klype.studio.fields import Choice, Slider
from klype.studio.frame import as_data, button, card, table
from klype.studio.ranking import styles
from klype.studio.targets_pictures import Pictures, figures, found, so_far
from klype.studio.targets_work import Experiment, Order, experiments, start
from klype.studio.visit import Visit, text_of
from klype.studio.work_fields import Whole
from klype.words import Words, words

LOOK_S = 1.0
SEED_MOST = 2**32 - 1
KEY_MOST = 20


@dataclass
class View:
    """The page as one visitor has it: one experiment, the newest unless another is chosen."""

    visit: Visit
    chosen: str = ""
    known: Sequence[Experiment] = ()
    one: Experiment | None = None
    board: Board | None = None
    told: object = None
    looking: bool = False
    numbers: Choice | None = None
    own: Words = field(init=False)

    def __post_init__(self) -> None:
        self.own = words(self.visit.lang, "bias")

    def build(self) -> None:
        w, say = self.visit.words, self.visit.say
        with card():
            text_of("h2", w("begin"))
            with ui.element("div").classes("r-setup") as self.form:
                self.minutes = Slider(w("minutes"), (2, 120, 1), 10, lambda v: f"{say.plain(v)}{chr(0xA0)}min")
                self.seed = Whole(w("seed"), 0, SEED_MOST, 0)
                with ui.element("div"):
                    button(w("go"), self.begin, "strong")
            text_of("p", w("begin_note"), "k-small")
            self.choices = ui.element("div").classes("u-beside")
            self.note = text_of("p", "", "k-small")
            self.note.props.update({"role": "status", "aria-live": "polite"})
            self.progress = ui.element("div").classes("k-progress")
            with self.progress:
                self.bar = ui.element("div")
            with ui.element("div").classes("k-row"):
                self.stop = button(self.visit.frame("cancel"), self.cancel)
                self.on = button(w("resume"), self.resume, "strong")
        self.said = ui.element("div")
        self.pictures = Pictures(self.visit)
        self.tables = ui.element("div")
        self._show()

    async def begin(self) -> None:
        order = Order(self.minutes.value, self.seed.value, self.visit.lang)
        try:
            begun = await asyncio.to_thread(start, self.visit.studio, order)
        except (KlypeError, OSError) as error:
            self.visit.tell(error)
            return
        self.chosen = begun.key
        await self.look()

    async def cancel(self) -> None:
        if self.one is not None and self.one.work is not None:
            await asyncio.to_thread(self.one.work.cancel)

    async def resume(self) -> None:
        if self.one is not None and self.one.work is not None:
            await asyncio.to_thread(self.one.work.go_on)
            await self.look()

    async def look(self) -> None:
        """What has come of it, read beside the page; drawn when it has changed."""
        if self.looking:
            return
        self.looking = True
        try:
            known = await asyncio.to_thread(experiments, self.visit.studio)
            one = next((e for e in known if e.key == self.chosen), next(iter(known), None))
            try:
                board, why = await asyncio.to_thread(self._read, one), ""
            except KlypeError as error:
                board, why = None, self.visit.why(error)
            if self.note.is_deleted:
                return
            if [e.key for e in known] != [e.key for e in self.known]:
                self._offer(known, one)
            self.known, self.one, self.board = known, one, board
            self._show(why)
        finally:
            self.looking = False

    def _read(self, one: Experiment | None) -> Board | None:
        """What was read before, while nothing new has been written."""
        same = one is not None and self.one is not None and (one.key, one.changed) == (self.one.key, self.one.changed)
        return self.board if same or one is None else one.board()

    def _offer(self, known: Sequence[Experiment], one: Experiment | None) -> None:
        """Which experiment is looked at, when there are several."""
        self.choices.clear()
        if len(known) > 1 and one is not None:
            with self.choices:
                Choice(self.visit.words("which"), {e.key: visible(e.name) for e in known}, one.key, self._elsewhere)

    def _elsewhere(self) -> None:
        (choice,) = self.choices.default_slot.children
        assert isinstance(choice, Choice)
        ui.navigate.to(f"{self.visit.page.route}?experiment={choice.value}")

    def _show(self, why: str = "") -> None:
        one, board = self.one, self.board
        state = one.state if one is not None else ""
        self.form.set_visibility(state != "running")
        self.stop.set_visibility(state == "running" and one is not None and one.work is not None)
        self.on.set_visibility(one is not None and one.work is not None and state in ("cancelled", "stopped", "failed"))
        self.progress.set_visibility(state == "running")
        self.note._text = why or self._sentence()
        self.note.update()
        if board is not None:
            self.bar.style(f"width:{max(2.0, 100 * board.cells_done / max(1, board.cells)):.1f}%")
        mark = (one.key, one.changed) if one is not None and board is not None else None
        if mark == self.told:
            return
        self.told = mark
        self._draw()

    def _sentence(self) -> str:
        w, say, one, board = self.visit.words, self.visit.say, self.one, self.board
        if one is None:
            return w("nothing_yet")
        seconds = say.seconds(max(1.0, float(int(one.seconds)))) if one.seconds else ""
        if one.state == "failed":
            return w("failed", why=visible(one.why))
        if one.state != "running":
            count = say.count(board.cells_done) if board is not None else "0"
            return w(f"state_{one.state}", n=count, of=say.count(board.cells if board is not None else 0), time=seconds)
        if board is None:
            return w("preparing", time=seconds)
        parts = [self.own("progress", done=say.count(board.cells_done), all=say.count(board.cells)), seconds]
        parts += running(board, self.own, say.count)
        return " · ".join(part for part in parts if part)

    def _draw(self) -> None:
        board, say = self.board, self.visit.say
        if board is None:
            return
        self.said.clear()
        rows = so_far(board, [row.documents for row in board.rows])
        sentences = verdict(rows, say, self.own) if rows is not None else []
        if sentences:
            with self.said, card():
                text_of("h2", self.visit.words("found" if board.done else "found_so_far"))
                for sentence in sentences:
                    text_of("p", sentence)
        self.pictures.show(found(board, say, self.own))
        self.tables.clear()
        with self.tables:
            self._table(board)
            self._targets(board)

    def _table(self, board: Board) -> None:
        """All figures, of the most documents of which there are any."""
        own, say = self.own, self.visit.say
        rows = figures(board, say, own)
        if rows is None:
            return
        count, columns, cells = rows
        with card():
            text_of("h2", f"{own('measured')}: {own('table', documents=say.count(count)).lower()}")
            with ui.element("div").classes("k-scroll") as scroll:
                scroll.props.update({"tabindex": 0, "role": "region", "aria-label": own("measured")})
                table(columns, cells, range(1, len(columns)))
            text_of("p", f"{own('interval')} {own('how_turned')}", "k-small")
            names = ["target", "documents", "seeds", "turned", "measure", "value", "low", "high", "n"]
            data = [
                [
                    *(row.arm, row.documents, row.seeds, row.turned, name),
                    *(f["value"], f.get("low"), f.get("high"), f.get("n")),
                ]
                for row in board.rows
                for name, f in row.figures.items()
            ]
            as_data(self.visit, "targets", names, lambda: data)

    def _targets(self, board: Board) -> None:
        with card():
            text_of("h2", self.visit.words("what_targets"))
            with ui.element("dl").classes("t-what"):
                for name in board.kinds:
                    text_of("dt", self.own(f"target.{name}"))
                    text_of("dd", self.own(f"what.{name}"))


async def build(visit: Visit) -> None:
    """The page."""
    ui.add_head_html(f"<style>{styles()}</style>")
    view = View(visit, visit.request.query_params.get("experiment", "")[:KEY_MOST])
    view.build()
    await view.look()
    ui.timer(LOOK_S, view.look)
