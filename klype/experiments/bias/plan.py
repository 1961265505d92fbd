"""What fits: how many documents and seeds, in training steps; kept, so that a resumed run is the same."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from klype import config
from klype.answers.traces import replace
from klype.experiments.bias.corpus import Corpus, Source
from klype.experiments.bias.lab import Beside, LabSettings, Lesson, learn
from klype.experiments.bias.targets import TARGETS, WRITTEN, members, one_hot, target, uniform
from klype.experiments.planning import check_documents, kept, rows_called
from klype.model.fused import fused

CHOICES = (
    ((300, 600, 1200), 5),
    ((200, 400, 800), 5),
    ((150, 300, 600), 5),
    ((150, 300, 600), 3),
    ((100, 200, 400), 3),
    ((75, 150, 300), 3),
    ((50, 100, 200), 2),
)
"""From the most wanted to the least: numbers of documents, and seeds."""
ENDED = 0.8  # of all steps are usually taken before held-out loss has turned for long enough
OTHER = 1.3  # times the training: truth, labels, measures


class Plan(config.Settings):
    """``steps``: of training, at most, over all cells."""

    documents: tuple[int, ...]
    seeds: int
    seed: int = 0
    targets: tuple[str, ...]
    settings: LabSettings = LabSettings()
    steps: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What a user wants; empty ``documents`` and 0 ``seeds``: what fits into the minutes."""

    minutes: float = 10.0
    documents: tuple[int, ...] = ()
    seeds: int = 0
    seed: int = 0
    targets: tuple[str, ...] = ()
    settings: LabSettings = field(default_factory=LabSettings)


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds a step: one-hot, and with whole distributions."""

    hard: float
    soft: float


def make(source: Source, folder: Path, asked: Asked, cores: int, compiled: Path | None = None) -> Plan:
    """The folder's plan, when an earlier start has left one; else a new one, which is kept there."""
    file = folder / "plan.json"
    if (before := kept(file, Plan)) is not None:
        return before
    names = checked(asked.targets, truth=source.knows)
    check_documents(source, asked.documents)
    few = source.corpus(asked.seed, 10 * asked.settings.rows, 8)
    choices = [(asked.documents or source.within(documents), asked.seeds or seeds) for documents, seeds in CHOICES]
    plan = fit(asked, list(dict.fromkeys(choices)), probe(few, asked.settings, compiled), names, cores)
    replace(file, plan.model_dump_json(indent=1).encode())
    return plan


def checked(names: Sequence[str], truth: bool) -> tuple[str, ...]:
    """Names of rows in the table's order, one-hot always among them; UsageError for one there is not."""
    known = [row.name for row in TARGETS if truth or row.kind != "truth"]
    return rows_called(names, known, "one-hot", "--targets: there are no targets")


def probe(corpus: Corpus, settings: LabSettings, compiled: Path | None) -> Speed:
    """Seconds a step on a few documents, either way, after one that warms up."""
    once = settings.model_copy(update={"epochs": 1})
    beside = Beside(fused=fused(compiled) if compiled else None)
    found = []
    for soft in (None, None, uniform(corpus.size)):
        began = time.perf_counter()
        learn(Lesson(corpus.train, soft), corpus, once, 0, beside)
        found.append((time.perf_counter() - began) / -(-len(corpus.train) // settings.rows))
    return Speed(*found[1:])


def steps(documents: int, targets: tuple[str, ...], settings: LabSettings) -> tuple[int, int]:
    """Steps of one cell at most: one-hot ones, and with whole distributions."""
    rows = [target(name) for name in targets]
    hard = sum(row.how(settings).epochs for row in rows if row.make is one_hot)
    soft = sum(row.how(settings).epochs for row in rows if row.make is not one_hot and row.kind in ("cure", "truth"))
    written = {"ensemble-written": 1, "steady-written": WRITTEN}  # times the documents, beside those there are
    soft += sum(more * target(name).how(settings).epochs for name, more in written.items() if name in targets)
    for name, count in members(settings).items():
        if any(row.members == name for row in rows):
            hard += (count - (name in targets)) * target(name).how(settings).epochs
    once = -(-documents // settings.rows)
    return hard * once, soft * once


def fit(
    asked: Asked, choices: Sequence[tuple[tuple[int, ...], int]], speed: Speed, names: tuple[str, ...], cores: int
) -> Plan:
    """The first of the choices that fits into the minutes; the last one when none does."""
    plan = Plan(documents=(), seeds=0, seed=asked.seed, targets=names, settings=asked.settings)
    for documents, seeds in choices:
        both = [steps(count, names, asked.settings) for count in documents]
        hard, soft = (seeds * sum(part) for part in zip(*both, strict=True))
        seconds = round(OTHER * ENDED * (hard * speed.hard + soft * speed.soft) / cores, 1)
        plan = plan.model_copy(
            update={"documents": documents, "seeds": seeds, "steps": hard + soft, "seconds": seconds}
        )
        if seconds <= 60 * asked.minutes:
            break
    return plan
