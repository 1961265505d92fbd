"""Kjøringer / Runs: what was trained, from what, how it went and how it goes; begun, stopped and gone on with here."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nicegui import ui

from klype.data.readers import KINDS
from klype.errors import KlypeError, UsageError
from klype.examine.say import visible
from klype.studio.fields import Choice, Slider, Upload, UploadedFile, UploadLimits, WholeNumber
from klype.studio.frame import Visit, as_data, button, card, text_of
from klype.studio.ranking import styles
from klype.studio.runs_detail import RunDetail
from klype.studio.runs_list import RunInfo, all_runs, family, home_of_runs, key_of
from klype.studio.studio import Studio
from klype.studio.work import Work, WorkPlan, begin, new_name

TEXTS = UploadLimits(32 << 20, KINDS)
FILES = 8
RECIPES = ("world", "text")
SEED_MOST = 2**32 - 1


@dataclass(frozen=True, slots=True)
class RunRequest:
    recipe: str
    minutes: float
    lang: str
    seed: int
    files: Sequence[UploadedFile] = ()


@dataclass
class RunForm:
    visit: Visit
    files: list[UploadedFile] = field(default_factory=list)
    starting: bool = False

    def build(self) -> None:
        w, say = self.visit.words, self.visit.say
        with card():
            text_of("h2", w("new"))
            with ui.element("div").classes("r-setup"):
                recipes = {name: w(f"recipe_{name}") for name in RECIPES}
                self.recipe = Choice(w("recipe"), recipes, "world", self._show)
                self.minutes = Slider(w("minutes"), (1, 60, 1), 5, lambda v: f"{say.plain(v)}{chr(0xA0)}min")
                languages = {"nb": "norsk bokmål", "en": "English"}
                self.lang = Choice(w("language"), languages, self.visit.lang, lambda: None)
                self.seed = WholeNumber(w("seed"), 0, SEED_MOST, 0)
            with ui.element("div") as self.texts:
                Upload(self.visit, w("upload"), TEXTS, self._given)
                self.list = text_of("p", "", "k-small")
                kinds, most = ", ".join(TEXTS.suffixes), say.count(TEXTS.most >> 20)
                text_of("p", w("upload_note", kinds=kinds, most=most), "k-small")
            with ui.element("div").classes("k-row").style("margin-top:10px"):
                self.go = button(w("start"), self.start, "strong")
            text_of("p", w("start_note"), "k-small")
        self._show()

    def _show(self) -> None:
        self.texts.set_visibility(self.recipe.value == "text")

    async def _given(self, given: UploadedFile) -> None:
        if len(self.files) >= FILES:
            await asyncio.to_thread(given.file.unlink, True)
            self.visit.tell(UsageError(f"There are {FILES} files at most."))
            return
        self.files.append(given)
        say = self.visit.say
        self.list._text = " · ".join(f"{one.name} ({say.number(one.size / 1e6, 2)} MB)" for one in self.files)
        self.list.update()

    async def start(self) -> None:
        if self.starting:
            return
        self.starting = True
        try:
            order = RunRequest(
                self.recipe.value, self.minutes.value, self.lang.value, self.seed.value, tuple(self.files)
            )
            work = await asyncio.to_thread(start_run, self.visit.studio, order)
        except (KlypeError, OSError) as error:
            self.visit.tell(error)
            return
        finally:
            self.starting = False
        ui.navigate.to(f"{self.visit.page.route}?run={key_of(work.plan.run)}")


def start_run(studio: Studio, order: RunRequest) -> Work:
    """Begins ``klype run``; texts lie in the run's own folder, under names of ours. UsageError for what cannot be."""
    if order.recipe == "text" and not order.files:
        raise UsageError("There is no text to learn from.", "Add a file first.")
    name = new_name("run")
    folder = home_of_runs(studio) / name
    texts: list[str] = []
    if order.recipe == "text":
        place = folder / "upload"
        place.mkdir(parents=True)
        for number, given in enumerate(order.files, 1):
            file = place / f"text-{number}{given.file.suffix}"
            shutil.move(given.file, file)
            texts += ["--text", str(file)]
    command = [
        *studio.command, "run", "--recipe", order.recipe, "--minutes", f"{order.minutes:g}", "--seed", str(order.seed),
        "--lang", order.lang, "--out", str(folder), "--resume", "--json", *texts,
    ]  # fmt: skip
    about = {"planned_s": 60 * order.minutes, "files": [given.name for given in order.files]}
    try:
        return begin(studio.home, WorkPlan("run", folder, [command], about), name)
    except KlypeError:
        _give_back(order, folder)
        raise


def _give_back(order: RunRequest, folder: Path) -> None:
    """Files stay with the form when nothing was begun."""
    if (folder / "upload").is_dir():
        for number, given in enumerate(order.files, 1):
            shutil.move(folder / "upload" / f"text-{number}{given.file.suffix}", given.file)
        shutil.rmtree(folder)


LOOK_S = 1.5
KEY_MOST = 20


@dataclass
class RunsPage:
    """The page as one visitor has it: all runs, and one of them looked at (with another beside it)."""

    visit: Visit
    chosen: str
    beside: str
    runs: Sequence[RunInfo] = field(default_factory=list)
    marks: object = None
    looking: bool = False

    def build(self) -> None:
        self.detail = RunDetail(self.visit)
        self.box = ui.element("div")
        with card():
            text_of("h2", self.visit.words("all_runs"))
            self.list = ui.element("div")
            self.note = text_of("p", "", "k-small")
            names = ["run", "state", "recipe", "from", "stages", "parameters", "seconds", "gates_passed", "gates"]
            as_data(self.visit, "runs", names, self._rows)
        RunForm(self.visit).build()

    async def look(self) -> None:
        """Reads beside the page, draws what has changed."""
        if self.looking:
            return
        self.looking = True
        try:
            runs = await asyncio.to_thread(all_runs, self.visit.studio)
            found = {told.key: told for told in runs}
            one = found.get(self.chosen) or next(iter(runs), None)
            news = one is not None and await asyncio.to_thread(self.detail.read, one, found.get(self.beside))
            if self.box.is_deleted:
                return
            self.runs = runs
            if one is not None:
                if not self.detail.built_for(one):
                    self.box.clear()
                    with self.box:
                        self.detail.build(one, runs)
                elif news:
                    self.detail.update()
            self._list(one)
        finally:
            self.looking = False

    def _list(self, one: RunInfo | None) -> None:
        marks = [(told.key, told.state, told.stages, int(told.seconds or 0)) for told in self.runs]
        if marks == self.marks:
            return
        self.marks = marks
        w, say = self.visit.words, self.visit.say
        self.note._text = "" if self.runs else w("no_runs")
        self.note.update()
        self.list.clear()
        with self.list, ui.element("ul").classes("u-runs"):
            for depth, told in family(self.runs):
                with ui.element("li").classes("u-run child" if depth else "u-run") as item:
                    item.style(f"--depth:{min(depth, 6)}")
                    with text_of("a", visible(told.name), "u-name") as link:
                        link.props["href"] = f"{self.visit.page.route}?run={told.key}"
                        if one is not None and told.key == one.key:
                            link.props["aria-current"] = "true"
                    text_of("span", w(f"state_{told.state}"), f"w-state {told.state}")
                    facts = [visible(told.recipe), " → ".join(say_stage(self.visit, s) for s in told.stages)]
                    if told.parameters:
                        facts.append(w("parameters", n=say.big(told.parameters)))
                    if told.seconds:
                        facts.append(say.seconds(told.seconds))
                    passed, gates = told.gates
                    if gates:
                        facts.append(w("gates", passed=say.count(passed), of=say.count(gates)))
                    text_of("span", " · ".join(fact for fact in facts if fact), "u-facts")

    def _rows(self) -> list[list[str | float | int | None]]:
        names = {told.key: told.name for told in self.runs}
        return [
            [told.name, told.state, told.recipe, names.get(told.parent, ""), " ".join(told.stages), told.parameters,
             told.seconds, *told.gates]
            for told in self.runs
        ]  # fmt: skip


def say_stage(visit: Visit, stage: str) -> str:
    return visit.words(f"stage_{stage}")


async def build(visit: Visit) -> None:
    """The page."""
    ui.add_head_html(f"<style>{styles()}</style>")
    sent = visit.request.query_params
    view = RunsPage(visit, sent.get("run", "")[:KEY_MOST], sent.get("with", "")[:KEY_MOST])
    view.build()
    await view.look()
    ui.timer(LOOK_S, view.look)
