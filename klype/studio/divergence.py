"""Divergens / Divergence: how often the next word is right, how long answers stay so, and what one error does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from nicegui import ui

from klype.examine.answer_pictures import pictures
from klype.examine.charts import Panel, axis, line, lines, whiskers
from klype.examine.document import key as temperature_key
from klype.examine.examination_report import measured, verdict
from klype.examine.facts import FigureFacts
from klype.examine.measures import KNOWN
from klype.studio.charts import Option, chart, picture, redraw
from klype.studio.examinations import Examination, ExamRequest
from klype.studio.fields import Choice, Slider
from klype.studio.frame import Visit, as_data, button, card, table, text_of

POINTS = 160
FIRST = (2.0, 100)
EXAMPLE = (5.0, 100)
"""The article's own: S = 0.99999, n = 100, on the slider's scale −log10(1 − S)."""


def clean(s: float, words: int) -> float:
    """S^n: all words right, independently."""
    return s**words


def printed(s: float, words: int) -> float:
    """(1 − S)^n, as the article has it."""
    return (1 - s) ** words


def in_error(s: float, after: float, word: int) -> float:
    """The share of wrong words at place ``word`` (1, 2, …) when an error makes the next word wrong with probability
    ``after``: a chain of two states, from a right beginning. Its limit is (1 − S) / (1 − S + 1 − after)."""
    first, memory = 1 - s, after - (1 - s)
    settled = first / (first + 1 - after) if after < 1 or first else 1.0
    return settled * (1 - memory**word)


class Formula:
    """Always on the page: it needs no model, and takes a model's own S when there is one."""

    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        w, say = visit.words, visit.say
        self._known: float | None = None
        with card() as box:
            text_of("h2", w("formula_title"))
            with ui.element("div").classes("k-sliders"):
                self.s = Slider(w("formula_s"), (0.0, 6.0, 0.05), FIRST[0], lambda v: self._share(1 - 10**-v))
                self.n = Slider(w("formula_n"), (1, 1000, 1), FIRST[1], lambda v: say.count(round(v)))
                self.after = Slider(w("formula_after"), (0.0, 0.99, 0.01), 0.3, lambda v: say.share(v))
            for slider in (self.s, self.n, self.after):
                slider.moved(self._draw)
            with ui.element("div").classes("k-chips").style("margin:8px 0"):
                button(w("formula_example"), lambda: self._set(*EXAMPLE), "tiny")
                self.own = button("", self._take_own, "tiny")
            self.own.set_visibility(False)
            self.result = ui.element("div").classes("k-result")
            self.result.props["aria-live"] = "polite"
            self.drawn = chart(self._option(), visit.lang, 320, w("formula_title"))
            text_of("p", w("formula_how"), "k-small")
            as_data(
                visit,
                "formula",
                [w("words"), w("formula_right"), w("formula_printed"), w("formula_errors")],
                self._rows,
                box,
            )
        self._say()

    def know(self, s: float | None) -> None:
        """The S that was measured: another place for the slider."""
        self._known = s
        self.own.set_visibility(s is not None)
        if s is not None:
            self.own._text = self.visit.words("formula_own", s=self._share(s))
            self.own.update()

    def _take_own(self) -> None:
        if self._known is not None:
            self._set(min(6.0, -math.log10(max(1e-6, 1 - self._known))), 50)

    def _set(self, s: float, n: float) -> None:
        self.s.set(s)
        self.n.set(n)
        self._draw()

    def _values(self) -> tuple[float, int, float]:
        return 1 - 10**-self.s.value, round(self.n.value), self.after.value

    def _share(self, value: float) -> str:
        decimals = 1 if value < 0.99 else max(1, math.ceil(-math.log10(max(1e-7, 1 - value))) - 1)
        return self.visit.say.share(value, decimals)

    def _draw(self) -> None:
        redraw(self.drawn, self._option(), self.visit.lang)
        self._say()

    def _say(self) -> None:
        w, say = self.visit.words, self.visit.say
        s, n, after = self._values()
        half = max(1, math.ceil(math.log(0.5) / math.log(s))) if 0 < s < 1 else 1
        told = (
            (w("formula_right"), self._chance(clean(s, n))),
            (w("formula_printed"), self._chance(printed(s, n))),
            (w("formula_errors"), self._chance(in_error(s, after, n))),
            (w("formula_half"), say.count(half)),
        )
        self.result.clear()
        with self.result:
            for name, value in told:
                with ui.element("span"):
                    text_of("span", name, "k-small")
                    text_of("b", value)

    def _chance(self, p: float) -> str:
        say = self.visit.say
        return self.visit.words("practically_zero") if p < 1e-4 else say.share(p, 3 if p > 0.99 else 1)

    def _places(self) -> list[int]:
        n = round(self.n.value)
        return sorted({round(1 + i * (n - 1) / max(1, min(n, POINTS) - 1)) for i in range(min(n, POINTS))})

    def _option(self) -> Option:
        w = self.visit.words
        s, n, after = self._values()
        places = self._places()
        dashed = {"lineStyle": {"color": "$bad", "type": "dashed", "width": 2}}
        dotted = {"lineStyle": {"color": "$finetuned", "type": "dotted", "width": 2.5}}
        drawn = lines(
            axis(w("words"), min=1, max=max(2, n)),
            axis(percent=True, min=0, max=1),
            [
                line(w("formula_right"), [(i, clean(s, i)) for i in places], "truth"),
                line(w("formula_printed"), [(i, printed(s, i)) for i in places], "bad", **dashed),
                line(w("formula_errors"), [(i, in_error(s, after, i)) for i in places], "finetuned", **dotted),
            ],
        )
        drawn["tooltip"]["valueFormatter"] = "fn:percent"
        drawn["legend"]["type"] = "scroll"
        return drawn

    def _rows(self) -> list[list[float]]:
        s, _, after = self._values()
        return [[i, clean(s, i), printed(s, i), in_error(s, after, i)] for i in self._places()]


COMPARED = ("right", "s", "same_meaning", "repetition", "well_formed")
COLOURS = ("accent", "finetuned", "aligned", "base")


def greedy(visit: Visit, document: dict[str, Any]) -> None:
    """A panel a measure, a row a temperature."""
    w, say = visit.words, visit.say
    panels, table = [], []
    for name in COMPARED:
        rows: list[tuple[str, FigureFacts, str, str]] = []
        for (t, figures), colour in zip(document["figures"].items(), COLOURS * 4, strict=False):
            found: FigureFacts | None = figures.get(name)
            if found is None or found["value"] is None:
                continue
            label = w("greedy") if t == "0" else f"τ = {say.plain(float(t))}"
            rows.append((label, found, say.figure(found, name), colour))
            table.append([say.measure(name), t, found["value"], found.get("low"), found.get("high"), found.get("n")])
        if len(rows) > 1:
            option = whiskers(rows, axis(percent=True, min=0, max=1))
            panels.append(Panel(say.measure(name), option, 70 + 46 * len(rows)))
    if not panels:
        return
    with card() as box:
        text_of("h2", w("greedy_title"))
        with ui.element("div").classes("k-panels"):
            for panel in panels:
                with ui.element("div"):
                    text_of("h3", panel.title)
                    chart(panel.option, visit.lang, panel.height, f"{w('greedy_title')} {panel.title}")
        text_of("p", w("how_greedy"), "k-small")
        columns = [
            say("column.measure"),
            say("axis.temperature"),
            *(say(f"column.{c}") for c in ("value", "low", "high", "n")),
        ]
        as_data(visit, "greedy", columns, lambda: table, box)


SHOWN = ("survival", "feedback", "temperatures", "calibration")


@dataclass
class DivergencePage:
    """The page as one visitor has it."""

    visit: Visit
    order: ExamRequest | None = None
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
        self.order = ExamRequest(model.address, model.identity, int(self.questions.value), int(self.samples.value))
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
    DivergencePage(visit).build()
