"""How probable given answers are. Shapes: R answers, T tokens, V vocabulary, M positions of all answers together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from klype.engine.records import distributions
from klype.engine.runner import AnyRunner, ReadPrompt
from klype.values import Distribution, Sampling, Step, Trace

PADDED = 8192
"""Tokens a pass, padding included."""

Tokens = Sequence[int]
Scored = list[tuple[float, Distribution | None]]


@torch.inference_mode()
def score(runner: AnyRunner, prompts: Sequence[Tokens], answers: Sequence[Tokens], top: int, label: str) -> list[Trace]:
    """Traces of forced answers. Equal prompts are read once; answers of alike length share a pass."""
    read = runner.prefill([tuple(prompt) for prompt in prompts])
    scored: list[Scored] = [[] for _ in prompts]
    for rows in _batches([len(answer) for answer in answers]):
        rows = [rows[i] for i in runner.order([read[row] for row in rows])]
        batch = _score(runner, [read[row] for row in rows], [answers[row] for row in rows], top)
        for row, found in zip(rows, batch, strict=True):
            scored[row] = found
    traces = []
    for prompt, answer, found in zip(prompts, answers, scored, strict=True):
        steps = tuple(Step(token, logp, logp, "forced", q) for token, (logp, q) in zip(answer, found, strict=True))
        traces.append(Trace(tuple(prompt), steps, Sampling(), 0, 0, label, "length", 1, 0.0))
    return traces


def _batches(lengths: list[int]) -> list[list[int]]:
    batches: list[list[int]] = []
    for row in sorted((r for r, length in enumerate(lengths) if length), key=lambda r: lengths[r]):
        shortest = lengths[batches[-1][0]] if batches else 0
        if batches and lengths[row] <= shortest * 5 // 4 + 8 and (len(batches[-1]) + 1) * lengths[row] <= PADDED:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _score(runner: AnyRunner, prompts: list[ReadPrompt], answers: list[Tokens], top: int) -> list[Scored]:
    first_RV = torch.stack([prompt.logits for prompt in prompts])
    firsts = _read(first_RV, [answer[0] for answer in answers], top)
    targets = [token for answer in answers for token in answer[1:]]
    later: Scored = []
    for logits_MV in runner.forced(prompts, [answer[:-1] for answer in answers]):
        later += _read(logits_MV, targets[len(later) : len(later) + len(logits_MV)], top)
    rest = iter(later)
    return [[first, *(next(rest) for _ in answer[1:])] for first, answer in zip(firsts, answers, strict=True)]


def _read(logits_MV: Tensor, targets: Sequence[int], top: int) -> Scored:
    logp_MV = logits_MV.float().log_softmax(-1)
    targets_M1 = torch.tensor(targets, device=logp_MV.device)[:, None]
    logp = logp_MV.gather(1, targets_M1)[:, 0].cpu().double().numpy()
    listed = distributions(logp_MV, top) if top else [None] * len(logp)
    return list(zip(logp.tolist(), listed, strict=True))
