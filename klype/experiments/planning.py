"""The plan of an experiment: documents, questions and seeds that fit into the minutes; saved for resuming."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import SerializeAsAny

from klype import config
from klype.errors import KlypeError, UsageError
from klype.experiments.corpus import Source
from klype.experiments.training import LabSettings, TrainingHooks, TrainingSet, train_model, uniform
from klype.jsons import saved
from klype.model.attention import TORCH
from klype.model.compiled import compiled_backend
from klype.planner import first_that_fits

PROBED = 8  # steps that are timed


class PlanChoice(NamedTuple):
    """One plan to choose from. ``questions``: documents to test on, 0: as many as usual."""

    documents: tuple[int, ...]
    seeds: int
    questions: int = 0


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What a user wants; empty ``documents`` and 0 ``seeds``: what fits into the minutes; no ``arms``: all."""

    minutes: float
    documents: tuple[int, ...] = ()
    seeds: int = 0
    seed: int = 0
    arms: tuple[str, ...] = ()
    settings: LabSettings = field(default_factory=LabSettings)


class ExperimentPlan(config.Settings):
    """``steps``: of training, over all cells at most (0 where they are a setting); ``seconds``: about so long."""

    documents: tuple[int, ...]
    questions: int = 0
    seeds: int
    seed: int = 0
    arms: tuple[str, ...]
    settings: SerializeAsAny[LabSettings] = LabSettings()
    steps: int = 0
    seconds: float = 0.0

    def document(self, noun: str, one_size: bool) -> dict[str, Any]:
        """As ``--json`` and plan.json have it: arms under their ``noun``, and one number where there is one size."""
        made = self.model_dump(exclude={"arms", "steps" if one_size else "questions"})
        return {**made, f"{noun}s": self.arms} | ({"documents": self.documents[-1]} if one_size else {})

    @staticmethod
    def read(file: Path, noun: str, settings: type[LabSettings]) -> ExperimentPlan | None:
        """The plan that an earlier start has left there; None where it is the first. KlypeError for a damaged one."""
        if not file.is_file():
            return None
        try:
            made = saved(file) or {}
            sizes = made.pop("documents")
            about = {"documents": sizes if isinstance(sizes, list) else (sizes,), "arms": made.pop(f"{noun}s")}
            return ExperimentPlan(**made | about | {"settings": settings.model_validate(made["settings"])})
        except (KeyError, ValueError):
            raise KlypeError(f"{file} is damaged.", "Choose another --out.") from None


class Speed(NamedTuple):
    """Seconds a step: one-hot, and with whole distributions."""

    hard: float
    soft: float


def fit(
    request: PlanRequest,
    choices: Sequence[PlanChoice],
    arms: tuple[str, ...],
    cost: Callable[[ExperimentPlan], tuple[int, float]],
) -> ExperimentPlan:
    """The first of the choices that fits into the minutes; the last one when none does. ``cost``: steps and seconds."""

    def planned(choice: PlanChoice) -> ExperimentPlan:
        plan = ExperimentPlan(**choice._asdict(), seed=request.seed, arms=arms, settings=request.settings)
        steps, seconds = cost(plan)
        return plan.model_copy(update={"steps": steps, "seconds": round(seconds, 1)})

    return first_that_fits(map(planned, choices), lambda plan: plan.seconds, 60 * request.minutes)


def offered(source: Source, request: PlanRequest, choices: Sequence[PlanChoice]) -> list[PlanChoice]:
    """The choices that the source and the request leave. UsageError for more documents than the source has."""
    wanted = request.documents
    if wanted and (most := source.within(wanted)) != wanted:
        raise UsageError(
            f"--documents: the text has only {most[-1]} pieces to draw from.", f"Ask for {most[-1]} at most."
        )
    sizes = [wanted or source.within(documents)[-len(documents) :] for documents, _, _ in choices]
    found = [
        PlanChoice(size, request.seeds or one.seeds, one.questions) for size, one in zip(sizes, choices, strict=True)
    ]
    return list(dict.fromkeys(found))


def probe(source: Source, request: PlanRequest, compiled: Path | None) -> Speed:
    """Seconds a step on a few documents, either way, after one that warms up."""
    # one epoch of it is so many steps
    corpus = source.corpus(request.seed, PROBED * request.settings.rows, 8)
    once = request.settings.model_copy(update={"epochs": 1})
    hooks = TrainingHooks(backend=compiled_backend(compiled) if compiled else TORCH)
    found = []
    # the first warms up and does not count
    for soft in (None, None, uniform(corpus.size)):
        began = time.perf_counter()
        train_model(TrainingSet(corpus.train, soft), corpus, once, 0, hooks)
        found.append((time.perf_counter() - began) / -(-len(corpus.train) // once.rows))
    return Speed(*found[1:])
