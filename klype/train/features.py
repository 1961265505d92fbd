"""What a reward model looks at: a frozen language model's states over an answer, and how surprised it was by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from klype.train.objectives import LanguageModel, wide

Ids = Sequence[int]

SCALARS = ("logp_sum", "logp_min", "logp_mean", "unexpected_max", "unexpected_sum", "length")
ROWS_TOKENS = 16_384  # padded tokens a pass: small enough to stay in a laptop's cache
OPENING = 3  # tokens
LOGP_FLOOR = -10.0  # one impossible word must not drown all else
UNEXPECTED_CEILING = 6.0


def feature_names(width: int) -> list[str]:
    """Names of the columns of ``answer_features``."""
    states = [f"{kind}.{i}" for kind in ("last", "mean", "opening") for i in range(width)]
    return [*states, *SCALARS]


@torch.no_grad()
def answer_features(trunk: nn.Module, prompts: Sequence[Ids], answers: Sequence[Ids]) -> torch.Tensor:
    """[N, 3 D + 6], float32: the state at the last token, the mean state over the answer's tokens, the mean state over
    its first three (an answer's manner is in how it begins; a mean over all is diluted by its length), and of its
    tokens the sum, minimum and mean of log p, the maximum (at least 0) and positive sum of surprise - entropy, and
    their number.

    Rows are computed by length, so that little is padded; an answer's row does not depend on its neighbours. Prompts
    must not be empty. An empty answer has the prompt's last state and zeros.
    """
    device = next(trunk.parameters()).device
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(answers[i]))
    rows: list[torch.Tensor] = []
    for chunk in _chunks(order, [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]):
        rows.append(_features(trunk, [prompts[i] for i in chunk], [answers[i] for i in chunk], device))
    if not rows:
        raise AssertionError("features of no answers were asked for")
    out_NF = torch.cat(rows)
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    return out_NF[back.to(device)]


def _features(trunk: nn.Module, prompts: list[Ids], answers: list[Ids], device: torch.device) -> torch.Tensor:
    lm = cast(LanguageModel, trunk)
    lengths = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]
    tokens_BT = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
    for row, prompt, answer in zip(tokens_BT, prompts, answers, strict=True):
        row[: len(prompt) + len(answer)] = torch.tensor([*prompt, *answer], dtype=torch.long)
    tokens_BT = tokens_BT.to(device)
    end_B1 = torch.tensor(lengths, device=device)[:, None]
    start_B1 = torch.tensor([len(p) for p in prompts], device=device)[:, None]
    at_BT = torch.arange(tokens_BT.shape[1], device=device)[None]
    answer_BT = (at_BT >= start_B1) & (at_BT < end_B1)
    hidden_BTD = wide(lm.hidden(tokens_BT))
    last_BD = hidden_BTD[torch.arange(len(prompts), device=device), end_B1[:, 0] - 1]
    length_B = answer_BT.sum(1).to(hidden_BTD.dtype)
    opening_BT = answer_BT & (at_BT < start_B1 + OPENING)
    mean_BD, opening_BD = (
        torch.where(length_B[:, None] > 0, _mean(hidden_BTD, where_BT), last_BD) for where_BT in (answer_BT, opening_BT)
    )
    scalars_BS = _surprises(lm, hidden_BTD, tokens_BT, answer_BT)
    return torch.cat([last_BD, mean_BD, opening_BD, scalars_BS, length_B[:, None]], 1).float()


def _mean(hidden_BTD: torch.Tensor, where_BT: torch.Tensor) -> torch.Tensor:
    """[B, D]: over the marked positions."""
    return (hidden_BTD * where_BT[..., None]).sum(1) / where_BT.sum(1).clamp(min=1)[:, None]


def _surprises(
    lm: LanguageModel, hidden_BTD: torch.Tensor, tokens_BT: torch.Tensor, answer_BT: torch.Tensor
) -> torch.Tensor:
    """[B, 5]: sum, minimum, mean of log p; maximum and positive sum of surprise beyond the entropy."""
    before_BT = torch.zeros_like(answer_BT)
    before_BT[:, :-1] = answer_BT[:, 1:]
    logp_NV = wide(lm.unembed(hidden_BTD[before_BT])).log_softmax(-1)
    chosen_N = logp_NV.gather(1, tokens_BT[answer_BT][:, None])[:, 0].clamp(min=LOGP_FLOOR)
    entropy_N = -(logp_NV.exp() * logp_NV.clamp(min=-1e4)).sum(1)
    logp_BT = torch.zeros_like(hidden_BTD[..., 0]).masked_scatter(answer_BT, chosen_N)
    unexpected_BT = torch.zeros_like(logp_BT).masked_scatter(answer_BT, -chosen_N - entropy_N)
    number_B = answer_BT.sum(1).clamp(min=1)
    total_B = logp_BT.sum(1)
    columns = (
        total_B,
        logp_BT.min(1).values,
        total_B / number_B,
        unexpected_BT.max(1).values.clamp(max=UNEXPECTED_CEILING),
        unexpected_BT.clamp(min=0).sum(1),
    )
    return torch.stack(columns, 1)


def _chunks(order: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Neighbours in length together, at most ROWS_TOKENS padded tokens a chunk."""
    chunks: list[list[int]] = [[]]
    for i in order:  # ascending: the newest is the longest
        if chunks[-1] and (len(chunks[-1]) + 1) * lengths[i] > ROWS_TOKENS:
            chunks.append([])
        chunks[-1].append(i)
    return chunks if chunks[0] else []
