"""Kjøringer / Runs: the page that lists runs, shows one of them, and starts, stops and resumes runs."""

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from nicegui import ui

from klype.data.readers import KINDS
from klype.errors import KlypeError, UsageError
from klype.examine.charts import Cell
from klype.examine.say import visible
from klype.studio import elements as el
from klype.studio.background_jobs import MAX_KEY, Work, WorkPlan, begin, key_of, new_name
from klype.studio.fields import Minutes, SeedField, Select, Upload, UploadedFile
from klype.studio.runs_detail import RunDetail, RunInfo, all_runs, family
from klype.studio.studio import Studio
from klype.words import LANGUAGES

LOOK_S = 1.5
MAX_TEXT, FILES = 32 << 20, 8  # bytes of a file at most, and number of files
RANK = 8  # of LoRA's updates


class Needs(NamedTuple):
    """What a recipe takes: the visitor's ``files``, and a ``model`` to start from. ``minutes``: the default time."""

    files: Literal["none", "optional", "needed"]
    minutes: float
    model: bool = False


RECIPES = {
    "world": Needs("none", 5),
    "text": Needs("needed", 10),
    "norsk": Needs("optional", 20),
    "english": Needs("needed", 20),
    "lora": Needs("needed", 10, model=True),
}


@dataclass(frozen=True)
class RunRequest:
    """A run to be started. ``files``: uploads to train on; ``model``: the address of the one to start from."""

    recipe: str
    minutes: float
    lang: str
    seed: int = 0
    files: Sequence[UploadedFile] = ()
    model: str = ""


def start_run(studio: Studio, request: RunRequest) -> Work:
    """Starts ``klype run``. Files are moved into the run's folder, under neutral names, and back when the run cannot be
    started. UsageError when the recipe needs files or a model and there are none."""
    needs = RECIPES[request.recipe]  # a Select takes none but its own keys
    if needs.files == "needed" and not request.files:
        raise UsageError("There is no text to learn from.", "Add a file first.")
    if needs.model and not request.model:
        raise UsageError("There is no model to go on from.", "Open one first.")
    name = new_name("run")
    folder = studio.runs_home / name
    upload = folder / "upload"
    taken = request.files if needs.files != "none" else ()
    moved = [(given.file, upload / f"text-{i}{given.file.suffix}") for i, given in enumerate(taken, 1)]
    for given, file in moved:
        upload.mkdir(parents=True, exist_ok=True)
        shutil.move(given, file)
    command = [
        *studio.command, "run", "--recipe", request.recipe, "--minutes", f"{request.minutes:g}",
        "--seed", str(request.seed), "--lang", request.lang, "--device", studio.device, "--out", str(folder),
        "--resume", "--json", *(["--data", str(upload)] if moved else []),
        *(["--from", request.model, "--lora", str(RANK)] if needs.model else []),
    ]  # fmt: skip
    about = {"planned_s": 60 * request.minutes, "files": [given.name for given in taken]}
    try:
        return begin(studio.home, WorkPlan("run", folder, [command], about), name)
    except KlypeError:
        for given, file in moved:
            shutil.move(file, given)
        shutil.rmtree(folder, ignore_errors=True)
        raise


@dataclass
class RunForm(el.PagePart):
    """The form that starts a run by any recipe."""

    files: list[UploadedFile] = field(default_factory=list)

    def build(self) -> None:
        w, visit = self.w, self.visit
        trainable = {m.address: m.name for m in self.studio.models if m.opened.native is not None}
        with el.card(w("new"), id="start"):
            with el.box("r-setup"):
                recipes = {name: w(f"recipe_{name}") for name in RECIPES}
                self.recipe = Select(w("recipe"), recipes, "world", self.show)
                self.model = Select(w("from"), trainable or {"": w("nothing")}, next(iter(trainable), ""))
                self.minutes = Minutes(visit, (1, 60, 1), 5)
                self.lang = Select(w("language"), {lang: row.name for lang, row in LANGUAGES.items()}, visit.lang)
                self.seed = SeedField(visit)
            self.needs = el.status()
            with el.box() as self.texts:
                Upload(visit, w("upload"), MAX_TEXT, KINDS, self.take)
                self.list = el.small("")
                el.small(w("upload_note", kinds=", ".join(KINDS), most=self.say.count(MAX_TEXT >> 20)))
            with el.box("k-row").style("margin-top:10px"):
                el.button(w("start"), self.start, "strong")
            el.small(w("start_note"))
        self.show()
        ui.run_javascript("if (location.hash === '#start') document.getElementById('start')?.scrollIntoView()")

    def show(self) -> None:
        """Shows the fields that the chosen recipe needs."""
        needs = RECIPES[self.recipe.value]
        el.retext(self.needs, self.w(f"needs_{self.recipe.value}"))
        self.texts.set_visibility(needs.files != "none")
        self.model.set_visibility(needs.model)
        self.minutes.set(needs.minutes)

    async def take(self, given: UploadedFile) -> None:
        if len(self.files) >= FILES:
            await asyncio.to_thread(given.file.unlink, True)
            self.visit.tell(UsageError(f"There are {FILES} files at most."))
            return
        self.files.append(given)
        sizes = [f"{one.name} ({self.say.number(one.size / 1e6, 2)} MB)" for one in self.files]
        el.retext(self.list, " · ".join(sizes))

    @el.unless_busy
    async def start(self) -> None:
        def started() -> Work:
            wanted = self.recipe.value, self.minutes.value, self.lang.value, self.seed.value
            return start_run(self.studio, RunRequest(*wanted, self.files, self.model.value))

        if (work := await self.visit.attempt(started)) is not None:
            ui.navigate.to(f"{self.visit.page.route}?run={key_of(work.plan.run)}")


@dataclass
class RunsPage(el.PagePart):
    """The list of runs, and the details of one of them, perhaps beside another one. ``chosen``, ``beside``: their
    keys."""

    chosen: str
    beside: str
    runs: Sequence[RunInfo] = ()
    marks: object = None

    def build(self) -> None:
        self.detail = RunDetail(self.visit)
        with el.card(self.w("all_runs")):
            self.list = el.box()
            self.note = el.small("")
            names = ["run", "state", "recipe", "from", "stages", "parameters", "seconds", "gates_passed", "gates"]
            el.as_data(self.visit, "runs", names, self.rows)
        RunForm(self.visit)

    @el.unless_busy
    async def look(self) -> None:
        """Reads the runs in a thread, and redraws what has changed."""
        runs = await asyncio.to_thread(all_runs, self.studio)
        found = {run.key: run for run in runs}
        one = found.get(self.chosen) or next(iter(runs), None)
        news = one is not None and await asyncio.to_thread(self.detail.read, one, found.get(self.beside))
        if self.list.is_deleted:
            return
        self.runs = runs
        if one is not None and news:
            self.detail.show(one, runs)
        # redrawn only when its text changes: a list that flickers cannot be clicked
        marks = [(run.key, run.state, run.stages, int(run.seconds or 0)) for run in runs]
        if marks == self.marks:
            return
        self.marks = marks
        el.retext(self.note, "" if runs else self.w("no_runs"))
        self.list.clear()
        with self.list, el.box("u-runs", "ul"):
            for depth, run in family(runs):
                with el.box("u-run child" if depth else "u-run", "li").style(f"--depth:{min(depth, 6)}"):
                    to = f"{self.visit.page.route}?run={run.key}"
                    current = {"aria_current": "true"} if run is one else {}
                    el.text_of("a", visible(run.name), "u-name", href=to, **current)
                    el.text_of("span", self.w(f"state_{run.state}"), f"w-state {run.state}")
                    el.text_of("span", " · ".join(filter(None, self.facts(run))), "u-facts")

    def facts(self, run: RunInfo) -> list[str]:
        """What the list says about a run; parts that are not known are empty."""
        w, say, (passed, gates) = self.w, self.say, run.gates
        return [
            visible(run.recipe),
            " → ".join(w(f"stage_{stage}") for stage in run.stages),
            w("parameters", n=say.big(run.parameters)) if run.parameters else "",
            say.seconds(run.seconds) if run.seconds else "",
            w("gates", passed=say.count(passed), of=say.count(gates)) if gates else "",
        ]

    def rows(self) -> list[list[Cell]]:
        names = {run.key: run.name for run in self.runs}
        return [
            [run.name, run.state, run.recipe, names.get(run.parent, ""), " ".join(run.stages), run.parameters,
             run.seconds, *run.gates]
            for run in self.runs
        ]  # fmt: skip


async def build(visit: el.Visit) -> None:
    """The page."""
    sent = visit.request.query_params
    page = RunsPage(visit, sent.get("run", "")[:MAX_KEY], sent.get("with", "")[:MAX_KEY])
    await el.follow(page.look, LOOK_S)
