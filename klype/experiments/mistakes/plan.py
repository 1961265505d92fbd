"""What fits: how many documents, questions, steps and seeds; kept, so that a resumed run is the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from klype import config
from klype.answers.traces import replace
from klype.experiments.bias.corpus import Source
from klype.experiments.bias.plan import Speed, probe
from klype.experiments.mistakes.course import CourseSettings
from klype.experiments.mistakes.methods import CONTROL, METHODS, method
from klype.experiments.planning import check_documents, kept, rows_called

CHOICES = ((3000, 200, 5), (3000, 160, 3), (2000, 120, 3), (1000, 80, 3), (600, 60, 2))
"""From the most wanted to the least: documents, questions, and seeds."""
ENDED = 0.9  # of the first training's steps are usually taken before held-out loss has turned for long enough
LOOKED = 0.3
"""Seconds that a question takes for each model that is measured in the world, most of them the truth's."""
LABELLED = 0.2
"""Seconds that the truth of one of the model's own texts takes."""
DISTANCES, SAMPLES = 4, 2


class Plan(config.Settings):
    """``methods`` in the table's order; ``seconds``: about so long."""

    documents: int
    questions: int
    seeds: int
    seed: int = 0
    methods: tuple[str, ...]
    settings: CourseSettings = CourseSettings()
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What a user wants; 0: what fits into the minutes."""

    minutes: float = 20.0
    documents: int = 0
    seeds: int = 0
    seed: int = 0
    methods: tuple[str, ...] = ()
    settings: CourseSettings = field(default_factory=CourseSettings)


def make(source: Source, folder: Path, asked: Asked, cores: int, compiled: Path | None = None) -> Plan:
    """The folder's plan, when an earlier start has left one; else a new one, which is kept there."""
    file = folder / "plan.json"
    if (before := kept(file, Plan)) is not None:
        return before
    names = checked(asked.methods, truth=source.knows)
    check_documents(source, (asked.documents,) if asked.documents else ())
    few = source.corpus(asked.seed, 6 * asked.settings.rows, 8)
    speed = probe(few, asked.settings, compiled)
    for documents, questions, seeds in CHOICES:
        plan = Plan(
            documents=asked.documents or source.within((documents,))[-1],
            questions=questions,
            seeds=asked.seeds or seeds,
            seed=asked.seed,
            methods=names,
            settings=asked.settings,
        )
        plan = plan.model_copy(update={"seconds": seconds(plan, speed, source.knows, cores)})
        if plan.seconds <= 60 * asked.minutes:
            break
    replace(file, plan.model_dump_json(indent=1).encode())
    return plan


def seconds(plan: Plan, speed: Speed, knows: bool, cores: int) -> float:
    """Of training the first model and the teachers, of every method's steps, of measuring."""
    settings, rows = plan.settings, [method(name) for name in plan.methods]
    first = settings.epochs * -(-plan.documents // settings.rows) * speed.hard * ENDED
    teachers = settings.teachers if not knows or any(row.knows == "teachers" for row in rows) else 0
    steps = sum(row.times for row in rows) * settings.steps * speed.soft
    looked = (len(rows) + 1) * plan.questions * LOOKED if knows else 0.0
    own = sum(row.own for row in rows) * settings.rounds * settings.own * LABELLED
    side_by_side = max(1, min(cores, plan.seeds))
    return round(plan.seeds * ((1 + teachers) * first + steps + looked + own) / side_by_side, 1)


def checked(names: Sequence[str], truth: bool) -> tuple[str, ...]:
    """Names of rows in the table's order, the control always among them; UsageError for one there is not."""
    known = [row.name for row in METHODS if truth or row.knows in ("nothing", "teachers")]
    return rows_called(names, known, CONTROL, "--methods: there is no method")
