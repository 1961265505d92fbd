"""Training targets, one row each: a new target is one function and one row.

A row is a function (lab) → training set, or → a trained model. ``lab`` has the documents, and gives models trained on
other rows when asked. Only ``oracle`` looks at the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol

import numpy as np
import torch

from klype.data.ngram import KneserNey
from klype.data.seeds import mix
from klype.engine.engine import Engine
from klype.experiments.corpus import Corpus, Ids, targets
from klype.experiments.training import (
    LabSettings,
    Mixture,
    Soft,
    TrainedModel,
    TrainingSet,
    average,
    mixed,
    rows,
    true,
    uniform,
)
from klype.model.transformer import Transformer
from klype.values import Floats, Request


class Lab(Protocol):
    """What a target is made from: the cell's documents, and models trained on other targets when asked for."""

    @property
    def corpus(self) -> Corpus: ...
    @property
    def settings(self) -> LabSettings: ...
    @property
    def seed(self) -> int: ...
    def trained(self, name: str, member: int = 0) -> TrainedModel: ...


SMOOTHED, MIXED = 0.05, 0.3
# order of the n-grams; folds for cross-fitting, each labelled by the others
ORDER, FOLDS = 4, 8
# compute of a pair of teachers and their student relative to one-hot; least epochs of the student
TIMES, FEWEST = 3.0, 4
DECAYED = 10.0  # times the weight decay
# a steady model: share of context hidden, decay of the weight average, and how many times the usual epochs
BLANKS, AVERAGE, LONGER = 0.3, 0.98, 2
STEADY = 3  # steady teachers
WRITTEN = 2  # times the documents there are


@dataclass(frozen=True, slots=True)
class Target:
    """``kind``: the baseline, a cure, the truth, or beside: no student of the same size, so neither cure nor winner.

    ``how``: its model is trained, where that differs from the others. ``members``: the row of which several models
    teach it.
    """

    name: str
    make: Callable[[Lab], TrainingSet | TrainedModel]
    kind: Literal["baseline", "cure", "beside", "truth"] = "cure"
    how: Callable[[LabSettings], LabSettings] = lambda settings: settings
    members: str = ""

    @property
    def needs_truth(self) -> bool:
        return self.kind == "truth"


# ways to train


def wide(settings: LabSettings) -> LabSettings:
    """Twice the width."""
    return settings.model_copy(update={"width": 2 * settings.width})


def decayed(settings: LabSettings) -> LabSettings:
    """Weights are pulled towards zero much harder."""
    return settings.model_copy(update={"decay": DECAYED * settings.decay})


def averaged(settings: LabSettings) -> LabSettings:
    """The mean of the last steps' weights is the model."""
    return settings.model_copy(update={"average": AVERAGE})


def blanked(settings: LabSettings) -> LabSettings:
    """Three tenths of the context are hidden while it learns: less can be learnt by heart, and it takes longer."""
    return settings.model_copy(update={"blanks": BLANKS, "epochs": LONGER * settings.epochs})


def long_averaged(settings: LabSettings) -> LabSettings:
    """The mean of weights, over twice the epochs: for those whom soft targets keep from learning by heart already."""
    return averaged(settings).model_copy(update={"epochs": LONGER * settings.epochs})


def steady(settings: LabSettings) -> LabSettings:
    """All three: hidden context, weights pulled harder, and their mean."""
    return averaged(blanked(decayed(settings)))


# the rows


def one_hot(lab: Lab) -> TrainingSet:
    """The word that followed, and nothing else."""
    return TrainingSet(lab.corpus.train)


def smoothing(lab: Lab) -> TrainingSet:
    """A little of every word: (1 − ε) one-hot + ε uniform."""
    return TrainingSet(lab.corpus.train, mixed(hard(lab), uniform(lab.corpus.size), SMOOTHED))


def kneser_ney(lab: Lab) -> TrainingSet:
    """What followed the same three words elsewhere in the documents, mixed in."""
    return TrainingSet(lab.corpus.train, mixed(hard(lab), rows(counted(lab)), MIXED))


def student(lab: Lab, of: str, count: int = 0) -> TrainingSet:
    """What so many models of a row say on average (0: as many as teach together), which differ in nothing but their
    first weights and the order of documents; of an earlier self: born-again networks (2018)."""
    return _labelled(lab, _teachers(lab, count, of))


def together(lab: Lab, of: str) -> TrainedModel:
    """The teachers themselves, at so many times the cost of every answer."""
    models = _teachers(lab, name=of)
    turned = all(m.turned for m in models)
    flops, reads = sum(m.flops for m in models), sum(m.reads for m in models)
    return TrainedModel(Mixture([m.model for m in models]), [], turned, flops, reads)


def student_and_counts(lab: Lab, count: int = 0) -> TrainingSet:
    """What so many models say on average, mixed with Kneser–Ney in the share that fits held-out documents best."""
    return _with_counts(lab, _teachers(lab, count))


def pair(lab: Lab) -> TrainingSet:
    """The same with two models, and a student that trains for what is left of three times the compute of one-hot."""
    made = _with_counts(lab, _teachers(lab, 2))
    one = lab.trained("one-hot")
    epoch = 3 * one.reads * sum(len(d) - 1 for d in made.documents)
    left = int((TIMES * one.flops - made.flops) / epoch)
    return replace(made, epochs=min(max(left, FEWEST), lab.settings.epochs))


def best_of(lab: Lab) -> TrainedModel:
    """One-hot with the compute of five: of five models, the one that says held-out documents best."""
    teachers = _teachers(lab)
    best = min(teachers, key=lambda t: min(loss for _, loss, _ in t.curve))
    return replace(best, flops=sum(t.flops for t in teachers))


def ensemble_and_written(lab: Lab) -> TrainingSet:
    """… and as many documents again that the five have written, labelled by the same mixture."""
    return _with_counts(lab, _teachers(lab), written(lab, _teachers(lab), len(lab.corpus.train)))


def steady_written(lab: Lab) -> TrainingSet:
    """… and twice as many documents again that the three have written."""
    teachers = _teachers(lab, name="steady")
    return _labelled(lab, teachers, written(lab, teachers, WRITTEN * len(lab.corpus.train)))


def oracle(lab: Lab) -> TrainingSet:
    """p itself: what no corpus shows, and the least that any target can leave."""
    assert lab.corpus.truth is not None, "only the world knows its truth"
    return TrainingSet(lab.corpus.train, true(lab.corpus.truth, lab.corpus.size))


TARGETS = (
    Target("one-hot", one_hot, "baseline"),
    Target("label-smoothing", smoothing),
    Target("kneser-ney", kneser_ney),
    Target("earlier-self", partial(student, of="one-hot", count=1)),
    Target("earlier-self-twice", partial(student, of="earlier-self", count=1)),
    Target("larger-one-hot", one_hot, "beside", wide),
    Target("larger-teacher", partial(student, of="larger-one-hot", count=1)),
    Target("self-kneser-ney", partial(student_and_counts, count=1)),
    Target("pair-kneser-ney", pair),
    Target("best-of-five", best_of, "baseline", members="one-hot"),
    Target("five-together", partial(together, of="one-hot"), "beside", members="one-hot"),
    Target("ensemble", partial(student, of="one-hot"), members="one-hot"),
    Target("ensemble-kneser-ney", student_and_counts, members="one-hot"),
    Target("ensemble-written", ensemble_and_written, members="one-hot"),
    Target("strong-decay", one_hot, how=decayed),
    Target("averaged", one_hot, how=averaged),
    Target("blanks", one_hot, how=blanked),
    Target("steady", one_hot, how=steady),
    Target("steady-kneser-ney", kneser_ney, how=steady),
    Target("steady-self", partial(student, of="steady", count=1), how=long_averaged),
    Target("steady-together", partial(together, of="steady"), "beside", members="steady"),
    Target("steady-ensemble", partial(student, of="steady"), how=long_averaged, members="steady"),
    Target("steady-written", steady_written, how=averaged, members="steady"),
    Target("oracle", oracle, "truth"),
    Target("oracle-steady", oracle, "truth", steady),
)


def members(settings: LabSettings) -> dict[str, int]:
    """How many models of a row teach together."""
    return {"one-hot": settings.teachers, "steady": STEADY}


def target(name: str) -> Target:
    """The row of this name, which is there."""
    return next(row for row in TARGETS if row.name == name)


# distributions at positions


def hard(lab: Lab) -> Soft:
    """One-hot."""
    at_N, size = torch.from_numpy(targets(lab.corpus.train)), lab.corpus.size
    return lambda positions: torch.nn.functional.one_hot(at_N[positions], size).float()


# teachers


def cross_fitted(documents: Sequence[Sequence[int]], size: int, order: int = ORDER, folds: int = FOLDS) -> Floats:
    """[N, V]: each document's targets by what all *other* folds say. What saw a target itself would only repeat it."""
    folds = min(folds, len(documents))
    assert folds >= 2
    ends = np.cumsum([0, *(len(d) - 1 for d in documents)])
    out = np.empty((int(ends[-1]), size), np.float16)
    for f in range(folds):
        others = KneserNey([d for i, d in enumerate(documents) if i % folds != f], size, order)
        for i in range(f, len(documents), folds):
            out[ends[i] : ends[i + 1]] = others.table([documents[i]])
    return out


def counted(lab: Lab) -> Floats:
    return cross_fitted(lab.corpus.train, lab.corpus.size)


def best_share(first_NV: torch.Tensor, second_NV: torch.Tensor, documents: Sequence[Ids]) -> float:
    """The share of the second, in twentieths, with which the mixture says the documents best."""
    at_N1 = torch.from_numpy(targets(documents))[:, None]
    a_N, b_N = (table.float().gather(1, at_N1)[:, 0].clamp_min(1e-9) for table in (first_NV, second_NV))
    shares = [k / 20 for k in range(20)]
    return max(shares, key=lambda share: float(torch.lerp(a_N, b_N, share).log().mean()))


def written(lab: Lab, teachers: Sequence[TrainedModel], count: int) -> tuple[Ids, ...]:
    """``count`` documents drawn from the teachers, each its part, at temperature 1."""
    longest = max(len(d) for d in lab.corpus.train)
    begin, end = lab.corpus.train[0][0], lab.corpus.end
    out: list[Ids] = []
    for k, teacher in enumerate(teachers):
        share = count // len(teachers) + (k < count % len(teachers))
        if share and isinstance(teacher.model, Transformer):
            request = Request((begin,), share, longest - 1, seed=mix(lab.seed, 6, k), stop=(end,))
            out += [(begin, *trace.tokens) for trace in Engine(teacher.model).run([request])[0]]
    return tuple(out)


def _teachers(lab: Lab, count: int = 0, name: str = "one-hot") -> list[TrainedModel]:
    return [lab.trained(name, k) for k in range(count or members(lab.settings)[name])]


def _labelled(lab: Lab, teachers: Sequence[TrainedModel], more: tuple[Ids, ...] = ()) -> TrainingSet:
    documents = (*lab.corpus.train, *more)
    table_NV = average([t.model for t in teachers], documents)
    return TrainingSet(documents, rows(table_NV), _cost(teachers, documents))


def _with_counts(lab: Lab, teachers: Sequence[TrainedModel], more: tuple[Ids, ...] = ()) -> TrainingSet:
    models, corpus = [t.model for t in teachers], lab.corpus
    table = KneserNey(corpus.train, corpus.size, ORDER)
    held_NV = torch.from_numpy(table.table(corpus.held_out))
    share = best_share(average(models, corpus.held_out), held_NV, corpus.held_out)
    counts_NV = torch.from_numpy(counted(lab))
    if more:
        counts_NV = torch.cat([counts_NV, torch.from_numpy(table.table(more)).half()])
    documents = (*corpus.train, *more)
    mixed_NV = average(models, documents).lerp_(counts_NV, share)
    return TrainingSet(documents, rows(mixed_NV), _cost(teachers, documents))


def _cost(teachers: Sequence[TrainedModel], documents: Sequence[Ids]) -> float:
    """Multiply–adds, twice: the teachers' training, and their reading of the documents."""
    tokens = sum(len(d) - 1 for d in documents)
    return sum(t.flops + t.reads * tokens for t in teachers)
