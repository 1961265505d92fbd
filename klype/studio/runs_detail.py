"""The runs there are, and one of them looked at: its state, curves that grow while it learns, its measures, and another
run beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nicegui import ui

from klype.errors import KlypeError
from klype.examine.charts import Cell, Option, Panel, Picture, axis, line, lines, spikes
from klype.examine.run_report import why_base
from klype.examine.say import visible
from klype.runs.folder import read_run
from klype.runs.options import STAGES
from klype.runs.run_json import incomparable, parameters, planned_steps, state_of
from klype.sources.find_model import NEWEST_FIRST
from klype.sources.opening import PATH, kind_of
from klype.studio import elements as el
from klype.studio.background_jobs import MetricsTail, Work, key_of, works
from klype.studio.fields import Select, ask_button
from klype.studio.page_context import WorkPart
from klype.studio.studio import Studio, changed

RunState = Literal["running", "done", "failed", "cancelled", "stopped", "unreadable"]
FIGURES = {"pretrain": "base", "finetune": "finetuned", "align": "aligned"}  # what run.json calls a stage's figures
# What is drawn of a stage: curves by their name in metrics.jsonl.
DRAWN: Mapping[str, tuple[str, ...]] = {
    "pretrain": ("loss", "validation"),
    "finetune": ("loss",),
    "reward": ("pair_accuracy",),
    "align": ("reward", "kl"),
}
COLOURS = ("aligned", "finetuned")  # of the run's own curves, and of those of the run beside it


class RunInfo:
    """A run as it stands now; one whose run.json cannot be read says ``why``. ``work`` began it here; ``parent`` is the
    key of the run it went on from; ``parameters`` are those of its newest stage."""

    recipe, parent, why = "", "", ""
    seconds: float | None = None
    changed, bytes = 0.0, 0
    stages: tuple[str, ...] = ()
    parameters: int | None = None

    def __init__(self, folder: Path, work: Work | None) -> None:
        self.folder, self.work, self.key, self.name = folder, work, key_of(folder), folder.resolve().name
        begun = work.plan.about if work is not None else {}
        self.planned_s: float | None = begun.get("planned_s")
        self.state: RunState
        self.about: Mapping[str, Any] = {}
        try:
            about = self.about = read_run(folder)
        except KlypeError as error:
            self.state, self.why = "unreadable", error.message
            if work is not None:
                self.state, self.changed, self.seconds = work.state, changed(work.folder), work.seconds
                self.why = work.why() if self.state == "failed" else ""
            return
        found = state_of(folder, about)
        # a run that is done stays done, whatever became of the process that began it
        self.state = found if work is None or (found == "done" and work.state != "running") else work.state
        self.recipe, self.planned_s = str(about.get("recipe") or ""), about.get("planned_s") or self.planned_s
        seconds, made = about.get("seconds"), about.get("asked")
        self.seconds = seconds.get("total") if isinstance(seconds, dict) else None
        if work is not None and self.state == "running":
            self.seconds = work.seconds
        self.changed = max(map(changed, (folder / "run.json", *folder.glob("*/metrics.jsonl"))))
        ranked = (folder / "rank").is_dir() and any((folder / "rank").iterdir())
        self.stages = tuple(s for s in STAGES if (ranked if s == "rank" else (folder / s / "config.json").is_file()))
        weights: dict[str, Path] = {stage: folder / stage / "model.safetensors" for stage in STAGES if stage != "rank"}
        self.bytes = sum(weights[s].stat().st_size for s in self.stages if s in weights and weights[s].is_file())
        if (last := next((stage for stage in NEWEST_FIRST if weights[stage].is_file()), "")) != "":
            self.parameters = parameters(folder / last)
        # of one that was aligned here: its reward model's run is none of these
        origin = begun.get("source") or (made.get("from_") if isinstance(made, dict) else None)
        if origin:  # whether it is still there or not
            place = Path(str(origin)).expanduser()
            self.parent = key_of(place.parent if place.name in STAGES else place)
        if self.state == "failed":
            theirs = work is not None and work.state == "failed"
            self.why = work.why() if work is not None and theirs else str(about.get("failure") or "")

    @property
    def gates(self) -> tuple[int, int]:
        """Passed ones, and all."""
        gates = self.about.get("gates") or []
        return sum(bool(gate.get("passed")) for gate in gates if isinstance(gate, dict)), len(gates)

    def figures(self, stage: str) -> Mapping[str, Any]:
        """What was measured of a stage's model; of one that was aligned here, what its comparison measured."""
        found = self.about.get("figures", {}).get(FIGURES[stage])
        if not found and stage in ("finetune", "align") and isinstance(self.about.get("aligned"), dict):
            found = self.about["aligned"].get("before" if stage == "finetune" else "after")
        return found if isinstance(found, dict) else {}


def all_runs(studio: Studio) -> list[RunInfo]:
    """Every run, newest first; work whose run has not written anything yet is told of, too."""
    begun: dict[Path, Work] = {}
    for work in works(studio.home):
        with suppress(KeyError, TypeError):
            if work.plan.kind in ("run", "align"):
                begun.setdefault(work.plan.run.resolve(), work)
    found = [RunInfo(folder, begun.pop(folder.resolve(), None)) for folder in studio.run_folders()]
    found += [RunInfo(work.plan.run, work) for work in begun.values()]
    return sorted(found, key=lambda run: run.changed, reverse=True)


def family(runs: Sequence[RunInfo]) -> list[tuple[int, RunInfo]]:
    """(depth, run): every run under the one it went on from; what came last stands first."""
    keys = {run.key for run in runs}
    children: dict[str, list[RunInfo]] = {}
    for run in runs:
        children.setdefault(run.parent if run.parent in keys and run.parent != run.key else "", []).append(run)
    out: dict[str, tuple[int, RunInfo]] = {}

    def walk(parent: str, depth: int) -> None:
        for run in children.get(parent, []):
            if run.key not in out:
                out[run.key] = depth, run
                walk(run.key, depth + 1)

    walk("", 0)
    return [*out.values(), *((0, run) for run in runs if run.key not in out)]  # two that name each other


@dataclass
class RunDetail(WorkPart):
    """One run on the page; ``read`` reads what is new, ``build`` lays it out, ``update`` tells what changes."""

    run: RunInfo | None = None
    other: RunInfo | None = None
    tails: dict[tuple[str, str], MetricsTail] = field(default_factory=dict)
    log: Sequence[str] = ()
    built: object = None
    choice: Select = field(init=False)

    @property
    def both(self) -> list[RunInfo]:
        return [run for run in (self.run, self.other) if run is not None]

    async def look(self) -> None:
        """The page does, with all runs."""

    def read(self, run: RunInfo, other: RunInfo | None) -> bool:
        """Whether anything is new (in a thread)."""
        old, self.run, self.work = self.run, run, run.work
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
        return run.key, other, run.state, run.stages, bool(run.about.get("gates"))

    def build(self, run: RunInfo, runs: Sequence[RunInfo]) -> None:
        self.built = self._mark(run)
        w = self.w
        with el.card():
            with el.box("k-row u-head"):
                el.text_of("h2", visible(run.name))
                el.text_of("span", w(f"state_{run.state}"), f"w-state {run.state}")
            self.note = el.status()
            self.progress = el.ProgressBar()
            self.told_log = el.box("w-log")
            self._acts(run)
            if len(runs) > 1:
                names = {"": w("nothing"), **{one.key: visible(one.name) for one in runs if one.key != run.key}}
                to = f"{self.visit.page.route}?run={run.key}"
                beside = lambda: ui.navigate.to(to + (f"&with={self.choice.value}" if self.choice.value else ""))
                with el.box("u-beside"):
                    self.choice = Select(w("beside"), names, self.other.key if self.other is not None else "", beside)
        self.curves = el.GrowingPictures(self.visit, [f"curves-{run.key}"], self.points)
        self._measures(run)
        self.update()

    def update(self) -> None:
        """What changes while it runs."""
        run = self.run
        if run is None or not self.built:
            return
        el.retext(self.note, self.sentence(run))
        timed = run.seconds is not None and bool(run.planned_s)
        # the plan is an estimate: a bar that is full would say that it is done
        share = min(0.99, (run.seconds or 0.0) / (run.planned_s or 1.0)) if timed else 0.0
        self.progress.fill(run.state == "running" and timed, share)
        self.told_log.set_visibility(bool(self.log))
        el.retext(self.told_log, visible("\n".join(self.log)))
        drawn = []
        for stage, name in self._drawn():
            title = f"{self.w(f'stage_{stage}')}: {self.w(f'line_{name}')}"
            drawn.append(Panel(title[:1].upper() + title[1:], self.option(stage, name), 230))
        columns = ["run", "stage", "curve", "step", "value"]
        made = Picture(f"curves-{run.key}", self.w("curves"), self.w("how_curves"), drawn, columns)
        self.curves.show([made] if drawn else [])

    def _acts(self, run: RunInfo) -> None:
        w, loaded = self.w, []
        for model in self.studio.models:
            place = Path(model.address).expanduser().resolve()
            if kind_of(model.address) is PATH and run.folder.resolve() in (place, *place.parents):
                loaded.append(model.name)

        async def report() -> None:
            data = await self.visit.attempt(report_of, run.folder)
            if data is not None:
                ui.download.content(data, f"{run.name}-report.html", "text/html;charset=utf-8")

        with el.box("k-row"):
            if loaded:
                el.text_of("a", w("open_answer", model=visible(loaded[-1])), "k-button", href="/")
            if (run.folder / "report.html").is_file():
                el.button(w("report"), report)
            if run.work is not None and run.state == "running":
                el.button(self.visit.frame("cancel"), self.cancel)
            if run.work is not None and run.state in ("cancelled", "stopped", "failed"):
                el.button(w("resume"), self.resume, "strong")
            if not loaded and any(stage in run.stages for stage in NEWEST_FIRST):
                ask_button(self.visit, str(run.folder), self.note)

    def sentence(self, run: RunInfo) -> str:
        w, say = self.w, self.say
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
        written = [(changed(file), stage) for stage, file in files.items() if file.is_file()]
        if run.state == "running" and written:
            _, stage = max(written)
            tail, planned = self.tails.get((run.key, stage)), planned_steps(run.about, stage)
            step = say.count(tail.at if tail is not None else 0)
            key = "at_step_of" if planned else "at_step"
            parts.insert(0, w(key, stage=w(f"stage_{stage}"), step=step, of=say.count(planned or 0)))
        return " · ".join(parts)

    def _drawn(self) -> list[tuple[str, str]]:
        """(stage, curve) of those that have points."""
        pairs = [(stage, name) for stage, names in DRAWN.items() for name in names]
        return [pair for pair in pairs if any(tail.last(pair[1]) is not None for _, tail in self._tails(pair[0]))]

    def _tails(self, stage: str) -> list[tuple[RunInfo, MetricsTail]]:
        return [(one, self.tails[one.key, stage]) for one in self.both if (one.key, stage) in self.tails]

    def option(self, stage: str, name: str) -> Option:
        series, most = [], 1.0
        for one, tail in self._tails(stage):
            if tail.rows:
                planned = (planned_steps(one.about, stage) or 0) if one.state == "running" else 0
                most = max(most, tail.at, planned)
                points = tail.curve(name)
                # a single step that towers over the rest is told by its number
                high = {"markPoint": spikes(points, self.say)} if name == "kl" else {}
                series.append(line(visible(one.name), points, COLOURS[self.both.index(one)], **high))
        if name == "pair_accuracy":  # a reward model that tosses a coin is right in half of the pairs
            y = axis(percent=True, min=0.5, max=1.0)
            y.pop("interval", None)
        else:
            y = axis(min=0) if name in ("loss", "validation", "kl") else axis(scale=True)
        return lines(axis(self.w("steps"), min=0, max=most), y, series)

    def points(self) -> list[list[Cell]]:
        return [
            [one.name, stage, name, step, value]
            for one in self.both
            for stage, name in self._drawn()
            if (one.key, stage) in self.tails
            for step, value in self.tails[one.key, stage].curve(name, most=1 << 30)
        ]

    def _measures(self, run: RunInfo) -> None:
        """A row a measure; a column a stage of each run, named after both when there are two."""
        w, say = self.w, self.say
        columns: dict[str, Mapping[str, Any]] = {}
        notes = []
        for one, otherwise in zip(self.both, incomparable([one.about for one in self.both]), strict=True):
            found = {stage: one.figures(stage) for stage in FIGURES}
            for stage, figures in found.items():
                if figures:
                    title = w(f"stage_{stage}")
                    title = f"{visible(one.name)}: {title}" if self.other is not None else title
                    columns[title] = {name: f for name, f in figures.items() if name not in otherwise}
            if gone := [m for m in otherwise if any(m in figures for figures in found.values())]:
                notes.append(w("otherwise", run=visible(one.name), measures=", ".join(map(say.measure, gone))))
        if not columns:
            return
        names = {name: say.measure(name) for figures in columns.values() for name in figures}
        rows = el.figure_rows(say, [*columns.values()], names)
        data = [[name, title, *el.ends(f.get(name))] for title, f in columns.items() for name in names]
        with el.card(w("measures")):
            el.table(self.visit, [w("measure"), *columns], rows, range(1, len(columns) + 1), w("measures"))
            bases = dict.fromkeys(why_base(one.figures("pretrain"), say) for one in self.both)
            for note in [*notes, *filter(None, bases), w("how_measures")]:
                el.small(note)
            el.as_data(
                self.visit, f"measures-{run.key}", ["measure", "model", "value", "low", "high", "n"], lambda: data
            )


def report_of(run: Path) -> bytes:
    """A run's report. Raises KlypeError where it cannot be read."""
    try:
        return (run / "report.html").read_bytes()
    except OSError as error:
        raise KlypeError(f"The report cannot be read: {error.strerror or error}.") from error
