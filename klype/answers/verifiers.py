"""Ways to check candidates: each gives a log-score, added to log P(answer) with a weight.

A new check is a row of ``CHECKS`` (which makes it the decoder ``verify-NAME``) and the function that a
question brings for it (``DecodeQuestion.checks``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from klype.answers.decoding import (
    Check,
    Checking,
    DecodeContext,
    DecodedAnswer,
    OtherScore,
    ReadNext,
    Score,
    Tokens,
)

LEAST = 1e-6


@dataclass(frozen=True, slots=True)
class CheckKind:
    """``about``: what is chosen by it, by language; ``hint``: what to do where a question does not bring it;
    ``weights``: worth trying, the first by default."""

    about: Mapping[str, str]
    hint: str = ""
    weights: tuple[float, ...] = (0.5, 1.0)


# By the mean log-probability a token, so that length does not count; by how probable what an answer states is as plain
# text; by the model's own P(yes) (Kadavath et al. 2022, arXiv:2207.05221); by the score of a reward model.
CHECKS = {
    "likelihood": CheckKind(
        {
            "en": "the answer that is most probable word for word, its length left out",
            "nb": "svaret som er mest sannsynlig ord for ord, uansett lengde",
        }
    ),
    "statement": CheckKind(
        {
            "en": "the answer whose statement is the most probable as plain text",
            "nb": "svaret som sier det mest sannsynlige når det står som vanlig tekst",
        },
        "It needs to know what an answer states.",
    ),
    "yes": CheckKind(
        {"en": "the answer that the model itself takes for right", "nb": "svaret modellen selv mener er riktig"},
        "It needs a chat template, and one token each for Yes and No.",
    ),
    "reward": CheckKind(
        {
            "en": "the answer that the run's reward model likes, weighed with its probability",
            "nb": "svaret belønningsmodellen liker best, veid mot hvor sannsynlig det er",
        },
        "Give a run's folder with a reward model (klype train reward), or choose another --decoder.",
        (1.0, 3.0),
    ),
}


def likelihood(context: DecodeContext, candidates: Sequence[DecodedAnswer]) -> Checking:
    """Free: what was drawn tells it."""
    yield from ()  # it requests nothing
    # less log P, which the verifier adds: at weight 1 the mean a token is all that is left
    return [c.logp / max(1, len(c.tokens)) - c.logp for c in candidates]


def given(put: Callable[[str], tuple[Tokens, Tokens]]) -> Check:
    """log P of the second behind the first of ``put(answer)``: of what an answer states. One pass a candidate."""

    def check(context: DecodeContext, candidates: Sequence[DecodedAnswer]) -> Checking:
        rows = [put(c.text) for c in candidates[: context.budget.left]]
        traces = yield Score(tuple(p for p, _ in rows), tuple(q for _, q in rows))
        return [trace.logp for trace in traces]

    return check


def yes(put: Callable[[str], Tokens], yes: Sequence[int], no: Sequence[int]) -> Check:
    """log P(yes) among yes and no, as the next token after ``put(answer)``. One pass a candidate."""

    def check(context: DecodeContext, candidates: Sequence[DecodedAnswer]) -> Checking:
        kept = candidates[: context.budget.left]
        found = yield ReadNext(tuple(put(c.text) for c in kept))
        out = []
        for q in found:
            p = np.exp(np.asarray(q.logp, dtype=float))
            good, bad = (float(p[np.isin(q.ids, list(ids))].sum()) for ids in (yes, no))
            # where neither is listed nobody has said anything: even chances
            out.append(math.log(max(LEAST, good / (good + bad))) if good + bad > 0 else math.log(0.5))
        return out

    return check


def judged(score: Callable[[Sequence[Tokens], Sequence[Tokens]], Sequence[float]]) -> Check:
    """``score(prompts, answers)`` of a reward model. One pass a candidate."""

    def check(context: DecodeContext, candidates: Sequence[DecodedAnswer]) -> Checking:
        kept = candidates[: context.budget.left]
        prompts, tokens = [context.question.prompt] * len(kept), [c.tokens for c in kept]
        positions = sum(map(len, prompts)) + sum(map(len, tokens))
        scores = yield OtherScore(lambda: [float(s) for s in score(prompts, tokens)], len(kept), positions)
        return list(scores)

    return check
