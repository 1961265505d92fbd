"""Log-probabilities and features of answers, with the prompt of a group of answers computed once.

Compiled code lays a group out as a tree (klype.model.packed). Where there is none, torch computes as is written here.
Rows of one group have the same prompt: Q groups of G rows. ``extra["group"]`` is G and ``extra["prompt_B"]`` the
lengths of the prompts. Shapes: P prompt positions that are shared, A positions of an answer's row, H heads, K their
width, J convolution taps. Shared = separate up to rounding; a test holds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from klype.model.attention import attend, convolve, heads, swiglu
from klype.model.packed import SharedPrefixes
from klype.model.transformer import Layer, Transformer
from klype.train.objectives import LanguageModel, learnt_states, prefixes_of, wide
from klype.values import Batch

WORTH = 1.2  # positions saved that pay for attention written out: the speed-up is their ratio (1.2 to 4.8 measured)


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """``logp_BT``: of the targets, nats, 0 where nothing is learnt. ``states_ND``: what the learnt ones came from, and
    perhaps others, in the order of ``kept_N``, their indices in the flattened batch."""

    logp_BT: Tensor
    states_ND: Tensor
    kept_N: Tensor


def score_answers(model: nn.Module, batch: Batch) -> AnswerScores:
    """Log-probabilities of the batch's targets at ``extra["temperature"]``, the one that they were drawn at.

    Scoring at another temperature than was drawn at would bias every ratio.
    """
    if isinstance(model, Transformer) and not model.packs(batch.tokens_BT.shape[1]) and worth_sharing(batch):
        kept_N = batch.weights_BT.flatten().nonzero()[:, 0]
        states_ND = states_of_groups(model, batch, kept_N)
    else:
        states_ND, kept_N = learnt_states(model, batch)
    logits_NV = wide(cast(LanguageModel, model).unembed(states_ND)) / batch.extra.get("temperature", 1.0)
    logp_N = -functional.cross_entropy(logits_NV, batch.targets_BT.flatten()[kept_N], reduction="none")
    flat = torch.zeros(batch.targets_BT.numel(), dtype=logp_N.dtype, device=logp_N.device)
    logp_BT = flat.index_copy(0, kept_N, logp_N).view(batch.targets_BT.shape) * (batch.weights_BT != 0)
    return AnswerScores(logp_BT, states_ND, kept_N)


@torch.no_grad()
def reference_logp(model: nn.Module, batch: Batch) -> Tensor:
    """[B, T], on the CPU: ``score_answers`` of a model that does not learn."""
    return score_answers(model, batch.to(next(model.parameters()).device)).logp_BT.cpu()


def worth_sharing(batch: Batch) -> bool:
    """Whether the rows are groups, with prompts long enough beside the answers."""
    prefixes = prefixes_of(batch)
    if prefixes is None:
        return False
    return saves(batch.tokens_BT.shape, prefixes.group, int(prefixes.lengths.max()) - 1, _longest(batch))


def saves(shape: Sequence[int], group: int, shared: int, own: int) -> bool:
    """Whether groups of that many of the [rows, width] are worth having their ``shared`` positions computed once,
    beside ``own`` ones of each row."""
    rows, width = shape
    return group > 1 and min(shared, own) > 0 and rows * width > WORTH * (rows // group * shared + rows * own)


def _longest(batch: Batch) -> int:
    """The most positions that a row has from its prompt's last token to its last learnt target."""
    columns = torch.arange(batch.weights_BT.shape[1], device=batch.weights_BT.device)
    last_B = torch.where(batch.weights_BT != 0, columns, -1).max(1).values
    return max(0, int((last_B - batch.extra["prompt_B"]).max()) + 2)


def shared_states(model: Transformer, tokens_BT: Tensor, prompt_B: Tensor, group: int, A: int) -> Tensor:
    """[B, A, D]: states after the last norm at each prompt's last token and at the A - 1 tokens that follow it.

    Row b's column j is the state at position ``prompt_B[b] - 1 + j``; columns beyond the row's end mean nothing.
    """
    shared_Q = prompt_B[::group] - 1
    P = int(shared_Q.max())
    columns_A, columns_P = (torch.arange(n, device=tokens_BT.device) for n in (A, P))
    at_BA = (shared_Q.repeat_interleave(group)[:, None] + columns_A).clamp(max=tokens_BT.shape[1] - 1)
    x_QPD: Tensor = model.embed(tokens_BT[::group, :P])
    y_BAD: Tensor = model.embed(tokens_BT.gather(1, at_BA))
    ropes = None
    if model.config.rope_theta:
        ropes = (model.cos[:P], model.sin[:P]), (model.cos[at_BA], model.sin[at_BA])
    seen_QP = columns_P < shared_Q[:, None]
    last = len(model.layers) - 1
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        x_QPD, y_BAD = _layer(layer, (x_QPD, y_BAD), ropes, (shared_Q, seen_QP), index == last)
    states_BAD: Tensor = model.norm(y_BAD)
    return states_BAD


def states_of_groups(model: Transformer, batch: Batch, kept_N: Tensor) -> Tensor:
    """The states at the learnt positions, out of each group's one prompt and its answers."""
    prompt_B: Tensor = batch.extra["prompt_B"]
    states_BAD = shared_states(model, batch.tokens_BT, prompt_B, int(batch.extra["group"]), _longest(batch))
    width = batch.tokens_BT.shape[1]
    row_N = kept_N // width
    column_N = kept_N % width - (prompt_B[row_N] - 1)
    return states_BAD.flatten(0, 1).index_select(0, row_N * states_BAD.shape[1] + column_N)


Rope = tuple[Tensor, Tensor]


def _layer(
    layer: Layer,
    streams: tuple[Tensor, Tensor],
    ropes: tuple[Rope, Rope] | None,
    shared: tuple[Tensor, Tensor],
    last: bool,
) -> tuple[Tensor, Tensor]:
    """One layer on both streams; of the last one only the answers' is of use."""
    x_QPD, y_BAD = streams
    shared_Q, seen_QP = shared
    u_QPD, v_BAD = (layer.attention_norm(z) for z in streams)
    if layer.taps is not None:
        J = layer.taps.shape[0]
        # [Q, J, D]: the last J inputs before the answers begin, zeros before the text's start
        at_QJ = shared_Q[:, None] - J + torch.arange(J, device=shared_Q.device)
        taken = u_QPD.gather(1, at_QJ.clamp(min=0)[..., None].expand(-1, -1, u_QPD.shape[2]))
        before_BJD = (taken * (at_QJ >= 0)[..., None]).repeat_interleave(len(v_BAD) // len(u_QPD), 0)
        v_BAD = convolve(torch.cat([before_BJD, v_BAD], 1), layer.taps, None)[:, J:]
        u_QPD = convolve(u_QPD, layer.taps, None)
    norms = layer.q_norm, layer.k_norm
    q_HQPK, k_GQPK, v_GQPK = heads(layer.qkv(u_QPD), layer.config, norms, None if ropes is None else ropes[0])
    own = heads(layer.qkv(v_BAD), layer.config, norms, None if ropes is None else ropes[1])
    y_BAD = y_BAD + layer.out(_attend_both(own, (k_GQPK, v_GQPK), seen_QP))
    y_BAD = y_BAD + layer.down(swiglu(layer.gate_up(layer.mlp_norm(y_BAD))))
    if not last:
        P = x_QPD.shape[1]
        causal_PP = q_HQPK.new_full((P, P), float("-inf")).triu_(1)
        x_QPD = x_QPD + layer.out(attend(q_HQPK, k_GQPK, v_GQPK, causal_PP))
        x_QPD = x_QPD + layer.down(swiglu(layer.gate_up(layer.mlp_norm(x_QPD))))
    return x_QPD, y_BAD


def _attend_both(own: tuple[Tensor, Tensor, Tensor], prompt: tuple[Tensor, Tensor], seen_QP: Tensor) -> Tensor:
    """Attention of the answers to their group's prompt and to their own past: [B, A, H * K]."""
    q_HBAK, k_HBAK, v_HBAK = own[0], *_for_every_head(own[1:], own[0])
    k_HQPK, v_HQPK = _for_every_head(prompt, own[0])
    H, B, A, K = q_HBAK.shape
    Q, P = seen_QP.shape
    unseen_QP = q_HBAK.new_zeros(Q, P).masked_fill_(~seen_QP, float("-inf"))
    later_AA = q_HBAK.new_full((A, A), float("-inf")).triu_(1)
    q_HBAK = q_HBAK * K**-0.5
    to_prompt = torch.matmul(q_HBAK.reshape(H, Q, -1, K), k_HQPK.mT) + unseen_QP[:, None]
    to_own = torch.matmul(q_HBAK, k_HBAK.mT) + later_AA
    weights = torch.cat([to_prompt.view(H, B, A, P), to_own], -1).softmax(-1)
    y_HBAK = torch.matmul(weights[..., :P].reshape(H, Q, -1, P), v_HQPK).view(H, B, A, K)
    y_HBAK = y_HBAK + torch.matmul(weights[..., P:], v_HBAK)
    return y_HBAK.permute(1, 2, 0, 3).reshape(B, A, H * K)


def _for_every_head(tensors: tuple[Tensor, ...], q_HBAK: Tensor) -> tuple[Tensor, ...]:
    """Keys and values repeated for the query heads that share them."""
    times = q_HBAK.shape[0] // tensors[0].shape[0]
    return tensors if times == 1 else tuple(t.repeat_interleave(times, 0) for t in tensors)


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
    """The trunk's states for groups of answers, one prompt per group and equally many answers each.

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
    if isinstance(trunk, Transformer) and trunk.packs(tokens_BT.shape[1]):
        wanted_BA = torch.arange(own) <= lengths_B[:, None]
        wanted_BT = torch.zeros(tokens_BT.shape, dtype=torch.bool)
        wanted_BT[torch.arange(len(rows))[:, None].expand_as(at_BA)[wanted_BA], at_BA[wanted_BA]] = True
        prefixes = SharedPrefixes(group, prompt_B[::group]) if group > 1 else None
        states_ND = trunk.states_at(tokens_BT, wanted_BT, prefixes=prefixes)
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


def answers_batch(prompts: Sequence[Ids], answers: Sequence[Ids], group: int = 1) -> Batch:
    """Prompt and answer as rows, padded on the right; weight 1 on the answers' tokens (the end token with them).

    ``group`` rows in turn have the same prompt (see scoring.py).
    """
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    width = max(map(len, rows))
    tokens_BT = torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.long)
    start_B1 = torch.tensor([len(prompt) - 1 for prompt in prompts])[:, None]
    end_B1 = torch.tensor([len(row) - 1 for row in rows])[:, None]
    at_T = torch.arange(width - 1)[None]
    weights_BT = ((at_T >= start_B1) & (at_T < end_B1)).float()
    extra = {"group": group, "prompt_B": torch.tensor([len(prompt) for prompt in prompts])}
    return Batch(tokens_BT[:, :-1], tokens_BT[:, 1:], weights_BT, extra)
