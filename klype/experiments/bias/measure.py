"""What one trained model is like on the test documents: plain numbers; intervals come from several seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from klype.examine.calibration import calibration_error
from klype.experiments.corpus import Ids, Question, Test, Truth, targets
from klype.experiments.training import predict

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


def divergence(model: nn.Module, documents: Sequence[Ids], truth: Truth) -> float:
    """KL(p‖q), nats a token."""
    row_A, ids_A, p_A = _points(truth)
    logq_A = predict(model, documents)[row_A, ids_A].double()
    return float((p_A * (p_A.log() - logq_A)).sum()) / (len(truth.starts) - 1)


def against(logp_NV: torch.Tensor, best_N: torch.Tensor, truth: Truth) -> tuple[np.ndarray, ...]:
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
def right(model: nn.Module, questions: Sequence[Question]) -> float:
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


def _points(truth: Truth) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    row_A = torch.from_numpy(np.repeat(np.arange(len(truth.starts) - 1), np.diff(truth.starts)))
    return row_A, torch.from_numpy(truth.ids), torch.from_numpy(truth.p).double()


def _calibration(said_N: np.ndarray, true_N: np.ndarray, document_N: np.ndarray) -> float:
    figure = calibration_error(said_N, true_N, document_N.tolist(), BINS)
    return float(figure.value or 0.0)
