"""Training objectives: functions (model, batch) -> Loss, as sums that are divided once after all micro-batches.

Metrics are sums too: a metric NAME is divided by ``NAME_count`` if there is one, else by the loss's count. Preferences
and policy gradients use log-probabilities of whole answers (``score_answers``). ``extra["group"]`` consecutive rows
have the same prompt of ``extra["prompt_B"]`` tokens, which compiled code computes only once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional

from klype.model.compiled import CompiledBackend
from klype.model.packed_texts import SharedPrefixes, padding_rows
from klype.model.transformer import Transformer
from klype.values import Batch, Loss

Objective = Callable[[nn.Module, Batch], Loss]
Ids = Sequence[int]


def cross_entropy(model: nn.Module, batch: Batch) -> Loss:
    """Weighted next-token cross-entropy: total = Σ w·(−log p(target)) in nats, count = Σ w.

    Logits of targets of weight 0 are not computed. ``extra["document_BT"]``: the document of each token, where several
    are packed into a row.
    """
    logits_NV, kept_N = learnt_logits(model, batch)
    targets_N = batch.targets_BT.flatten()[kept_N]
    weights_N = batch.weights_BT.flatten()[kept_N].to(wide_dtype(logits_NV))
    backend = cast(Transformer, model).backend
    if isinstance(backend, CompiledBackend) and backend.supports_numbers(logits_NV):
        return Loss(backend.cross_entropy(logits_NV, targets_N, weights_N), weights_N.sum())
    total = _WeightedCrossEntropy.apply(logits_NV, targets_N, weights_N)  # type: ignore[no-untyped-call]
    return Loss(total, weights_N.sum())


def soft_cross_entropy(model: nn.Module, batch: Batch) -> Loss:
    """Cross-entropy with soft targets, ``extra["soft_BTV"]`` (each sums to one): total = −Σ w Σ_v p_v log q_v."""
    logits_NV, kept_N = learnt_logits(model, batch)
    soft_NV = batch.extra["soft_BTV"].flatten(0, 1)[kept_N]
    loss_N = functional.cross_entropy(wide(logits_NV), soft_NV, reduction="none")
    weights_N = batch.weights_BT.flatten()[kept_N].to(loss_N.dtype)
    return Loss(loss_N @ weights_N, weights_N.sum())


def reverse_divergence(model: nn.Module, batch: Batch) -> Loss:
    """Reverse KL to soft targets p, ``extra["soft_BTV"]``: total = Σ w Σ_v q_v (log q_v − log p_v), q the model's.

    It makes the model seek p's modes. p is taken to be at least ``FLOOR``.
    """
    logits_NV, kept_N = learnt_logits(model, batch)
    logq_NV = wide(logits_NV).log_softmax(-1)
    logp_NV = batch.extra["soft_BTV"].flatten(0, 1)[kept_N].to(logq_NV.dtype).clamp_min(FLOOR).log()
    loss_N = (logq_NV.exp() * (logq_NV - logp_NV)).sum(-1)
    weights_N = batch.weights_BT.flatten()[kept_N].to(loss_N.dtype)
    return Loss(loss_N @ weights_N, weights_N.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class LossBeside(Loss):
    """Two losses, each a mean over its own count: total / count + weight · beside.total / beside.count."""

    beside: Loss
    weight: float


def with_rehearsal(main: Objective, rehearsal: Objective, weight: float) -> Objective:
    """The main objective plus rehearsal of the batch in ``extra["rehearsal"]``, which keeps the model from forgetting.

    loss = mean of the main + weight · mean of the rehearsal, both over all micro-batches and ranks of a step.
    """

    def mixed(model: nn.Module, batch: Batch) -> Loss:
        loss = main(model, batch)
        again: Batch | None = batch.extra.get("rehearsal")
        if again is None or weight == 0:
            return loss
        beside = rehearsal(model, again)
        return LossBeside(loss.total, loss.count, loss.metrics, beside=beside, weight=weight)

    return mixed


def learnt_logits(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [N, V] at the positions with a weight, and their indices in the flattened batch; see ``learnt_states``.

    The unembedding is the most expensive product of a small model, so the other positions are left out of it.
    """
    states_ND, kept_N = learnt_states(model, batch)
    return cast(Transformer, model).unembed(states_ND), kept_N


def learnt_states(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """States [N, D] at the positions with a weight, and their indices in the flattened batch.

    They are padded to a round number with a position of weight 0 (see packed_texts.py). A compiled graph needs fixed
    shapes and gets all positions.
    """
    lm, extra = cast(Transformer, model), batch.extra
    document_BT: torch.Tensor | None = extra.get("document_BT")
    weights_N = batch.weights_BT.flatten()
    if torch.compiler.is_compiling():
        hidden_BTD = lm.hidden(batch.tokens_BT, document_BT=document_BT)
        return hidden_BTD.flatten(0, 1), torch.arange(weights_N.numel(), device=weights_N.device)
    group = int(extra.get("group", 1))
    prefixes = SharedPrefixes(group, extra["prompt_B"][::group]) if group > 1 and "prompt_B" in extra else None
    kept_N = weights_N.nonzero()[:, 0]
    spare = padding_rows(len(kept_N)) if len(kept_N) < len(weights_N) else 0
    wanted_BT = batch.weights_BT != 0
    states_ND = lm.states_at(batch.tokens_BT, wanted_BT, document_BT, prefixes=prefixes, spare=spare)
    # one position of weight 0, repeated: it adds nothing to the loss
    free = (weights_N == 0).int().argmax().expand(spare)
    return states_ND, torch.cat([kept_N, free]) if spare else kept_N


class _WeightedCrossEntropy(torch.autograd.Function):
    """Σ w·(−log p(target)), with the gradient w·(p − 1[target]) computed in the same pass over the logits.

    The table of logits is the largest tensor of a small model's step: one pass over it instead of five saves a fifth of
    the step.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, targets_N: torch.Tensor, weights_N: torch.Tensor) -> torch.Tensor:
        p_NV = torch.softmax(logits_NV, -1, dtype=wide_dtype(logits_NV))
        at_N1 = targets_N[:, None]
        p_N = p_NV.gather(1, at_N1)[:, 0]
        loss_N = -p_N.log()
        tiny_N = p_N < TINY  # the logarithm of what underflows is taken from the logits themselves
        if bool(tiny_N.any()):
            rows = wide(logits_NV[tiny_N]).log_softmax(-1)
            loss_N[tiny_N] = -rows.gather(1, at_N1[tiny_N])[:, 0]
        if ctx.needs_input_grad[0]:
            p_NV.scatter_add_(1, at_N1, p_NV.new_full((1, 1), -1.0).expand_as(at_N1))
            # in place: the table is the largest tensor of the step
            ctx.save_for_backward(p_NV.mul_(weights_N[:, None]).to(logits_NV.dtype))
        return loss_N @ weights_N

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient_NV,) = ctx.saved_tensors
        return gradient_NV * gradient.to(gradient_NV.dtype), None, None


# well above 1.2e-38, below which float32 loses digits
TINY = 1e-30
FLOOR = 1e-6


def wide_dtype(logits: torch.Tensor) -> torch.dtype:
    return torch.float32 if logits.dtype in (torch.bfloat16, torch.float16) else logits.dtype


def wide(logits: torch.Tensor) -> torch.Tensor:
    """The tensor in at least float32: no loss is computed in half precision."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """``logp_BT``: log-probabilities of the targets in nats, 0 where the weight is 0. ``states_ND`` and ``kept_N``: see
    ``learnt_states``."""

    logp_BT: torch.Tensor
    states_ND: torch.Tensor
    kept_N: torch.Tensor


def score_answers(model: nn.Module, batch: Batch) -> AnswerScores:
    """Log-probabilities of the batch's targets at ``extra["temperature"]`` (default 1).

    It must be the temperature that the answers were sampled at, or importance ratios would be biased.
    """
    states_ND, kept_N = learnt_states(model, batch)
    logits_NV = wide(cast(Transformer, model).unembed(states_ND)) / batch.extra.get("temperature", 1.0)
    logp_N = -functional.cross_entropy(logits_NV, batch.targets_BT.flatten()[kept_N], reduction="none")
    flat = torch.zeros(batch.targets_BT.numel(), dtype=logp_N.dtype, device=logp_N.device)
    logp_BT = flat.index_copy(0, kept_N, logp_N).view(batch.targets_BT.shape) * (batch.weights_BT != 0)
    return AnswerScores(logp_BT, states_ND, kept_N)


@torch.no_grad()
def reference_logp(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Log-probabilities [B, T] of ``score_answers`` without gradients, on the CPU."""
    return score_answers(model, batch.to(next(model.parameters()).device)).logp_BT.cpu()


def answers_batch(prompts: Sequence[Ids], answers: Sequence[Ids], group: int = 1) -> Batch:
    """A batch whose rows are prompt and answer, padded on the right; answer tokens (end token included) have weight 1.

    ``group`` consecutive rows have the same prompt.
    """
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    width = max(map(len, rows))
    tokens_BT = torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.long)
    prompt_B, length_B = (torch.tensor([len(ids) for ids in each]) for each in (prompts, rows))
    at_T = torch.arange(width - 1)
    weights_BT = ((at_T >= prompt_B[:, None] - 1) & (at_T < length_B[:, None] - 1)).float()
    return Batch(tokens_BT[:, :-1], tokens_BT[:, 1:], weights_BT, {"group": group, "prompt_B": prompt_B})
