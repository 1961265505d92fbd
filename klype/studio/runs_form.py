"""A run begun from the page: on the demo world, or on text that a visitor gives."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nicegui import ui

from klype.data.readers import KINDS
from klype.errors import KlypeError, UsageError
from klype.studio.fields import Choice, Slider
from klype.studio.frame import button, card
from klype.studio.runs_list import home_of_runs, key_of
from klype.studio.studio import Studio
from klype.studio.visit import Visit, text_of
from klype.studio.work import Plan, Work, begin, new_name
from klype.studio.work_fields import Whole
from klype.studio.work_upload import Given, Limits, Upload

TEXTS = Limits(32 << 20, KINDS)
FILES = 8
RECIPES = ("world", "text")
SEED_MOST = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Order:
    recipe: str
    minutes: float
    lang: str
    seed: int
    files: Sequence[Given] = ()


@dataclass
class Form:
    visit: Visit
    files: list[Given] = field(default_factory=list)
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
                self.seed = Whole(w("seed"), 0, SEED_MOST, 0)
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

    async def _given(self, given: Given) -> None:
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
            order = Order(self.recipe.value, self.minutes.value, self.lang.value, self.seed.value, tuple(self.files))
            work = await asyncio.to_thread(start, self.visit.studio, order)
        except (KlypeError, OSError) as error:
            self.visit.tell(error)
            return
        finally:
            self.starting = False
        ui.navigate.to(f"{self.visit.page.route}?run={key_of(work.plan.run)}")


def start(studio: Studio, order: Order) -> Work:
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
        return begin(studio.home, Plan("run", folder, [command], about), name)
    except KlypeError:
        _give_back(order, folder)
        raise


def _give_back(order: Order, folder: Path) -> None:
    """Files stay with the form when nothing was begun."""
    if (folder / "upload").is_dir():
        for number, given in enumerate(order.files, 1):
            shutil.move(folder / "upload" / f"text-{number}{given.file.suffix}", given.file)
        shutil.rmtree(folder)
