"""What a reward model looks at: a frozen language model's states over an answer, and how surprised it was by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from klype.model.packed import Stems
from klype.model.transformer import Transformer
from klype.train.objectives import LanguageModel, wide
from klype.train.scoring import grows, saves, shared_states

Ids = Sequence[int]

SCALARS = ("logp_sum", "logp_min", "logp_mean", "unexpected_max", "unexpected_sum", "length")
GROUP = 16  # the most answers that have their prompt read together
ROWS_TOKENS = 16_384  # padded tokens a pass: small enough to stay in a laptop's cache
OPENING = 3  # tokens
LOGP_FLOOR = -10.0  # one impossible word must not drown all else
UNEXPECTED_CEILING = 6.0


def feature_names(width: int) -> list[str]:
    """Names of the columns of ``answer_features``."""
    states = [f"{kind}.{i}" for kind in ("last", "mean", "opening") for i in range(width)]
    return [*states, *SCALARS]


@torch.no_grad()
def answer_features(
    trunk: nn.Module, prompts: Sequence[Ids], answers: Sequence[Ids], at_once: int = ROWS_TOKENS
) -> torch.Tensor:
    """[N, 3 D + 6], float32, on the CPU: the state at the last token, the mean over the answer's tokens, that over
    its first three (an answer's manner is in how it begins; a mean over all is diluted by its length), and of its
    tokens the sum, minimum and mean of log p, the maximum (at least 0) and positive sum of surprise - entropy, and
    their number.

    Rows are computed by length, at most ``at_once`` padded tokens a pass, so that little is padded, and a prompt once
    for all of its answers; an answer's row does not depend on its neighbours, but for rounding. Prompts must not be
    empty. An empty answer has the prompt's last state and zeros.
    """
    if not prompts:
        raise AssertionError("features of no answers were asked for")
    rows: list[torch.Tensor] = []
    order: list[int] = []
    for groups in _chunks(prompts, answers, at_once):
        order += [i for group in groups for i in group]
        states_BAD, answers_BA, lengths_B = _read(trunk, prompts, answers, groups)
        rows.append(_features(cast(LanguageModel, trunk), states_BAD, answers_BA, lengths_B))
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    return torch.cat(rows).cpu()[back]


def _chunks(prompts: Sequence[Ids], answers: Sequence[Ids], at_once: int) -> list[list[list[int]]]:
    """Answers by their prompt, those with equally many and of a length together; at most so many padded positions a
    chunk."""
    of: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        of.setdefault(tuple(prompt), []).append(i)
    together = [group[at : at + GROUP] for group in of.values() for at in range(0, len(group), GROUP)]
    sized = [(len(group), len(prompts[group[0]]), max(len(answers[i]) for i in group) + 1, group) for group in together]
    chunks: list[list[list[int]]] = []
    size = longest_prompt = longest = 0
    for number, shared, own, group in sorted(sized, key=lambda row: (row[0], row[1] + row[2])):
        longest_prompt, longest = max(longest_prompt, shared), max(longest, own)
        if number != size or (len(chunks[-1]) + 1) * (longest_prompt + number * longest) > at_once:
            chunks.append([])
            size, longest_prompt, longest = number, shared, own
        chunks[-1].append(group)
    return chunks


def _read(
    trunk: nn.Module, prompts: Sequence[Ids], answers: Sequence[Ids], groups: list[list[int]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the trunk makes of groups of equally many answers to one prompt each, row by row.

    States [B, 1 + A, D], first the one at the prompt's last token, the answers' tokens [B, A], padded with 0, and their
    numbers [B].
    """
    device = next(trunk.parameters()).device
    chosen = [i for group in groups for i in group]
    rows = [[*prompts[i], *answers[i]] for i in chosen]
    width, group = max(map(len, rows)), len(groups[0])
    tokens_BT = torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.long, device=device)
    prompt_B, lengths_B = (torch.tensor([len(ids[i]) for i in chosen], device=device) for ids in (prompts, answers))
    own, shared = max(1, int(lengths_B.max())) + 1, int(prompt_B.max()) - 1
    at_BA = (prompt_B[:, None] - 1 + torch.arange(own, device=device)).clamp(max=width - 1)
    if isinstance(trunk, Transformer) and grows(trunk, tokens_BT):
        wanted_BA = torch.arange(own) <= lengths_B[:, None]
        wanted_BT = torch.zeros(tokens_BT.shape, dtype=torch.bool)
        wanted_BT[torch.arange(len(rows))[:, None].expand_as(at_BA)[wanted_BA], at_BA[wanted_BA]] = True
        stems = Stems(group, prompt_B[::group]) if group > 1 else None
        states_ND = trunk.states_at(tokens_BT, wanted_BT, stems=stems)
        states_BAD = states_ND.new_zeros(*wanted_BA.shape, states_ND.shape[1])
        states_BAD[wanted_BA] = states_ND
    elif isinstance(trunk, Transformer) and saves(tokens_BT.shape, group, shared, own):
        states_BAD = shared_states(trunk, tokens_BT, prompt_B, group, own)
    else:
        hidden_BTD = cast(LanguageModel, trunk).hidden(tokens_BT)
        states_BAD = hidden_BTD.gather(1, at_BA[..., None].expand(-1, -1, hidden_BTD.shape[2]))
    return wide(states_BAD), tokens_BT.gather(1, at_BA[:, 1:]), lengths_B


def _features(
    lm: LanguageModel, states_BAD: torch.Tensor, answers_BA: torch.Tensor, lengths_B: torch.Tensor
) -> torch.Tensor:
    answer_BA = torch.arange(answers_BA.shape[1], device=answers_BA.device) < lengths_B[:, None]
    last_BD = states_BAD[torch.arange(len(lengths_B), device=lengths_B.device), lengths_B]
    opening_BA = answer_BA.clone()
    opening_BA[:, OPENING:] = False
    length_B1 = lengths_B[:, None].to(states_BAD.dtype)
    mean_BD, opening_BD = (
        torch.where(length_B1 > 0, _mean(states_BAD[:, 1:], where_BA), last_BD) for where_BA in (answer_BA, opening_BA)
    )
    scalars_BS = _surprises(lm, states_BAD[:, :-1], answers_BA, answer_BA)
    return torch.cat([last_BD, mean_BD, opening_BD, scalars_BS, length_B1], 1).float()


def _mean(hidden_BAD: torch.Tensor, where_BA: torch.Tensor) -> torch.Tensor:
    """[B, D]: over the marked positions."""
    return (hidden_BAD * where_BA[..., None]).sum(1) / where_BA.sum(1).clamp(min=1)[:, None]


def _surprises(
    lm: LanguageModel, before_BAD: torch.Tensor, tokens_BA: torch.Tensor, answer_BA: torch.Tensor
) -> torch.Tensor:
    """[B, 5]: sum, minimum, mean of log p; maximum and positive sum of surprise beyond the entropy."""
    logp_NV = wide(lm.unembed(before_BAD[answer_BA])).log_softmax(-1)
    chosen_N = logp_NV.gather(1, tokens_BA[answer_BA][:, None])[:, 0].clamp(min=LOGP_FLOOR)
    entropy_N = -(logp_NV.exp() * logp_NV.clamp(min=-1e4)).sum(1)
    logp_BA = torch.zeros_like(before_BAD[..., 0]).masked_scatter(answer_BA, chosen_N)
    unexpected_BA = torch.zeros_like(logp_BA).masked_scatter(answer_BA, -chosen_N - entropy_N)
    number_B = answer_BA.sum(1).clamp(min=1)
    total_B = logp_BA.sum(1)
    columns = (
        total_B,
        logp_BA.min(1).values,
        total_B / number_B,
        unexpected_BA.max(1).values.clamp(min=0, max=UNEXPECTED_CEILING),
        unexpected_BA.clamp(min=0).sum(1),
    )
    return torch.stack(columns, 1)
