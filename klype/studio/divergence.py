"""Divergens / Divergence: how often the next word is right, how long answers stay right, and what one error does."""

import asyncio
import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klype.examine.answer_pictures import pictures
from klype.examine.charts import Picture, axis, formula_curves, whisker_panels
from klype.examine.examination_report import verdict
from klype.examine.html import measures_of
from klype.examine.measures import KNOWN
from klype.examine.say import Say
from klype.jsons import read_saved
from klype.studio import elements as el
from klype.studio.background_jobs import Work, WorkPlan, begin
from klype.studio.fields import Counts, Select, Slider, first_steps
from klype.studio.studio import Studio
from klype.words import Words

# LIMIT: tokens per answer; BUDGET: forward passes at most, to which klype examine cuts the number of questions down.
TEMPERATURES, LIMIT, BUDGET = (0.0, 0.7, 1.0), 32, 200_000
LOOK_S = 0.5
POINTS = 160  # of the formula's curves
# S, on the slider's scale −log10(1 − S), and n: at first, and as in the article (S = 0.99999, n = 100)
FIRST, EXAMPLE = (2.0, 100), (5.0, 100)
SHOWN = ("survival", "feedback", "temperatures", "calibration")
COMPARED = ("right", "s", "same_meaning", "repetition", "well_formed")
COLOURS = ("accent", "finetuned", "aligned", "base")


@dataclass(frozen=True, slots=True)
class ExamRequest:
    """A model to be examined, the number of questions, and of answers (``samples``) to each."""

    address: str
    identity: str
    questions: int = 100
    samples: int = 8

    @property
    def key(self) -> str:
        """The same for the same weights and settings, so that finished examinations are found again."""
        about = json.dumps([self.identity, self.questions, self.samples, TEMPERATURES, LIMIT, BUDGET])
        return hashlib.sha256(about.encode()).hexdigest()[:20]

    def progress(self, lines: Sequence[str]) -> tuple[str, float]:
        """Returns the current part, and the share of the parts that are done, from the command's progress."""
        feedback = [f"feedback {t:g}" for t in TEMPERATURES if t > 0]
        parts = ["plan", *(f"answers {t:g}" for t in TEMPERATURES), *feedback, "trees", "forks"]
        heard = dict.fromkeys(part for line in lines for part in parts if line.startswith(f"{part}:"))
        return next(reversed(heard), "plan"), max(map(parts.index, heard), default=0) / len(parts)


def exam_folder(studio: Studio, request: ExamRequest) -> Path:
    return studio.home / "examinations" / request.key


def exam_document(studio: Studio, request: ExamRequest) -> dict[str, Any] | None:
    """The document of a finished examination; None if there is none."""
    document = read_saved(exam_folder(studio, request) / "figures.json")
    return document if document is not None and "figures" in document else None


def exam_work(studio: Studio, request: ExamRequest) -> Work | None:
    """The work of an examination that was started; None if there is none."""
    work = Work(studio.home / "work" / f"examine-{request.key}")
    return work if work.folder.is_dir() else None


def start_exam(studio: Studio, request: ExamRequest, lang: str = "en") -> Work:
    """Starts or resumes ``klype examine``, unless it runs or is done."""
    work = exam_work(studio, request)
    if work is not None:
        if work.state != "done" or exam_document(studio, request) is not None:
            work.go_on()
            return work
        shutil.rmtree(work.folder)  # its document has been deleted
    folder = exam_folder(studio, request)
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *studio.command, "examine", request.address, "--json", "--yes", "--most", str(request.questions),
        "-n", str(request.samples), "--temperatures", ",".join(f"{t:g}" for t in TEMPERATURES),
        "--limit", str(LIMIT), "--budget", str(BUDGET), "--lang", lang, "--device", studio.device,
        "--out", str(folder),
    ]  # fmt: skip
    return begin(studio.home, WorkPlan("examine", folder, [command], {}), f"examine-{request.key}")


@dataclass
class DivergencePage(el.WorkPart):
    drawn_for: str = ""
    told: object = None

    def build(self) -> None:
        visit, w = self.visit, self.w
        self.formula = FormulaCard(visit)
        self.models = [model for model in visit.studio.models if model.identity]
        if not self.models:
            first_steps(visit, w("nobody") if visit.studio.models else visit.frame("no_models"))
            return
        with el.card(w("examine")):
            with el.box("k-sliders"):
                names = {model.name: model.name for model in self.models}
                self.model = Select(w("model"), names, self.models[-1].name)
                self.questions = Counts(visit, "questions", (10, 200, 10), 60)
                self.samples = Counts(visit, "samples", (2, 32, 2), 8)
            self.add_controls(w("go"), self.start)
        self.box = el.box()

    @property
    def request(self) -> ExamRequest:
        """What the sliders say."""
        model = self.studio.model(self.model.value)
        return ExamRequest(model.address, model.identity, int(self.questions.value), int(self.samples.value))

    async def start(self) -> None:
        await self.visit.attempt(start_exam, self.studio, self.request, self.visit.lang)
        await self.look()

    @el.unless_busy
    async def look(self) -> None:
        if not self.models:
            return
        request = self.request
        work = self.work = exam_work(self.studio, request)

        def heard() -> tuple[str, list[str], int]:
            """The state; while it runs, also its progress and seconds."""
            if work is None or (state := work.state) != "running":
                return "" if work is None else state, [], 0
            return state, work.last_lines(1000, 1 << 18), int(work.seconds)

        state, lines, seconds = await asyncio.to_thread(heard)
        told = request, state, lines[-1:], seconds
        if told == self.told or request != self.request or self.box.is_deleted:
            return
        self.told = told
        busy, w, say = state == "running", self.w, self.say
        document = None if busy else exam_document(self.studio, request)
        part, share = request.progress(lines)
        if document is not None:
            time = document["time"]
            said = w("done", seconds=say.seconds(time["seconds"]), passes=say.count(time["passes"]))
        elif busy:
            name, _, temperature = part.partition(" ")
            called = w(f"part_{name}") + (f", τ = {say.plain(float(temperature))}" if temperature else "")
            said = w("running", part=called, seconds=say.seconds(max(1.0, float(seconds))))
            said = f"{said} {say.text(''.join(lines[:1]))}".strip()  # the first line tells what it will cost
        elif work is None:
            said = w("not_yet")
        else:
            why = say.text(work.why()) if state == "failed" else ""
            said = w("failed" if state == "failed" else "cancelled", why=why)
        self.show_state(said, state, max(0.03, share), more=not busy and document is None)
        if document is None:
            self.box.clear()
            self.drawn_for = ""
        elif self.drawn_for != request.key:
            self.drawn_for = request.key
            self._draw({**document, "model": self.model.value})

    def _draw(self, document: dict[str, Any]) -> None:
        self.formula.know(document["figures"][document["main"]].get("s", {}).get("value"))
        found = pictures(document, self.say)
        self.box.clear()
        with self.box:
            with el.card(self.w("found", model=document["model"])):
                for paragraph in verdict(document, self.say):
                    el.text_of("p", paragraph)
            greedy = greedy_picture(document["figures"], self.w, self.say)
            for one in (*(found[name] for name in SHOWN if name in found), *([greedy] if greedy.panels else [])):
                el.picture(self.visit, one)
            titles = {}
            for name in measures_of([*document["figures"].values()]):  # a row each, a column a temperature
                title, unit = self.say.measure(name), self.say.unit(KNOWN[name].unit)
                titles[name] = title if unit.lower() in title.lower() else f"{title} ({unit})"
            columns = {f"τ = {self.say.plain(float(t))}": found for t, found in document["figures"].items()}
            with el.card(self.say("exam.figures")):
                el.figure_table(self.visit, "examination", columns, titles, self.say("column.measure"))


def greedy_picture(figures: Mapping[str, Any], w: Words, say: Say) -> Picture:
    """Greedy decoding beside sampling: one panel per measure, one row per temperature."""
    groups = []
    names = {t: w("greedy") if t == "0" else f"τ = {say.plain(float(t))}" for t in figures}
    colours = dict(zip(figures, COLOURS * 4, strict=False))
    for name in COMPARED if "0" in figures else ():
        rows = [(names[t], row[name], colours[t]) for t, row in figures.items() if el.known(row.get(name))]
        if len(rows) > 1:
            groups.append((say.measure(name), name, axis(percent=True, min=0, max=1), rows))
    return Picture("greedy", w("greedy_title"), w("how_greedy"), *whisker_panels(groups, "axis.temperature", say))


def corrected_formula(s: float, words: int) -> float:
    """S^n: the probability that all words are correct, if they are independent."""
    return s**words


def printed_formula(s: float, words: int) -> float:
    """(1 − S)^n, as the article prints it."""
    return (1 - s) ** words


def in_error(s: float, after: float, word: int) -> float:
    """The probability that word number ``word`` (1, 2, …) is wrong if an error makes the next word wrong with
    probability ``after``: a Markov chain of two states that starts right. Limit: (1 − S) / (1 − S + 1 − after)."""
    first, memory = 1 - s, after - (1 - s)
    settled = first / (first + 1 - after) if after < 1 or first else 1.0
    return settled * (1 - memory**word)


CURVES = ("right", "printed", "errors")


@dataclass
class FormulaCard(el.PagePart):
    """The article's formula with sliders: as printed, corrected, and with errors that cause the next one. It needs no
    model; the S of a model that was examined can be put in."""

    own_s = 0.0  # the measured S, on the slider's scale

    def build(self) -> None:
        w, visit = self.w, self.visit
        with el.card(w("formula_title")) as shown:
            with el.box("k-sliders"):
                self.s = Slider(w("formula_s"), (0.0, 6.0, 0.05), FIRST[0], lambda v: self._share(1 - 10**-v))
                self.n = Counts(visit, "formula_n", (1, 1000, 1), FIRST[1])
                self.after = Slider(w("formula_after"), (0.0, 0.99, 0.01), 0.3, lambda v: self.say.share(v))
            self.s.moved = self.n.moved = self.after.moved = self.draw
            with el.box("k-chips").style("margin:8px 0"):
                el.button(w("formula_example"), lambda: self.set(*EXAMPLE), "tiny")
                self.own = el.button("", lambda: self.set(self.own_s, 50), "tiny")
            self.own.set_visibility(False)
            self.result = el.box("k-result", aria_live="polite")
            self.drawn = el.chart({}, visit.lang, 320, w("formula_title"))
            el.small(w("formula_how"))
            el.as_data(visit, "formula", [w("words"), *(w(f"formula_{name}") for name in CURVES)], self.rows, shown)
        self.draw()

    def know(self, s: float | None) -> None:
        """Offers the measured S; None: there is none."""
        self.own.set_visibility(s is not None)
        if s is not None:
            self.own_s = -math.log10(max(1e-6, 1 - s))
            el.retext(self.own, self.w("formula_own", s=self._share(s)))

    def set(self, s: float, n: float) -> None:
        self.s.set(s)
        self.n.set(n)
        self.draw()

    def draw(self) -> None:
        w, say, s, rows = self.w, self.say, 1 - 10**-self.s.value, self.rows()
        curves = [(w(f"formula_{name}"), [(row[0], row[i]) for row in rows]) for i, name in enumerate(CURVES, 1)]
        x = axis(w("words"), min=1, max=max(2, round(self.n.value)))
        el.redraw(self.drawn, formula_curves(x, curves), self.visit.lang)
        told = {}
        for name, p in zip(CURVES, rows[-1][1:], strict=True):
            told[w(f"formula_{name}")] = w("practically_zero") if p < 1e-4 else say.share(p, 3 if p > 0.99 else 1)
        half = max(1, math.ceil(math.log(0.5) / math.log(s))) if 0 < s < 1 else 1
        told[w("formula_half")] = say.count(half)
        self.result.clear()
        with self.result:
            for name, value in told.items():
                with el.box(tag="span"):
                    el.text_of("span", name, "k-small")
                    el.text_of("b", value)

    def _share(self, value: float) -> str:
        decimals = 1 if value < 0.99 else max(1, math.ceil(-math.log10(max(1e-7, 1 - value))) - 1)
        return self.say.share(value, decimals)

    def _at(self, word: int) -> list[float]:
        """Returns the number of words, the shares of answers of that length that are correct by the corrected formula
        and by the printed one, and the share of wrong words."""
        s = 1 - 10**-self.s.value
        return [word, corrected_formula(s, word), printed_formula(s, word), in_error(s, self.after.value, word)]

    def rows(self) -> list[list[float]]:
        n = round(self.n.value)
        steps = min(n, POINTS)
        return [self._at(i) for i in sorted({round(1 + i * (n - 1) / max(1, steps - 1)) for i in range(steps)})]


async def build(visit: el.Visit) -> None:
    """The page."""
    await el.follow(DivergencePage(visit).look, LOOK_S)
