"""One run looked at: its state, curves that grow while it learns, its measures, and another run beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nicegui import ui

from klype.errors import KlypeError
from klype.examine.charts import axis, line, lines
from klype.examine.say import visible
from klype.runs.overview import planned_steps
from klype.runs.record import incomparable
from klype.sources.find import NEWEST_FIRST
from klype.sources.kinds import PATH, kind_of
from klype.studio.charts import chart, redraw
from klype.studio.fields import Choice
from klype.studio.frame import Visit, as_data, button, card, table, text_of
from klype.studio.runs_list import FIGURES, RunInfo
from klype.studio.work import MetricsTail

DRAWN: Mapping[str, tuple[str, ...]] = {
    "pretrain": ("loss", "validation"),
    "finetune": ("loss",),
    "reward": ("pair_accuracy",),
    "align": ("reward", "kl"),
}
"""What is drawn of a stage: curves by their name in metrics.jsonl."""
OWN, OTHER = "aligned", "finetuned"


@dataclass
class RunDetail:
    visit: Visit
    told: RunInfo | None = None
    other: RunInfo | None = None
    tails: dict[tuple[str, str], MetricsTail] = field(default_factory=dict)
    charts: dict[tuple[str, str], ui.echart] = field(default_factory=dict)
    log: Sequence[str] = ()
    built: object = None

    def read(self, told: RunInfo, other: RunInfo | None) -> bool:
        """Whether anything is new (in a thread)."""
        old, self.told = self.told, told
        self.other = other if other is not None and other.key != told.key else None
        news = False
        for one in filter(None, (told, self.other)):
            for stage in DRAWN:
                file = one.folder / stage / "metrics.jsonl"
                if file.is_file():
                    news |= self.tails.setdefault((one.key, stage), MetricsTail(file)).read()
        self.log = told.work.told(8) if told.work is not None and told.state == "running" else ()
        return news or old is None or (old.state, old.seconds, old.stages) != (told.state, told.seconds, told.stages)

    def built_for(self, told: RunInfo) -> bool:
        """Whether what stands there is of this run, and of as much of it as there is now."""
        return self.built == self._mark(told)

    def _mark(self, told: RunInfo) -> object:
        other = self.other.key if self.other is not None else ""
        return told.key, other, told.state, told.stages, tuple(self._drawn()), bool(told.about.get("gates"))

    def build(self, told: RunInfo, runs: Sequence[RunInfo]) -> None:
        self.built = self._mark(told)
        self.charts = {}
        w = self.visit.words
        with card():
            with ui.element("div").classes("k-row u-head"):
                text_of("h2", visible(told.name))
                text_of("span", w(f"state_{told.state}"), f"w-state {told.state}")
            self.note = text_of("p", "", "k-small")
            self.note.props.update({"role": "status", "aria-live": "polite"})
            self.progress = ui.element("div").classes("k-progress")
            with self.progress:
                self.bar = ui.element("div")
            self.told_log = text_of("div", "", "w-log")
            self._acts(told)
            if len(runs) > 1:
                names = {"": w("nothing"), **{one.key: visible(one.name) for one in runs if one.key != told.key}}
                chosen = self.other.key if self.other is not None else ""
                with ui.element("div").classes("u-beside"):
                    self.choice = Choice(w("beside"), names, chosen, self._beside)
        self._curves(told)
        self._measures(told)
        self.update()

    def update(self) -> None:
        """What changes while it runs."""
        told = self.told
        if told is None or not self.built:
            return
        self.note._text = self._sentence(told)
        self.note.update()
        share = self._share(told)
        self.progress.set_visibility(told.state == "running" and share is not None)
        self.bar.style(f"width:{100 * (share or 0):.1f}%")
        self.told_log.set_visibility(bool(self.log))
        self.told_log._text = visible("\n".join(self.log))
        self.told_log.update()
        for (stage, name), drawn in self.charts.items():
            redraw(drawn, self._option(stage, name), self.visit.lang)

    def _acts(self, told: RunInfo) -> None:
        w = self.visit.words
        with ui.element("div").classes("k-row"):
            loaded = [m.name for m in self.visit.studio.models if _belongs(m.address, told.folder)]
            if loaded:
                text_of("a", w("open_answer", model=visible(loaded[-1])), "k-button").props["href"] = "/"
            if (told.folder / "report.html").is_file():
                button(w("report"), self._report)
            if told.work is not None and told.state == "running":
                button(self.visit.frame("cancel"), self._cancel)
            if told.work is not None and told.state in ("cancelled", "stopped", "failed"):
                button(w("resume"), self._resume, "strong")
        if not loaded and any(stage in told.stages for stage in NEWEST_FIRST):
            with ui.element("p").classes("k-small"):
                text_of("span", w("open_with") + " ")
                text_of("code", f"klype studio {visible(str(told.folder))}")

    def _sentence(self, told: RunInfo) -> str:
        w, say = self.visit.words, self.visit.say
        if told.state == "unreadable" or (told.state == "failed" and told.why):
            return w("why", why=visible(told.why))
        parts = [visible(str(told.folder))]
        if told.recipe:
            parts.append(w("recipe_is", recipe=visible(told.recipe)))
        if told.seconds is not None:
            of = w("of", seconds=say.seconds(told.planned_s)) if told.planned_s and told.state == "running" else ""
            parts.append(say.seconds(max(0.1, told.seconds)) + of)
        if told.parameters:
            parts.append(w("parameters", n=say.big(told.parameters)))
        if told.bytes:
            parts.append(w("megabytes", n=say.number(told.bytes / 1e6, 1)))
        stage = self._now(told)
        if told.state == "running" and stage:
            tail, planned = self.tails.get((told.key, stage)), planned_steps(told.about, stage)
            step = tail.steps[-1] if tail is not None and tail.steps else 0
            key = "at_step_of" if planned else "at_step"
            parts.insert(0, w(key, stage=w(f"stage_{stage}"), step=say.count(step), of=say.count(planned or 0)))
        return " · ".join(parts)

    def _now(self, told: RunInfo) -> str:
        """The stage that wrote last."""
        files = {stage: told.folder / stage / "metrics.jsonl" for stage in DRAWN}
        there = [(file.stat().st_mtime, stage) for stage, file in files.items() if file.is_file()]
        return max(there)[1] if there else ""

    def _share(self, told: RunInfo) -> float | None:
        return min(0.99, told.seconds / told.planned_s) if told.seconds is not None and told.planned_s else None

    def _drawn(self) -> list[tuple[str, str]]:
        """(stage, curve) of those that have points."""
        keys = [one.key for one in (self.told, self.other) if one is not None]
        found = []
        for stage, names in DRAWN.items():
            tails = [self.tails[key, stage] for key in keys if (key, stage) in self.tails]
            found += [(stage, name) for name in names if any(tail.last(name) is not None for tail in tails)]
        return found

    def _curves(self, told: RunInfo) -> None:
        w = self.visit.words
        if not self._drawn():
            return
        with card() as box:
            text_of("h2", w("curves"))
            with ui.element("div").classes("k-panels"):
                for stage, name in self._drawn():
                    with ui.element("div"):
                        title = f"{w(f'stage_{stage}')}: {w(f'line_{name}')}"
                        text_of("h3", title[:1].upper() + title[1:])
                        self.charts[stage, name] = chart(self._option(stage, name), self.visit.lang, 230, title)
            text_of("p", w("how_curves"), "k-small")
            as_data(self.visit, f"curves-{told.key}", ["run", "stage", "curve", "step", "value"], self._points, box)

    def _option(self, stage: str, name: str) -> dict[str, Any]:
        series, most = [], 1.0
        for one, colour in ((self.told, OWN), (self.other, OTHER)):
            tail = self.tails.get((one.key, stage)) if one is not None else None
            if one is not None and tail is not None and tail.steps:
                most = max(
                    most, tail.steps[-1], (planned_steps(one.about, stage) or 0) if one.state == "running" else 0
                )
                series.append(line(visible(one.name), tail.curve(name), colour))
        share = name == "pair_accuracy"
        y = axis(min=0) if name in ("loss", "validation", "kl") else axis(scale=True)
        if share:
            y = axis(percent=True, max=1)
            y.pop("interval", None)
            y["min"] = 0.5
        return lines(axis(self.visit.words("steps"), min=0, max=most), y, series)

    def _points(self) -> list[list[Any]]:
        return [
            [one.name, stage, name, step, value]
            for one in (self.told, self.other)
            if one is not None
            for stage, name in self._drawn()
            if (one.key, stage) in self.tails
            for step, value in self.tails[one.key, stage].curve(name, most=1 << 30)
        ]

    def _measures(self, told: RunInfo) -> None:
        """A row a measure; a column a stage, or with another run beside it, the newest stage of both."""
        w, say = self.visit.words, self.visit.say
        columns: list[tuple[str, Mapping[str, Any]]] = []
        both, notes = list(filter(None, (told, self.other))), []
        for one, otherwise in zip(both, incomparable([one.about for one in both]), strict=True):
            for stage in FIGURES:
                if one.figures(stage):
                    name = w(f"stage_{stage}")
                    shown = {name: f for name, f in one.figures(stage).items() if name not in otherwise}
                    columns.append((f"{visible(one.name)}: {name}" if self.other is not None else name, shown))
            if gone := [m for m in otherwise if any(m in one.figures(stage) for stage in FIGURES)]:
                notes.append(w("otherwise", run=visible(one.name), measures=", ".join(map(say.measure, gone))))
        if not columns:
            return
        names = [name for name in dict.fromkeys(name for _, figures in columns for name in figures)
                 if any(_known(figures.get(name)) for _, figures in columns)]  # fmt: skip
        rows = [
            [say.measure(name), *(say.figure(f[name], name) if _known(f.get(name)) else "–" for _, f in columns)]
            for name in names
        ]
        with card():
            text_of("h2", w("measures"))
            with ui.element("div").classes("k-scroll") as scroll:
                scroll.props.update({"tabindex": 0, "role": "region", "aria-label": w("measures")})
                table([w("measure"), *(title for title, _ in columns)], rows, range(1, len(columns) + 1))
            for note in notes:
                text_of("p", note, "k-small")
            text_of("p", w("how_measures"), "k-small")
            data = [[name, title, *((f.get(name) or {}).get(k) for k in ("value", "low", "high", "n"))]
                    for title, f in columns for name in names]  # fmt: skip
            as_data(self.visit, f"measures-{told.key}", ["measure", "model", "value", "low", "high", "n"], lambda: data)

    def _beside(self) -> None:
        assert self.told is not None
        beside = f"&with={self.choice.value}" if self.choice.value else ""
        ui.navigate.to(f"{self.visit.page.route}?run={self.told.key}{beside}")

    async def _report(self) -> None:
        assert self.told is not None
        try:
            data = await asyncio.to_thread((self.told.folder / "report.html").read_bytes)
        except OSError as error:
            self.visit.tell(KlypeError(f"The report cannot be read: {error.strerror or error}."))
            return
        ui.download.content(data, f"{self.told.name}-report.html", "text/html;charset=utf-8")

    async def _cancel(self) -> None:
        if self.told is not None and self.told.work is not None:
            await asyncio.to_thread(self.told.work.cancel)

    async def _resume(self) -> None:
        if self.told is not None and self.told.work is not None:
            await asyncio.to_thread(self.told.work.go_on)


def _known(figure: object) -> bool:
    return isinstance(figure, Mapping) and isinstance(figure.get("value"), int | float)


def _belongs(address: str, folder: Path) -> bool:
    place = Path(address).expanduser().resolve()
    return kind_of(address) is PATH and folder.resolve() in (place, *place.parents)
