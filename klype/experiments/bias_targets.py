"""The training targets of ``klype bias`` and the cell that trains on them: a new target is one function and one row.

The function of a row takes a ``BiasCell`` (``lab``) and returns a training set or a trained model. The cell has the
documents, and trains the models of other rows on request. Only ``oracle`` uses the truth.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import nn

from klype import durable
from klype.data.ngram import KneserNey
from klype.data.seeds import mix
from klype.engine.engine import Engine
from klype.experiments import training
from klype.experiments.corpus import targets
from klype.experiments.framework import Arm, Cell, by_name
from klype.experiments.training import Curve, LabSettings, Mixture, Soft, TrainedModel, TrainingSet, average, rows
from klype.jsons import read_saved
from klype.model.transformer import Transformer
from klype.values import Floats, Request, Tokens

WATCHED = 24  # test documents whose KL is measured while a model trains
SMOOTHED, MIXED = 0.05, 0.3  # shares of the uniform distribution and of Kneser–Ney in mixed targets
# order of the n-grams; folds for cross-fitting, each labelled by the others
ORDER, FOLDS = 4, 8
# compute of a pair of teachers and their student relative to one-hot; minimum number of epochs of the student
TIMES, MIN_EPOCHS = 3.0, 4
DECAYED = 10.0  # factor on the weight decay
# a steady model: share of context that is hidden, decay of the weight average, factor on the number of epochs
BLANKS, AVERAGE, LONGER = 0.3, 0.98, 2
STEADY = 3  # number of steady teachers
WRITTEN = 2  # texts that teachers write, relative to the number of documents


@dataclass(frozen=True)
class Target(Arm):
    """What a model is trained towards. ``make(lab)``: its training set, or a trained model.

    Arms of kind "beside" are models of another size, which are not compared as cures. ``how``: changes the settings of
    the training. ``members``: the row of which several models are its teachers.
    """

    how: Callable[[LabSettings], LabSettings] = lambda settings: settings
    members: str = ""


# ways to train


def settings_change(times: dict[str, float], **fixed: float) -> Callable[[LabSettings], LabSettings]:
    """A function that multiplies some settings by ``times`` and sets others to ``fixed`` values."""
    return lambda own: own.model_copy(update=fixed | {name: by * getattr(own, name) for name, by in times.items()})


wide = settings_change({"width": 2})
# strong weight decay
decayed = settings_change({"decay": DECAYED})
# the model is the mean of the last steps' weights
averaged = settings_change({}, average=AVERAGE)
# part of the context is hidden: less can be memorised, and training takes longer
blanked = settings_change({"epochs": LONGER}, blanks=BLANKS)
# for students, which soft targets already keep from memorising
long_averaged = settings_change({"epochs": LONGER}, average=AVERAGE)
steady = settings_change({"epochs": LONGER, "decay": DECAYED}, average=AVERAGE, blanks=BLANKS)


# the rows


def one_hot(lab: BiasCell) -> TrainingSet:
    """The word that followed in the document."""
    return TrainingSet(lab.corpus.train)


def label_smoothing(lab: BiasCell) -> TrainingSet:
    """Label smoothing: (1 − ε) one-hot + ε uniform."""
    return TrainingSet(lab.corpus.train, training.interpolate(hard(lab), training.uniform(lab.corpus.size), SMOOTHED))


def kneser_ney(lab: BiasCell) -> TrainingSet:
    """One-hot mixed with a Kneser–Ney n-gram model of the other documents."""
    counted = rows(cross_fitted(lab.corpus.train, lab.corpus.size))
    return TrainingSet(lab.corpus.train, training.interpolate(hard(lab), counted, MIXED))


def student(lab: BiasCell, of: str = "one-hot", count: int = 0, counts: bool = False, writing: int = 0) -> TrainingSet:
    """Distillation from ``count`` models of the row ``of`` (0: the default number), which differ only in their initial
    weights and the order of documents. A single teacher of the same size: born-again networks (Furlanello et al. 2018).

    ``counts``: the teachers are mixed with Kneser–Ney in the share that fits held-out documents best. ``writing``: the
    teachers write texts, so many times the number of documents, which are labelled in the same way.
    """
    teachers, corpus = lab.teachers(of, count), lab.corpus
    models = [teacher.model for teacher in teachers]
    more = sample_documents(lab, teachers, writing * len(corpus.train)) if writing else ()
    documents = (*corpus.train, *more)
    table_NV = average(models, documents)
    if counts:
        table = KneserNey(corpus.train, corpus.size, ORDER)
        held_NV = torch.from_numpy(table.table(corpus.held_out))
        share = best_share(average(models, corpus.held_out), held_NV, corpus.held_out)
        counts_NV = torch.from_numpy(cross_fitted(corpus.train, corpus.size))
        if more:
            counts_NV = torch.cat([counts_NV, torch.from_numpy(table.table(more)).half()])
        table_NV.lerp_(counts_NV, share)
    # compute of the teachers' training, and of reading the documents
    tokens = sum(len(d) - 1 for d in documents)
    return TrainingSet(documents, rows(table_NV), sum(t.flops + t.reads * tokens for t in teachers))


def together(lab: BiasCell, of: str) -> TrainedModel:
    """The ensemble of the teachers itself, which makes every answer more expensive."""
    models = lab.teachers(of)
    turned = all(m.turned for m in models)
    flops, reads = sum(m.flops for m in models), sum(m.reads for m in models)
    return TrainedModel(Mixture([m.model for m in models]), [], turned, flops, reads)


def pair(lab: BiasCell) -> TrainingSet:
    """A student of two models and counts, which trains with what they leave of TIMES the compute of one-hot."""
    made = student(lab, count=2, counts=True)
    one = lab.trained_model("one-hot")
    epoch = 3 * one.reads * sum(len(d) - 1 for d in made.documents)
    left = int((TIMES * one.flops - made.flops) / epoch)
    return replace(made, epochs=min(max(left, MIN_EPOCHS), lab.settings.epochs))


def best_of(lab: BiasCell) -> TrainedModel:
    """Of all one-hot teachers the one with the lowest held-out loss, at the compute of all of them."""
    teachers = lab.teachers("one-hot")
    best = min(teachers, key=lambda t: min(loss for _, loss, _ in t.curve))
    return replace(best, flops=sum(t.flops for t in teachers))


def oracle(lab: BiasCell) -> TrainingSet:
    """The true distribution p itself, which no corpus shows: the best that any target can do."""
    assert lab.corpus.truth is not None, "only the world knows its truth"
    return TrainingSet(lab.corpus.train, training.true(lab.corpus.truth, lab.corpus.size))


TARGETS = by_name(
    Target("one-hot", one_hot, "baseline"),
    Target("label-smoothing", label_smoothing),
    Target("kneser-ney", kneser_ney),
    Target("earlier-self", partial(student, count=1)),
    Target("earlier-self-twice", partial(student, of="earlier-self", count=1)),
    Target("larger-one-hot", one_hot, "beside", wide),
    Target("larger-teacher", partial(student, of="larger-one-hot", count=1)),
    Target("self-kneser-ney", partial(student, count=1, counts=True)),
    Target("pair-kneser-ney", pair),
    Target("best-of-five", best_of, "baseline", members="one-hot"),
    Target("five-together", partial(together, of="one-hot"), "beside", members="one-hot"),
    Target("ensemble", student, members="one-hot"),
    Target("ensemble-kneser-ney", partial(student, counts=True), members="one-hot"),
    Target("ensemble-written", partial(student, counts=True, writing=1), members="one-hot"),
    Target("strong-decay", one_hot, how=decayed),
    Target("averaged", one_hot, how=averaged),
    Target("blanks", one_hot, how=blanked),
    Target("steady", one_hot, how=steady),
    Target("steady-kneser-ney", kneser_ney, how=steady),
    Target("steady-self", partial(student, of="steady", count=1), how=long_averaged),
    Target("steady-together", partial(together, of="steady"), "beside", members="steady"),
    Target("steady-ensemble", partial(student, of="steady"), how=long_averaged, members="steady"),
    Target("steady-written", partial(student, of="steady", writing=WRITTEN), how=averaged, members="steady"),
    Target("oracle", oracle, "truth"),
    Target("oracle-steady", oracle, "truth", steady),
)


def members(settings: LabSettings) -> dict[str, int]:
    """The default number of teachers by row."""
    return {"one-hot": settings.teachers, "steady": STEADY}


# distributions at positions


def hard(lab: BiasCell) -> Soft:
    """One-hot distributions of the training documents."""
    at_N, size = torch.from_numpy(targets(lab.corpus.train)), lab.corpus.size
    return lambda positions: torch.nn.functional.one_hot(at_N[positions], size).float()


# teachers


def cross_fitted(documents: Sequence[Sequence[int]], size: int, order: int = ORDER, folds: int = FOLDS) -> Floats:
    """Kneser–Ney distributions [N, V] at all targets, each document's from the *other* folds: counts that include a
    target itself would only repeat it."""
    folds = min(folds, len(documents))
    assert folds >= 2
    ends = np.cumsum([0, *(len(d) - 1 for d in documents)])
    out = np.empty((int(ends[-1]), size), np.float16)
    for f in range(folds):
        others = KneserNey([d for i, d in enumerate(documents) if i % folds != f], size, order)
        for i in range(f, len(documents), folds):
            out[ends[i] : ends[i + 1]] = others.table([documents[i]])
    return out


def best_share(first_NV: torch.Tensor, second_NV: torch.Tensor, documents: Sequence[Tokens]) -> float:
    """The share of the second distribution, in twentieths, with which the mixture fits the documents best."""
    a_N, b_N = (training.target_logp(table.float(), documents).clamp_min(1e-9) for table in (first_NV, second_NV))
    shares = [k / 20 for k in range(20)]
    return max(shares, key=lambda share: float(torch.lerp(a_N, b_N, share).log().mean()))


def sample_documents(lab: BiasCell, teachers: Sequence[TrainedModel], count: int) -> tuple[Tokens, ...]:
    """``count`` documents sampled from the teachers at temperature 1, an equal part from each."""
    longest = max(len(d) for d in lab.corpus.train)
    begin, end = lab.corpus.train[0][0], lab.corpus.end
    out: list[Tokens] = []
    for k, teacher in enumerate(teachers):
        share = count // len(teachers) + (k < count % len(teachers))
        if share and isinstance(teacher.model, Transformer):
            request = Request((begin,), share, longest - 1, seed=mix(lab.seed, 6, k), stop=(end,))
            out += [(begin, *trace.tokens) for trace in Engine(teacher.model).run([request])[0]]
    return tuple(out)


@dataclass(slots=True)
class BiasCell(Cell):
    """A cell whose models are trained and measured once each, when they are first needed.

    The JSON file of a model holds its learning curve while it trains, and its measures afterwards. Its weights are
    stored next to it until the cell is finished.
    """

    known: dict[tuple[str, int], TrainedModel] = field(default_factory=dict)

    def run(self, names: Sequence[str]) -> None:
        for name in names:
            self.trained_model(name)

    def trained_model(self, name: str, member: int = 0) -> TrainedModel:
        """The model trained on this target; members differ in initial weights and the order of documents."""
        key, file = (name, member), self.folder / f"{name}.{member}.json"
        if key not in self.known:
            about, weights = read_saved(file) or {}, file.with_suffix(".safetensors")
            if "values" in about and weights.is_file():
                model = Transformer(training.shape(self.corpus.size, TARGETS[name].how(self.settings)))
                model.load_state_dict(load_file(weights))
                told = [about[name] for name in ("curve", "turned", "flops", "reads")]
                self.known[key] = TrainedModel(model.eval(), *told)
            else:
                self.known[key] = self._train(TARGETS[name], member, file)
        return self.known[key]

    def teachers(self, name: str, count: int = 0) -> list[TrainedModel]:
        """``count`` models of a row (0: the default number)."""
        return [self.trained_model(name, k) for k in range(count or members(self.settings)[name])]

    def _train(self, row: Target, member: int, file: Path) -> TrainedModel:
        began, settings = time.perf_counter(), row.how(self.settings)
        about: dict[str, Any] = {"target": row.name, "documents": self.documents, "seed": self.seed}
        about |= {"member": member, "epochs": settings.epochs}

        def write(curve: Curve) -> None:
            durable.write_out(file, json.dumps({**about, "curve": curve}, allow_nan=False).encode())

        def look(model: nn.Module, curve: Curve) -> None:
            """Adds the KL on some test documents to the curve."""
            if self.test.truth is not None:
                documents = self.test.documents[:WATCHED]
                truth = self.test.truth[: sum(len(d) - 1 for d in documents)]
                kl_N, *_ = training.compare_with_truth(training.predict(model, documents), truth)
                curve[-1] = (*curve[-1][:2], float(kl_N.mean()))
            write(curve)

        write([])
        made: TrainingSet | TrainedModel = row.make(self)
        if isinstance(made, TrainingSet):
            made = training.train_model(made, self.corpus, settings, mix(self.seed, member, 7), self.backend, look)
        about |= {"turned": made.turned, "flops": made.flops, "reads": made.reads}
        about["values"] = training.measure(made.model, self.test)
        if self.test.shown is not None:
            prefix, p = self.test.shown
            with torch.no_grad():
                about["bars"] = made.model(torch.tensor([prefix]))[0, -1].softmax(-1)[list(p)].tolist()
        if isinstance(made.model, Transformer):
            weights = {name: tensor.contiguous() for name, tensor in made.model.state_dict().items()}
            durable.write_out(file.with_suffix(".safetensors"), save(weights))
        about["seconds"] = time.perf_counter() - began
        write(made.curve)
        return made
