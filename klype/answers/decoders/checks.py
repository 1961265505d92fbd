"""Ways to check candidates: each gives a log-score, added to log P(answer) with a weight.

``contrast``: log P(a | question) − log P(a | nothing to go by): what is said whatever was asked counts less
(Li et al. 2016, arXiv:1510.03055; Holtzman et al. 2021, arXiv:2104.08315). ``variants``: the mean over the question
put otherwise (of letters that stand for choices also with the choices exchanged: Zheng et al. 2024, arXiv:2309.03882).
``likelihood``: by the mean over tokens, so that length does not count. ``question``: how probable the question is,
given the answer; ``statement``: how probable what it states is as plain text. ``yes``: the model's own P(yes)
(Kadavath et al. 2022, arXiv:2207.05221). ``judged``: another model's score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np

from klype.answers.decoders.orders import Bench, Candidate, Judge, Order, Read, Score, Tokens

Checking = Generator[Order, Any, list[float]]
Check = Callable[[Bench, Sequence[Candidate]], Checking]
LEAST = 1e-6


def likelihood(bench: Bench, candidates: Sequence[Candidate]) -> Checking:
    """Free: what was drawn tells it."""
    yield from ()  # it orders nothing
    return [c.logp / max(1, len(c.tokens)) - c.logp for c in candidates]


def contrast(bench: Bench, candidates: Sequence[Candidate]) -> Checking:
    """One pass a candidate."""
    kept = candidates[: bench.purse.left]
    if not bench.asked.blank:  # this question has nothing that could be left out
        return [0.0] * len(kept)
    traces = yield Score((bench.asked.blank,) * len(kept), tuple(c.tokens for c in kept))
    return [-trace.logp for trace in traces]


def variants(bench: Bench, candidates: Sequence[Candidate]) -> Checking:
    """One pass a candidate and variant; the first variants only, when not all can be paid."""
    kept = candidates[: bench.purse.left]
    others = bench.asked.variants[: bench.purse.left // max(1, len(kept))]
    if not kept or not others:
        return [0.0] * len(kept)
    rows = [(other.prompt, other.answer(c.tokens)) for c in kept for other in others]
    traces = yield Score(tuple(p for p, _ in rows), tuple(a for _, a in rows))
    each = len(others)
    means = [(c.logp + sum(t.logp for t in traces[i * each : (i + 1) * each])) / (each + 1) for i, c in enumerate(kept)]
    return [mean - c.logp for mean, c in zip(means, kept, strict=True)]


def given(put: Callable[[str], tuple[Tokens, Tokens]]) -> Check:
    """log P of the second behind the first of ``put(answer)``, one pass a candidate: the question behind an answer, or
    what an answer states, as plain text."""

    def check(bench: Bench, candidates: Sequence[Candidate]) -> Checking:
        rows = [put(c.text) for c in candidates[: bench.purse.left]]
        traces = yield Score(tuple(p for p, _ in rows), tuple(q for _, q in rows))
        return [trace.logp for trace in traces]

    return check


def yes(put: Callable[[str], Tokens], yes: Sequence[int], no: Sequence[int]) -> Check:
    """log P(yes) among yes and no, as the next token after ``put(answer)``. One pass a candidate."""

    def check(bench: Bench, candidates: Sequence[Candidate]) -> Checking:
        kept = candidates[: bench.purse.left]
        found = yield Read(tuple(put(c.text) for c in kept))
        out = []
        for q in found:
            p = np.exp(np.asarray(q.logp, dtype=float))
            good, bad = (float(p[np.isin(q.ids, list(ids))].sum()) for ids in (yes, no))
            out.append(math.log(max(LEAST, good / (good + bad))) if good + bad > 0 else math.log(0.5))
        return out

    return check


def judged(score: Callable[[Sequence[Tokens], Sequence[Tokens]], Sequence[float]]) -> Check:
    """``score(prompts, answers)`` of a reward model. One pass a candidate."""

    def check(bench: Bench, candidates: Sequence[Candidate]) -> Checking:
        kept = candidates[: bench.purse.left]
        prompts, tokens = [bench.asked.prompt] * len(kept), [c.tokens for c in kept]
        positions = sum(map(len, prompts)) + sum(map(len, tokens))
        scores = yield Judge(lambda: [float(s) for s in score(prompts, tokens)], len(kept), positions)
        return list(scores)

    return check
