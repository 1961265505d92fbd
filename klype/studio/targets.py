"""Fasit / Targets: one right word, cures, and the truth as what a model is trained towards; seen while they train."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nicegui import ui

from klype.errors import KlypeError, UsageError
from klype.examine.charts import Picture
from klype.examine.say import Say, visible
from klype.experiments import bias
from klype.experiments.bias import BiasBoard
from klype.runs.folder import RUNS
from klype.runs.run_json import QUIET_S
from klype.studio import elements as el
from klype.studio.background_jobs import KEY_MOST, State, Work, WorkPlan, begin, key_of, new_name, works
from klype.studio.fields import Minutes, SeedField, Select
from klype.studio.page_context import Visit, WorkPart, unless_busy
from klype.studio.studio import Studio, changed
from klype.words import Words, words

LOOK_S = 1.0
# What is seen first: what a target does to one sentence; then how it came about, and what it costs.
ORDER = ("bars", "training", "gap", "documents", "compute")


@dataclass(frozen=True, slots=True)
class TargetExperiment:
    """``work`` None: it was begun on the command line. ``changed``: when its file was last written, in seconds."""

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


def experiments(studio: Studio) -> list[TargetExperiment]:
    """All of them, what was begun or written last first; one that runs stands before all others."""
    found: dict[Path, Work | None] = {}
    for work in works(studio.home):
        plan = work.plan
        if plan.kind == "bias":
            found.setdefault(plan.run.resolve(), work)
    for base in (studio.home / "targets", studio.runs or RUNS):
        for file in base.glob(f"*/{BiasBoard.FILE}"):
            found.setdefault(file.parent.resolve(), None)

    def experiment(folder: Path, work: Work | None) -> TargetExperiment:
        written = changed(folder / BiasBoard.FILE) or changed(work.folder / "work.json" if work is not None else folder)
        return TargetExperiment(folder, work, written)

    known = [experiment(folder, work) for folder, work in found.items()]
    return sorted(known, key=lambda e: (e.work is not None and e.work.state == "running", e.changed), reverse=True)


def start_experiment(studio: Studio, minutes: float, seed: int = 0, lang: str = "en") -> TargetExperiment:
    """Begins ``klype bias``. UsageError when one runs already: two would slow each other down."""
    # they are compared by what they cost: another one beside them would falsify that
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
    plan = WorkPlan("bias", folder, [command], {"planned_s": 60 * minutes})
    return TargetExperiment(folder, begin(studio.home, plan, name))


def found_pictures(board: BiasBoard, say: Say, own: Words) -> list[Picture]:
    """The pictures of what there is: of each, the most documents that have been trained on so far."""
    rows = so_far(board, [row.documents for row in board.rows])
    curves = so_far(board, [curve.documents for curve in board.curves])
    made = {picture.id: picture for picture in bias.REPORT.pictures(rows, say, own)} if rows is not None else {}
    if curves is not None:
        made |= {p.id: p for p in bias.REPORT.pictures(curves, say, own) if p.id in ("training", "bars")}
    return [made[name] for name in ORDER if name in made]


def so_far(board: BiasBoard, documents: Sequence[int]) -> BiasBoard | None:
    """The board as if these had been all numbers of documents; None when there is none."""
    known = tuple(sorted(set(documents)))
    return board.model_copy(update={"documents": known}) if known else None


@dataclass
class TargetsPage(WorkPart):
    """One experiment, the newest unless another is chosen."""

    chosen: str = ""
    known: Sequence[TargetExperiment] = ()
    one: TargetExperiment | None = None
    board: BiasBoard | None = None
    told: object = None

    def build(self) -> None:
        w = self.w
        self.own = words(self.visit.lang, "bias")
        with el.card(w("begin")):
            with el.box("r-setup") as self.form:
                self.minutes = Minutes(self.visit, (2, 120, 1), 10)
                self.seed = SeedField(self.visit)
                with el.box():
                    el.button(w("go"), self.begin, "strong")
            el.small(w("begin_note"))
            self.choices = el.box("u-beside")
            self.note = el.status()
            self.progress = el.ProgressBar()
            with el.box("k-row"):
                self.stop = el.button(self.visit.frame("cancel"), self.cancel)
                self.on = el.button(w("resume"), self.resume, "strong")
        self.said = el.box()
        self.pictures = el.GrowingPictures(self.visit, ORDER)
        self.tables = el.box()
        self._show("")

    async def begin(self) -> None:
        begun = await self.visit.attempt(
            lambda: start_experiment(self.studio, self.minutes.value, self.seed.value, self.visit.lang)
        )
        if begun is not None:
            self.chosen = begun.key
            await self.look()

    @unless_busy
    async def look(self) -> None:
        known = await asyncio.to_thread(experiments, self.studio)
        one, why = next((e for e in known if e.key == self.chosen), next(iter(known), None)), ""
        # a board is read again only when it was written again
        before, mark = ((e.key, e.changed) if e is not None else None for e in (self.one, one))
        board = self.board if mark == before else None
        try:
            if one is not None and mark != before:
                board = await asyncio.to_thread(one.board)
        except KlypeError as error:
            why = self.visit.why(error)
        if self.note.is_deleted:
            return
        if [e.key for e in known] != [e.key for e in self.known]:
            self.choices.clear()
            if len(known) > 1 and one is not None:
                names = {e.key: visible(e.folder.resolve().name) for e in known}
                to = f"{self.visit.page.route}?experiment="
                with self.choices:
                    choice = Select(self.w("which"), names, one.key, lambda: ui.navigate.to(to + choice.value))
        self.known, self.one, self.board = known, one, board
        self._show(why)

    def _show(self, why: str) -> None:
        one, board = self.one, self.board
        self.work, state = (one.work, one.state) if one is not None else (None, "")
        self.form.set_visibility(state != "running")
        self.stop.set_visibility(state == "running" and self.work is not None)
        self.on.set_visibility(self.work is not None and state in ("cancelled", "stopped", "failed"))
        el.retext(self.note, why or self.sentence())
        share = board.cells_done / max(1, board.cells) if board is not None else 0.0
        self.progress.fill(state == "running", max(0.02, share))
        mark = (one.key, one.changed) if one is not None and board is not None else None
        if mark != self.told:
            self.told = mark
            if board is not None:
                self._draw(board)

    def sentence(self) -> str:
        w, say, one, board = self.w, self.say, self.one, self.board
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
        return " · ".join(part for part in [*parts, *bias.running(board, self.own, say.count)] if part)

    def _draw(self, board: BiasBoard) -> None:
        self.said.clear()
        self.tables.clear()
        rows = so_far(board, [row.documents for row in board.rows])
        if rows is not None and (sentences := bias.verdict(rows, self.say, self.own)):
            with self.said, el.card(self.w("found" if board.done else "found_so_far")):
                for sentence in sentences:
                    el.text_of("p", sentence)
        self.pictures.show(found_pictures(board, self.say, self.own))
        with self.tables:
            if rows is not None:
                figures_card(self.visit, board, rows.documents[-1], self.own)
            with el.card(self.w("what_targets")), el.box("t-what", "dl"):
                for name in board.kinds:
                    el.text_of("dt", self.own(f"target.{name}"))
                    el.text_of("dd", self.own(f"what.{name}"))


def figures_card(visit: Visit, board: BiasBoard, count: int, own: Words) -> None:
    """All figures, of so many documents."""
    columns, cells = bias.REPORT.table(board, count, visit.say, own)
    names = ["target", "documents", "seeds", "turned", "measure", "value", "low", "high", "n"]
    data = []
    for row in board.rows:
        about = row.arm, row.documents, row.seeds, row.turned
        data += [[*about, name, *el.ends(figure)] for name, figure in row.figures.items()]
    with el.card(f"{own('measured')}: {own('table', documents=visit.say.count(count)).lower()}"):
        el.table(visit, columns, cells, range(1, len(columns)), own("measured"))
        el.small(f"{own('interval')} {own('how_turned')}")
        el.as_data(visit, "targets", names, lambda: data)


async def build(visit: Visit) -> None:
    """The page."""
    page = TargetsPage(visit, visit.request.query_params.get("experiment", "")[:KEY_MOST])
    page.build()
    await page.look()
    ui.timer(LOOK_S, page.look)
