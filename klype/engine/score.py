"""How probable given answers are. Shapes: R answers, T tokens, V vocabulary, M positions of all answers together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from klype.engine.prefix_cache import CachedPrefix, PrefixCache, by_shelf
from klype.engine.records import distributions
from klype.model.cache import Cache
from klype.values import Distribution, Sampling, Step, Trace

PADDED = 8192
"""Tokens a pass, padding included."""
ENTRIES = 1 << 23
"""Logits held at a time."""

Tokens = Sequence[int]
Scored = list[tuple[float, Distribution | None]]


@torch.inference_mode()
def score(
    prefixes: PrefixCache, prompts: Sequence[Tokens], answers: Sequence[Tokens], top: int, label: str
) -> list[Trace]:
    """Traces of forced answers. Equal prompts are read once; answers of alike length share a pass."""
    places = prefixes.read([tuple(prompt) for prompt in prompts])
    scored: list[Scored] = [[] for _ in prompts]
    for rows in _batches([len(answer) for answer in answers]):
        rows = [rows[i] for i in by_shelf([places[row] for row in rows])]
        batch = _score(prefixes, [places[row] for row in rows], [answers[row] for row in rows], top)
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


def _score(prefixes: PrefixCache, places: list[CachedPrefix], answers: list[Tokens], top: int) -> list[Scored]:
    model = prefixes.model
    cache = Cache.of(model)
    for _, group in groupby(places, key=lambda place: id(place.shelf)):
        alike = list(group)
        cache.join(alike[0].shelf, [place.slot for place in alike], [place.length for place in alike])
    first_RV = torch.stack([place.logits for place in places])
    found: list[Scored] = [_read(first_RV, [answer[0] for answer in answers], top)]
    T = max(map(len, answers)) - 1
    if T:
        fed = [answer[:-1] for answer in answers]
        tokens_RT = torch.tensor([[*row, *(0,) * (T - len(row))] for row in fed], device=cache.device)
        hidden_RTD = model.hidden(tokens_RT, cache)
        prefixes.passes += 1
        hidden_MD = torch.cat([hidden_RTD[row, : len(own)] for row, own in enumerate(fed)])
        targets = [token for answer in answers for token in answer[1:]]
        size = max(1, ENTRIES // model.config.vocab_size)
        parts = zip(torch.split(hidden_MD, size), range(0, len(targets), size), strict=True)
        found += [_read(model.unembed(hidden), targets[at : at + size], top) for hidden, at in parts]
    firsts, later = found[0], iter([one for part in found[1:] for one in part])
    return [[firsts[row], *(next(later) for _ in answer[1:])] for row, answer in enumerate(answers)]


def _read(logits_MV: Tensor, targets: Sequence[int], top: int) -> Scored:
    logp_MV = logits_MV.float().log_softmax(-1)
    targets_M1 = torch.tensor(targets, device=logp_MV.device)[:, None]
    logp = logp_MV.gather(1, targets_M1)[:, 0].cpu().double().numpy()
    listed = distributions(logp_MV, top) if top else [None] * len(logp)
    return list(zip(logp.tolist(), listed, strict=True))
