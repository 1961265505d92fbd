"""The models of one cell: every target's is trained and measured once, and kept as soon as it is finished.

Each has a JSON file (what it is like, its curve, where it is now) and its weights, until the cell is done.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import nn

from klype.answers.traces import replace
from klype.data.seeds import mix
from klype.examine.calibration import calibration_error
from klype.experiments.bias.targets import Target, target
from klype.experiments.corpus import CorpusQuestion, Ids, SparseTruth, Test, targets
from klype.experiments.framework import Cell
from klype.experiments.training import Curve, TrainedModel, TrainingHooks, TrainingSet, predict, shape, train_model
from klype.jsons import saved
from klype.model.attention import TORCH
from klype.model.compiled import compiled_backend
from klype.model.transformer import Transformer

WATCHED = 24  # test documents whose KL is seen while a model trains


@dataclass(slots=True)
class Lab(Cell):
    """``trained`` trains what is asked for, once; what an earlier start has finished is read."""

    known: dict[tuple[str, int], TrainedModel] = field(default_factory=dict)

    def run(self, names: Sequence[str]) -> None:
        for name in names:
            self.trained(name)

    def trained(self, name: str, member: int = 0) -> TrainedModel:
        """The model trained on this target; members differ in initial weights and order."""
        key = (name, member)
        if key not in self.known:
            self.known[key] = self._read(name, member) or self._train(target(name), member)
        return self.known[key]

    def _train(self, row: Target, member: int) -> TrainedModel:
        began = time.perf_counter()
        settings = row.how(self.settings)
        about: dict[str, Any] = {
            "target": row.name,
            "documents": self.documents,
            "seed": self.seed,
            "member": member,
            "epochs": settings.epochs,
        }
        self._write(about, [])
        made = row.make(self)
        if isinstance(made, TrainingSet):
            tell = lambda curve: self._write(about, curve)
            backend = compiled_backend(self.compiled) if self.compiled else TORCH
            hooks = TrainingHooks(self._watch, tell, backend)
            made = train_model(made, self.corpus, settings, mix(self.seed, member, 7), hooks)
        values = measure(made.model, self.test)
        about |= {"turned": made.turned, "flops": made.flops, "reads": made.reads, "values": values}
        if self.test.shown is not None:
            about["bars"] = bars(made.model, self.test.shown[0], list(self.test.shown[1]))
        if isinstance(made.model, Transformer):
            weights = {name: tensor.contiguous() for name, tensor in made.model.state_dict().items()}
            replace(self._file(row.name, member, ".safetensors"), save(weights))
        self._write(about | {"seconds": time.perf_counter() - began}, made.curve)
        return made

    def _watch(self, model: nn.Module) -> float | None:
        if self.test.truth is None:
            return None
        documents = self.test.documents[:WATCHED]
        return divergence(model, documents, self.test.truth.first(sum(len(d) - 1 for d in documents)))

    def _read(self, name: str, member: int) -> TrainedModel | None:
        about, weights = saved(self._file(name, member, ".json")), self._file(name, member, ".safetensors")
        if about is None or "values" not in about or not weights.is_file():
            return None
        model = Transformer(shape(self.corpus.size, target(name).how(self.settings)))
        model.load_state_dict(load_file(weights))
        curve = [(epoch, loss, kl) for epoch, loss, kl in about["curve"]]
        return TrainedModel(model.eval(), curve, about["turned"], about["flops"], about["reads"])

    def _write(self, about: dict[str, Any], curve: Curve) -> None:
        text = json.dumps({**about, "curve": curve}, allow_nan=False)
        replace(self._file(about["target"], about["member"], ".json"), text.encode())

    def _file(self, name: str, member: int, end: str) -> Path:
        return self.folder / f"{name}.{member}{end}"


# What one trained model is like on the test documents: plain numbers; intervals come from several seeds.


Values = dict[str, float]
BINS = 15


def measure(model: nn.Module, test: Test) -> Values:
    """World: kl, reverse_kl (of what the model says within the language), s, calibration, right; kl_chosen is the kl
    on one half of the documents, by which a winner is chosen, all else is on the other half.

    Text: bits_per_byte, calibration, right (the probability of the token that followed). All: loss (nats a token).
    """
    logp_NV = predict(model, test.documents)
    at_N = torch.from_numpy(targets(test.documents))
    document_N = np.repeat(np.arange(len(test.documents)), [len(d) - 1 for d in test.documents])
    logp_N = logp_NV.gather(1, at_N[:, None])[:, 0]
    said_N, best_N = logp_NV.exp().max(-1)
    if test.truth is None:
        came_N = (best_N == at_N).numpy().astype(float)
        return {
            "loss": -float(logp_N.mean()),
            "bits_per_byte": -float(logp_N.sum()) / math.log(2) / test.bytes,
            "calibration": _calibration(said_N.numpy(), came_N, document_N),
            "right": float(logp_N.exp().mean()),
        }
    half_N = document_N % 2 == 1
    kl_N, reverse_N, s_N, true_N = against(logp_NV, best_N, test.truth)
    return {
        "loss": -float(logp_N[torch.from_numpy(half_N)].mean()),
        "kl_chosen": float(kl_N[~half_N].mean()),
        "kl": float(kl_N[half_N].mean()),
        "reverse_kl": float(reverse_N[half_N].mean()),
        "s": float(s_N[half_N].mean()),
        "calibration": _calibration(said_N.numpy()[half_N], true_N[half_N], document_N[half_N]),
        "right": right(model, test.questions),
    }


def divergence(model: nn.Module, documents: Sequence[Ids], truth: SparseTruth) -> float:
    """KL(p‖q), nats a token."""
    row_A, ids_A, p_A = _points(truth)
    logq_A = predict(model, documents)[row_A, ids_A].double()
    return float((p_A * (p_A.log() - logq_A)).sum()) / (len(truth.starts) - 1)


def against(logp_NV: torch.Tensor, best_N: torch.Tensor, truth: SparseTruth) -> tuple[np.ndarray, ...]:
    """At each position: KL(p‖q), KL(q within the language‖p), the mass on possible words S, and p of the likeliest."""
    row_A, ids_A, p_A = _points(truth)
    logq_A = logp_NV[row_A, ids_A].double()
    q_A, N = logq_A.exp(), len(truth.starts) - 1
    s_N = torch.zeros(N, dtype=torch.double).index_add_(0, row_A, q_A)
    kl_N = torch.zeros(N, dtype=torch.double).index_add_(0, row_A, p_A * (p_A.log() - logq_A))
    within_A = q_A / s_N[row_A]
    reverse_A = within_A * (within_A.clamp_min(1e-300).log() - p_A.log())
    reverse_N = torch.zeros(N, dtype=torch.double).index_add_(0, row_A, reverse_A)
    true_N = torch.zeros(N, dtype=torch.double).index_add_(0, row_A, p_A * (ids_A == best_N[row_A]))
    return kl_N.numpy(), reverse_N.numpy(), s_N.numpy(), true_N.numpy()


@torch.no_grad()
def right(model: nn.Module, questions: Sequence[CorpusQuestion]) -> float:
    """P(right answer): the mass of all right answers to a question, summed exactly; the mean over questions."""
    texts = [(*question.prefix, *answer) for question in questions for answer in question.answers]
    logp_NV = predict(model, texts)
    logp_N = logp_NV.gather(1, torch.from_numpy(targets(texts))[:, None])[:, 0].double().numpy()
    ends = np.cumsum([0, *(len(text) - 1 for text in texts)])
    found, k = [], 0
    for question in questions:
        mass = 0.0
        for answer in question.answers:
            mass += math.exp(logp_N[ends[k + 1] - len(answer) : ends[k + 1]].sum())
            k += 1
        found.append(mass)
    return float(np.mean(found))


@torch.no_grad()
def bars(model: nn.Module, prefix: Ids, words: Sequence[int]) -> list[float]:
    """q of these words after the prefix."""
    q_V = model(torch.tensor([prefix]))[0, -1].softmax(-1)
    return [float(q_V[word]) for word in words]


def _points(truth: SparseTruth) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    row_A = torch.from_numpy(np.repeat(np.arange(len(truth.starts) - 1), np.diff(truth.starts)))
    return row_A, torch.from_numpy(truth.ids), torch.from_numpy(truth.p).double()


def _calibration(said_N: np.ndarray, true_N: np.ndarray, document_N: np.ndarray) -> float:
    figure = calibration_error(said_N, true_N, document_N.tolist(), BINS)
    return float(figure.value or 0.0)
