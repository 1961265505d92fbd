"""The card on which a model learns from rankings: whose, how long; what it says meanwhile; before and after."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nicegui import ui

from klype.errors import KlypeError
from klype.examine.charts import axis, line, lines
from klype.examine.say import Say, visible
from klype.studio.charts import chart, redraw
from klype.studio.fields import Check, Choice, Slider
from klype.studio.frame import as_data, button, card, table
from klype.studio.ranking_align import Order, Seen, newest, start
from klype.studio.ranking_places import Place
from klype.studio.runs_list import key_of
from klype.studio.visit import Visit, text_of
from klype.words import Words

LOOK_S = 1.0
CURVES = {
    "reward": (("reward", "aligned"), ("truth", "truth")),
    "kl": (("kl", "accent"),),
    "length": (("length", "finetuned"),),
}
COMPARED = ("annotator", "right", "polite", "concise", "tokens")
GAIN = {"annotator": "score"}


@dataclass
class Learn:
    """The card as one visitor has it; the work itself lives in files, so that any visitor and server finds it."""

    visit: Visit
    place: Place
    seen: Seen | None = None
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
        order = Order(names, self.minutes.value, self.force.value, self.visit.lang)
        try:
            self.seen = await asyncio.to_thread(start, self.visit.studio, self.place, order)
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
            found = newest(self.visit.studio, self.place)
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

    def _told(self, seen: Seen) -> str:
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

    def _draw(self, seen: Seen) -> None:
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

    def _option(self, seen: Seen, name: str) -> dict[str, Any]:
        w = self.visit.words
        series = [line(w(f"line_{key}"), seen.align.curve(key), colour) for key, colour in CURVES[name]]
        most = max(seen.planned or 0, seen.align.steps[-1] if seen.align.steps else 1)
        return lines(axis(w("steps"), min=0, max=most), axis(scale=name != "kl"), series)

    def _rows(self, names: Sequence[str]) -> list[list[float | None]]:
        tail = self.seen.align if self.seen is not None else None
        if tail is None:
            return []
        return [[step, *(tail.at(name, i) for name in names[1:])] for i, step in enumerate(tail.steps)]

    def _sampled(self, seen: Seen) -> None:
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

    def _compared(self, seen: Seen) -> None:
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
