"""Divergens / Divergence: how often the next word is right, how long answers stay so, and what one error does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nicegui import ui

from klype.examine.answer_pictures import pictures
from klype.examine.document import key as temperature_key
from klype.examine.examination_report import measured, verdict
from klype.examine.measures import KNOWN
from klype.studio.divergence_formula import Formula
from klype.studio.divergence_greedy import greedy
from klype.studio.examining import Examination, Order
from klype.studio.fields import Choice, Slider
from klype.studio.frame import button, card, table
from klype.studio.pictures import picture
from klype.studio.visit import Visit, text_of

SHOWN = ("survival", "feedback", "temperatures", "calibration")


@dataclass
class View:
    """The page as one visitor has it."""

    visit: Visit
    order: Order | None = None
    drawn_for: str = ""
    told: str = ""

    def build(self) -> None:
        visit, w, say = self.visit, self.visit.words, self.visit.say
        self.formula = Formula(visit)
        models = {model.name: model.name for model in visit.studio.models if model.identity}
        if not models:
            text_of("p", w("nobody"), "k-card k-empty")
            return
        with card():
            text_of("h2", w("examine"))
            with ui.element("div").classes("k-sliders"):
                self.model = Choice(w("model"), models, list(models)[-1], self._choose)
                self.questions = Slider(w("questions"), (10, 200, 10), 60, lambda v: say.count(round(v)))
                self.samples = Slider(w("samples"), (2, 32, 2), 8, lambda v: say.count(round(v)))
            for slider in (self.questions, self.samples):
                slider.released(self._choose)
            with ui.element("div").classes("k-row").style("margin-top:10px"):
                self.go = button(w("go"), self.start, "strong")
                self.stop = button(visit.frame("cancel"), self.cancel)
            self.note = text_of("p", "", "k-small")
            self.note.props.update({"role": "status", "aria-live": "polite"})
            self.progress = ui.element("div").classes("k-progress")
            with self.progress:
                self.bar = ui.element("div").style("width:0%")
        self.box = ui.element("div")
        self._choose()
        ui.timer(0.5, self._look)

    def start(self) -> None:
        if self.order is not None and self.visit.studio.examinations.found(self.order) is None:
            self.visit.studio.examinations.start(self.order, self.visit.lang)
        self._look()

    def cancel(self) -> None:
        running = self._running()
        if running is not None:
            self.visit.studio.examinations.cancel(running)
        self._look()

    def _choose(self) -> None:
        model = self.visit.studio.voice(self.model.value).model
        self.order = Order(model.address, model.identity, int(self.questions.value), int(self.samples.value))
        self.told = ""
        self._look()

    def _running(self) -> Examination | None:
        return self.visit.studio.examinations.running.get(self.order.key) if self.order else None

    def _look(self) -> None:
        """What has come of it: asked every half second, drawn when it has changed."""
        if self.order is None:
            return
        running = self._running()
        busy = running is not None and running.state == "running"
        state = running.state if running is not None else ""
        now = (running.part, int(running.seconds)) if busy and running is not None else ()
        told = f"{self.order.key} {state} {now}"
        if told == self.told:
            return
        self.told = told
        document = None if busy else self.visit.studio.examinations.found(self.order)
        self._tell(running, document)
        self.go.set_visibility(not busy and document is None)
        self.stop.set_visibility(busy)
        self.progress.set_visibility(busy)
        if running is not None:
            self.bar.style(f"width:{max(3.0, 100 * running.share):.0f}%")
        if document is None:
            self.box.clear()
            self.drawn_for = ""
        elif self.drawn_for != self.order.key:
            self.drawn_for = self.order.key
            self._draw(document)

    def _tell(self, running: Examination | None, document: dict[str, Any] | None) -> None:
        w, say = self.visit.words, self.visit.say
        if document is not None:
            text = w(
                "done", seconds=say.seconds(document["time"]["seconds"]), passes=say.count(document["time"]["passes"])
            )
        elif running is None:
            text = w("not_yet")
        elif running.state == "running":
            part, _, temperature = running.part.partition(" ")
            name = w(f"part_{part}") + (f", τ = {say.plain(float(temperature))}" if temperature else "")
            text = w("running", part=name, seconds=say.seconds(max(1.0, float(int(running.seconds)))))
            text = f"{text} {say.text(running.plan)}".strip()
        else:
            text = w(running.state, why=say.text(running.why))
        self.note._text = text
        self.note.update()

    def _draw(self, document: dict[str, Any]) -> None:
        say, name = self.visit.say, self.model.value
        document = {**document, "model": name}
        self.formula.know(document["figures"][document["main"]].get("s", {}).get("value"))
        shown = pictures(document, say)
        self.box.clear()
        with self.box:
            with card():
                text_of("h2", self.visit.words("found", model=name))
                for paragraph in verdict(document, say):
                    text_of("p", paragraph)
            for name in SHOWN:
                if name in shown:
                    picture(self.visit, shown[name])
            if temperature_key(0.0) in document["figures"]:
                greedy(self.visit, document)
            self._figures(document)

    def _figures(self, document: dict[str, Any]) -> None:
        """A row a measure, a column a temperature."""
        say, found = self.visit.say, document["figures"]
        names = [(name, f" ({unit})" if (unit := say.unit(KNOWN[name].unit)) else "") for name in measured(document)]
        rows = [
            [say.measure(name) + unit, *(say.figure(f[name], name) if _has(f, name) else "–" for f in found.values())]
            for name, unit in names
        ]
        with card():
            text_of("h2", say("exam.figures"))
            with ui.element("div").classes("k-scroll") as scroll:
                scroll.props.update({"tabindex": 0, "role": "region", "aria-label": say("exam.figures")})
                columns = [say("column.measure"), *(f"τ = {say.plain(float(t))}" for t in found)]
                table(columns, rows, range(1, len(columns)))


def _has(figures: dict[str, Any], name: str) -> bool:
    return figures.get(name, {}).get("value") is not None


def build(visit: Visit) -> None:
    """The page."""
    View(visit).build()
