"""Kjøringer / Runs: what was trained, from what, how it went and how it goes; begun, stopped and gone on with here."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from nicegui import ui

from klype.examine.say import visible
from klype.studio.frame import as_data, card
from klype.studio.ranking import styles
from klype.studio.runs_detail import Detail
from klype.studio.runs_form import Form
from klype.studio.runs_list import Told, all_runs, family
from klype.studio.visit import Visit, text_of

LOOK_S = 1.5
KEY_MOST = 20


@dataclass
class View:
    """The page as one visitor has it: all runs, and one of them looked at (with another beside it)."""

    visit: Visit
    chosen: str
    beside: str
    runs: Sequence[Told] = field(default_factory=list)
    marks: object = None
    looking: bool = False

    def build(self) -> None:
        self.detail = Detail(self.visit)
        self.box = ui.element("div")
        with card():
            text_of("h2", self.visit.words("all_runs"))
            self.list = ui.element("div")
            self.note = text_of("p", "", "k-small")
            names = ["run", "state", "recipe", "from", "stages", "parameters", "seconds", "gates_passed", "gates"]
            as_data(self.visit, "runs", names, self._rows)
        Form(self.visit).build()

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

    def _list(self, one: Told | None) -> None:
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
    view = View(visit, sent.get("run", "")[:KEY_MOST], sent.get("with", "")[:KEY_MOST])
    view.build()
    await view.look()
    ui.timer(LOOK_S, view.look)
