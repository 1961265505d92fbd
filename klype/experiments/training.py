"""Small models trained on arbitrary target distributions, with early stopping on held-out loss; their measures."""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from scipy.sparse import csr_array
from torch import nn
from torch.optim.swa_utils import AveragedModel

from klype import config
from klype.data.batches import once
from klype.data.example_batches import PoolSettings
from klype.data.seeds import Permutation, mix
from klype.errors import TrainingInterrupted
from klype.examine.calibration import calibration_error
from klype.experiments.corpus import Corpus, CorpusQuestion, TestSet, targets
from klype.model.attention import TORCH, Backend
from klype.model.config import ModelConfig
from klype.model.transformer import Transformer
from klype.train.loop import TrainSession, TrainSettings, train
from klype.train.objectives import Objective, cross_entropy, soft_cross_entropy
from klype.train.optimizer import OptimizerSettings, Schedule, fused_parts
from klype.values import Batch, Batches, Floats, NumberedBatches, Tokens

PORTION = 64  # documents that are read at once
HEAD = 16  # width of an attention head; compiled code needs a multiple of eight
# (epoch, held-out loss, KL to the truth where it is known), nats per token
Curve = list[tuple[int, float, float | None]]
# positions [n] among all targets of a training set → target distributions [n, V], each summing to one
Soft = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Documents and their target distributions; ``soft`` None: one-hot, the word that follows in the document.

    ``flops``: compute for the targets, training of teachers included. ``epochs``: if not 0, instead of the settings'.
    """

    documents: tuple[Tokens, ...]
    soft: Soft | None = None
    flops: float = 0.0
    epochs: int = 0


class LabSettings(config.Settings):
    """Settings that all models of an experiment share.

    ``rows``: documents per step. ``patience``: epochs without improvement before training stops. ``matrix_rate``,
    ``rate``: learning rates of matrices and of other weights. ``decay``: weight decay. ``blanks``: share of context
    tokens that are hidden in training. ``average``: decay of the running mean of the weights that is the model (0: the
    weights themselves). ``teachers``: models that teach together.
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
    """A model as it was at the lowest held-out loss.

    ``curve``: by epoch. ``turned``: whether held-out loss rose afterwards. ``flops``: total compute, teachers included.
    ``reads``: FLOPs per token of reading.
    """

    model: "Transformer | Mixture"
    curve: Curve
    turned: bool
    flops: float
    reads: float


class Mixture(nn.Module):
    """An ensemble: the mean of several models' distributions, as log-probabilities."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, tokens_BT: torch.Tensor) -> torch.Tensor:
        said = torch.stack([model(tokens_BT).log_softmax(-1) for model in self.models])
        # the log of the mean of probabilities, not the mean of logs
        return said.logsumexp(0) - math.log(len(self.models))


class LabelledBatches(NumberedBatches):
    """Endless batches [rows, T] of whole documents, each once per epoch, with their target distributions.

    A share ``blanks`` of the context tokens is replaced by the begin token, chosen anew in every batch; the targets
    stay the same (blank noise: Xie et al. 2017).
    """

    def __init__(self, data: TrainingSet, rows: int, seed: int, blanks: float = 0.0) -> None:
        self._data, self._rows, self._seed, self._blanks = data, rows, seed, blanks
        self._starts = np.cumsum([0, *(len(d) - 1 for d in data.documents)])
        self.steps_per_epoch = -(-len(data.documents) // rows)

    def batch(self, index: int) -> Batch:
        epoch, at = divmod(index, self.steps_per_epoch)
        documents, rows = self._data.documents, self._rows
        order = Permutation(len(documents), mix(self._seed, epoch))
        drawn = [order(i) for i in range(at * rows, min((at + 1) * rows, len(documents)))]
        (batch,) = in_batches([documents[i] for i in drawn], rows)
        if self._blanks:
            noise = torch.Generator().manual_seed(mix(self._seed, 10, index + 1))
            hidden_BT = torch.rand(batch.tokens_BT.shape, generator=noise) < self._blanks
            # every document's first token is the begin token
            batch = replace(batch, tokens_BT=batch.tokens_BT.masked_fill(hidden_BT, documents[0][0]))
        if self._data.soft is not None:
            where_BT = torch.from_numpy(self._starts[drawn])[:, None] + torch.arange(batch.tokens_BT.shape[1])
            # padding gets the targets of position 0, with weight 0
            where_BT = torch.where(batch.weights_BT > 0, where_BT, 0)
            batch.extra["soft_BTV"] = self._data.soft(where_BT.flatten()).view(*where_BT.shape, -1)
        return batch


def in_batches(documents: Sequence[Tokens], rows: int) -> list[Batch]:
    """The documents in their order, ``rows`` per batch, padded to the longest of each."""
    return once([(document, [1.0] * len(document)) for document in documents], PoolSettings(rows=rows, multiple=1))


@torch.no_grad()
def predict(model: nn.Module, documents: Sequence[Tokens]) -> torch.Tensor:
    """Log-probabilities at every target of the documents, in order: [N, V] in nats."""
    batches = in_batches(documents, PORTION)
    return torch.cat([model(batch.tokens_BT)[batch.weights_BT > 0].log_softmax(-1) for batch in batches])


def target_logp(logp_NV: torch.Tensor, documents: Sequence[Tokens]) -> torch.Tensor:
    """The log-probabilities of the targets themselves, [N]."""
    return logp_NV.gather(1, torch.from_numpy(targets(documents))[:, None])[:, 0]


def weight_average(model: Transformer, keep: float) -> AveragedModel:
    """A copy whose weights are a running mean of the model's weights (Polyak & Juditsky 1992)."""

    def mean(average: torch.Tensor, weight: torch.Tensor, n: torch.Tensor | int) -> torch.Tensor:
        # early weights are forgotten: the mean is over about the last tenth of the updates at most
        return average.lerp(weight, 1 - min(keep, (int(n) + 1) / (int(n) + 10)))

    found = AveragedModel(model, avg_fn=mean)
    found.update_parameters(model)  # the first update copies
    return found


def train_model(
    data: TrainingSet,
    corpus: Corpus,
    settings: LabSettings,
    seed: int,
    backend: Backend = TORCH,
    on_epoch: Callable[[nn.Module, Curve], None] = lambda model, curve: None,
) -> TrainedModel:
    """Trains a new model of the settings' size on the training set; returns it as it was at the lowest held-out loss.

    ``on_epoch(model, curve)``: may complete the last point of the curve, which has no KL yet.
    """
    torch.manual_seed(mix(seed, 4))
    model = Transformer(shape(corpus.size, settings))
    learner = model.with_backend(backend)
    mean = weight_average(model, settings.average) if settings.average else None
    batches = LabelledBatches(data, settings.rows, mix(seed, 5), settings.blanks)
    every, curve, best = batches.steps_per_epoch, Curve(), dict[str, torch.Tensor]()

    def since_best() -> int:
        losses = [loss for _, loss, _ in curve]
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0

    def look(step: int, metrics: dict[str, float]) -> None:
        """Measures the model once per epoch and keeps the best weights."""
        if mean is not None:
            mean.update_parameters(model)
        if step % every:
            return
        seen = learner if mean is None else mean.module
        curve.append((step // every, -float(target_logp(predict(seen, corpus.held_out), corpus.held_out).mean()), None))
        if not since_best():
            best.update({name: tensor.detach().clone() for name, tensor in seen.state_dict().items()})
        on_epoch(seen, curve)

    stop: Callable[[], bool] = lambda: since_best() >= settings.patience
    session = TrainSession(parts=fused_parts(model.config), on_step=look, stop=stop, keeps=False)
    loop = loop_settings(settings, (data.epochs or settings.epochs) * every)
    try:
        optimize(learner, cross_entropy if data.soft is None else soft_cross_entropy, batches, loop, session)
    except TrainingInterrupted:
        if not stop():
            raise
    model.load_state_dict(best)
    reads = float(model.config.flops_per_token)
    read = sum(len(d) - 1 for d in data.documents) * len(curve)
    return TrainedModel(model.eval(), curve, since_best() > 0, data.flops + 3 * reads * read, reads)


def loop_settings(settings: LabSettings, steps: int, rate: float = 1.0) -> TrainSettings:
    """The loop's settings; ``rate`` multiplies the learning rates."""
    matrix_rate, others = rate * settings.matrix_rate, rate * settings.rate
    optimizer = OptimizerSettings(matrix_rate=matrix_rate, rate=others, decay=settings.decay)
    schedule = Schedule(warmup=0.05, flat=0.1, floor=0.05)
    return TrainSettings(steps=steps, optimizer=optimizer, schedule=schedule, save_seconds=0.0)


def optimize(
    model: Transformer, objective: Objective, batches: Batches, settings: TrainSettings, session: TrainSession
) -> None:
    """Trains the model in place with the loop that all stages use; nothing is left on disk."""
    with tempfile.TemporaryDirectory(prefix="klype-experiment-") as folder:
        train(model, objective, batches, settings, Path(folder), session)


def shape(vocabulary: int, settings: LabSettings) -> ModelConfig:
    """A small model with the convolution and without rotary embeddings, which learns the demo world in seconds."""
    return ModelConfig(
        vocab_size=vocabulary,
        width=settings.width,
        layers=settings.layers,
        heads=max(1, settings.width // HEAD),
        hidden=2 * settings.width,
        window=128,
        rope_theta=0.0,
        conv=5,
    )


# distributions at positions


def uniform(size: int) -> Soft:
    """The uniform distribution over the vocabulary."""
    return lambda positions: torch.full((len(positions), size), 1 / size)


def rows(table_NV: torch.Tensor | Floats) -> Soft:
    """The distributions of a table, which is stored in half precision; rows are normalised again."""
    kept_NV = torch.as_tensor(table_NV).half()

    def soft(positions: torch.Tensor) -> torch.Tensor:
        p_nV = kept_NV[positions].float()
        return p_nV / p_nV.sum(-1, keepdim=True)

    return soft


def interpolate(first: Soft, second: Soft, share: float) -> Soft:
    """(1 − share) · first + share · second."""
    assert 0 <= share <= 1
    return lambda positions: torch.lerp(first(positions), second(positions), share)


def true(truth: csr_array, size: int) -> Soft:
    """The true distribution p; tokens that the truth does not have get probability 0."""
    wide = csr_array((truth.data, truth.indices, truth.indptr), (truth.shape[0], size))
    return lambda positions: torch.from_numpy(wide[positions.numpy()].toarray())


def average(models: Sequence[nn.Module], documents: Sequence[Tokens]) -> torch.Tensor:
    """The mean of the models' distributions at every target, [N, V] in half precision."""
    portions = [documents[at : at + PORTION] for at in range(0, len(documents), PORTION)]
    return torch.cat([predict(Mixture(models), part).exp_().half() for part in portions])


# measures of one trained model on the test set: plain numbers; intervals come from several seeds


BINS = 15  # for the calibration error


def measure(model: nn.Module, test: TestSet) -> dict[str, float]:
    """The measures of a model on the test set.

    Demo world: kl, reverse_kl (of the model's distribution within the language), s, calibration, right. They are of one
    half of the documents; kl_chosen, by which a winner is chosen, is the kl of the other half. Text: bits_per_byte,
    calibration, right (the probability of the token that followed). Both: loss (nats per token).
    """
    logp_NV = predict(model, test.documents)
    logp_N = target_logp(logp_NV, test.documents)
    document_N = np.repeat(np.arange(len(test.documents)), [len(d) - 1 for d in test.documents])
    said_N, best_N = logp_NV.exp().max(-1)

    def calibration(true_N: np.ndarray, told_N: np.ndarray) -> float:
        figure = calibration_error(said_N.numpy()[told_N], true_N[told_N], document_N[told_N].tolist(), count=BINS)
        return float(figure.value or 0.0)

    if test.truth is None:
        came_N = best_N.numpy() == targets(test.documents)
        return {
            "loss": -float(logp_N.mean()),
            "bits_per_byte": -float(logp_N.sum()) / math.log(2) / test.bytes,
            "calibration": calibration(came_N.astype(float), document_N >= 0),
            "right": float(logp_N.exp().mean()),
        }
    half_N = document_N % 2 == 1
    kl_N, reverse_N, s_N, true_N = compare_with_truth(logp_NV, test.truth)
    return {
        "loss": -float(logp_N[torch.from_numpy(half_N)].mean()),
        "kl_chosen": float(kl_N[~half_N].mean()),
        **{name: float(n[half_N].mean()) for name, n in (("kl", kl_N), ("reverse_kl", reverse_N), ("s", s_N))},
        "calibration": calibration(true_N, half_N),
        "right": right(model, test.questions),
    }


def compare_with_truth(logp_NV: torch.Tensor, truth: csr_array) -> tuple[np.ndarray, ...]:
    """At each position: KL(p‖q), KL(q within the language‖p), the mass S on possible words, and p of the model's most
    likely word."""
    # position, token and probability of everything that may follow
    known = truth.tocoo()
    row_A, ids_A = (torch.from_numpy(at).long() for at in (known.row, known.col))
    p_A, logq_A = torch.from_numpy(known.data).double(), logp_NV[row_A, ids_A].double()

    def summed(values_A: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(logp_NV), dtype=torch.double).index_add_(0, row_A, values_A)

    s_N = summed(logq_A.exp())
    within_A = logq_A.exp() / s_N[row_A]
    reverse_N = summed(within_A * (within_A.clamp_min(1e-300).log() - p_A.log()))
    likeliest_A = ids_A == logp_NV.argmax(-1)[row_A]
    found = (summed(p_A * (p_A.log() - logq_A)), reverse_N, s_N, summed(p_A * likeliest_A))
    return tuple(values_N.numpy() for values_N in found)


def right(model: nn.Module, questions: Sequence[CorpusQuestion]) -> float:
    """P(correct answer): the total probability of all correct answers to a question; the mean over questions."""
    texts = [(*question.prefix, *answer) for question in questions for answer in question.answers]
    logp_N = target_logp(predict(model, texts), texts).double().numpy()
    parts = iter(np.split(logp_N, np.cumsum([len(text) - 1 for text in texts])))
    masses = [sum(math.exp(next(parts)[-len(a) :].sum()) for a in question.answers) for question in questions]
    return float(np.mean(masses))
