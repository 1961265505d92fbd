"""One run looked at: its state, curves that grow while it learns, its measures, and another run beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nicegui import ui

from klype.errors import KlypeError
from klype.examine.charts import Cell, Option, axis, line, lines, spikes
from klype.examine.report import why_base
from klype.examine.say import visible
from klype.runs.overview import planned_steps
from klype.runs.record import incomparable
from klype.sources.find import NEWEST_FIRST
from klype.sources.opening import PATH, kind_of
from klype.studio.charts import panels, redraw
from klype.studio.fields import Select
from klype.studio.frame import Progress, Visit, as_data, box, button, card, retext, status, table, text_of
from klype.studio.opening import ask_button
from klype.studio.runs_list import FIGURES, RunInfo
from klype.studio.work import MetricsTail

DRAWN: Mapping[str, tuple[str, ...]] = {
    "pretrain": ("loss", "validation"),
    "finetune": ("loss",),
    "reward": ("pair_accuracy",),
    "align": ("reward", "kl"),
}
"""What is drawn of a stage: curves by their name in metrics.jsonl."""
COLOURS = ("aligned", "finetuned")
"""Of the run's own curves, and of those of the run beside it."""


@dataclass
class RunDetail:
    """One run on the page; ``read`` reads what is new, ``build`` lays it out, ``update`` tells what changes."""

    visit: Visit
    run: RunInfo | None = None
    other: RunInfo | None = None
    tails: dict[tuple[str, str], MetricsTail] = field(default_factory=dict)
    charts: dict[tuple[str, str], ui.echart] = field(default_factory=dict)
    log: Sequence[str] = ()
    built: object = None

    @property
    def both(self) -> list[RunInfo]:
        return [run for run in (self.run, self.other) if run is not None]

    def read(self, run: RunInfo, other: RunInfo | None) -> bool:
        """Whether anything is new (in a thread)."""
        old, self.run = self.run, run
        self.other = other if other is not None and other.key != run.key else None
        news = False
        for one in self.both:
            for stage in DRAWN:
                file = one.folder / stage / "metrics.jsonl"
                if file.is_file():
                    news |= self.tails.setdefault((one.key, stage), MetricsTail(file)).read()
        self.log = run.work.told(8) if run.work is not None and run.state == "running" else ()
        return news or old is None or (old.state, old.seconds, old.stages) != (run.state, run.seconds, run.stages)

    def built_for(self, run: RunInfo) -> bool:
        """Whether what stands there is of this run, and of as much of it as there is now."""
        return self.built == self._mark(run)

    def _mark(self, run: RunInfo) -> object:
        other = self.other.key if self.other is not None else ""
        return run.key, other, run.state, run.stages, tuple(self._drawn()), bool(run.about.get("gates"))

    def build(self, run: RunInfo, runs: Sequence[RunInfo]) -> None:
        self.built = self._mark(run)
        self.charts = {}
        w = self.visit.words
        with card():
            with box("k-row u-head"):
                text_of("h2", visible(run.name))
                text_of("span", w(f"state_{run.state}"), f"w-state {run.state}")
            self.note = status()
            self.progress = Progress()
            self.told_log = box("w-log")
            self._acts(run)
            if len(runs) > 1:
                names = {"": w("nothing"), **{one.key: visible(one.name) for one in runs if one.key != run.key}}
                chosen = self.other.key if self.other is not None else ""
                with box("u-beside"):
                    self.choice = Select(w("beside"), names, chosen, self._beside)
        self._curves(run)
        self._measures(run)
        self.update()

    def update(self) -> None:
        """What changes while it runs."""
        run = self.run
        if run is None or not self.built:
            return
        retext(self.note, self._sentence(run))
        timed = run.seconds is not None and bool(run.planned_s)
        share = min(0.99, (run.seconds or 0.0) / (run.planned_s or 1.0)) if timed else 0.0
        self.progress.fill(run.state == "running" and timed, share)
        self.told_log.set_visibility(bool(self.log))
        retext(self.told_log, visible("\n".join(self.log)))
        for (stage, name), drawn in self.charts.items():
            redraw(drawn, self._option(stage, name), self.visit.lang)

    def _acts(self, run: RunInfo) -> None:
        w = self.visit.words
        loaded = [m.name for m in self.visit.studio.models if _belongs(m.address, run.folder)]
        with box("k-row"):
            if loaded:
                text_of("a", w("open_answer", model=visible(loaded[-1])), "k-button", href="/")
            if (run.folder / "report.html").is_file():
                button(w("report"), self._report)
            if run.work is not None and run.state == "running":
                button(self.visit.frame("cancel"), self._cancel)
            if run.work is not None and run.state in ("cancelled", "stopped", "failed"):
                button(w("resume"), self._resume, "strong")
            if not loaded and any(stage in run.stages for stage in NEWEST_FIRST):
                ask_button(self.visit, str(run.folder), self.note)

    def _sentence(self, run: RunInfo) -> str:
        w, say = self.visit.words, self.visit.say
        if run.state == "unreadable" or (run.state == "failed" and run.why):
            return w("why", why=visible(run.why))
        parts = [visible(str(run.folder))]
        if run.recipe:
            parts.append(w("recipe_is", recipe=visible(run.recipe)))
        if run.seconds is not None:
            of = w("of", seconds=say.seconds(run.planned_s)) if run.planned_s and run.state == "running" else ""
            parts.append(say.seconds(max(0.1, run.seconds)) + of)
        if run.parameters:
            parts.append(w("parameters", n=say.big(run.parameters)))
        if run.bytes:
            parts.append(w("megabytes", n=say.number(run.bytes / 1e6, 1)))
        files = {stage: run.folder / stage / "metrics.jsonl" for stage in DRAWN}
        written = [(file.stat().st_mtime, stage) for stage, file in files.items() if file.is_file()]
        if run.state == "running" and written:
            _, stage = max(written)
            tail, planned = self.tails.get((run.key, stage)), planned_steps(run.about, stage)
            step = say.count(tail.steps[-1] if tail is not None and tail.steps else 0)
            key = "at_step_of" if planned else "at_step"
            parts.insert(0, w(key, stage=w(f"stage_{stage}"), step=step, of=say.count(planned or 0)))
        return " · ".join(parts)

    def _drawn(self) -> list[tuple[str, str]]:
        """(stage, curve) of those that have points."""
        found = []
        for stage, names in DRAWN.items():
            tails = [self.tails[one.key, stage] for one in self.both if (one.key, stage) in self.tails]
            found += [(stage, name) for name in names if any(tail.last(name) is not None for tail in tails)]
        return found

    def _curves(self, run: RunInfo) -> None:
        w, drawn = self.visit.words, self._drawn()
        if not drawn:
            return
        titles = [f"{w(f'stage_{stage}')}: {w(f'line_{name}')}" for stage, name in drawn]
        shown = [
            (title[:1].upper() + title[1:], self._option(*one), 230) for title, one in zip(titles, drawn, strict=True)
        ]
        with card() as curves:
            text_of("h2", w("curves"))
            self.charts = dict(zip(drawn, panels(shown, self.visit.lang), strict=True))
            text_of("p", w("how_curves"), "k-small")
            as_data(self.visit, f"curves-{run.key}", ["run", "stage", "curve", "step", "value"], self._points, curves)

    def _option(self, stage: str, name: str) -> Option:
        series, most = [], 1.0
        for one, colour in zip(self.both, COLOURS, strict=False):
            tail = self.tails.get((one.key, stage))
            if tail is not None and tail.steps:
                planned = (planned_steps(one.about, stage) or 0) if one.state == "running" else 0
                most = max(most, tail.steps[-1], planned)
                points = tail.curve(name)
                high = {"markPoint": spikes(points, self.visit.say)} if name == "kl" else {}
                series.append(line(visible(one.name), points, colour, **high))
        if name == "pair_accuracy":
            y = axis(percent=True, min=0.5, max=1.0)
            y.pop("interval", None)
        else:
            y = axis(min=0) if name in ("loss", "validation", "kl") else axis(scale=True)
        return lines(axis(self.visit.words("steps"), min=0, max=most), y, series)

    def _points(self) -> list[list[Cell]]:
        return [
            [one.name, stage, name, step, value]
            for one in self.both
            for stage, name in self._drawn()
            if (one.key, stage) in self.tails
            for step, value in self.tails[one.key, stage].curve(name, most=1 << 30)
        ]

    def _measures(self, run: RunInfo) -> None:
        """A row a measure; a column a stage of each run, named after both when there are two."""
        w, say = self.visit.words, self.visit.say
        columns: list[tuple[str, Mapping[str, Any]]] = []
        notes = []
        for one, otherwise in zip(self.both, incomparable([one.about for one in self.both]), strict=True):
            for stage in FIGURES:
                if figures := one.figures(stage):
                    name = w(f"stage_{stage}")
                    shown = {name: f for name, f in figures.items() if name not in otherwise}
                    columns.append((f"{visible(one.name)}: {name}" if self.other is not None else name, shown))
            if gone := [m for m in otherwise if any(m in one.figures(stage) for stage in FIGURES)]:
                notes.append(w("otherwise", run=visible(one.name), measures=", ".join(map(say.measure, gone))))
        if not columns:
            return
        names = [name for name in dict.fromkeys(name for _, figures in columns for name in figures)
                 if any(_known(figures.get(name)) for _, figures in columns)]  # fmt: skip
        rows = [
            [say.measure(name), *(say.told(f[name], name) if _known(f.get(name)) else "–" for _, f in columns)]
            for name in names
        ]
        data = [[name, title, *((f.get(name) or {}).get(k) for k in ("value", "low", "high", "n"))]
                for title, f in columns for name in names]  # fmt: skip
        with card():
            text_of("h2", w("measures"))
            titles = [title for title, _ in columns]
            table(self.visit, [w("measure"), *titles], rows, range(1, len(columns) + 1), w("measures"))
            bases = dict.fromkeys(why_base(one.figures("pretrain"), say) for one in self.both)
            for note in [*notes, *filter(None, bases), w("how_measures")]:
                text_of("p", note, "k-small")
            as_data(self.visit, f"measures-{run.key}", ["measure", "model", "value", "low", "high", "n"], lambda: data)

    def _beside(self) -> None:
        assert self.run is not None
        beside = f"&with={self.choice.value}" if self.choice.value else ""
        ui.navigate.to(f"{self.visit.page.route}?run={self.run.key}{beside}")

    async def _report(self) -> None:
        assert self.run is not None
        try:
            data = await asyncio.to_thread((self.run.folder / "report.html").read_bytes)
        except OSError as error:
            self.visit.tell(KlypeError(f"The report cannot be read: {error.strerror or error}."))
            return
        ui.download.content(data, f"{self.run.name}-report.html", "text/html;charset=utf-8")

    async def _cancel(self) -> None:
        if self.run is not None and self.run.work is not None:
            await asyncio.to_thread(self.run.work.cancel)

    async def _resume(self) -> None:
        if self.run is not None and self.run.work is not None:
            await asyncio.to_thread(self.run.work.go_on)


def _known(figure: object) -> bool:
    return isinstance(figure, Mapping) and isinstance(figure.get("value"), int | float)


def _belongs(address: str, folder: Path) -> bool:
    place = Path(address).expanduser().resolve()
    return kind_of(address) is PATH and folder.resolve() in (place, *place.parents)
