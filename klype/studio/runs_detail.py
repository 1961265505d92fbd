"""What the studio knows of every run, and the details of one: its state, growing curves, measures, and another run
beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from nicegui import ui

from klype.errors import KlypeError
from klype.examine.charts import Cell, Option, Panel, Picture, axis, line, lines, spikes
from klype.examine.run_report import why_base
from klype.examine.say import visible
from klype.runs.folder import read_run
from klype.runs.run_json import incomparable, parameters, planned_steps, state_of
from klype.runs.run_options import STAGES
from klype.sources.model_files import NEWEST_FIRST
from klype.studio import elements as el
from klype.studio.background_jobs import MetricsTail, Work, key_of, works_by_run
from klype.studio.fields import PageSelect, open_model
from klype.studio.studio import Studio, mtime

RunState = Literal["running", "done", "failed", "cancelled", "stopped", "unreadable"]
FIGURES = {"pretrain": "base", "finetune": "finetuned", "align": "aligned"}  # a stage's figures in run.json
COMPARED = {"finetune": "before", "align": "after"}  # and in the comparison of an alignment
# the curves of each stage, by their names in metrics.jsonl
DRAWN: Mapping[str, tuple[str, ...]] = {
    "pretrain": ("loss", "validation"),
    "finetune": ("loss",),
    "reward": ("pair_accuracy",),
    "align": ("reward", "kl"),
}
COLOURS = ("aligned", "finetuned")  # of the run's curves, and of those of the run beside it


class RunInfo:
    """A run at the time of reading. ``work``: what started it here, if anything; ``why``: it failed, or its run.json
    cannot be read; ``parent``: the key of the run that it started from; ``parameters``: of its newest stage; ``bytes``:
    of the weights."""

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
                self.state, self.changed, self.seconds = work.state, mtime(work.folder), work.seconds
                self.why = work.why() if self.state == "failed" else ""
            return
        found = state_of(folder, about)
        # a run that is done stays done, whatever became of the process that started it
        self.state = found if work is None or (found == "done" and work.state != "running") else work.state
        self.recipe, self.planned_s = str(about.get("recipe") or ""), about.get("planned_s") or self.planned_s
        timed = work if self.state == "running" else None
        self.seconds = timed.seconds if timed is not None else about.get("seconds", {}).get("total")
        self.changed = max(map(mtime, (folder / "run.json", *folder.glob("*/metrics.jsonl"))))
        ranked = (folder / "rank").is_dir() and any((folder / "rank").iterdir())
        self.stages = tuple(s for s in STAGES if (ranked if s == "rank" else (folder / s / "config.json").is_file()))
        weights = {stage: file for stage in STAGES if (file := folder / stage / "model.safetensors").is_file()}
        self.bytes = sum(weights[stage].stat().st_size for stage in self.stages if stage in weights)
        self.parameters = next((parameters(folder / stage) for stage in NEWEST_FIRST if stage in weights), None)
        # an alignment started here names its source itself: its run.json names the reward model's folder
        if origin := begun.get("source") or about.get("asked", {}).get("from_"):
            place = Path(str(origin)).expanduser()
            self.parent = key_of(place.parent if place.name in STAGES else place)
        if self.state == "failed":
            self.why = work.why() if work is not None and work.state == "failed" else about.get("failure", "")

    @property
    def gates(self) -> tuple[int, int]:
        """(number of gates passed, number of gates)."""
        gates = self.about.get("gates", [])
        return sum(bool(gate.get("passed")) for gate in gates), len(gates)

    def figures(self, stage: str) -> Mapping[str, Any]:
        """The figures of a stage's model; for an alignment that was started here, those of its comparison."""
        found = self.about.get("figures", {}).get(FIGURES[stage])
        if not found and stage in COMPARED:
            found = self.about.get("aligned", {}).get(COMPARED[stage])
        return found if isinstance(found, dict) else {}


def all_runs(studio: Studio) -> list[RunInfo]:
    """Every run, the one written last first, including work that has not written a run.json yet."""
    begun = works_by_run(studio.home, "run", "align")
    found = [RunInfo(folder, begun.pop(folder.resolve(), None)) for folder in studio.run_folders()]
    found += [RunInfo(work.plan.run, work) for work in begun.values()]
    return sorted(found, key=lambda run: run.changed, reverse=True)


def family(runs: Sequence[RunInfo]) -> list[tuple[int, RunInfo]]:
    """(depth, run) pairs: every run below the one that it started from, in the order given."""
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
    return [*out.values(), *((0, run) for run in runs if run.key not in out)]  # runs that name each other as parents


@dataclass
class RunDetail(el.WorkPart):
    """The details of one run, perhaps with another beside it: ``read`` reads what is new, ``show`` draws it."""

    run: RunInfo | None = None
    both: Sequence[RunInfo] = ()
    tails: dict[tuple[str, str], MetricsTail] = field(default_factory=dict)
    log: Sequence[str] = ()
    built: object = None

    def build(self) -> None:
        self.box = el.box()

    async def look(self) -> None:
        """Nothing: the page looks at all runs."""

    def read(self, run: RunInfo, other: RunInfo | None) -> bool:
        """Reads what is new, in a thread; returns whether there is anything."""
        old, self.run, self.work = self.run, run, run.work
        self.both = [run, other] if other is not None and other.key != run.key else [run]
        news = False
        for one in self.both:
            for stage in DRAWN:
                tail = MetricsTail(one.folder / stage / "metrics.jsonl")
                news |= self.tails.setdefault((one.key, stage), tail).read()
        self.log = run.work.last_lines(8) if run.work is not None and run.state == "running" else ()
        marks = [one and (one.key, one.state, one.seconds, one.stages) for one in (old, run)]
        return news or marks[0] != marks[1]

    def show(self, run: RunInfo, runs: Sequence[RunInfo]) -> None:
        """Draws what changes during a run; lays out everything anew for another run, state or stage."""
        gates = bool(run.about.get("gates"))
        if (mark := ([one.key for one in self.both], run.state, run.stages, gates)) != self.built:
            self.built = mark
            self.box.clear()
            with self.box:
                self._lay_out(run, runs)
        timed = run.seconds is not None and bool(run.planned_s)
        # the plan is an estimate: a full bar would mean that the run is done
        share = min(0.99, (run.seconds or 0.0) / (run.planned_s or 1.0)) if timed else 0.0
        self.show_state(self.sentence(run), run.state, share)
        self.progress.set_visibility(run.state == "running" and timed)
        self.told_log.set_visibility(bool(self.log))
        el.retext(self.told_log, visible("\n".join(self.log)))
        drawn = []
        for (stage, name), tails in self.curves().items():
            title = f"{self.w(f'stage_{stage}')}: {self.w(f'line_{name}')}"
            drawn.append(Panel(title[:1].upper() + title[1:], self.option(stage, name, tails), 230))
        columns = ["run", "stage", "curve", "step", "value"]
        made = Picture(f"curves-{run.key}", self.w("curves"), self.w("how_curves"), drawn, columns)
        self.pictures.show([made] if drawn else [])

    def _lay_out(self, run: RunInfo, runs: Sequence[RunInfo]) -> None:
        w, place = self.w, run.folder.resolve()
        runs_of = {model.name: model.opened.found.run for model in self.studio.models}
        loaded = [name for name, folder in runs_of.items() if folder is not None and folder.resolve() == place]
        with el.card():
            with el.box("k-row u-head"):
                el.text_of("h2", visible(run.name))
                el.text_of("span", w(f"state_{run.state}"), f"w-state {run.state}")
            with self.add_controls(w("resume")):
                if loaded:
                    el.text_of("a", w("open_answer", model=visible(loaded[-1])), "k-button", href="/")
                elif any(stage in run.stages for stage in NEWEST_FIRST):
                    ask = partial(open_model, self.visit, str(run.folder), self.note, "/")
                    el.button(self.visit.frame("ask_it"), ask, "strong")
                if (report := run.folder / "report.html").is_file():
                    el.button(w("report"), partial(ui.download.file, report, f"{run.name}-report.html"))
            self.told_log = el.box("w-log")
            if len(runs) > 1:
                names = {"": w("nothing"), **{one.key: visible(one.name) for one in runs if one.key != run.key}}
                with el.box("u-beside"):
                    to = f"{self.visit.page.route}?run={run.key}&with="
                    PageSelect(w("beside"), names, self.both[-1].key if self.both[1:] else "", to)
        self.pictures = el.GrowingPictures(self.visit, [f"curves-{run.key}"], self.points)
        self._measures()

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
        written, stage = max((mtime(run.folder / stage / "metrics.jsonl"), stage) for stage in DRAWN)
        if run.state == "running" and written:
            step, planned = self.tails[run.key, stage].at, planned_steps(run.about, stage)
            about = {"stage": w(f"stage_{stage}"), "step": say.count(step), "of": say.count(planned or 0)}
            parts.insert(0, w("at_step_of" if planned else "at_step", **about))
        return " · ".join(parts)

    def curves(self) -> dict[tuple[str, str], list[tuple[RunInfo, MetricsTail]]]:
        """The curves that have points, by stage and name: the runs and their metrics."""
        found: dict[tuple[str, str], list[tuple[RunInfo, MetricsTail]]] = {}
        for stage, name in ((stage, name) for stage, names in DRAWN.items() for name in names):
            for one in self.both:
                if (tail := self.tails[one.key, stage]).last(name) is not None:
                    found.setdefault((stage, name), []).append((one, tail))
        return found

    def option(self, stage: str, name: str, tails: Sequence[tuple[RunInfo, MetricsTail]]) -> Option:
        series, most = [], 1.0
        for one, tail in tails:
            planned = (planned_steps(one.about, stage) or 0) if one.state == "running" else 0
            most, points = max(most, tail.at, planned), tail.curve(name)
            # a single step far above the rest is labelled with its value
            high = {"markPoint": spikes(points, self.say)} if name == "kl" else {}
            series.append(line(visible(one.name), points, COLOURS[self.both.index(one)], **high))
        if name == "pair_accuracy":  # chance is a half
            y = axis(percent=True, min=0.5, max=1.0)
            y.pop("interval", None)
        else:
            y = axis(min=0) if name in ("loss", "validation", "kl") else axis(scale=True)
        return lines(axis(self.w("steps"), min=0, max=most), y, series)

    def points(self) -> list[list[Cell]]:
        return [
            [one.name, stage, name, step, value]
            for (stage, name), tails in self.curves().items()
            for one, tail in tails
            for step, value in tail.curve(name, most=1 << 30)
        ]

    def _measures(self) -> None:
        """Adds a table: a row for each measure, a column for each stage of each run."""
        w, say = self.w, self.say
        columns: dict[str, Mapping[str, Any]] = {}
        notes = []
        for one, otherwise in zip(self.both, incomparable([one.about for one in self.both]), strict=True):
            found = {stage: one.figures(stage) for stage in FIGURES}
            for stage, figures in found.items():
                if figures:
                    title = w(f"stage_{stage}")
                    title = f"{visible(one.name)}: {title}" if self.both[1:] else title
                    columns[title] = {name: f for name, f in figures.items() if name not in otherwise}
            if gone := [m for m in otherwise if any(m in figures for figures in found.values())]:
                notes.append(w("otherwise", run=visible(one.name), measures=", ".join(map(say.measure, gone))))
        if not columns:
            return
        names = {name: say.measure(name) for figures in columns.values() for name in figures}
        with el.card(w("measures")):
            el.figure_table(self.visit, f"measures-{self.both[0].key}", columns, names, w("measure"))
            bases = dict.fromkeys(why_base(one.figures("pretrain"), say) for one in self.both)
            for note in [*notes, *filter(None, bases), w("how_measures")]:
                el.small(note)
