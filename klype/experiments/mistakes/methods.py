"""How a model goes on learning, as rows of one table: a new method is one function and one row.

A row is a function (course) → training. ``knows`` says what the method must be told beside documents: nothing, what
teachers say, which words the language allows, or the true probabilities.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from klype.data.order import mix
from klype.examine.truth import Reader
from klype.experiments.corpus import Ids
from klype.experiments.mistakes.course import Course, Training
from klype.experiments.mistakes.texts import ByTeachers, ByTruth, Labeller, enriched, rounds, scheduled
from klype.experiments.training import LabelledBatches, TrainingSet
from klype.train.objectives import Objective, cross_entropy, reverse_divergence, soft_cross_entropy, with_rehearsal
from klype.train.policy import PolicySettings, grpo
from klype.train.rewards import Asked
from klype.train.rollout import RolloutBatches, RolloutSettings
from klype.values import Batch, Floats

Kind = Literal["control", "baseline", "beside", "cure"]
Knows = Literal["nothing", "teachers", "language", "truth"]
GROUP, WORDS = 8, 12
"""Answers to a beginning that are compared with each other; words of each."""


@dataclass(frozen=True, slots=True)
class Method:
    """``kind``: the control, a known baseline, beside (a cure's labels on documents alone: what own texts add shows
    against it), or a cure. ``times`` the steps; ``back``: the model learns to take words back; ``own``: it learns
    from texts of its own that the truth must be told of."""

    name: str
    make: Callable[[Course], Training]
    kind: Kind = "cure"
    knows: Knows = "nothing"
    times: int = 1
    back: bool = False
    own: bool = False

    @property
    def needs_truth(self) -> bool:
        return self.knows not in ("nothing", "teachers")


# the rows


def documents(course: Course) -> Training:
    """The documents again, one-hot."""
    return Training(_documents(course, TrainingSet(course.corpus.train)), cross_entropy)


def scheduled_sampling(course: Course) -> Training:
    """Words of the documents replaced by the model's own; one-hot."""
    return Training(scheduled(course), cross_entropy)


def labelled(course: Course, by: Callable[[Course], Labeller]) -> Training:
    """The documents with whole distributions: what labels do without own texts."""
    return Training(_documents(course, TrainingSet(course.corpus.train, by(course).documents())), soft_cross_entropy)


def own(course: Course, by: Callable[[Course], Labeller], objective: Objective) -> Training:
    """Documents and own texts with whole distributions."""
    return Training(rounds(course, by(course)), objective)


def backspace(course: Course, by: Callable[[Course], Labeller]) -> Training:
    """Documents, and some with a wrong word of the model's own and the token that takes it back; one-hot."""
    return Training(enriched(course, by(course)), cross_entropy)


def outcome(course: Course) -> Training:
    """Continuations rewarded when the language allows every word of them (a policy gradient), and documents beside."""
    settings = RolloutSettings(
        answers=GROUP, limit=WORDS, unfinished=0.0, seed=mix(course.seed, 19) % 2**20, stop=(course.corpus.end,)
    )
    half = max(GROUP, course.settings.rows // 2)
    plain = LabelledBatches(TrainingSet(course.corpus.train), course.settings.rows - half or half, mix(course.seed, 14))
    train, readers = course.corpus.train, dict[Ids, Reader]()

    def ask(step: int) -> Sequence[Asked]:
        chosen = [mix(course.seed, 20, step, k) for k in range(half // GROUP)]
        found = [train[number % len(train)] for number in chosen]
        return [Asked(d[: 1 + n // 7 % (len(d) - 1)]) for d, n in zip(found, chosen, strict=True)]

    def reward(asked: Sequence[Asked], said: Sequence[Sequence[int]]) -> Floats:
        readers.clear()
        course.spent.tokens += 2 * sum(len(a.prompt) + len(t) for a, t in zip(asked, said, strict=True))
        out = []
        for one, tokens in zip(asked, said, strict=True):
            if one.prompt not in readers:
                readers[one.prompt] = course.reader(one.prompt)
            out.append(float(readers[one.prompt].first_error(tuple(tokens)) is None))
        return np.array(out)

    def rehearsal(step: int) -> Batch:
        return next(plain)

    reference = copy.deepcopy(course.student.model).eval()
    objective = with_rehearsal(partial(grpo, settings=PolicySettings()), cross_entropy, 1.0)
    return Training(
        RolloutBatches(settings, ask, course.student.engine, reward, reference, rehearsal), objective, rate=0.2
    )


METHODS = (
    Method("documents", documents, "control"),
    Method("longer", documents, "control", times=2),
    Method("scheduled-sampling", scheduled_sampling, "baseline"),
    Method("truth", partial(labelled, by=ByTruth), "beside", "truth"),
    Method("own-truth", partial(own, by=ByTruth, objective=soft_cross_entropy), knows="truth", own=True),
    Method("teachers", partial(labelled, by=ByTeachers), "beside", "teachers"),
    Method("own-teachers", partial(own, by=ByTeachers, objective=soft_cross_entropy), knows="teachers"),
    Method("own-teachers-reverse", partial(own, by=ByTeachers, objective=reverse_divergence), knows="teachers"),
    Method("backspace", partial(backspace, by=ByTruth), knows="language", back=True),
    Method("backspace-teachers", partial(backspace, by=ByTeachers), knows="teachers", back=True),
    Method("outcome", outcome, knows="language", own=True),
)
CONTROL = "documents"
BEFORE = "before"
"""The model as it was, which every method starts from."""


def method(name: str) -> Method:
    """The row of this name, which is there."""
    return next(row for row in METHODS if row.name == name)


def _documents(course: Course, data: TrainingSet) -> LabelledBatches:
    return LabelledBatches(data, course.settings.rows, mix(course.seed, 14))
