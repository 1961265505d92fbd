"""Feedback where nobody knows which words can follow: one word of a right answer is replaced, the meaning is judged.

At a position fixed by rule beforehand, the answer's own word in one arm, and in the other another word drawn from q
without it (never the end of the text). Then the model goes on at its temperature, and whole answers are judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from klype.examine.feedback import FeedbackSettings
from klype.sources.source import Source, answers
from klype.values import Request, Sampling, Trace

Right = Callable[[str, bool], bool | None]
"""(text, finished) → right, wrong, or None: undecided."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """One question: the share of right answers with its own word kept, and with another in its place."""

    question: str
    own: float
    other: float


def replaced(
    source: Source, right_answers: Sequence[tuple[str, Trace, Right]], settings: FeedbackSettings, limit: int
) -> list[Replaced]:
    """``right_answers``: (question, an answer that was judged right, its judge). Answers too short for their position,
    and those whose continuations cannot be decided, are left out."""
    stop = set(source.codec.stop)
    rows = []
    for i, (question, trace, judge) in enumerate(right_answers):
        at = i % settings.positions
        if at < len(trace.steps) and trace.tokens[at] not in stop and at + 1 < limit:
            rows.append((question, trace, judge, at))
    if not rows:
        return []
    listed = source.next([(*trace.prompt, *trace.tokens[:at]) for _, trace, _, at in rows], -1)
    forced = []
    for (question, trace, _, at), q in zip(rows, listed, strict=True):
        p_K = np.exp(q.logp.astype(np.float64))
        p_K[np.isin(q.ids, [trace.tokens[at], *stop])] = 0.0
        rng = np.random.default_rng([settings.seed, crc32(question.encode())])
        other = int(rng.choice(q.ids, p=p_K / p_K.sum())) if p_K.sum() > 0 else None
        forced.append(other)
    kept = [(row, other) for row, other in zip(rows, forced, strict=True) if other is not None]
    requests = [
        Request(
            (*trace.prompt, *trace.tokens[:at], token),
            n=settings.samples,
            limit=limit - at - 1,
            sampling=Sampling(temperature=settings.temperature),
            seed=crc32(f"{settings.seed} {question} {arm} replaced".encode()),
            stop=tuple(source.codec.stop),
        )
        for (question, trace, _, at), other in kept
        for arm, token in (("own", trace.tokens[at]), ("other", other))
    ]
    groups = iter(answers(source, requests))
    out = []
    for (question, trace, judge, at), other in kept:
        shares = []
        for token in (trace.tokens[at], other):
            said = [((*trace.tokens[:at], token, *one.tokens), one.ended == "stop") for one in next(groups)]
            known = [r for text, done in said if (r := judge(source.codec.decode(text), done)) is not None]
            shares.append(sum(known) / len(known) if known else None)
        if shares[0] is not None and shares[1] is not None:
            out.append(Replaced(question, shares[0], shares[1]))
    return out
