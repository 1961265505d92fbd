"""Answers that are being written side by side, one row each: drawn alike, ended alike. R rows, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from klype.engine.records import distributions, token_counts
from klype.engine.sampling import noise, sample
from klype.samplers import Seen, needs_seen
from klype.values import Request, Step, Trace


@dataclass
class Row:
    """One sample of the request at ``place``; ``room``: tokens it may have."""

    place: int
    request: Request
    sample: int
    room: int
    steps: list[Step] = field(default_factory=list)
    said: bytes = b""
    done: bool = False

    def trace(self, model: str, ended: Literal["stop", "length"], seconds: float) -> Trace:
        r = self.request
        passes = len(self.steps)
        return Trace(r.prompt, tuple(self.steps), r.sampling, r.seed, self.sample, model, ended, passes, seconds)


def rows_of(requests: Sequence[Request], window: int) -> list[Row]:
    """Every sample of every request."""
    return [
        Row(place, request, request.first_sample + i, min(request.limit, window - len(request.prompt) + 1))
        for place, request in enumerate(requests)
        for i in range(request.n)
    ]


def draw(logits_RV: Tensor, rows: Sequence[Row]) -> Tensor:
    """The next token [R] of each row, recorded as its step; the noise is that of (seed, sample, position)."""
    tokens_R = torch.empty(len(rows), dtype=torch.int64)
    for sampling in dict.fromkeys(row.request.sampling for row in rows):
        alike = [i for i, row in enumerate(rows) if row.request.sampling == sampling]
        index = torch.tensor(alike)
        mine = [rows[i] for i in alike]
        noise_R = np.array(
            [float(noise(row.request.seed, row.sample, len(row.request.prompt) + len(row.steps))) for row in mine]
        )
        seen = _seen(mine, logits_RV.shape[1]) if needs_seen(sampling) else None
        tokens, logp_2R = sample(logits_RV[index], sampling, noise_R, seen)
        tokens_R[index] = tokens
        for row, token, logp, drawn in zip(mine, tokens.tolist(), *logp_2R.double().tolist(), strict=True):
            row.steps.append(Step(token, logp, drawn, "drawn"))
    for i, row in enumerate(rows):
        if row.request.top:
            last = row.steps[-1]
            (listed,) = distributions(logits_RV[i : i + 1].float().log_softmax(-1), row.request.top)
            row.steps[-1] = Step(last.token, last.logp, last.drawn_logp, last.how, listed)
    return tokens_R


def finished(row: Row, decode_bytes: Callable[[int], bytes]) -> Literal["stop", "length"] | None:
    """How the row's newest token ended it, if it did."""
    token = row.steps[-1].token
    if token in row.request.stop:
        return "stop"
    if row.request.stop_texts:
        added = decode_bytes(token)
        row.said += added
        if any(t.encode() in row.said[-len(t.encode()) - len(added) :] for t in row.request.stop_texts):
            return "stop"
    return "length" if len(row.steps) >= row.room else None


def seen_last(lengths_R: Tensor, longest: int) -> Tensor:
    """[R, T]: 1 for the last so many of ``longest`` places."""
    return (torch.arange(longest) >= longest - lengths_R[:, None]).long()


def _seen(rows: Sequence[Row], size: int) -> Seen:
    counts = token_counts([np.array([step.token for step in row.steps], np.int64) for row in rows], size)
    prompts = token_counts([np.array(row.request.prompt) for row in rows], size)
    return Seen(counts + prompts, counts)
