"""The ways to decide. Each starts from the plain answer, which is paid already, and spends what is left.

With nothing left each returns the plain answer: budget 1 is greedy (of ``sample``: one plain sample).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import numpy as np

from klype.answers.backspace import obey
from klype.answers.checks import CHECKS
from klype.answers.decoding import Bench, Candidate, Choice, Deciding, Draw, Order, Read, Share, Tokens
from klype.errors import UsageError
from klype.values import Request, Sampling, Step, Trace

GREEDY = Sampling(temperature=0.0)
LEAST = 1e-4
"""Beginnings less probable than this are not gone to."""
MOST = 256
"""Samples drawn in one order."""
Drawing = Generator[Order, Any, list[Candidate]]


def plain(bench: Bench) -> Deciding:
    """The plain answer as it is."""
    yield from ()  # it orders nothing
    return Choice(bench.candidate(bench.plain))


def consensus(bench: Bench) -> Deciding:
    """The meaning of most samples (Wang et al. 2023, arXiv:2203.11171); the plain answer votes too, and wins
    ties. As a minimum Bayes risk decoder: the answer that most others agree with."""
    drawn = yield from samples(bench, bench.purse.left)
    return vote([bench.candidate(bench.plain), *drawn])


def samples(bench: Bench, most: int) -> Drawing:
    """Whole samples within so many passes. Those cut short are gone on with from what the short ones have left."""
    asked, done, number, left = bench.asked, list[Candidate](), 0, most
    sampling = replace(asked.sampling, temperature=bench.tuning.temperature)
    begun: list[tuple[int, tuple[Step, ...]]] = []

    def order(before: tuple[Step, ...], n: int, cap: int, sample: int) -> Draw:
        prompt = (*asked.prompt, *(step.token for step in before))
        request = Request(prompt, n, cap, sampling, asked.seed, asked.stop, asked.stop_texts, 0, sample)
        return Draw(request, len(prompt))

    def keep(trace: Trace, before: tuple[Step, ...]) -> None:
        if trace.ended == "stop" or len(before) + len(trace.steps) >= asked.limit:
            done.append(bench.candidate(trace, before))
        else:
            begun.append((trace.sample, (*before, *trace.steps)))

    while left > 0:
        if begun:
            sample, steps = begun.pop(0)
            (trace,) = yield order(steps, 1, min(left, asked.limit - len(steps)), sample)
            left -= len(trace.steps)
            keep(trace, steps)
            continue
        if left < (bench.unit + 1) // 2:
            break
        count = min(max(1, left // bench.unit), MOST)
        traces = yield order((), count, min(asked.limit, left // count), number + 1)
        number += count
        left -= sum(len(trace.steps) for trace in traces)
        for trace in traces:
            keep(trace, ())
    return done


@dataclass(slots=True)
class Paths:
    """Beginnings of answers, heaviest first; a beginning branches off where another token was likely too."""

    bench: Bench
    heap: list[tuple[float, int, tuple[Step, ...]]] = field(default_factory=list)
    paths: list[Candidate] = field(default_factory=list)
    number: Iterator[int] = field(default_factory=count)

    def close(self, steps: Sequence[Step], ended: bool, since: int) -> None:
        """A whole answer; at its own tokens, which begin at ``since``, others could have stood."""
        tokens = tuple(step.token for step in steps)
        text = self.bench.spell(tokens)
        logp = sum(step.logp for step in steps)
        self.paths.append(Candidate(text, tokens, logp, self.bench.asked.meaning(text), ended))
        before = math.exp(sum(step.logp for step in steps[:since]))
        for t in range(since, len(steps)):
            self._branch(steps, t, before)
            before *= math.exp(steps[t].logp)

    def _branch(self, steps: Sequence[Step], t: int, before: float) -> None:
        q = steps[t].distribution
        if q is None:
            return
        for token, logp in zip(q.ids[: self.bench.tuning.top].tolist(), q.logp.tolist(), strict=False):
            if token != steps[t].token:
                added = Step(int(token), float(logp), float(logp), "forced")
                heapq.heappush(self.heap, (-before * math.exp(logp), next(self.number), (*steps[:t], added)))


def branches(bench: Bench, most: int) -> Generator[Order, Any, list[Candidate]]:
    """The plain answer, and the greedy ends of the heaviest beginnings beside it, within so many passes.

    Cf. Wang & Zhou 2024 (arXiv:2402.10200), who branch at the first token; here wherever the mass is.
    """
    found, left = Paths(bench), most
    found.close(bench.plain.steps, bench.plain.ended == "stop", 0)
    asked = bench.asked
    while left > 0 and found.heap:
        mass, _, steps = heapq.heappop(found.heap)
        if -mass < LEAST:
            break
        if steps[-1].token in asked.stop:
            found.close(steps, True, len(steps))
            continue
        room = min(left, asked.limit - len(steps))
        if room < 1:
            continue
        prompt = (*asked.prompt, *(step.token for step in steps))
        request = Request(prompt, 1, room, GREEDY, asked.seed, asked.stop, asked.stop_texts, bench.tuning.top)
        (trace,) = yield Draw(request, len(prompt) - 1)
        left -= len(trace.steps)
        whole = trace.ended == "stop" or len(steps) + len(trace.steps) >= asked.limit
        if whole:
            found.close((*steps, *trace.steps), trace.ended == "stop", len(steps))
    return found.paths


def search(bench: Bench) -> Deciding:
    """Best-first: the meaning whose answers, as found, are the most probable together."""
    found = yield from best_first(bench)
    return vote([replace(c, weight=math.exp(c.logp)) for c in found])


def _settled(found: Iterable[Candidate]) -> bool:
    """No meaning can catch up with the first, whatever the mass that is left belongs to."""
    sums: dict[Any, float] = {}
    for c in found:
        sums[c.meaning] = sums.get(c.meaning, 0.0) + math.exp(c.logp)
    most = sorted(sums.values())[-2:]
    return most[-1] - (most[0] if len(most) > 1 else 0.0) > 1.0 - sum(sums.values())


def best_first(bench: Bench) -> Drawing:
    """Whole answers in the order of search, the plain one first, until no meaning can catch up.

    The plain answer's own beginnings are known already; any other costs a pass. Tokens that a partial distribution does
    not list are not gone to.
    """
    asked, stops = bench.asked, set(bench.asked.stop)
    found: dict[Tokens, Candidate] = {}
    heap: list[tuple[float, int, Tokens]] = []
    number = count()

    def opened(tokens: Tokens, logp: float, ids: Sequence[int], logps: Sequence[float]) -> None:
        for token, more in zip(ids, logps, strict=True):
            whole = (*tokens, int(token))
            if int(token) in stops or _ends_in_text(bench, whole):
                text = bench.spell(whole)
                found[whole] = Candidate(text, whole, logp + more, asked.meaning(text), True)
            elif len(whole) < asked.limit:
                heapq.heappush(heap, (-(logp + more), next(number), whole))

    first = bench.candidate(bench.plain)
    found[first.tokens] = first
    if bench.purse.left < 1:
        return [first]
    known: dict[Tokens, Any] = {
        tuple(s.token for s in bench.plain.steps[:t]): step.distribution
        for t, step in enumerate(bench.plain.steps)
        if step.distribution is not None
    }
    heap.append((0.0, next(number), ()))
    while heap:
        cost, _, tokens = heapq.heappop(heap)
        q = known.get(tokens)
        if q is None:
            if bench.purse.left < 1 or -cost < math.log(LEAST) or _settled(found.values()):
                break
            (q,) = yield Read(((*asked.prompt, *tokens),), bench.tuning.top, True)
        possible = np.isfinite(q.logp[: bench.tuning.top])
        opened(tokens, -cost, *(row[: bench.tuning.top][possible].tolist() for row in (q.ids, q.logp)))
    return list(found.values())


def _ends_in_text(bench: Bench, tokens: Tokens) -> bool:
    if not bench.asked.stop_texts:
        return False
    text = bench.decode(tokens)
    return any(end in text for end in bench.asked.stop_texts)


def backtrack(bench: Bench) -> Deciding:
    """When confidence falls below the floor, the answer goes back to where it was least sure and takes the second way
    there; it is kept when the whole is more probable, token by token."""
    asked = bench.asked
    best, steps, tried = bench.candidate(bench.plain), list(bench.plain.steps), set[Tokens]()
    seen = [best]
    while bench.purse.left > 0:
        weak = [
            (step.logp, t)
            for t, step in enumerate(steps)
            if step.distribution is not None
            and math.exp(step.logp) < bench.tuning.floor
            and tuple(s.token for s in steps[:t]) not in tried
        ]
        if not weak:
            break
        _, t = min(weak)
        head = steps[:t]
        tried.add(tuple(s.token for s in head))
        q = steps[t].distribution
        assert q is not None
        others = [(int(i), float(p)) for i, p in zip(q.ids, q.logp, strict=True) if int(i) != steps[t].token]
        if not others:
            continue
        token, logp = max(others, key=lambda item: item[1])
        head.append(Step(token, logp, logp, "forced"))
        room = min(bench.purse.left, asked.limit - len(head))
        if token in asked.stop or room < 1:
            continue
        prompt = (*asked.prompt, *(s.token for s in head))
        request = Request(prompt, 1, room, GREEDY, asked.seed, asked.stop, asked.stop_texts, bench.tuning.top)
        (trace,) = yield Draw(request, len(prompt) - 1)
        other = bench.candidate(trace, head)
        seen.append(other)
        surer = other.logp / len(other.tokens) > best.logp / max(1, len(best.tokens))
        if surer and (other.ended or not best.ended):
            best, steps = other, [*head, *trace.steps]
    return Choice(best, vote([replace(c, weight=math.exp(c.logp / max(1, len(c.tokens)))) for c in seen]).shares)


def backspace(bench: Bench) -> Deciding:
    """A model that has learnt a token which takes the last word back is obeyed (taking_back.py), greedily.

    ``Tuning.back`` is the token. It never takes back what stands before the answer: there it is barred.
    """
    back, asked = bench.tuning.back, bench.asked
    if back is None:
        raise UsageError(
            "This model has learnt no token that takes a word back, which the decoder backspace needs.",
            "Train one, or choose another --decoder.",
        )
    plain = bench.plain.tokens
    if back not in plain:
        return Choice(bench.candidate(bench.plain))
    request = Request(asked.prompt, 1, asked.limit, GREEDY, asked.seed, asked.stop, asked.stop_texts)
    written = yield from obey(request, back, bench.purse, bench.plain.steps[: plain.index(back)], taken=True)
    tokens = tuple(step.token for step in written.steps)
    text = bench.spell(tokens)
    logp = sum(step.logp for step in written.steps)
    return Choice(Candidate(text, tokens, logp, asked.meaning(text), written.ended))


def verify(name: str) -> Callable[[Bench], Deciding]:
    """Half of what is left finds other answers (``branches``), and a check weighs them: log P(answer) + weight · check,
    summed over the wordings of a meaning."""

    def way(bench: Bench) -> Deciding:
        check = bench.asked.checks.get(name)
        if check is None:
            raise UsageError(f"The decoder verify-{name} has nothing to check with for this model.", CHECKS[name].hint)
        found = yield from branches(bench, bench.purse.left - bench.purse.left // 2)
        best = {c.tokens: c for c in found}
        known = sorted(best.values(), key=lambda c: -c.logp)
        mine = bench.candidate(bench.plain)
        known = [mine, *(c for c in known if c.tokens != mine.tokens)]
        if len({c.meaning for c in known}) < 2 or bench.purse.left < 2:
            return Choice(mine, vote([replace(c, weight=math.exp(c.logp)) for c in known]).shares)
        scores = yield from check(bench, known)
        kept = known[: len(scores)]
        total = np.array([c.logp + bench.tuning.weight * s for c, s in zip(kept, scores, strict=True)])
        weights = np.exp(total - total.max())
        return vote([replace(c, weight=float(w)) for c, w in zip(kept, weights, strict=True)])

    return way


def vote(candidates: Sequence[Candidate]) -> Choice:
    """The meaning that weighs most, by its most probable answer; of equals the one that came first."""
    sums: dict[Any, float] = {}
    for c in candidates:
        sums[c.meaning] = sums.get(c.meaning, 0.0) + c.weight
    total = sum(sums.values()) or 1.0
    order = sorted(sums, key=lambda meaning: -sums[meaning])
    stands = {m: max((c for c in candidates if c.meaning == m), key=lambda c: (c.ended, c.logp)) for m in order}
    return Choice(stands[order[0]], tuple(Share(m, stands[m].text, sums[m] / total) for m in order))
