"""What a model is trained towards, as rows of one table: a new target is one function and one row.

A row is a function (lab) → lesson, or → a model that has learnt already. ``lab`` has the documents, and gives models
trained on other rows when asked. Only ``oracle`` looks at the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import nn

from klype.data.kneser_ney import KneserNey
from klype.data.order import mix
from klype.engine.engine import Engine
from klype.experiments.bias.corpus import Corpus, Ids, Truth, targets
from klype.experiments.bias.counts import Floats, cross_fitted
from klype.experiments.bias.lab import LabSettings, Learnt, Lesson, Mixture, Soft, predict
from klype.model.transformer import Transformer
from klype.values import Request

SMOOTHED, MIXED = 0.05, 0.3
ORDER = 4
TIMES, FEWEST = 3.0, 4
"""The compute of a pair and its student, times that of one-hot; and the epochs that the student has in any case."""
DECAYED = 10.0  # times the weight decay
BLANKS, AVERAGE, LONGER = 0.3, 0.98, 2
"""Of a steady model: the share of hidden context, what the mean of weights keeps, and its epochs, times the others'."""
STEADY = 3  # steady teachers
WRITTEN = 2  # times the documents there are
PORTION = 64  # documents that teachers read at a time


class Lab(Protocol):
    """One cell's documents and settings, and what has been trained on them."""

    corpus: Corpus
    settings: LabSettings
    seed: int

    def taught(self, target: str, member: int = 0) -> Learnt:
        """The model trained on this row; members differ in initial weights and order. Trained when first asked for."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """``kind``: the baseline, a cure, the truth, or beside: no student of the same size, so neither cure nor winner.

    ``how``: its model is trained, where that differs from the others. ``members``: the row of which several models
    teach it.
    """

    name: str
    make: Callable[[Lab], Lesson | Learnt]
    kind: Literal["baseline", "cure", "beside", "truth"] = "cure"
    how: Callable[[LabSettings], LabSettings] = lambda settings: settings
    members: str = ""


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


def one_hot(lab: Lab) -> Lesson:
    """The word that followed, and nothing else."""
    return Lesson(lab.corpus.train)


def smoothing(lab: Lab) -> Lesson:
    """A little of every word: (1 − ε) one-hot + ε uniform."""
    return Lesson(lab.corpus.train, mixed(hard(lab), uniform(lab.corpus.size), SMOOTHED))


def kneser_ney(lab: Lab) -> Lesson:
    """What followed the same three words elsewhere in the documents, mixed in."""
    return Lesson(lab.corpus.train, mixed(hard(lab), rows(counted(lab)), MIXED))


def self_taught(lab: Lab) -> Lesson:
    """What an earlier self says: the same model, trained on one-hot targets before (born-again networks, 2018)."""
    return _taught(lab, [lab.taught("one-hot")])


def larger(lab: Lab) -> Lesson:
    """What a model of twice the width says."""
    return _taught(lab, [lab.taught("larger-one-hot")])


def self_taught_twice(lab: Lab) -> Lesson:
    """What the student of an earlier self says."""
    return _taught(lab, [lab.taught("earlier-self")])


def self_and_counts(lab: Lab) -> Lesson:
    """What an earlier self says, mixed with Kneser–Ney in the share that fits held-out documents best."""
    return _with_counts(lab, _teachers(lab, 1))


def pair(lab: Lab) -> Lesson:
    """The same with two models, and a student that trains for what is left of three times the compute of one-hot."""
    lesson = _with_counts(lab, _teachers(lab, 2))
    one = lab.taught("one-hot")
    epoch = 3 * one.reads * sum(len(d) - 1 for d in lesson.documents)
    left = int((TIMES * one.flops - lesson.flops) / epoch)
    return replace(lesson, epochs=min(max(left, FEWEST), lab.settings.epochs))


def best_of(lab: Lab) -> Learnt:
    """One-hot with the compute of five: of five models, the one that says held-out documents best."""
    teachers = _teachers(lab)
    best = min(teachers, key=lambda t: min(loss for _, loss, _ in t.curve))
    return replace(best, flops=sum(t.flops for t in teachers))


def together(lab: Lab) -> Learnt:
    """The five themselves, at five times the cost of every answer."""
    return _mixture(_teachers(lab))


def ensemble(lab: Lab) -> Lesson:
    """What five models say on average that differ in nothing but their first weights and the order of documents."""
    return _taught(lab, _teachers(lab))


def ensemble_and_counts(lab: Lab) -> Lesson:
    """The ensemble mixed with Kneser–Ney, in the share that fits held-out documents best."""
    return _with_counts(lab, _teachers(lab))


def ensemble_and_written(lab: Lab) -> Lesson:
    """… and as many documents again that the five have written, labelled by the same mixture."""
    return _with_counts(lab, _teachers(lab), written(lab, _teachers(lab), len(lab.corpus.train)))


def steady_self(lab: Lab) -> Lesson:
    """What a steady model says."""
    return _taught(lab, _teachers(lab, 1, "steady"))


def steady_together(lab: Lab) -> Learnt:
    """The three steady models themselves."""
    return _mixture(_teachers(lab, name="steady"))


def steady_ensemble(lab: Lab) -> Lesson:
    """What three steady models say on average."""
    return _taught(lab, _teachers(lab, name="steady"))


def steady_written(lab: Lab) -> Lesson:
    """… and twice as many documents again that the three have written."""
    teachers = _teachers(lab, name="steady")
    return _taught(lab, teachers, written(lab, teachers, WRITTEN * len(lab.corpus.train)))


def oracle(lab: Lab) -> Lesson:
    """p itself: what no corpus shows, and the least that any target can leave."""
    assert lab.corpus.truth is not None, "only the world knows its truth"
    return Lesson(lab.corpus.train, true(lab.corpus.truth, lab.corpus.size))


TARGETS = (
    Target("one-hot", one_hot, "baseline"),
    Target("label-smoothing", smoothing),
    Target("kneser-ney", kneser_ney),
    Target("earlier-self", self_taught),
    Target("earlier-self-twice", self_taught_twice),
    Target("larger-one-hot", one_hot, "beside", wide),
    Target("larger-teacher", larger),
    Target("self-kneser-ney", self_and_counts),
    Target("pair-kneser-ney", pair),
    Target("best-of-five", best_of, "baseline", members="one-hot"),
    Target("five-together", together, "beside", members="one-hot"),
    Target("ensemble", ensemble, members="one-hot"),
    Target("ensemble-kneser-ney", ensemble_and_counts, members="one-hot"),
    Target("ensemble-written", ensemble_and_written, members="one-hot"),
    Target("strong-decay", one_hot, how=decayed),
    Target("averaged", one_hot, how=averaged),
    Target("blanks", one_hot, how=blanked),
    Target("steady", one_hot, how=steady),
    Target("steady-kneser-ney", kneser_ney, how=steady),
    Target("steady-self", steady_self, how=long_averaged),
    Target("steady-together", steady_together, "beside", members="steady"),
    Target("steady-ensemble", steady_ensemble, how=long_averaged, members="steady"),
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


def uniform(size: int) -> Soft:
    return lambda positions: torch.full((len(positions), size), 1 / size)


def rows(table_NV: torch.Tensor | Floats) -> Soft:
    """A table kept in half precision; each row is made to sum to one again."""
    kept_NV = torch.as_tensor(table_NV).half()

    def soft(positions: torch.Tensor) -> torch.Tensor:
        p_nV = kept_NV[positions].float()
        return p_nV / p_nV.sum(-1, keepdim=True)

    return soft


def mixed(first: Soft, second: Soft, share: float) -> Soft:
    """(1 − share) · first + share · second."""
    assert 0 <= share <= 1
    return lambda positions: torch.lerp(first(positions), second(positions), share)


def true(truth: Truth, size: int) -> Soft:
    starts, ids, p = map(torch.from_numpy, (truth.starts, truth.ids, truth.p))

    def soft(positions: torch.Tensor) -> torch.Tensor:
        counts = starts[positions + 1] - starts[positions]
        row = torch.repeat_interleave(torch.arange(len(positions)), counts)
        first = torch.repeat_interleave(starts[positions] - (counts.cumsum(0) - counts), counts)
        at = first + torch.arange(len(row))
        out_nV = torch.zeros(len(positions), size)
        out_nV[row, ids[at]] = p[at]
        return out_nV

    return soft


# teachers


def average(models: Sequence[nn.Module], documents: Sequence[Ids]) -> torch.Tensor:
    """The mean of the models' distributions at every target, [N, V] in half precision, read a few at a time."""
    portions = [documents[at : at + PORTION] for at in range(0, len(documents), PORTION)]
    return torch.cat([predict(Mixture(models), part).exp_().half() for part in portions])


def counted(lab: Lab) -> Floats:
    return cross_fitted(lab.corpus.train, lab.corpus.size, ORDER)


def best_share(first_NV: torch.Tensor, second_NV: torch.Tensor, documents: Sequence[Ids]) -> float:
    """The share of the second, in twentieths, with which the mixture says the documents best."""
    at_N1 = torch.from_numpy(targets(documents))[:, None]
    a_N, b_N = (table.float().gather(1, at_N1)[:, 0].clamp_min(1e-9) for table in (first_NV, second_NV))
    shares = [k / 20 for k in range(20)]
    return max(shares, key=lambda share: float(torch.lerp(a_N, b_N, share).log().mean()))


def written(lab: Lab, teachers: Sequence[Learnt], count: int) -> tuple[Ids, ...]:
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


def _teachers(lab: Lab, count: int = 0, name: str = "one-hot") -> list[Learnt]:
    return [lab.taught(name, k) for k in range(count or members(lab.settings)[name])]


def _mixture(models: Sequence[Learnt]) -> Learnt:
    turned = all(m.turned for m in models)
    return Learnt(
        Mixture([m.model for m in models]), [], turned, sum(m.flops for m in models), sum(m.reads for m in models)
    )


def _taught(lab: Lab, teachers: Sequence[Learnt], more: tuple[Ids, ...] = ()) -> Lesson:
    documents = (*lab.corpus.train, *more)
    table_NV = average([t.model for t in teachers], documents)
    return Lesson(documents, rows(table_NV), _cost(teachers, documents))


def _with_counts(lab: Lab, teachers: Sequence[Learnt], more: tuple[Ids, ...] = ()) -> Lesson:
    models, corpus = [t.model for t in teachers], lab.corpus
    table = KneserNey(corpus.train, corpus.size, ORDER)
    held_NV = torch.from_numpy(table.table(corpus.held_out))
    share = best_share(average(models, corpus.held_out), held_NV, corpus.held_out)
    counts_NV = torch.from_numpy(counted(lab))
    if more:
        counts_NV = torch.cat([counts_NV, torch.from_numpy(table.table(more)).half()])
    documents = (*corpus.train, *more)
    mixed_NV = average(models, documents).lerp_(counts_NV, share)
    return Lesson(documents, rows(mixed_NV), _cost(teachers, documents))


def _cost(teachers: Sequence[Learnt], documents: Sequence[Ids]) -> float:
    """Multiply–adds, twice: the teachers' training, and their reading of the documents."""
    tokens = sum(len(d) - 1 for d in documents)
    return sum(t.flops + t.reads * tokens for t in teachers)
