"""From rankings to an aligned model: what is started, and what can be seen of it while it goes on and afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from klype.errors import KlypeError, UsageError
from klype.runs.folder import read_run
from klype.runs.overview import planned_steps
from klype.runs.truth import read_questions
from klype.studio.ranking_places import Place, snapshot
from klype.studio.runs_list import document_of, home_of_runs
from klype.studio.studio import Studio
from klype.studio.work import Plan, Work, begin, new_name, works
from klype.studio.work_tail import Tail

ASKED = 4
"""Held-out questions that the model answers while it is aligned."""
FEWEST = 2
OVERHEAD_S = 40.0
"""Loading, the reward model and the comparison, on top of the minutes asked for."""


@dataclass(frozen=True, slots=True)
class Order:
    """``annotators``: whose rankings teach. ``force``: even if the reward model imitates them badly."""

    annotators: tuple[str, ...]
    minutes: float = 1.0
    force: bool = False
    lang: str = "en"
    seed: int = 0


@dataclass
class Seen:
    """A piece of aligning work as its files tell of it; ``read`` reads what is new (in a thread)."""

    work: Work
    reward: Tail = field(init=False)
    align: Tail = field(init=False)
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
        self.reward = Tail(Path(plan.about["judge"]) / "reward" / "metrics.jsonl")
        self.align = Tail(plan.run / "align" / "metrics.jsonl")
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


def newest(studio: Studio, place: Place) -> Seen | None:
    """The last alignment of this place's rankings, whoever began it and whichever server."""
    for work in works(studio.home):
        plan = work.plan
        if plan.kind == "align" and plan.about.get("place") == place.key:
            return Seen(work)
    return None


def start(studio: Studio, place: Place, order: Order) -> Seen:
    """Begins: rankings as they are now, a reward model of them, alignment. UsageError when it runs or cannot be."""
    known = newest(studio, place)
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
            "questions": asked(source),
        },
    }
    return Seen(begin(studio.home, Plan("align", run, _steps(studio, source, (judge, run), order), about), name))


def asked(run: Path) -> list[str]:
    """A few held-out questions, of different kinds, short ones first."""
    found = read_questions(run / "questions.jsonl")
    kinds: dict[object, str] = {}
    for question in sorted(found, key=lambda q: len(q.prompt)):
        kinds.setdefault((question.extra.get("kind", question.id), question.extra.get("lang", "")), question.prompt)
    prompts = list(kinds.values())
    return prompts[:: max(1, len(prompts) // ASKED)][:ASKED]


def _steps(studio: Studio, source: Path, folders: tuple[Path, Path], order: Order) -> list[list[str]]:
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
    for text in _texts(made.get("text")):
        out += ["--text", text]
    for name in ("instructions", "data"):
        if isinstance(made.get(name), str) and made[name]:
            out += [f"--{name}", made[name]]
    for setting in _texts(made.get("overrides")):
        out += ["--set", setting]
    return out


def _texts(given: object) -> Sequence[str]:
    return [text for text in given if isinstance(text, str)] if isinstance(given, list) else []
