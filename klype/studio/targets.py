"""Fasit / Targets: one right word, cures, and the truth as what a model is trained towards; seen while they train."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from nicegui import ui

from klype.errors import KlypeError, UsageError
from klype.examine.charts import Picture
from klype.examine.say import Say, visible
from klype.experiments.bias import report
from klype.experiments.bias.experiment import BiasBoard
from klype.runs.folder import RUNS
from klype.runs.overview import QUIET_S
from klype.studio.charts import picture, redraw
from klype.studio.fields import Minutes, Select, WholeNumber
from klype.studio.frame import Progress, Visit, as_data, box, button, card, retext, status, table, text_of
from klype.studio.runs_list import KEY_MOST, key_of
from klype.studio.studio import Studio
from klype.studio.work import State, Work, WorkPlan, begin, new_name, works
from klype.words import Words, words

LOOK_S = 1.0
SEED_MOST = 2**32 - 1
ORDER = ("bars", "training", "gap", "documents", "compute")
"""What is seen first: what a target does to one sentence; then how it came about, and what it costs."""


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

    def board(self) -> BiasBoard | None:
        """As it stands; None when nothing has been written yet. KlypeError when the file is damaged."""
        return BiasBoard.read(self.folder) if (self.folder / BiasBoard.FILE).is_file() else None


def experiments(studio: Studio) -> list[Experiment]:
    """All of them, what was begun or written last first; one that runs stands before all others."""
    begun: dict[Path, Work] = {}
    for work in works(studio.home):
        plan = work.plan
        if plan.kind == "bias":
            begun.setdefault(plan.run.resolve(), work)
    places = dict.fromkeys(begun)
    for base in (studio.home / "targets", studio.runs or RUNS):
        places.update(dict.fromkeys(file.parent.resolve() for file in base.glob(f"*/{BiasBoard.FILE}")))
    found = [Experiment(folder, begun.get(folder), _changed(folder, begun.get(folder))) for folder in places]
    return sorted(found, key=lambda e: (e.work is not None and e.work.state == "running", e.changed), reverse=True)


def start_experiment(studio: Studio, minutes: float, seed: int = 0, lang: str = "en") -> Experiment:
    """Begins ``klype bias``. UsageError when one runs already: two would slow each other down."""
    if any(e.work is not None and e.work.state == "running" for e in experiments(studio)):
        raise UsageError("An experiment runs already.", "Wait for it, or cancel it.")
    name = new_name("targets")
    folder = studio.home / "targets" / name
    command = [
        *studio.command, "bias", "--minutes", f"{minutes:g}", "--seed", str(seed), "--lang", lang,
        "--out", str(folder), "--resume", "--json",
    ]  # fmt: skip
    if studio.device == "cpu":  # there is no other for models that are trained side by side
        command += ["--device", "cpu"]
    return Experiment(
        folder, begin(studio.home, WorkPlan("bias", folder, [command], {"planned_s": 60 * minutes}), name)
    )


def _changed(folder: Path, work: Work | None) -> float:
    for file in (folder / BiasBoard.FILE, work.folder / "work.json" if work is not None else folder):
        with suppress(OSError):
            return file.stat().st_mtime
    return 0.0


def found_pictures(board: BiasBoard, say: Say, own: Words) -> list[Picture]:
    """The pictures of what there is: of each, the most documents that have been trained on so far."""
    rows = so_far(board, [row.documents for row in board.rows])
    curves = so_far(board, [curve.documents for curve in board.curves])
    made = {picture.id: picture for picture in report.pictures(rows, say, own)} if rows is not None else {}
    if curves is not None:
        made |= {p.id: p for p in report.pictures(curves, say, own) if p.id in ("training", "bars")}
    return [made[name] for name in ORDER if name in made]


def so_far(board: BiasBoard, documents: Sequence[int]) -> BiasBoard | None:
    """The board as if these had been all numbers of documents; None when there is none."""
    known = tuple(sorted(set(documents)))
    return board.model_copy(update={"documents": known}) if known else None


@dataclass
class GrowingPictures:
    """What stands there: charts that are redrawn while the same panels are there, and laid anew when there are more."""

    visit: Visit
    drawn: dict[str, tuple[object, list[ui.echart]]] = field(default_factory=dict)
    now: dict[str, Picture] = field(default_factory=dict)
    boxes: dict[str, ui.element] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.boxes = {name: box() for name in ORDER}

    def show(self, pictures: Sequence[Picture]) -> None:
        self.now = {picture.id: picture for picture in pictures}
        for name, place in self.boxes.items():
            one = self.now.get(name)
            if one is None:
                place.clear()
                self.drawn.pop(name, None)
                continue
            shape = (one.title, [(panel.title, panel.height) for panel in one.panels])
            if name not in self.drawn or self.drawn[name][0] != shape:
                place.clear()
                with place:
                    self.drawn[name] = shape, picture(self.visit, one, lambda name=name: self.now[name].rows)  # type: ignore[misc]
            else:
                for drawn, panel in zip(self.drawn[name][1], one.panels, strict=True):
                    redraw(drawn, panel.option, self.visit.lang)


@dataclass
class TargetsPage:
    """The page as one visitor has it: one experiment, the newest unless another is chosen."""

    visit: Visit
    chosen: str = ""
    known: Sequence[Experiment] = ()
    one: Experiment | None = None
    board: BiasBoard | None = None
    told: object = None
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)
    own: Words = field(init=False)

    def build(self) -> None:
        w = self.visit.words
        self.own = words(self.visit.lang, "bias")
        with card():
            text_of("h2", w("begin"))
            with box("r-setup") as self.form:
                self.minutes = Minutes(self.visit, (2, 120, 1), 10)
                self.seed = WholeNumber(self.visit, "seed", 0, SEED_MOST, 0)
                with box():
                    button(w("go"), self.begin, "strong")
            text_of("p", w("begin_note"), "k-small")
            self.choices = box("u-beside")
            self.note = status()
            self.progress = Progress()
            with box("k-row"):
                self.stop = button(self.visit.frame("cancel"), self.cancel)
                self.on = button(w("resume"), self.resume, "strong")
        self.said = box()
        self.pictures = GrowingPictures(self.visit)
        self.tables = box()
        self._show()

    async def begin(self) -> None:
        try:
            wanted = self.minutes.value, self.seed.value, self.visit.lang
            begun = await asyncio.to_thread(start_experiment, self.visit.studio, *wanted)
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
        if self.looking.locked():
            return
        async with self.looking:
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

    def _read(self, one: Experiment | None) -> BiasBoard | None:
        """What was read before, while nothing new has been written."""
        same = one is not None and self.one is not None and (one.key, one.changed) == (self.one.key, self.one.changed)
        return self.board if same or one is None else one.board()

    def _offer(self, known: Sequence[Experiment], one: Experiment | None) -> None:
        """Which experiment is looked at, when there are several."""
        self.choices.clear()
        if len(known) > 1 and one is not None:
            names = {e.key: visible(e.folder.resolve().name) for e in known}
            to = f"{self.visit.page.route}?experiment="
            with self.choices:
                choice = Select(self.visit.words("which"), names, one.key, lambda: ui.navigate.to(to + choice.value))

    def _show(self, why: str = "") -> None:
        one, board = self.one, self.board
        state = one.state if one is not None else ""
        work = one.work if one is not None else None
        self.form.set_visibility(state != "running")
        self.stop.set_visibility(state == "running" and work is not None)
        self.on.set_visibility(work is not None and state in ("cancelled", "stopped", "failed"))
        retext(self.note, why or self._sentence())
        share = board.cells_done / max(1, board.cells) if board is not None else 0.0
        self.progress.fill(state == "running", max(0.02, share))
        mark = (one.key, one.changed) if one is not None and board is not None else None
        if mark != self.told:
            self.told = mark
            self._draw()

    def _sentence(self) -> str:
        w, say, one, board = self.visit.words, self.visit.say, self.one, self.board
        if one is None:
            return w("nothing_yet")
        ran = one.work.seconds if one.work is not None else 0.0
        seconds = say.seconds(max(1.0, float(int(ran)))) if ran else ""
        done, of = (board.cells_done, board.cells) if board is not None else (0, 0)
        if one.state == "failed":
            return w("failed", why=visible(one.work.why() if one.work is not None else ""))
        if one.state != "running":
            return w(f"state_{one.state}", n=say.count(done), of=say.count(of), time=seconds)
        if board is None:
            return w("preparing", time=seconds)
        parts = [self.own("progress", done=say.count(done), all=say.count(of)), seconds]
        return " · ".join(part for part in [*parts, *report.running(board, self.own, say.count)] if part)

    def _draw(self) -> None:
        board, say = self.board, self.visit.say
        if board is None:
            return
        self.said.clear()
        self.tables.clear()
        rows = so_far(board, [row.documents for row in board.rows])
        if rows is not None and (sentences := report.verdict(rows, say, self.own)):
            with self.said, card():
                text_of("h2", self.visit.words("found" if board.done else "found_so_far"))
                for sentence in sentences:
                    text_of("p", sentence)
        self.pictures.show(found_pictures(board, say, self.own))
        with self.tables:
            if rows is not None:
                self._table(board, rows.documents[-1])
            with card():
                text_of("h2", self.visit.words("what_targets"))
                with box("t-what", "dl"):
                    for name in board.kinds:
                        text_of("dt", self.own(f"target.{name}"))
                        text_of("dd", self.own(f"what.{name}"))

    def _table(self, board: BiasBoard, count: int) -> None:
        """All figures, of the most documents of which there are any."""
        own, say = self.own, self.visit.say
        columns, cells = report.REPORT.table(board, count, say, own)
        names = ["target", "documents", "seeds", "turned", "measure", "value", "low", "high", "n"]
        data = [
            [
                *(row.arm, row.documents, row.seeds, row.turned, name),
                f["value"],
                f.get("low"),
                f.get("high"),
                f.get("n"),
            ]
            for row in board.rows
            for name, f in row.figures.items()
        ]
        with card():
            text_of("h2", f"{own('measured')}: {own('table', documents=say.count(count)).lower()}")
            table(self.visit, columns, cells, range(1, len(columns)), own("measured"))
            text_of("p", f"{own('interval')} {own('how_turned')}", "k-small")
            as_data(self.visit, "targets", names, lambda: data)


async def build(visit: Visit) -> None:
    """The page."""
    page = TargetsPage(visit, visit.request.query_params.get("experiment", "")[:KEY_MOST])
    page.build()
    await page.look()
    ui.timer(LOOK_S, page.look)
