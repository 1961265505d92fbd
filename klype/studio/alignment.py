"""The card on which a model learns from rankings: whose, how long; what it says meanwhile; before and after."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nicegui import ui

from klype.errors import KlypeError, UsageError
from klype.examine.charts import axis, line, lines
from klype.examine.say import Say, visible
from klype.runs.folder import read_run
from klype.runs.overview import planned_steps
from klype.runs.provenance import read_questions
from klype.studio.charts import chart, redraw
from klype.studio.fields import Check, Choice, Slider
from klype.studio.frame import Visit, as_data, button, card, table, text_of
from klype.studio.ranking_stores import RankingStore, snapshot
from klype.studio.runs_list import document_of, home_of_runs, key_of
from klype.studio.studio import Studio
from klype.studio.work import MetricsTail, Work, WorkPlan, begin, new_name, works
from klype.words import Words

ASKED = 4
"""Held-out questions that the model answers while it is aligned."""
FEWEST = 2
OVERHEAD_S = 40.0
"""Loading, the reward model and the comparison, on top of the minutes asked for."""


@dataclass(frozen=True, slots=True)
class AlignRequest:
    """``annotators``: whose rankings teach. ``force``: even if the reward model imitates them badly."""

    annotators: tuple[str, ...]
    minutes: float = 1.0
    force: bool = False
    lang: str = "en"
    seed: int = 0


@dataclass
class Alignment:
    """A piece of aligning work as its files tell of it; ``read`` reads what is new (in a thread)."""

    work: Work
    reward: MetricsTail = field(init=False)
    align: MetricsTail = field(init=False)
    state: str = ""
    step: int = 0
    seconds: float = 0.0
    planned: int | None = None
    why: str = ""
    samples: list[dict[str, Any]] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    document: dict[str, Any] = field(default_factory=dict)
    mark: object = None

    def __post_init__(self) -> None:
        plan = self.work.plan
        self.reward = MetricsTail(Path(plan.about["judge"]) / "reward" / "metrics.jsonl")
        self.align = MetricsTail(plan.run / "align" / "metrics.jsonl")
        self.questions = list(plan.about.get("ask", {}).get("questions", []))

    @property
    def about(self) -> dict[str, Any]:
        return self.work.plan.about

    def read(self) -> bool:
        """Whether anything has changed."""
        work = self.work
        news = [self.reward.read(), self.align.read()]
        self.state, self.step, self.seconds = work.state, work.step, work.seconds
        self.samples = work.samples()
        run = work.plan.run
        if self.planned is None and (run / "run.json").is_file():
            with suppress(KlypeError):
                self.planned = planned_steps(read_run(run), "align")
        self.why = work.why() if self.state == "failed" else ""
        if self.state == "done" and not self.document:
            self.document = document_of(run)
        mark = (self.state, self.step, int(self.seconds), len(self.samples), self.planned)
        changed = any(news) or mark != self.mark
        self.mark = mark
        return changed

    @property
    def share(self) -> float:
        """How much of it is done, by steps where they are known."""
        if self.state == "done":
            return 1.0
        if self.step == 0:
            return 0.05
        done = (self.align.steps[-1] if self.align.steps else 0) / (self.planned or 1e9)
        return 0.1 + 0.75 * min(1.0, done)


def newest_alignment(studio: Studio, place: RankingStore) -> Alignment | None:
    """The last alignment of this place's rankings, whoever began it and whichever server."""
    for work in works(studio.home):
        plan = work.plan
        if plan.kind == "align" and plan.about.get("place") == place.key:
            return Alignment(work)
    return None


def start_alignment(studio: Studio, place: RankingStore, order: AlignRequest) -> Alignment:
    """Begins: rankings as they are now, a reward model of them, alignment. UsageError when it runs or cannot be."""
    known = newest_alignment(studio, place)
    if known is not None and known.work.state == "running":
        raise UsageError("These rankings are being learnt from already.")
    source = place.run
    if source is None or not place.can_align:
        raise UsageError(f"The run {place.name} has no fine-tuned model that could be aligned.")
    name = new_name("align")
    run = home_of_runs(studio) / name
    judge = run.with_name(f"{name}-judge")
    entries = snapshot(place, judge / "rank", order.annotators)
    ordered = sum(entry.kind != "skip" for entry in entries)
    if ordered < FEWEST:
        raise UsageError(f"There are {ordered} rankings: {FEWEST} at least are needed, and a hundred teach better.")
    about = {
        "place": place.key,
        "from": place.name,
        "rankings": ordered,
        "annotators": list(order.annotators),
        "minutes": order.minutes,
        "judge": str(judge),
        "planned_s": 60 * order.minutes + OVERHEAD_S,
        "ask": {
            "before": str((source / "finetune").resolve()),
            "after": str(run / "align"),
            "questions": held_out(source),
        },
    }
    return Alignment(
        begin(studio.home, WorkPlan("align", run, _steps(studio, source, (judge, run), order), about), name)
    )


def held_out(run: Path) -> list[str]:
    """A few held-out questions, of different kinds, short ones first."""
    found = read_questions(run / "questions.jsonl")
    kinds: dict[object, str] = {}
    for question in sorted(found, key=lambda q: len(q.prompt)):
        kinds.setdefault((question.extra.get("kind", question.id), question.extra.get("lang", "")), question.prompt)
    prompts = list(kinds.values())
    return prompts[:: max(1, len(prompts) // ASKED)][:ASKED]


def _steps(studio: Studio, source: Path, folders: tuple[Path, Path], order: AlignRequest) -> list[list[str]]:
    judge, run = folders
    common = ["--resume", "--json", "--lang", order.lang, "--seed", str(order.seed)]
    force = ["--force"] if order.force else []
    run_of = str(source.resolve())
    return [
        [*studio.command, "train", "reward", "--from", run_of, "--out", str(judge), *common, *_inputs(source)],
        [*studio.command, "align", str(judge), "--out", str(run), "--minutes", f"{order.minutes:g}", *force, *common],
    ]


def _inputs(run: Path) -> list[str]:
    """What the run was made of, and with which settings: its reward model is made with the same."""
    made = read_run(run).get("asked")
    if not isinstance(made, dict):
        return []
    out: list[str] = []
    for text in _strings(made.get("text")):
        out += ["--text", text]
    for name in ("instructions", "data"):
        if isinstance(made.get(name), str) and made[name]:
            out += [f"--{name}", made[name]]
    for setting in _strings(made.get("overrides")):
        out += ["--set", setting]
    return out


def _strings(given: object) -> Sequence[str]:
    return [text for text in given if isinstance(text, str)] if isinstance(given, list) else []


LOOK_S = 1.0
CURVES = {
    "reward": (("reward", "aligned"), ("truth", "truth")),
    "kl": (("kl", "accent"),),
    "length": (("length", "finetuned"),),
}
COMPARED = ("annotator", "right", "polite", "concise", "tokens")
GAIN = {"annotator": "score"}


@dataclass
class AlignCard:
    """The card as one visitor has it; the work itself lives in files, so that any visitor and server finds it."""

    visit: Visit
    place: RankingStore
    seen: Alignment | None = None
    drawn: tuple[object, ...] = ()
    looking: bool = False
    charts: dict[str, ui.echart] = field(default_factory=dict)
    people: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    whose: Choice | None = None

    def build(self) -> None:
        w, say = self.visit.words, self.visit.say
        with card() as self.box:
            text_of("h2", w("learn"))
            text_of("p", w("learn_lead"), "k-small")
            with ui.element("div").classes("r-setup") as self.form:
                self.whose_box = ui.element("div")
                self.minutes = Slider(w("minutes"), (0.5, 10, 0.5), 1.0, lambda v: f"{say.plain(v)}{chr(0xA0)}min")
                self.force = Check(w("force"), False)
                with ui.element("div"):
                    self.go = button(w("go"), self.begin, "strong")
            with ui.element("div").classes("k-row"):
                self.stop = button(self.visit.frame("cancel"), self.cancel)
                self.on = button(w("resume"), self.resume)
                self.open = text_of("a", w("open_run"), "k-button")
            self.note = text_of("p", "", "k-small")
            self.note.props.update({"role": "status", "aria-live": "polite"})
            self.progress = ui.element("div").classes("k-progress")
            with self.progress:
                self.bar = ui.element("div")
            self.pictures = ui.element("div")
            self.samples = ui.element("div")
            self.result = ui.element("div")
        self.know([])
        self._show()
        ui.timer(LOOK_S, self.look)

    def know(self, annotators: Sequence[Mapping[str, Any]]) -> None:
        """Whose rankings there are to choose from."""
        w, say = self.visit.words, self.visit.say
        ranked = [one for one in annotators if one["rankings"]]
        people = tuple(one["name"] for one in ranked if one["by"] != "simulated")
        count = {one["name"]: one["rankings"] for one in ranked}
        choices: dict[str, tuple[str, tuple[str, ...]]] = {}
        if people:
            total = say.count(sum(count[name] for name in people))
            choices["people"] = (w("whose_people", n=total), people)
        for one in ranked:
            if one["by"] == "simulated" or len(people) > 1:
                label = w("whose_one", name=visible(one["name"]), n=say.count(count[one["name"]]))
                choices[f"one:{one['name']}"] = (label, (one["name"],))
        shown = {key: label for key, (label, _) in choices.items()} or {"": w("whose_nobody")}
        if self.whose is None or shown != self.whose.options:
            before = "" if self.whose is None else self.whose.value
            chosen = before if before in shown else next(iter(shown))
            self.whose_box.clear()
            with self.whose_box:
                self.whose = Choice(w("whose"), shown, chosen, lambda: None)
        self.people = {key: names for key, (_, names) in choices.items()}

    async def begin(self) -> None:
        names = self.people.get(self.whose.value, ()) if self.whose is not None else ()
        order = AlignRequest(names, self.minutes.value, self.force.value, self.visit.lang)
        try:
            self.seen = await asyncio.to_thread(start_alignment, self.visit.studio, self.place, order)
        except KlypeError as error:
            self.visit.tell(error)
        self.drawn = ()
        await self.look()

    async def cancel(self) -> None:
        if self.seen is not None:
            await asyncio.to_thread(self.seen.work.cancel)

    async def resume(self) -> None:
        if self.seen is not None:
            await asyncio.to_thread(self.seen.work.go_on)
            await self.look()

    async def look(self) -> None:
        """What has come of it, read beside the page; drawn when it has changed."""
        if self.looking:
            return
        self.looking = True
        try:
            changed = await asyncio.to_thread(self._read)
            if changed and not self.box.is_deleted:
                self._show()
        finally:
            self.looking = False

    def _read(self) -> bool:
        if self.seen is None or self.seen.state in ("done", "cancelled", "failed", "stopped"):
            found = newest_alignment(self.visit.studio, self.place)
            if found is not None and (self.seen is None or found.work != self.seen.work):
                self.seen = found
        return self.seen is not None and self.seen.read()

    def _show(self) -> None:
        seen, w = self.seen, self.visit.words
        running = seen is not None and seen.state == "running"
        self.form.set_visibility(not running)
        self.stop.set_visibility(running)
        self.on.set_visibility(seen is not None and seen.state in ("cancelled", "stopped", "failed"))
        self.progress.set_visibility(running)
        self.open.set_visibility(seen is not None and seen.state == "done")
        if seen is None:
            return
        self.open.props["href"] = f"/runs?run={key_of(seen.work.plan.run)}"
        self.open.update()
        self.bar.style(f"width:{100 * seen.share:.1f}%")
        self.note._text = self._told(seen)
        self.note.update()
        if seen.align.steps:
            self._draw(seen)
        marks = (seen.work.folder.name, len(seen.samples), bool(seen.document))
        if marks != self.drawn:
            self.drawn = marks
            self.samples.clear()
            self.result.clear()
            if seen.document:
                with self.result:
                    self._compared(seen)
            if seen.samples:
                with self.samples:
                    text_of("h3", w("samples"))
                    self._sampled(seen)

    def _told(self, seen: Alignment) -> str:
        w, say = self.visit.words, self.visit.say
        about = {"n": say.count(seen.about["rankings"]), "seconds": say.seconds(max(1.0, float(int(seen.seconds))))}
        if seen.state != "running":
            return w(f"work_{seen.state}", why=visible(seen.why), **about)
        if seen.step == 0:
            accuracy = seen.reward.last("pair_accuracy")
            part = w("part_reward") if accuracy is None else w("part_reward_at", share=say.share(accuracy))
        elif not seen.align.steps:
            part = w("part_start")
        elif seen.planned and seen.align.steps[-1] >= seen.planned:
            part = w("part_compare")
        else:
            part = w("part_align", step=say.count(seen.align.steps[-1]), of=say.count(seen.planned or 0))
        return w("work_running", part=part, **about)

    def _draw(self, seen: Alignment) -> None:
        w = self.visit.words
        if not self.charts:
            with self.pictures:
                with ui.element("div").classes("k-panels"):
                    for name in CURVES:
                        with ui.element("div"):
                            text_of("h3", w(f"curve_{name}"))
                            self.charts[name] = chart(
                                self._option(seen, name), self.visit.lang, 210, w(f"curve_{name}")
                            )
                text_of("p", w("how_curves"), "k-small")
                names = ["step", "reward", "truth", "kl", "length"]
                as_data(self.visit, "alignment", names, lambda: self._rows(names), self.pictures)
            return
        for name, drawn in self.charts.items():
            redraw(drawn, self._option(seen, name), self.visit.lang)

    def _option(self, seen: Alignment, name: str) -> dict[str, Any]:
        w = self.visit.words
        series = [line(w(f"line_{key}"), seen.align.curve(key), colour) for key, colour in CURVES[name]]
        most = max(seen.planned or 0, seen.align.steps[-1] if seen.align.steps else 1)
        return lines(axis(w("steps"), min=0, max=most), axis(scale=name != "kl"), series)

    def _rows(self, names: Sequence[str]) -> list[list[float | None]]:
        tail = self.seen.align if self.seen is not None else None
        if tail is None:
            return []
        return [[step, *(tail.at(name, i) for name in names[1:])] for i, step in enumerate(tail.steps)]

    def _sampled(self, seen: Alignment) -> None:
        """One question a row: how it was answered at first, now, and in between."""
        w, say = self.visit.words, self.visit.say
        first, last = seen.samples[0], seen.samples[-1]
        between = seen.samples[len(seen.samples) // 2] if len(seen.samples) > 2 else None
        shown = [row for row in (first, between, last if last is not first else None) if row is not None]
        columns = [w("sample_question"), *(_at(w, say, row["step"]) for row in shown)]
        rows = [
            [visible(question), *(visible(str(row["answers"][i])) if i < len(row["answers"]) else "" for row in shown)]
            for i, question in enumerate(seen.questions)
        ]
        with ui.element("div").classes("k-scroll r-samples") as scroll:
            scroll.props.update({"tabindex": 0, "role": "region", "aria-label": w("samples")})
            table(columns, rows)

    def _compared(self, seen: Alignment) -> None:
        w, say = self.visit.words, self.visit.say
        document = seen.document
        last = document["rounds"][-1]
        gain = document["gain"]["score"]
        text_of("h3", w("before_after"))
        said = document["verdict"].get(self.visit.lang, "")
        if said:
            text_of("p", visible(said), "r-verdict")
        with ui.element("div").classes("r-numbers"):
            for key, shown in (("gain", say.figure(gain)), ("win_rate", say.figure(document["win_rate"], "right"))):
                with ui.element("div"):
                    text_of("b", shown)
                    text_of("span", w(key))
        rows, data = [], []
        for name in COMPARED:
            before, after = last["before"].get(name), last["after"].get(name)
            if before is None or after is None:
                continue
            change = last["gain"].get(GAIN.get(name, name))
            rows.append([say.measure(name), say.figure(before, name), say.figure(after, name),
                         "–" if change is None else say.figure(change, name)])  # fmt: skip
            cells = [
                figure.get(k) if figure else None
                for figure in (before, after, change)
                for k in ("value", "low", "high")
            ]
            data.append([name, *cells])
        with ui.element("div").classes("k-scroll") as box:
            box.props.update({"tabindex": 0, "role": "region", "aria-label": w("before_after")})
            table([w("column_measure"), w("column_before"), w("column_after"), w("column_change")], rows, (1, 2, 3))
        text_of("p", w("how_compared"), "k-small")
        names = [
            "measure",
            *(f"{side}{end}" for side in ("before", "after", "change") for end in ("", "_low", "_high")),
        ]
        as_data(self.visit, "before-after", names, lambda: data)


def _at(w: Words, say: Say, step: int) -> str:
    return w("sample_before") if step == 0 else w("sample_step", step=say.count(step))
