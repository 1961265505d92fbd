"""Learning from rewards: policy gradients with a KL leash to a reference.

A batch holds answers as rows; ``weights_BT`` is 1 on answer tokens (the end token with them). In ``extra``:
``advantages_B``, ``old_logp_BT`` (as drawn), ``reference_logp_BT``, ``temperature`` (what was drawn at).

KL with r = log π - log π_ref: k1 = r, k2 = r²/2, k3 = exp(-r) - 1 + r. As losses, k2 and the importance-weighted k3
have the gradient of KL(π‖π_ref); plain k3 (classic GRPO) has that of KL(π_ref‖π), and k1 has none (arXiv:2510.01555).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from klype import config
from klype.train.objectives import answer_logp
from klype.values import Batch, Loss

Scaling = Literal["group", "batch", "none", "rloo"]


class PolicySettings(config.Settings):
    """``clip_high`` above ``clip_low`` lets rare tokens grow (DAPO). ``beta`` is the leash, in reward per nat.

    ``average``: over all tokens ("token", DAPO), over tokens of an answer and then answers ("answer", GRPO as first
    published: favours short right answers), or sums of answers over their number ("sum", Dr. GRPO: no length bias).
    """

    clip_low: float = Field(default=0.2, ge=0, lt=1)
    clip_high: float = Field(default=0.28, ge=0)
    beta: float = Field(default=0.02, ge=0)
    kl: Literal["k2", "k3"] = "k3"
    average: Literal["token", "answer", "sum"] = "token"


def advantages(rewards_QG: torch.Tensor, scaling: Scaling) -> torch.Tensor:
    """Rewards relative to their group of G answers to one question.

    "group": (r - mean)/std in the group (GRPO); "batch": r - mean in the group, over the batch's standard deviation of
    these; "none": r - mean (Dr. GRPO); "rloo": r - mean of the *other* answers = G/(G-1) (r - mean). A group of equal
    rewards has advantage 0 in each.
    """
    centred_QG = rewards_QG - rewards_QG.mean(1, keepdim=True)
    if scaling == "group":
        return centred_QG / (centred_QG.pow(2).mean(1, keepdim=True).sqrt() + 1e-4)
    if scaling == "batch":
        return centred_QG / (centred_QG.pow(2).mean().sqrt() + 1e-4)
    if scaling == "rloo":
        answers = rewards_QG.shape[1]
        assert answers > 1, "leave one out needs two answers a question"
        return centred_QG * (answers / (answers - 1))
    return centred_QG


def grpo(model: nn.Module, batch: Batch, settings: PolicySettings | None = None) -> Loss:
    """Clipped importance-weighted advantages, token by token, and the leash (Shao et al. 2024; Yu et al. 2025).

    Metrics: ``kl`` (k3, nats an answer), ``clipped`` (share of tokens), ``ratio`` (mean, 1 on fresh answers).
    """
    settings = settings or PolicySettings()
    logp_BT = answer_logp(model, batch)
    mask_BT = (batch.weights_BT != 0).to(logp_BT.dtype)
    advantage_B1 = batch.extra["advantages_B"].to(logp_BT.dtype)[:, None]
    ratio_BT = (logp_BT - batch.extra["old_logp_BT"].to(logp_BT.dtype) * mask_BT).exp()
    clipped_BT = ratio_BT.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    gain_BT = torch.minimum(ratio_BT * advantage_B1, clipped_BT * advantage_B1)
    loss_BT = -gain_BT
    fresh_BT, tokens = ratio_BT.detach(), float(mask_BT.sum())
    metrics = {
        "clipped": float(((fresh_BT * advantage_B1 > gain_BT.detach()) * mask_BT).sum()),
        "clipped_count": tokens,
        "ratio": float((fresh_BT * mask_BT).sum()),
        "ratio_count": tokens,
    }
    if "reference_logp_BT" in batch.extra:
        reference_BT = batch.extra["reference_logp_BT"].to(logp_BT.dtype) * mask_BT
        if settings.beta:
            loss_BT = loss_BT + settings.beta * kl_loss(logp_BT, reference_BT, ratio_BT, settings.kl)
        metrics |= _measured_kl(logp_BT.detach(), reference_BT, mask_BT)
    return _averaged(loss_BT, mask_BT, settings.average, metrics)


def rloo(model: nn.Module, batch: Batch, settings: PolicySettings | None = None) -> Loss:
    """REINFORCE with what the other answers got as baseline: -A Σ_t log π, for fresh answers (Ahmadian et al. 2024).

    ``advantages_B`` made with scaling "rloo"; the leash is k2, which is what fresh answers need.
    """
    settings = settings or PolicySettings()
    logp_BT = answer_logp(model, batch)
    mask_BT = (batch.weights_BT != 0).to(logp_BT.dtype)
    loss_BT = -batch.extra["advantages_B"].to(logp_BT.dtype)[:, None] * logp_BT
    metrics: dict[str, float] = {}
    if "reference_logp_BT" in batch.extra:
        reference_BT = batch.extra["reference_logp_BT"].to(logp_BT.dtype) * mask_BT
        if settings.beta:
            loss_BT = loss_BT + settings.beta * kl_loss(logp_BT, reference_BT, torch.ones_like(logp_BT), "k2")
        metrics = _measured_kl(logp_BT.detach(), reference_BT, mask_BT)
    return _averaged(loss_BT, mask_BT, settings.average, metrics)


def kl_loss(
    logp: torch.Tensor, reference: torch.Tensor, ratio: torch.Tensor, kind: Literal["k2", "k3"]
) -> torch.Tensor:
    """A loss per token whose expected gradient is that of KL(π‖π_ref), for tokens drawn from ``logp - log ratio``."""
    r = logp - reference
    if kind == "k2":
        return ratio.detach() * 0.5 * r**2
    return ratio * (torch.expm1(-r) + r)


def _measured_kl(logp_BT: torch.Tensor, reference_BT: torch.Tensor, mask_BT: torch.Tensor) -> dict[str, float]:
    r_BT = logp_BT - reference_BT
    return {"kl": float(((torch.expm1(-r_BT) + r_BT) * mask_BT).sum()), "kl_count": float(mask_BT.shape[0])}


def _averaged(
    loss_BT: torch.Tensor, mask_BT: torch.Tensor, average: Literal["token", "answer", "sum"], metrics: dict[str, float]
) -> Loss:
    if average == "token":
        return Loss((loss_BT * mask_BT).sum(), mask_BT.sum(), metrics)
    weight_BT = mask_BT / mask_BT.sum(1, keepdim=True).clamp(min=1) if average == "answer" else mask_BT
    return Loss((loss_BT * weight_BT).sum(), mask_BT.new_tensor(float(mask_BT.shape[0])), metrics)
