"""The card that aligns a model with rankings: whose and for how long; sample answers meanwhile; then a comparison."""

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nicegui import ui

from klype.errors import KlypeError, UsageError
from klype.examine.charts import Cell, Panel, Picture, axis, line, lines, spikes
from klype.examine.say import visible
from klype.jsons import read_saved
from klype.model.atomic_folder import is_whole
from klype.runs.folder import read_run
from klype.runs.provenance import read_questions
from klype.runs.run_json import planned_steps
from klype.studio import elements as el
from klype.studio.background_jobs import MetricsTail, Work, WorkPlan, begin, key_of, new_name, works_by_run
from klype.studio.fields import Check, Minutes, Select
from klype.studio.ranking_stores import RankingStore, label_of
from klype.studio.studio import Studio

ASKED = 4  # held-out questions that the model answers while it is aligned
MIN_RANKINGS = 2  # rankings to learn from
OVERHEAD_S = 40.0  # for loading, the reward model and the comparison, on top of the minutes requested
LOOK_S = 1.0
CURVES = {
    "reward": (("reward", "aligned"), ("truth", "truth")),
    "kl": (("kl", "accent"),),
    "length": (("length", "finetuned"),),
}
ROWS = ("step", "reward", "truth", "kl", "length")
COMPARED = ("annotator", "right", "polite", "concise", "tokens")


class Alignment:
    """A piece of work that aligns a model, as of the last ``read`` of its files."""

    state, step, seconds, why = "", 0, 0, ""
    planned: int | None = None
    samples: Sequence[Mapping[str, Any]] = ()
    document: Mapping[str, Any] | None = None

    def __init__(self, work: Work) -> None:
        self.work, plan = work, work.plan
        self.about, self.run = plan.about, plan.run
        self.reward = MetricsTail(Path(plan.about["judge"]) / "reward" / "metrics.jsonl")
        self.align = MetricsTail(plan.run / "align" / "metrics.jsonl")

    def read(self) -> bool:
        """Reads what is new, in a thread; returns whether anything has changed."""
        work, before = self.work, dict(vars(self))
        news = [self.reward.read(), self.align.read()]
        self.state, self.step, self.seconds, self.samples = work.state, work.step, int(work.seconds), work.samples()
        if self.planned is None and (self.run / "run.json").is_file():
            with suppress(KlypeError):
                self.planned = planned_steps(read_run(self.run), "align")
        self.why = work.why() if self.state == "failed" else ""
        if self.state == "done":
            self.document = self.document or read_saved(self.run / "align.json")
        return any(news) or vars(self) != before

    @property
    def share(self) -> float:
        """The share that is done: a tenth for the reward model, then by steps; the last part compares before and
        after."""
        return 0.05 if self.step == 0 else 0.1 + 0.75 * min(1.0, self.align.at / (self.planned or 1e9))


def newest_alignment(studio: Studio, store: RankingStore) -> Alignment | None:
    """The last alignment with this store's rankings, whoever started it on whichever server; None if there is none."""
    begun = map(Alignment, works_by_run(studio.home, "align").values())
    return next((found for found in begun if found.about.get("place") == store.key), None)


def start_alignment(
    studio: Studio,
    store: RankingStore,
    annotators: Sequence[str],
    minutes: float = 1.0,
    force: bool = False,
    lang: str = "en",
) -> Alignment:
    """Starts training a reward model on these annotators' rankings as they are now, then aligning the run's model with
    it. ``force``: even if the reward model imitates them badly. UsageError when such work runs already, there are too
    few rankings, or the run has no fine-tuned model."""
    known = newest_alignment(studio, store)
    if known is not None and known.work.state == "running":
        raise UsageError("These rankings are being learnt from already.")
    source = store.run
    if source is None or not is_whole(source / "finetune"):
        raise UsageError(f"The run {store.name} has no fine-tuned model that could be aligned.")
    name = new_name("align")
    # the reward model's folder is half a run: it lies where no menu of runs looks
    run, judge = studio.runs_home / name, studio.home / "judges" / name
    entries = store.snapshot(judge / "rank", annotators)
    ordered = sum(entry.kind != "skip" for entry in entries)
    # counted in the copy: others may rank or undo meanwhile
    if ordered < MIN_RANKINGS:
        shutil.rmtree(judge)
        raise UsageError(f"There are {ordered} rankings: {MIN_RANKINGS} at least are needed.")
    before, after = str((source / "finetune").resolve()), str(run / "align")
    about = {
        "place": store.key,
        "source": str(source.resolve()),
        "rankings": ordered,
        "judge": str(judge),
        "planned_s": 60 * minutes + OVERHEAD_S,
        "ask": {"before": before, "after": after, "questions": held_out(source)},
    }
    common = ["--resume", "--json", "--lang", lang, "--seed", "0", "--device", studio.device]
    align = [str(judge), "--out", str(run), "--minutes", f"{minutes:g}", *(["--force"] if force else [])]
    reward = ["reward", "--from", str(source.resolve()), "--out", str(judge), *common, *inputs_of(source)]
    steps = [[*studio.command, "train", *reward], [*studio.command, "align", *align, *common]]
    return Alignment(begin(studio.home, WorkPlan("align", run, steps, about), name))


def held_out(run: Path) -> list[str]:
    """A few held-out questions of a run, of different kinds and languages, short ones first."""
    found = read_questions(run / "questions.jsonl")
    kinds: dict[object, str] = {}
    for question in sorted(found, key=lambda q: len(q.prompt)):
        kinds.setdefault((question.extra.get("kind", question.id), question.extra.get("lang", "")), question.prompt)
    prompts = list(kinds.values())
    return prompts[:: max(1, len(prompts) // ASKED)][:ASKED]


def inputs_of(run: Path) -> list[str]:
    """The options that name a run's data and settings, for its reward model."""
    made = read_run(run).get("asked", {})
    out: list[str] = []
    for name, option in {"text": "text", "overrides": "set", "instructions": "instructions", "data": "data"}.items():
        given = made.get(name)
        for text in given if isinstance(given, list) else [given]:
            out += [f"--{option}", text] if isinstance(text, str) and text else []
    return out


@dataclass
class AlignCard(el.WorkPart):
    """The card of one store. The work lives in files, where every visitor and server finds it."""

    store: RankingStore
    seen: Alignment | None = None
    drawn: object = None
    people: dict[str, Sequence[str]] = field(default_factory=dict)

    def build(self) -> None:
        w = self.w
        with el.card(w("learn")) as self.box:
            el.small(w("learn_lead"))
            el.small(w("learn_needs"))
            with el.box("r-setup") as self.form:
                with el.box() as self.whose_box:
                    self.whose = Select(w("whose"), {"": w("whose_nobody")}, "")
                self.minutes = Minutes(self.visit, (0.5, 10, 0.5), 1.0)
                self.force = Check(w("force"), False)
                with el.box():
                    el.button(w("go"), self.begin, "strong")
            with self.add_controls(w("resume")):
                self.open = el.text_of("a", w("open_run"), "k-button")
            self.pictures = el.GrowingPictures(self.visit, ["alignment"], self.rows)
            self.samples, self.result = el.box("r-samples"), el.box()
        self._show()
        ui.timer(LOOK_S, self.look)

    def know(self, annotators: Sequence[Mapping[str, Any]]) -> None:
        """Fills the menu of whose rankings to learn from."""
        w, say = self.w, self.say
        count = {one["name"]: one["rankings"] for one in annotators if one["rankings"]}
        simulated = {one["name"] for one in annotators if one["by"] == "simulated"}
        people, shown = [name for name in count if name not in simulated], dict[str, str]()
        self.people = {"people": people}
        if people:
            shown["people"] = w("whose_people", n=say.count(sum(count[name] for name in people)))
        for name, rankings in count.items():
            if name in simulated or len(people) > 1:
                self.people[f"one:{name}"] = [name]
                shown[f"one:{name}"] = w("whose_one", name=label_of(name, w), n=say.count(rankings))
        shown = shown or {"": w("whose_nobody")}
        if shown != self.whose.options:
            before = self.whose.value  # the choice stays while others rank
            self.whose_box.clear()
            with self.whose_box:
                self.whose = Select(w("whose"), shown, before if before in shown else next(iter(shown)))

    async def begin(self) -> None:
        wanted = self.people.get(self.whose.value, ()), self.minutes.value, self.force.value, self.visit.lang
        self.seen = await self.visit.attempt(start_alignment, self.studio, self.store, *wanted) or self.seen
        self.drawn = None
        await self.look()

    @el.unless_busy
    async def look(self) -> None:
        def read() -> bool:
            if self.seen is None or self.seen.state not in ("", "running"):
                found = newest_alignment(self.studio, self.store)
                if found is not None and (self.seen is None or found.work != self.seen.work):
                    self.seen = found
            return self.seen is not None and self.seen.read()

        if await asyncio.to_thread(read) and not self.box.is_deleted:
            self._show()

    def _show(self) -> None:
        seen = self.seen
        self.work, state = (seen.work, seen.state) if seen is not None else (None, "")
        self.form.set_visibility(state != "running")
        self.open.set_visibility(state == "done")
        if seen is None:
            self.show_state("", "", 0.0)
            return
        self.show_state(self.sentence(seen), state, seen.share)
        self.open.props["href"] = f"/runs?run={key_of(seen.run)}"
        self.open.update()
        if seen.align.rows:
            self._draw(seen)
        if (marks := (seen.work.folder.name, len(seen.samples), bool(seen.document))) != self.drawn:
            self.drawn = marks
            self.samples.clear()
            self.result.clear()
            if seen.document:
                with self.result:
                    before_after(self.visit, seen.document)
            if seen.samples:
                with self.samples:
                    samples_table(self.visit, seen)

    def sentence(self, seen: Alignment) -> str:
        w, say = self.w, self.say
        about = {"n": say.count(seen.about["rankings"]), "seconds": say.seconds(max(1.0, float(seen.seconds)))}
        if seen.state != "running":
            return w(f"work_{seen.state}", why=visible(seen.why), **about)
        if seen.step == 0:
            accuracy = seen.reward.last("pair_accuracy")
            part = w("part_reward") if accuracy is None else w("part_reward_at", share=say.share(accuracy))
        elif not seen.align.rows:
            part = w("part_start")
        elif seen.planned and seen.align.at >= seen.planned:
            part = w("part_compare")
        else:
            part = w("part_align", step=say.count(seen.align.at), of=say.count(seen.planned or 0))
        return w("work_running", part=part, **about)

    def _draw(self, seen: Alignment) -> None:
        """Draws the curves of reward, KL and length."""
        panels, x = [], axis(self.w("steps"), min=0, max=max(seen.planned or 0, seen.align.at))
        for name, row in CURVES.items():
            # reward and truth in one picture: where they part, the reward is being hacked
            series = [line(self.w(f"line_{key}"), seen.align.curve(key), colour) for key, colour in row]
            if name == "kl":
                series[0]["markPoint"] = spikes(seen.align.curve("kl"), self.say)
            panels.append(Panel(self.w(f"curve_{name}"), lines(x, axis(scale=name != "kl"), series), 210))
        self.pictures.show([Picture("alignment", "", self.w("how_curves"), panels, list(ROWS))])

    def rows(self) -> list[list[Cell]]:
        rows = self.seen.align.rows if self.seen is not None else []
        return [[row.get(name) for name in ROWS] for row in rows]


def samples_table(visit: el.Visit, seen: Alignment) -> None:
    """A table of the answers to each question at first, half way and now."""
    w, samples = visit.words, seen.samples
    places = sorted({0, len(samples) // 2 if len(samples) > 2 else 0, len(samples) - 1})
    steps, answers = ([samples[place][key] for place in places] for key in ("step", "answers"))
    columns = [w("sample_step", step=visit.say.count(step)) if step else w("sample_before") for step in steps]
    rows = []
    for i, question in enumerate(seen.about.get("ask", {}).get("questions", [])):
        rows.append([visible(question), *(visible(str(said[i])) if i < len(said) else "" for said in answers)])
    el.text_of("h3", w("samples"))
    el.table(visit, [w("sample_question"), *columns], rows, label=w("samples"))


def before_after(visit: el.Visit, document: Mapping[str, Any]) -> None:
    w, say = visit.words, visit.say
    last = document["rounds"][-1]
    el.text_of("h3", w("before_after"))
    if said := document["verdict"].get(visit.lang, ""):
        el.text_of("p", visible(said), "r-verdict")
    gain, wins = say.figure(document["gain"]["score"]), say.figure(document["win_rate"], "right")
    el.big_numbers({w("gain"): gain, w("win_rate"): wins})
    found = {**last, "change": {**last["gain"], "annotator": last["gain"].get("score")}}
    columns = {w(f"column_{side}"): found[side] for side in ("before", "after", "change")}
    titles = {name: say.measure(name) for name in COMPARED}
    el.figure_table(visit, "before-after", columns, titles, w("column_measure"))
    el.small(w("how_compared"))
