"""Fasit / Targets: one right word, cures, and the truth as what a model is trained towards; seen while they train."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from nicegui import ui

from klype.errors import KlypeError, UsageError
from klype.examine.charts import Cell, Picture
from klype.examine.say import Say, visible
from klype.experiments.bias import report
from klype.experiments.bias.experiment import Board
from klype.experiments.bias.report import running, verdict
from klype.runs.folder import RUNS
from klype.runs.overview import QUIET_S
from klype.studio.charts import picture, redraw
from klype.studio.fields import Choice, Slider, WholeNumber
from klype.studio.frame import Visit, as_data, button, card, table, text_of
from klype.studio.ranking import styles
from klype.studio.runs_list import key_of
from klype.studio.studio import Studio
from klype.studio.work import State, Work, WorkPlan, begin, new_name, works
from klype.words import Words, words


@dataclass(frozen=True, slots=True)
class ExperimentRequest:
    minutes: float
    seed: int = 0
    lang: str = "en"


@dataclass(frozen=True, slots=True)
class Experiment:
    """``key`` is what a browser calls it; ``work`` None: it was begun on the command line. ``changed``: when its file
    was last written, in seconds."""

    folder: Path
    work: Work | None = None
    changed: float = 0.0

    @property
    def key(self) -> str:
        return key_of(self.folder)

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def state(self) -> State:
        """Of one that was begun on the command line, by its file: ``stopped`` when nothing was written for long."""
        if self.work is not None:
            return self.work.state
        try:
            board = self.board()
        except KlypeError:
            return "failed"
        if board is not None and board.done:
            return "done"
        return "running" if time.time() - self.changed < QUIET_S else "stopped"

    @property
    def seconds(self) -> float:
        return self.work.seconds if self.work is not None else 0.0

    @property
    def why(self) -> str:
        return self.work.why() if self.work is not None else ""

    def board(self) -> Board | None:
        """As it stands; None when nothing has been written yet. KlypeError when the file is damaged."""
        return Board.read(self.folder) if (self.folder / Board.FILE).is_file() else None


def experiments(studio: Studio) -> list[Experiment]:
    """All of them, what was begun or written last first; one that runs stands before all others."""
    begun: dict[Path, Work] = {}
    for work in works(studio.home):
        plan = work.plan
        if plan.kind == "bias":
            begun.setdefault(plan.run.resolve(), work)
    places = dict.fromkeys(begun)
    for base in (home_of_experiments(studio), studio.runs or RUNS):
        places.update(dict.fromkeys(file.parent.resolve() for file in base.glob(f"*/{Board.FILE}")))
    found = [Experiment(folder, begun.get(folder), _changed(folder, begun.get(folder))) for folder in places]
    return sorted(found, key=lambda e: (e.work is not None and e.work.state == "running", e.changed), reverse=True)


def home_of_experiments(studio: Studio) -> Path:
    return studio.home / "targets"


def start_experiment(studio: Studio, order: ExperimentRequest) -> Experiment:
    """Begins ``klype bias``. UsageError when one runs already: two would slow each other down."""
    if any(e.work is not None and e.work.state == "running" for e in experiments(studio)):
        raise UsageError("An experiment runs already.", "Wait for it, or cancel it.")
    name = new_name("targets")
    folder = home_of_experiments(studio) / name
    command = [
        *studio.command, "bias", "--minutes", f"{order.minutes:g}", "--seed", str(order.seed), "--lang", order.lang,
        "--out", str(folder), "--resume", "--json",
    ]  # fmt: skip
    about = {"planned_s": 60 * order.minutes}
    return Experiment(folder, begin(studio.home, WorkPlan("bias", folder, [command], about), name))


def _changed(folder: Path, work: Work | None) -> float:
    for file in (folder / Board.FILE, work.folder / "work.json" if work is not None else folder):
        with suppress(OSError):
            return file.stat().st_mtime
    return 0.0


ORDER = ("bars", "training", "gap", "documents", "compute")
"""What is seen first: what a target does to one sentence; then how it came about, and what it costs."""


def found_pictures(board: Board, say: Say, own: Words) -> list[Picture]:
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
class GrowingPictures:
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


LOOK_S = 1.0
SEED_MOST = 2**32 - 1
KEY_MOST = 20


@dataclass
class TargetsPage:
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
                self.seed = WholeNumber(w("seed"), 0, SEED_MOST, 0)
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
        self.pictures = GrowingPictures(self.visit)
        self.tables = ui.element("div")
        self._show()

    async def begin(self) -> None:
        order = ExperimentRequest(self.minutes.value, self.seed.value, self.visit.lang)
        try:
            begun = await asyncio.to_thread(start_experiment, self.visit.studio, order)
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
        self.pictures.show(found_pictures(board, say, self.own))
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
    view = TargetsPage(visit, visit.request.query_params.get("experiment", "")[:KEY_MOST])
    view.build()
    await view.look()
    ui.timer(LOOK_S, view.look)
