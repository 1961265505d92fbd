"""Divergens / Divergence: how often the next word is right, how long answers stay so, and what one error does."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nicegui import ui

from klype.errors import KlypeError
from klype.examine.answer_pictures import pictures
from klype.examine.charts import Cell, Option, axis, formula_curves, whiskers
from klype.examine.examination_report import key as temperature_key
from klype.examine.examination_report import measured, verdict
from klype.examine.facts import FigureFacts
from klype.examine.measures import KNOWN
from klype.jsons import saved
from klype.studio.charts import chart, panels, picture, redraw
from klype.studio.fields import Counts, Select, Slider
from klype.studio.frame import Progress, Visit, as_data, box, button, card, retext, status, table, text_of
from klype.studio.opening import first_steps
from klype.studio.studio import SharedModel, Studio
from klype.studio.work import Work, WorkPlan, begin

POINTS = 160
"""Of the formula's curves."""
FIRST = (2.0, 100)
EXAMPLE = (5.0, 100)
"""The article's own: S = 0.99999, n = 100, on the slider's scale −log10(1 − S)."""
SHOWN = ("survival", "feedback", "temperatures", "calibration")
COMPARED = ("right", "s", "same_meaning", "repetition", "well_formed")
COLOURS = ("accent", "finetuned", "aligned", "base")


@dataclass(frozen=True, slots=True)
class ExamRequest:
    """What is examined: so many questions, answers to each, at these temperatures; ``budget`` forward passes at most
    (what is examined becomes less until it keeps to that)."""

    address: str
    identity: str
    questions: int = 100
    samples: int = 8
    temperatures: tuple[float, ...] = (0.0, 0.7, 1.0)
    limit: int = 32
    budget: int = 200_000

    @property
    def key(self) -> str:
        """The same for the same weights and settings, so that nothing is computed twice."""
        about = json.dumps([self.identity, self.questions, self.samples, self.temperatures, self.limit, self.budget])
        return hashlib.sha256(about.encode()).hexdigest()[:20]

    @property
    def parts(self) -> list[str]:
        """The parts of an examination in their order, as its progress names them."""
        warm = [f"{t:g}" for t in self.temperatures if t > 0]
        answers = [f"answers {t:g}" for t in self.temperatures]
        return ["plan", *answers, *(f"feedback {t}" for t in warm), "trees", "forks"]

    def progress(self, lines: Sequence[str]) -> tuple[str, float]:
        """The part that the command's lines have come to, and which share of the parts is done."""
        heard = dict.fromkeys(part for line in lines for part in self.parts if line.startswith(f"{part}:"))
        last = next(reversed(heard), "plan")
        return last, max(map(self.parts.index, heard), default=0) / len(self.parts)


def exam_folder(studio: Studio, request: ExamRequest) -> Path:
    return studio.home / "examinations" / request.key


def exam_document(studio: Studio, request: ExamRequest) -> dict[str, Any] | None:
    """The document of a finished examination."""
    document = saved(exam_folder(studio, request) / "figures.json")
    return document if document is not None and "figures" in document else None


def exam_work(studio: Studio, request: ExamRequest) -> Work | None:
    """The process that examines, or has examined."""
    work = Work(studio.home / "work" / f"examine-{request.key}")
    return work if work.folder.is_dir() else None


def start_exam(studio: Studio, request: ExamRequest, lang: str = "en") -> Work:
    """Begins ``klype examine``, or goes on where it was stopped; nothing happens while it runs, or when it is done."""
    work = exam_work(studio, request)
    if work is not None:
        if work.state != "done" or exam_document(studio, request) is not None:
            work.go_on()
            return work
        shutil.rmtree(work.folder)  # what it found is not there any more
    folder = exam_folder(studio, request)
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "--most": request.questions,
        "-n": request.samples,
        "--temperatures": ",".join(f"{t:g}" for t in request.temperatures),
        "--limit": request.limit,
        "--budget": request.budget,
        "--lang": lang,
        "--device": studio.device,
        "--out": folder,
    }
    given = [str(part) for option in options.items() for part in option]
    command = [*studio.command, "examine", request.address, "--json", "--yes", *given]
    return begin(studio.home, WorkPlan("examine", folder, [command], {}), f"examine-{request.key}")


def _heard(work: Work | None) -> tuple[str, list[str], int]:
    """How it stands; while it runs, its lines and for how many seconds it has."""
    state = work.state if work is not None else ""
    return (
        (state, work.told(1000, 1 << 18), int(work.seconds))
        if work is not None and state == "running"
        else (state, [], 0)
    )


@dataclass
class DivergencePage:
    """The page as one visitor has it."""

    visit: Visit
    request: ExamRequest | None = None
    drawn_for: str = ""
    told: object = None
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)

    def build(self) -> None:
        visit, w = self.visit, self.visit.words
        self.formula = Formula(visit)
        models = {model.name: model.name for model in visit.studio.models if model.identity}
        if not models:
            first_steps(visit, w("nobody") if visit.studio.models else visit.frame("no_models"))
            return
        with card():
            text_of("h2", w("examine"))
            with box("k-sliders"):
                self.model = Select(w("model"), models, list(models)[-1], self._choose)
                self.questions = Counts(visit, "questions", (10, 200, 10), 60)
                self.samples = Counts(visit, "samples", (2, 32, 2), 8)
            for slider in (self.questions, self.samples):
                slider.released(self._choose)
            with box("k-row").style("margin-top:10px"):
                self.go = button(w("go"), self.start, "strong")
                self.stop = button(visit.frame("cancel"), self.cancel)
            self.note = status()
            self.progress = Progress()
        self.box = box()
        self._choose()
        ui.timer(0.5, self.look)

    async def start(self) -> None:
        if self.request is not None:
            try:
                await asyncio.to_thread(start_exam, self.visit.studio, self.request, self.visit.lang)
            except (KlypeError, OSError) as error:
                self.visit.tell(error)
        await self.look()

    async def cancel(self) -> None:
        work = exam_work(self.visit.studio, self.request) if self.request is not None else None
        if work is not None:
            await asyncio.to_thread(work.cancel)
        await self.look()

    def _choose(self) -> None:
        model: SharedModel = self.visit.studio.model(self.model.value)
        self.request = ExamRequest(model.address, model.identity, int(self.questions.value), int(self.samples.value))
        self.told = None

    async def look(self) -> None:
        """What has come of it: read beside the page every half second, drawn when it has changed."""
        request, studio = self.request, self.visit.studio
        if request is None or self.looking.locked():
            return
        async with self.looking:
            work = exam_work(studio, request)
            state, lines, seconds = await asyncio.to_thread(_heard, work)
            told = request.key, state, lines[-1:], seconds
            if told == self.told or request != self.request or self.note.is_deleted:
                return
            self.told = told
            busy = state == "running"
            document = None if busy else exam_document(studio, request)
            part, share = request.progress(lines)
            why = work.why() if work is not None and state == "failed" else ""
            retext(self.note, self._sentence(state, part, ("".join(lines[:1]), seconds, why), document))
            self.go.set_visibility(not busy and document is None)
            self.stop.set_visibility(busy)
            self.progress.fill(busy, max(0.03, share))
            if document is None:
                self.box.clear()
                self.drawn_for = ""
            elif self.drawn_for != request.key:
                self.drawn_for = request.key
                self._draw(document)

    def _sentence(self, state: str, part: str, heard: tuple[str, int, str], document: Mapping[str, Any] | None) -> str:
        """``heard``: what it all costs, in the command's words; for how many seconds it has run; why it failed."""
        w, say = self.visit.words, self.visit.say
        plan, seconds, why = heard
        if document is not None:
            time = document["time"]
            return w("done", seconds=say.seconds(time["seconds"]), passes=say.count(time["passes"]))
        if not state:
            return w("not_yet")
        if state != "running":
            return w("failed" if state == "failed" else "cancelled", why=say.text(why))
        name, _, temperature = part.partition(" ")
        called = w(f"part_{name}") + (f", τ = {say.plain(float(temperature))}" if temperature else "")
        return f"{w('running', part=called, seconds=say.seconds(max(1.0, float(seconds))))} {say.text(plan)}".strip()

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
                self._greedy(document)
            self._figures(document)

    def _greedy(self, document: dict[str, Any]) -> None:
        """The most probable word always, beside words that are drawn: a panel a measure, a row a temperature."""
        w, say = self.visit.words, self.visit.say
        drawn, data = [], list[list[Cell]]()
        for name in COMPARED:
            rows: list[tuple[str, FigureFacts, str, str]] = []
            for (t, figures), colour in zip(document["figures"].items(), COLOURS * 4, strict=False):
                if _has(figures, name):
                    found: FigureFacts = figures[name]
                    label = w("greedy") if t == "0" else f"τ = {say.plain(float(t))}"
                    rows.append((label, found, say.figure(found, name), colour))
                    ends = found.get("low"), found.get("high"), found.get("n")
                    data.append([say.measure(name), t, found["value"], *ends])
            if len(rows) > 1:
                option = whiskers(rows, axis(percent=True, min=0, max=1))
                drawn.append((say.measure(name), option, 70 + 46 * len(rows)))
        if not drawn:
            return
        with card() as shown:
            text_of("h2", w("greedy_title"))
            panels(drawn, self.visit.lang, w("greedy_title"))
            text_of("p", w("how_greedy"), "k-small")
            names = ("column.measure", "axis.temperature", *(f"column.{c}" for c in ("value", "low", "high", "n")))
            as_data(self.visit, "greedy", list(map(say, names)), lambda: data, shown)

    def _figures(self, document: dict[str, Any]) -> None:
        """A row a measure, a column a temperature."""
        say, found = self.visit.say, document["figures"]
        names = [(name, say.measure(name), say.unit(KNOWN[name].unit)) for name in measured(document)]
        rows = [
            [
                title if unit.lower() in title.lower() else f"{title} ({unit})",
                *(say.told(f[name], name) if _has(f, name) else "–" for f in found.values()),
            ]
            for name, title, unit in names
            if any(_has(figures, name) for figures in found.values())
        ]
        columns = [say("column.measure"), *(f"τ = {say.plain(float(t))}" for t in found)]
        with card():
            text_of("h2", say("exam.figures"))
            table(self.visit, columns, rows, range(1, len(columns)), say("exam.figures"))


def _has(figures: dict[str, Any], name: str) -> bool:
    return figures.get(name, {}).get("value") is not None


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
    """The article's formula to play with: as printed, corrected, and with errors that bring the next. Always on the
    page: it needs no model, and takes a model's own S when there is one."""

    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        w, say = visit.words, visit.say
        self._known: float | None = None
        with card() as shown:
            text_of("h2", w("formula_title"))
            with box("k-sliders"):
                self.s = Slider(w("formula_s"), (0.0, 6.0, 0.05), FIRST[0], lambda v: self._share(1 - 10**-v))
                self.n = Counts(visit, "formula_n", (1, 1000, 1), FIRST[1])
                self.after = Slider(w("formula_after"), (0.0, 0.99, 0.01), 0.3, lambda v: say.share(v))
            for slider in (self.s, self.n, self.after):
                slider.moved(self._draw)
            with box("k-chips").style("margin:8px 0"):
                button(w("formula_example"), lambda: self._set(*EXAMPLE), "tiny")
                self.own = button("", self._take_own, "tiny")
            self.own.set_visibility(False)
            self.result = box("k-result", aria_live="polite")
            self.drawn = chart(self._option(), visit.lang, 320, w("formula_title"))
            text_of("p", w("formula_how"), "k-small")
            columns = [w("words"), w("formula_right"), w("formula_printed"), w("formula_errors")]
            as_data(visit, "formula", columns, self._rows, shown)
        self._say()

    def know(self, s: float | None) -> None:
        """The S that was measured: another place for the slider."""
        self._known = s
        self.own.set_visibility(s is not None)
        if s is not None:
            retext(self.own, self.visit.words("formula_own", s=self._share(s)))

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
        chances = {"right": clean(s, n), "printed": printed(s, n), "errors": in_error(s, after, n)}
        told = {w(f"formula_{name}"): self._chance(p) for name, p in chances.items()}
        self.result.clear()
        with self.result:
            for name, value in {**told, w("formula_half"): say.count(half)}.items():
                with box(tag="span"):
                    text_of("span", name, "k-small")
                    text_of("b", value)

    def _chance(self, p: float) -> str:
        say = self.visit.say
        return self.visit.words("practically_zero") if p < 1e-4 else say.share(p, 3 if p > 0.99 else 1)

    def _rows(self) -> list[list[float]]:
        """At some numbers of words: how many are right, as printed, in error."""
        s, n, after = self._values()
        steps = min(n, POINTS)
        places = sorted({round(1 + i * (n - 1) / max(1, steps - 1)) for i in range(steps)})
        return [[i, clean(s, i), printed(s, i), in_error(s, after, i)] for i in places]

    def _option(self) -> Option:
        w, rows = self.visit.words, self._rows()
        names = ("formula_right", "formula_printed", "formula_errors")
        curves = [(w(name), [(row[0], row[i]) for row in rows]) for i, name in enumerate(names, 1)]
        return formula_curves(axis(w("words"), min=1, max=max(2, round(self.n.value))), curves)


async def build(visit: Visit) -> None:
    """The page."""
    page = DivergencePage(visit)
    page.build()
    await page.look()
