"""The ways to decide. Each starts from the plain answer, which is paid already, and spends what is left.

With nothing left each returns the plain answer: budget 1 is greedy (of ``sample``: one plain sample).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np

from klype.answers.backspace import write_with_backspace
from klype.answers.checks import CHECKS
from klype.answers.decoding import (
    GREEDY,
    Deciding,
    Decision,
    DecodeContext,
    DecodedAnswer,
    DecodeRequest,
    Draw,
    ReadNext,
    Share,
    Tokens,
)
from klype.errors import UsageError
from klype.values import Step, Trace

LEAST = 1e-4  # beginnings less probable than this are not gone to
MOST = 256  # samples drawn in one request
Drawing = Generator[DecodeRequest, Any, list[DecodedAnswer]]


def plain(context: DecodeContext) -> Deciding:
    """The plain answer as it is."""
    yield from ()  # it requests nothing
    return Decision(context.candidate(context.plain))


def consensus(context: DecodeContext) -> Deciding:
    """The meaning of most samples (Wang et al. 2023, arXiv:2203.11171); the plain answer votes too, and wins
    ties. As a minimum Bayes risk decoder: the answer that most others agree with."""
    drawn = yield from samples(context, context.budget.left)
    return vote([context.candidate(context.plain), *drawn])


def samples(context: DecodeContext, most: int) -> Drawing:
    """Whole samples within so many passes. Those cut short are gone on with from what the short ones have left."""
    question, done, number, left = context.question, list[DecodedAnswer](), 0, most
    sampling = replace(question.sampling, temperature=context.tuning.temperature)
    begun: list[tuple[int, tuple[Step, ...]]] = []

    def draw(before: tuple[Step, ...], n: int, cap: int, sample: int) -> Draw:
        request = question.request(sampling, cap, tuple(step.token for step in before), n, first_sample=sample)
        return Draw(request, len(request.prompt))

    def keep(trace: Trace, before: tuple[Step, ...]) -> None:
        if trace.ended == "stop" or len(before) + len(trace.steps) >= question.limit:
            done.append(context.candidate(trace, before))
        else:
            begun.append((trace.sample, (*before, *trace.steps)))

    while left > 0:
        if begun:
            sample, steps = begun.pop(0)
            (trace,) = yield draw(steps, 1, min(left, question.limit - len(steps)), sample)
            left -= len(trace.steps)
            keep(trace, steps)
            continue
        # what is left would hold less than half an answer
        if left < (context.unit + 1) // 2:
            break
        count = min(max(1, left // context.unit), MOST)
        # sample 0 is the plain answer's where that is drawn, too
        traces = yield draw((), count, min(question.limit, left // count), number + 1)
        number += count
        left -= sum(len(trace.steps) for trace in traces)
        for trace in traces:
            keep(trace, ())
    return done


def branches(context: DecodeContext, most: int) -> Drawing:
    """The plain answer, and the greedy ends of the heaviest beginnings beside it, within so many passes. A beginning
    branches off wherever another token was likely, too.

    Cf. Wang & Zhou 2024 (arXiv:2402.10200), who branch at the first token; here wherever the mass is.
    """
    question, found, left, number = context.question, list[DecodedAnswer](), most, count()
    heap: list[tuple[float, int, tuple[Step, ...]]] = []  # beginnings, heaviest first

    def close(steps: Sequence[Step], ended: bool, since: int) -> None:
        """A whole answer; at its own tokens, which begin at ``since``, others could have stood."""
        found.append(context.answer(steps, ended))
        before = math.exp(sum(step.logp for step in steps[:since]))
        for t, step in enumerate(steps[since:], since):
            for token, logp in _listed(step, context.tuning.top):
                if token != step.token:
                    branch = (*steps[:t], Step(token, logp, logp, "forced"))
                    heapq.heappush(heap, (-before * math.exp(logp), next(number), branch))
            before *= math.exp(step.logp)

    close(context.plain.steps, context.plain.ended == "stop", 0)
    while left > 0 and heap:
        mass, _, steps = heapq.heappop(heap)
        if -mass < LEAST:
            break
        if steps[-1].token in question.stop:
            close(steps, True, len(steps))
        elif (limit := min(left, question.limit - len(steps))) > 0:
            (trace,) = yield context.go_on(steps, limit)
            left -= len(trace.steps)
            if trace.ended == "stop" or len(steps) + len(trace.steps) >= question.limit:
                close((*steps, *trace.steps), trace.ended == "stop", len(steps))
    return found


def _listed(step: Step, most: int | None = None) -> list[tuple[int, float]]:
    """The tokens that could have stood there, and their log-probabilities."""
    q = step.distribution
    return [] if q is None else list(zip(q.ids[:most].tolist(), q.logp[:most].tolist(), strict=True))


def search(context: DecodeContext) -> Deciding:
    """Best-first: the meaning whose answers, as found, are the most probable together."""
    found = yield from best_first(context)
    return vote([replace(c, weight=math.exp(c.logp)) for c in found])


def _settled(found: Iterable[DecodedAnswer]) -> bool:
    """No meaning can catch up with the first, whatever the mass that is left belongs to."""
    sums: dict[Any, float] = {}
    for c in found:
        sums[c.meaning] = sums.get(c.meaning, 0.0) + math.exp(c.logp)
    most = sorted(sums.values())[-2:]
    return most[-1] - (most[0] if len(most) > 1 else 0.0) > 1.0 - sum(sums.values())


def best_first(context: DecodeContext) -> Drawing:
    """Whole answers in the order of search, the plain one first, until no meaning can catch up.

    The plain answer's own beginnings are known already; any other costs a pass. Tokens that a partial distribution does
    not list are not gone to.
    """
    question, stops = context.question, set(context.question.stop)
    found: dict[Tokens, DecodedAnswer] = {}
    heap: list[tuple[float, int, Tokens]] = []
    number = count()

    def opened(tokens: Tokens, logp: float, ids: Sequence[int], logps: Sequence[float]) -> None:
        for token, more in zip(ids, logps, strict=True):
            whole = (*tokens, int(token))
            if int(token) in stops or _ends_in_text(context, whole):
                text = context.spell(whole)
                found[whole] = DecodedAnswer(text, whole, logp + more, question.meaning(text), True)
            elif len(whole) < question.limit:
                heapq.heappush(heap, (-(logp + more), next(number), whole))

    first = context.candidate(context.plain)
    found[first.tokens] = first
    if context.budget.left < 1:
        return [first]
    known: dict[Tokens, Any] = {
        tuple(s.token for s in context.plain.steps[:t]): step.distribution
        for t, step in enumerate(context.plain.steps)
        if step.distribution is not None
    }
    heap.append((0.0, next(number), ()))
    while heap:
        cost, _, tokens = heapq.heappop(heap)
        q = known.get(tokens)
        if q is None:
            if context.budget.left < 1 or -cost < math.log(LEAST) or _settled(found.values()):
                break
            # all but the last token has been read with what it branches off from
            (q,) = yield ReadNext(((*question.prompt, *tokens),), context.tuning.top, True)
        possible = np.isfinite(q.logp[: context.tuning.top])
        opened(tokens, -cost, *(row[: context.tuning.top][possible].tolist() for row in (q.ids, q.logp)))
    return list(found.values())


def _ends_in_text(context: DecodeContext, tokens: Tokens) -> bool:
    if not context.question.stop_texts:
        return False
    text = context.decode(tokens)
    return any(end in text for end in context.question.stop_texts)


def backtrack(context: DecodeContext) -> Deciding:
    """When confidence falls below the floor, the answer goes back to where it was least sure and takes the second way
    there; it is kept when the whole is more probable, token by token."""
    question = context.question
    best, steps, tried = context.candidate(context.plain), list(context.plain.steps), set[Tokens]()
    seen = [best]
    while context.budget.left > 0:
        weak = [
            (step.logp, t)
            for t, step in enumerate(steps)
            if step.distribution is not None
            and math.exp(step.logp) < context.tuning.floor
            and tuple(s.token for s in steps[:t]) not in tried
        ]
        if not weak:
            break
        _, t = min(weak)
        head = steps[:t]
        tried.add(tuple(s.token for s in head))
        others = [(token, logp) for token, logp in _listed(steps[t]) if token != steps[t].token]
        if not others:
            continue
        token, logp = max(others, key=lambda item: item[1])
        head.append(Step(token, logp, logp, "forced"))
        limit = min(context.budget.left, question.limit - len(head))
        if token in question.stop or limit < 1:
            continue
        (trace,) = yield context.go_on(head, limit)
        other = context.candidate(trace, head)
        seen.append(other)
        # a token's mean: else the shorter answer would win
        surer = other.logp / len(other.tokens) > best.logp / max(1, len(best.tokens))
        # an answer that was cut off never takes the place of a whole one
        if surer and (other.ended or not best.ended):
            best, steps = other, [*head, *trace.steps]
    return Decision(best, vote([replace(c, weight=math.exp(c.logp / max(1, len(c.tokens)))) for c in seen]).shares)


def backspace(context: DecodeContext) -> Deciding:
    """A model that has learnt a token which takes the last word back is obeyed (backspace.py), greedily.

    ``Tuning.back`` is the token. It never takes back what stands before the answer: there it is barred.
    """
    back, question = context.tuning.back, context.question
    if back is None:
        raise UsageError(
            "This model has learnt no token that takes a word back, which the decoder backspace needs.",
            "Train one, or choose another --decoder.",
        )
    plain = context.plain.tokens
    if back not in plain:
        return Decision(context.candidate(context.plain))
    request, begun = question.request(GREEDY, question.limit), context.plain.steps[: plain.index(back)]
    written = yield from write_with_backspace(request, back, context.budget, begun, taken=True)
    return Decision(context.answer(written.steps, written.ended))


def verify(name: str) -> Callable[[DecodeContext], Deciding]:
    """Half of what is left finds other answers (``branches``), and a check weighs them: log P(answer) + weight · check,
    summed over the wordings of a meaning."""

    def strategy(context: DecodeContext) -> Deciding:
        check = context.question.checks.get(name)
        if check is None:
            raise UsageError(f"The decoder verify-{name} has nothing to check with for this model.", CHECKS[name].hint)
        found = yield from branches(context, context.budget.left - context.budget.left // 2)
        best = {c.tokens: c for c in found}
        known = sorted(best.values(), key=lambda c: -c.logp)
        mine = context.candidate(context.plain)
        known = [mine, *(c for c in known if c.tokens != mine.tokens)]
        # one meaning alone needs no check, and a check of one answer compares nothing
        if len({c.meaning for c in known}) < 2 or context.budget.left < 2:
            return Decision(mine, vote([replace(c, weight=math.exp(c.logp)) for c in known]).shares)
        scores = yield from check(context, known)
        kept = known[: len(scores)]
        total = np.array([c.logp + context.tuning.weight * s for c, s in zip(kept, scores, strict=True)])
        # the greatest is 1: nothing overflows, and shares are what they were
        weights = np.exp(total - total.max())
        return vote([replace(c, weight=float(w)) for c, w in zip(kept, weights, strict=True)])

    return strategy


def vote(candidates: Sequence[DecodedAnswer]) -> Decision:
    """The meaning that weighs most, by its most probable answer; of equals the one that came first."""
    sums: dict[Any, float] = {}
    for c in candidates:
        sums[c.meaning] = sums.get(c.meaning, 0.0) + c.weight
    total = sum(sums.values()) or 1.0
    order = sorted(sums, key=lambda meaning: -sums[meaning])
    # a whole answer stands for its meaning before one that was cut off
    stands = {m: max((c for c in candidates if c.meaning == m), key=lambda c: (c.ended, c.logp)) for m in order}
    return Decision(stands[order[0]], tuple(Share(m, stands[m].text, sums[m] / total) for m in order))
