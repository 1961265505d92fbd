"""Small models trained on arbitrary targets by the common loop, with early stopping on held-out loss."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from klype import config
from klype.data import pools
from klype.data.seeds import Permutation, mix
from klype.errors import Interrupted
from klype.experiments.corpus import Corpus, Ids, SparseTruth, targets
from klype.model.attention import TORCH, Backend
from klype.model.config import ModelConfig
from klype.model.transformer import Transformer
from klype.train.loop import TrainSession, TrainSettings, train
from klype.train.objectives import Objective, cross_entropy, soft_cross_entropy
from klype.train.optimizer import OptimizerSettings, Schedule, fused_parts
from klype.values import Batch, Batches, Floats

UNPADDED = pools.PoolSettings(rows=1, multiple=1)  # no wider than the longest document
PORTION = 64  # documents that teachers read at a time
HEAD = 16  # width of a head; compiled code wants a multiple of eight
# (epoch, held-out loss, KL to the truth where it is known), nats per token
Curve = list[tuple[int, float, float | None]]
# positions [n] among all targets of a training set → distributions [n, V], each summing to one
Soft = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Documents and what is said to follow at each of their positions; None: the one word that does, one-hot.

    ``flops`` is what it took to make them, teachers included; ``epochs``: fewer than the settings', where not 0.
    """

    documents: tuple[Ids, ...]
    soft: Soft | None = None
    flops: float = 0.0
    epochs: int = 0


class LabSettings(config.Settings):
    """Settings shared by all models of an experiment.

    ``blanks``: the share of context tokens that are hidden while it learns; ``average``: what a running mean of the
    weights keeps at every step (0: the weights as they are).
    """

    width: int = 48
    layers: int = 2
    rows: int = 16
    epochs: int = 12
    patience: int = 3
    matrix_rate: float = 0.02
    rate: float = 1e-2
    decay: float = 0.1
    blanks: float = Field(default=0.0, ge=0, lt=1)
    average: float = Field(default=0.0, ge=0, lt=1)
    teachers: int = 5


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model as it was when held-out loss was least. ``turned``: it then rose; ``flops``: all it took, teachers too;
    ``reads``: FLOPs of reading one token."""

    model: Transformer | Mixture
    curve: Curve
    turned: bool
    flops: float
    reads: float


class Mixture(nn.Module):
    """The mean of several models' distributions, as one model; its logits are log-probabilities."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        said = torch.stack([model(tokens_BT).log_softmax(-1) for model in self.models])
        # the log of the mean of probabilities, not the mean of logs
        return said.logsumexp(0) - math.log(len(self.models))


class LabelledBatches:
    """Endless batches [rows, T] of whole documents, each once an epoch, with their targets' distributions.

    ``blanks`` of the context tokens, others at every look, give way to the begin mark; what follows them is to be said
    all the same (blank noise: Xie et al. 2017).
    """

    def __init__(self, data: TrainingSet, rows: int, seed: int, blanks: float = 0.0) -> None:
        self._data, self._rows, self._seed, self._blanks = data, rows, seed, blanks
        self._starts = np.cumsum([0, *(len(d) - 1 for d in data.documents)])
        self._position = 0

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self._data.documents) // self._rows)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        epoch, at = divmod(self._position, self.steps_per_epoch)
        self._position += 1
        order = Permutation(len(self._data.documents), mix(self._seed, epoch))
        drawn = [order(i) for i in range(at * self._rows, min((at + 1) * self._rows, len(self._data.documents)))]
        tokens_BT, targets_BT, weights_BT = padded([self._data.documents[i] for i in drawn])
        if self._blanks:
            noise = torch.Generator().manual_seed(mix(self._seed, 10, self._position))
            hidden_BT = torch.rand(tokens_BT.shape, generator=noise) < self._blanks
            # every document's first token is the begin mark
            tokens_BT = tokens_BT.masked_fill(hidden_BT, self._data.documents[0][0])
        if self._data.soft is None:
            return Batch(tokens_BT, targets_BT, weights_BT)
        where_BT = torch.from_numpy(self._starts[drawn])[:, None] + torch.arange(tokens_BT.shape[1])
        # padding asks for the first place's: its weight is 0
        where_BT = torch.where(weights_BT > 0, where_BT, 0)
        soft_BTV = self._data.soft(where_BT.flatten()).view(*where_BT.shape, -1)
        return Batch(tokens_BT, targets_BT, weights_BT, {"soft_BTV": soft_BTV})

    def state(self) -> dict[str, Any]:
        return {"position": self._position}

    def restore(self, state: dict[str, Any]) -> None:
        self._position = int(state["position"])


def padded(documents: Sequence[Ids]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """tokens_BT, targets_BT and weights_BT (0 where nothing is)."""
    examples = [(document, [1.0] * len(document)) for document in documents]
    tokens_BT, targets_BT, weights_BT = map(torch.from_numpy, pools.padded(examples, UNPADDED))
    return tokens_BT, targets_BT, weights_BT


@torch.no_grad()
def predict(model: nn.Module, documents: Sequence[Ids]) -> torch.Tensor:
    """Log-probabilities at every target of the documents, in order: [N, V] in nats."""
    found = []
    for at in range(0, len(documents), 64):
        tokens_BT, _, weights_BT = padded(documents[at : at + 64])
        found.append(model(tokens_BT)[weights_BT > 0].log_softmax(-1))
    return torch.cat(found)


def held_out_loss(model: nn.Module, documents: Sequence[Ids]) -> float:
    """Nats a token."""
    logp_NV = predict(model, documents)
    return float(-logp_NV.gather(1, torch.from_numpy(targets(documents))[:, None]).mean())


class Averaged:
    """A copy of a model whose weights are a running mean of the model's (Polyak and Juditsky 1992)."""

    def __init__(self, model: Transformer, keep: float) -> None:
        self.twin = copy.deepcopy(model)
        self._model, self._keep = model, keep

    @torch.no_grad()
    def add(self, step: int) -> None:
        """After each step, from 1 on. The first weights are forgotten soon: the mean is over a tenth of all at most."""
        keep = min(self._keep, (step + 1) / (step + 10))
        for mean, weight in zip(self.twin.state_dict().values(), self._model.state_dict().values(), strict=True):
            mean.lerp_(weight, 1 - keep)


@dataclass(frozen=True, slots=True)
class TrainingHooks:
    """Callbacks of a training: ``watch`` measures the model once an epoch, ``tell`` gets the curve so far.

    ``backend``: what computes the training.
    """

    watch: Callable[[nn.Module], float | None] = lambda model: None
    tell: Callable[[Curve], None] = lambda curve: None
    backend: Backend = TORCH


@dataclass(slots=True)
class _EarlyStopping:
    """Looks at the model once an epoch, keeps the best, and asks to stop when nothing gets better any more."""

    model: Transformer
    mean: Averaged | None
    held_out: Sequence[Ids]
    hooks: TrainingHooks
    every: int
    patience: int
    curve: Curve = field(default_factory=list)
    best: dict[str, torch.Tensor] = field(default_factory=dict)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        model = self.model
        if self.mean is not None:
            self.mean.add(step)
            model = self.mean.twin
        if step % self.every:
            return
        loss = held_out_loss(model, self.held_out)
        if not self.curve or loss < min(past for _, past, _ in self.curve):
            self.best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        self.curve.append((step // self.every, loss, self.hooks.watch(model)))
        self.hooks.tell(self.curve)

    def since_best(self) -> int:
        losses = [loss for _, loss, _ in self.curve]
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0

    def stop(self) -> bool:
        return self.since_best() >= self.patience


def train_model(
    data: TrainingSet, corpus: Corpus, settings: LabSettings, seed: int, hooks: TrainingHooks | None = None
) -> TrainedModel:
    """A fresh model of the settings' size, trained on the set by the one loop, as it was at the least held-out loss."""
    hooks = hooks or TrainingHooks()
    torch.manual_seed(mix(seed, 4))
    model = Transformer(shape(corpus.size, settings))
    learner = model.using(hooks.backend)
    mean = Averaged(model, settings.average) if settings.average else None
    batches = LabelledBatches(data, settings.rows, mix(seed, 5), settings.blanks)
    every = batches.steps_per_epoch
    seen = _EarlyStopping(learner, mean, corpus.held_out, hooks, every, settings.patience)
    objective = cross_entropy if data.soft is None else soft_cross_entropy
    session = TrainSession(parts=fused_parts(model.config), on_step=seen.step, stop=seen.stop, keeps=False)
    try:
        loop = loop_settings(settings, (data.epochs or settings.epochs) * every)
        optimize(learner, objective, batches, loop, session)
    except Interrupted:
        if not seen.stop():
            raise
    model.load_state_dict(seen.best)
    reads = float(model.config.flops_per_token)
    read = sum(len(d) - 1 for d in data.documents) * len(seen.curve)
    return TrainedModel(model.eval(), seen.curve, seen.since_best() > 0, data.flops + 3 * reads * read, reads)


def loop_settings(settings: LabSettings, steps: int, rate: float = 1.0) -> TrainSettings:
    """The loop's, with ``rate`` times the rates."""
    matrix_rate, others = rate * settings.matrix_rate, rate * settings.rate
    optimizer = OptimizerSettings(matrix_rate=matrix_rate, rate=others, decay=settings.decay)
    schedule = Schedule(warmup=0.05, flat=0.1, floor=0.05)
    return TrainSettings(steps=steps, optimizer=optimizer, schedule=schedule, save_seconds=0.0)


def optimize(
    model: Transformer, objective: Objective, batches: Batches, settings: TrainSettings, session: TrainSession
) -> None:
    """Trains the model in place by the one loop; nothing is left on the disk."""
    with tempfile.TemporaryDirectory(prefix="klype-experiment-") as folder:
        train(model, objective, batches, settings, Path(folder), session)


def shape(vocabulary: int, settings: LabSettings) -> ModelConfig:
    """Small, with the convolution and without rotation: what learns the world in seconds."""
    width = settings.width
    return ModelConfig(
        vocab_size=vocabulary,
        width=width,
        layers=settings.layers,
        heads=max(1, width // HEAD),
        hidden=2 * width,
        window=128,
        rope_theta=0.0,
        conv=5,
    )


# distributions at positions


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


def true(truth: SparseTruth, size: int) -> Soft:
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


def average(models: Sequence[nn.Module], documents: Sequence[Ids]) -> torch.Tensor:
    """The mean of the models' distributions at every target, [N, V] in half precision, read a few at a time."""
    portions = [documents[at : at + PORTION] for at in range(0, len(documents), PORTION)]
    return torch.cat([predict(Mixture(models), part).exp_().half() for part in portions])
