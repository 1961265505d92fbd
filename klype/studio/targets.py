"""Fasit / Targets: the page of experiments on training targets (one correct word, remedies, the true distribution)."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from klype.errors import KlypeError, UsageError
from klype.examine.charts import Picture
from klype.examine.say import Say, visible
from klype.experiments import bias
from klype.experiments.bias import BiasBoard
from klype.runs.run_json import QUIET_S
from klype.sources.model_files import RUNS
from klype.studio import elements as el
from klype.studio.background_jobs import MAX_KEY, State, Work, WorkPlan, begin, key_of, new_name, works_by_run
from klype.studio.fields import Minutes, PageSelect, SeedField
from klype.studio.studio import Studio, mtime
from klype.words import Words, words

LOOK_S = 1.0
DATA = ["target", "documents", "seeds", "turned", "measure", "value", "low", "high", "n"]
# the order of the pictures: what a target does to one sentence, then how it came about, and what it costs
ORDER = ("bars", "training", "gap", "documents", "compute")


@dataclass(frozen=True, slots=True)
class TargetExperiment:
    """An experiment. ``work``: None if it was started on the command line; ``changed``: when its file was last written,
    in seconds since 1970."""

    folder: Path
    work: Work | None = None
    changed: float = 0.0

    @property
    def key(self) -> str:
        return key_of(self.folder)

    @property
    def state(self) -> State:
        """The state; of one that was started on the command line ``stopped`` if nothing was written for a while."""
        if self.work is not None:
            return self.work.state
        try:
            board = BiasBoard.read(self.folder)
        except KlypeError:
            return "failed"
        if board is not None and board.done:
            return "done"
        return "running" if time.time() - self.changed < QUIET_S else "stopped"


def experiments(studio: Studio) -> list[TargetExperiment]:
    """All experiments: the running one first, then those that were written last."""
    found: dict[Path, Work | None] = {**works_by_run(studio.home, "bias")}
    for base in (studio.home / "targets", studio.runs or RUNS):
        for file in base.glob(f"*/{BiasBoard.FILE}"):
            found.setdefault(file.parent.resolve(), None)

    def experiment(folder: Path, work: Work | None) -> TargetExperiment:
        written = mtime(folder / BiasBoard.FILE) or mtime(work.folder / "work.json" if work is not None else folder)
        return TargetExperiment(folder, work, written)

    known = [experiment(folder, work) for folder, work in found.items()]
    return sorted(known, key=lambda e: (e.work is not None and e.work.state == "running", e.changed), reverse=True)


def start_experiment(studio: Studio, minutes: float, seed: int = 0, lang: str = "en") -> TargetExperiment:
    """Starts ``klype bias``. UsageError if one runs already: targets are compared by the time that they take, which
    another experiment would falsify."""
    if any(e.work is not None and e.work.state == "running" for e in experiments(studio)):
        raise UsageError("An experiment runs already.", "Wait for it, or cancel it.")
    name = new_name("targets")
    folder = studio.home / "targets" / name
    command = [
        *studio.command, "bias", "--minutes", f"{minutes:g}", "--seed", str(seed), "--lang", lang,
        "--out", str(folder), "--resume", "--json",
    ]  # fmt: skip
    if studio.device == "cpu":  # the command takes no other
        command += ["--device", "cpu"]
    plan = WorkPlan("bias", folder, [command], {"planned_s": 60 * minutes})
    return TargetExperiment(folder, begin(studio.home, plan, name))


def found_pictures(board: BiasBoard, say: Say, own: Words) -> list[Picture]:
    """The pictures of the results so far, each at the largest number of documents that has been trained on."""
    rows = so_far(board, [row.documents for row in board.rows])
    curves = so_far(board, [curve.documents for curve in board.curves])
    made = {picture.id: picture for picture in bias.REPORT.pictures(rows, say, own)} if rows is not None else {}
    if curves is not None:
        made |= {p.id: p for p in bias.REPORT.pictures(curves, say, own) if p.id in ("training", "bars")}
    return [made[name] for name in ORDER if name in made]


def so_far(board: BiasBoard, documents: Sequence[int]) -> BiasBoard | None:
    """The board with these numbers of documents only; None if there are none."""
    known = tuple(sorted(set(documents)))
    return board.model_copy(update={"documents": known}) if known else None


@dataclass
class TargetsPage(el.WorkPart):
    """The page: one experiment, by default the first of ``experiments``. ``chosen``: the key in the address."""

    chosen: str = ""
    offered: Sequence[str] = ()
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
            self.add_controls(w("resume"))
        self.said = el.box()
        self.pictures = el.GrowingPictures(self.visit, ORDER)
        self.tables = el.box()

    async def begin(self) -> None:
        begun = await self.visit.attempt(
            lambda: start_experiment(self.studio, self.minutes.value, self.seed.value, self.visit.lang)
        )
        if begun is not None:
            self.chosen = begun.key
            await self.look()

    @el.unless_busy
    async def look(self) -> None:
        def read() -> tuple[Sequence[TargetExperiment], TargetExperiment | None, str, BiasBoard | None, str]:
            """All experiments, the chosen one, its state and board, and why that cannot be read."""
            known = experiments(self.studio)
            one = next((e for e in known if e.key == self.chosen), next(iter(known), None))
            state = one.state if one is not None else ""
            try:
                return known, one, state, BiasBoard.read(one.folder) if one is not None else None, ""
            except KlypeError as error:
                return known, one, state, None, self.visit.why(error)

        known, one, state, board, why = await asyncio.to_thread(read)
        if self.note.is_deleted:
            return
        names = {e.key: visible(e.folder.resolve().name) for e in known}
        if list(names) != self.offered:
            self.offered = list(names)
            self.choices.clear()
            if len(names) > 1 and one is not None:
                with self.choices:
                    PageSelect(self.w("which"), names, one.key, f"{self.visit.page.route}?experiment=")
        self.work = one.work if one is not None else None
        self.form.set_visibility(state != "running")
        share = board.cells_done / max(1, board.cells) if board is not None else 0.0
        self.show_state(why or self.sentence(state, board), state, max(0.02, share))
        if one is not None and board is not None and (mark := (one.key, one.changed)) != self.told:
            self.told = mark
            self._draw(board)

    def sentence(self, state: str, board: BiasBoard | None) -> str:
        w, say, work = self.w, self.say, self.work
        if not state:
            return w("nothing_yet")
        if state == "failed":
            return w("failed", why=visible(work.why() if work is not None else ""))
        seconds = say.seconds(max(1.0, float(int(work.seconds)))) if work is not None and work.seconds else ""
        done, of = (say.count(n) for n in ((board.cells_done, board.cells) if board is not None else (0, 0)))
        if state != "running":
            return w(f"state_{state}", n=done, of=of, time=seconds)
        if board is None:
            return w("preparing", time=seconds)
        parts = [self.own("progress", done=done, all=of), seconds, *bias.progress_lines(board, self.own, say.count)]
        return " · ".join(filter(None, parts))

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
                own, count = self.own, rows.documents[-1]
                columns, cells = bias.REPORT.table(board, count, self.say, own)
                data = [
                    [row.arm, row.documents, row.seeds, row.turned, name, *el.ends(figure)]
                    for row in board.rows
                    for name, figure in row.figures.items()
                ]
                with el.card(f"{own('measured')}: {own('table', documents=self.say.count(count)).lower()}"):
                    el.table(self.visit, columns, cells, range(1, len(columns)), own("measured"))
                    el.small(f"{own('interval')} {own('how_turned')}")
                    el.as_data(self.visit, "targets", DATA, lambda: data)
            with el.card(self.w("what_targets")), el.box("t-what", "dl"):
                for name in board.kinds:
                    el.text_of("dt", self.own(f"target.{name}"))
                    el.text_of("dd", self.own(f"what.{name}"))


async def build(visit: el.Visit) -> None:
    """The page."""
    page = TargetsPage(visit, visit.request.query_params.get("experiment", "")[:MAX_KEY])
    await el.follow(page.look, LOOK_S)
