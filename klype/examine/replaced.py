"""Feedback where nobody knows which words can follow: one word of a right answer is replaced, the meaning is judged.

At a position fixed by rule beforehand, the answer's own word in one arm, and in the other another word that is as rare,
|Δ log q| ≤ ln 3, drawn from q among those (never the end of the text). Where there is none, the next position is looked
at, and so on. Then the model goes on at its temperature, and whole answers are judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from klype.examine.feedback import AS_RARE, FeedbackSettings
from klype.sources.source import Source, answers
from klype.values import Request, Sampling, Trace

LOOKS = 8
"""Positions of an answer that are looked at."""
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
    """``right_answers``: (question, an answer that was judged right, its judge). Answers without a position where
    another word is as rare, and those whose continuations cannot be decided, are left out."""
    kept = _forced(source, right_answers, settings, limit)
    if not kept:
        return []
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


def _forced(
    source: Source, right_answers: Sequence[tuple[str, Trace, Right]], settings: FeedbackSettings, limit: int
) -> list[tuple[tuple[str, Trace, Right, int], int]]:
    """Each answer with its position and the other word, found by ``LOOKS`` looks at most."""
    stop = set(source.codec.stop)
    left = [(i % settings.positions, row) for i, row in enumerate(right_answers)]
    found: dict[str, tuple[tuple[str, Trace, Right, int], int]] = {}
    for look in range(LOOKS):
        here = [
            (first + look, row)
            for first, row in left
            if row[0] not in found
            and first + look < min(limit - 1, len(row[1].tokens))
            and row[1].tokens[first + look] not in stop
        ]
        if not here:
            break
        listed = source.next([(*row[1].prompt, *row[1].tokens[:at]) for at, row in here], -1)
        for (at, (question, trace, judge)), q in zip(here, listed, strict=True):
            own = q.p(trace.tokens[at])
            p_K = np.exp(q.logp.astype(np.float64))
            p_K[np.isin(q.ids, [trace.tokens[at], *stop])] = 0.0
            with np.errstate(divide="ignore"):
                p_K[np.abs(np.log(p_K) - math.log(own or 1.0)) > AS_RARE] = 0.0
            if own and p_K.sum() > 0:
                rng = np.random.default_rng([settings.seed, crc32(question.encode())])
                found[question] = (question, trace, judge, at), int(rng.choice(q.ids, p=p_K / p_K.sum()))
    return [found[row[0]] for _, row in left if row[0] in found]
