"""Decoders: ways to decide on an answer, the table of them, and ``decide``, which runs one over many questions at once.

Each starts from the plain answer, which is already paid for, and spends the rest of its budget. With nothing left it
returns the plain answer: with budget 1 every decoder is greedy decoding (``sample``: one plain sample). ``verify-NAME``
weighs candidates by a check, which gives each a log-score: a row of ``CHECKS``, and a function that the question brings
for it (``DecodeQuestion.checks``).
"""

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np

from klype.answers.backspace import write_with_backspace
from klype.answers.decoder_requests import (
    GREEDY,
    Check,
    Decision,
    DecodeContext,
    DecodedAnswer,
    DecodeQuestion,
    DecoderSettings,
    Decoding,
    Draw,
    NextTokenRequest,
    PassBudget,
    Score,
    Share,
    run,
    serve,
)
from klype.errors import UsageError
from klype.sources.source import Source
from klype.values import Distribution, Step, Tokens, Trace

MIN_PROBABILITY = 1e-4  # prefixes less probable than this are not explored
MAX_SAMPLES = 256  # maximum number of samples in one request


def plain(context: DecodeContext) -> Decoding[Decision]:
    """The plain answer as it is."""
    yield from ()  # it requests nothing
    return Decision(context.candidate(context.plain))


def consensus(context: DecodeContext) -> Decoding[Decision]:
    """The meaning of most samples (self-consistency: Wang et al. 2023, arXiv:2203.11171). The plain answer votes too,
    and wins ties. It is a minimum Bayes risk decoder: the answer that most others agree with.

    Samples that were cut short are continued with what shorter samples have left of the budget.
    """
    question, budget, number = context.question, context.budget, 0
    unit = max(1, len(context.plain.steps))
    sampling = replace(question.sampling, temperature=context.tuning.temperature)
    whole, begun = [context.candidate(context.plain)], list[tuple[int, tuple[Step, ...]]]()
    while budget.left > 0:
        if begun:
            sample, before = begun.pop(0)
            n, limit = 1, min(budget.left, question.limit - len(before))
        elif budget.left < (unit + 1) // 2:  # too little for half an answer
            break
        else:  # sample 0 is the plain answer where that was drawn, too
            n = min(max(1, budget.left // unit), MAX_SAMPLES)
            sample, before, limit = number + 1, (), min(question.limit, budget.left // n)
            number += n
        request = question.request(sampling, limit, tuple(step.token for step in before), n, first_sample=sample)
        traces = yield Draw(request, len(request.prompt))
        for trace in traces:
            if trace.ended == "stop" or len(before) + len(trace.steps) >= question.limit:
                whole.append(context.candidate(trace, before))
            else:
                begun.append((trace.sample, (*before, *trace.steps)))
    return vote(whole, [1.0] * len(whole))


def branches(context: DecodeContext, most: int) -> Decoding[list[DecodedAnswer]]:
    """The plain answer, and greedy completions of the most probable prefixes beside it, within ``most`` passes. Such a
    prefix branches off wherever another token was likely, too.

    Wang & Zhou 2024 (arXiv:2402.10200) branch at the first token only.
    """
    question, found, left, number = context.question, list[DecodedAnswer](), most, count()
    heap: list[tuple[float, int, tuple[Step, ...]]] = []  # prefixes, most probable first

    def close(steps: Sequence[Step], ended: bool, since: int) -> None:
        """Adds a whole answer, and the prefixes that branch off from its own tokens, which begin at ``since``."""
        found.append(context.answer(steps, ended))
        before = math.exp(sum(step.logp for step in steps[:since]))
        for t, step in enumerate(steps[since:], since):
            for token, logp in _top_tokens(step.distribution, context.tuning.top):
                if token != step.token:
                    branch = (*steps[:t], Step(token, logp, logp, "forced"))
                    heapq.heappush(heap, (-before * math.exp(logp), next(number), branch))
            before *= math.exp(step.logp)

    close(context.plain.steps, context.plain.ended == "stop", 0)
    while left > 0 and heap:
        mass, _, steps = heapq.heappop(heap)
        if -mass < MIN_PROBABILITY:
            break
        if steps[-1].token in question.stop:
            close(steps, True, len(steps))
        elif (limit := min(left, question.limit - len(steps))) > 0:
            (trace,) = yield context.continue_greedily(steps, limit)
            left -= len(trace.steps)
            if trace.ended == "stop" or len(steps) + len(trace.steps) >= question.limit:
                close((*steps, *trace.steps), trace.ended == "stop", len(steps))
    return found


def _top_tokens(q: Distribution | None, most: int | None = None) -> list[tuple[int, float]]:
    """The possible next tokens among the first ``most`` that are listed, and their log-probabilities."""
    rows = () if q is None else zip(q.ids[:most].tolist(), q.logp[:most].tolist(), strict=True)
    return [(token, logp) for token, logp in rows if math.isfinite(logp)]


def search(context: DecodeContext) -> Decoding[Decision]:
    """Best-first search for the meaning whose answers are the most probable together, until no other can catch up.

    The prefixes of the plain answer are known already; any other costs a pass. Tokens that a partial distribution does
    not list are not explored.
    """
    question, top, number, plain = context.question, context.tuning.top, count(), context.candidate(context.plain)
    found, steps = {plain.tokens: plain}, context.plain.steps
    known = {plain.tokens[:t]: step.distribution for t, step in enumerate(steps) if step.distribution is not None}
    heap: list[tuple[float, int, Tokens]] = [(0.0, next(number), ())] if context.budget.left > 0 else []
    while heap:
        cost, _, tokens = heapq.heappop(heap)
        q = known.get(tokens)
        if q is None:
            sums = _sums(found.values(), [math.exp(c.logp) for c in found.values()])
            first, second = [*heapq.nlargest(2, sums.values()), 0.0][:2]
            settled = first - second > 1.0 - sum(sums.values())  # whichever meaning the rest of the mass belongs to
            if settled or context.budget.left < 1 or -cost < math.log(MIN_PROBABILITY):
                break
            # all but the last token was read with the prefix that it branches off from
            (q,) = yield NextTokenRequest(((*question.prompt, *tokens),), top, True)
        for token, more in _top_tokens(q, top):
            whole, logp = (*tokens, token), more - cost
            text = context.decode(whole) if question.stop_texts else ""
            if token in question.stop or any(end in text for end in question.stop_texts):
                said = context.text_of(whole)
                found[whole] = DecodedAnswer(said, whole, logp, question.meaning(said), True)
            elif len(whole) < question.limit:
                heapq.heappush(heap, (-logp, next(number), whole))
    return vote([*found.values()])


def _sums(candidates: Iterable[DecodedAnswer], weights: Iterable[float]) -> dict[Any, float]:
    """The total weight of every meaning, in the order of their first candidates."""
    sums: dict[Any, float] = {}
    for c, weight in zip(candidates, weights, strict=True):
        sums[c.meaning] = sums.get(c.meaning, 0.0) + weight
    return sums


def backtrack(context: DecodeContext) -> Decoding[Decision]:
    """Where confidence falls below the floor, returns to the least confident token and takes the second most probable
    one instead; the new answer is kept if its mean log-probability per token is higher."""
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
        tried.add(tuple(s.token for s in steps[:t]))
        others = [(token, logp) for token, logp in _top_tokens(steps[t].distribution) if token != steps[t].token]
        token, logp = max(others, key=lambda item: item[1], default=(-1, 0.0))
        limit = min(context.budget.left, question.limit - t - 1)
        if not others or token in question.stop or limit < 1:
            continue
        head = [*steps[:t], Step(token, logp, logp, "forced")]
        (trace,) = yield context.continue_greedily(head, limit)
        other = context.candidate(trace, head)
        seen.append(other)
        # the mean over tokens: otherwise the shorter answer would win
        surer = other.logp / len(other.tokens) > best.logp / max(1, len(best.tokens))
        # an answer that was cut off never replaces a whole one
        if surer and (other.ended or not best.ended):
            best, steps = other, [*head, *trace.steps]
    return Decision(best, vote(seen, [math.exp(c.logp / max(1, len(c.tokens))) for c in seen]).shares)


def backspace(context: DecodeContext) -> Decoding[Decision]:
    """Greedy decoding of a model that has learnt a token which takes its last word back (see backspace.py).

    ``DecoderSettings.back`` is the token. It takes back nothing before the answer: at its beginning it is barred.
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


@dataclass(frozen=True, slots=True)
class CheckKind:
    """A way to check candidates. ``about``: which answer it chooses; ``hint``: what to do where a question brings no
    such check."""

    about: str
    hint: str = ""


# The mean log-probability per token, so that length does not count; the probability, as plain text, of what an answer
# states; the model's own P(yes) (Kadavath et al. 2022, arXiv:2207.05221); the score of a reward model.
CHECKS = {
    "likelihood": CheckKind("the answer that is most probable word for word, its length left out"),
    "statement": CheckKind(
        "the answer whose statement is the most probable as plain text", "It needs to know what an answer states."
    ),
    "yes": CheckKind(
        "the answer that the model itself takes for right",
        "It needs a chat template, and one token each for Yes and No.",
    ),
    "reward": CheckKind(
        "the answer that the run's reward model likes, weighed with its probability",
        "Give a run's folder with a reward model (klype train reward), or choose another --decoder.",
    ),
}


def likelihood_check(context: DecodeContext, candidates: Sequence[DecodedAnswer]) -> Decoding[list[float]]:
    """The mean log-probability per token, minus log P, which the verifier adds: with weight 1 only the mean is left. No
    pass: it is known from the draw."""
    yield from ()  # it requests nothing
    return [c.logp / max(1, len(c.tokens)) - c.logp for c in candidates]


def statement_check(put: Callable[[str], tuple[Tokens, Tokens]]) -> Check:
    """log P of what an answer states, where ``put(answer)`` is a prompt and the statement. One pass per candidate."""

    def check(context: DecodeContext, candidates: Sequence[DecodedAnswer]) -> Decoding[list[float]]:
        traces = yield Score(tuple(put(c.text) for c in candidates[: context.budget.left]))
        return [trace.logp for trace in traces]

    return check


def yes_no_check(put: Callable[[str], Tokens], yes: Sequence[int], no: Sequence[int]) -> Check:
    """log P(yes) among yes and no, as the next token after ``put(answer)``, at least log 1e-6; log ½ if neither is
    listed. One pass per candidate."""

    def check(context: DecodeContext, candidates: Sequence[DecodedAnswer]) -> Decoding[list[float]]:
        kept = candidates[: context.budget.left]
        found = yield NextTokenRequest(tuple(put(c.text) for c in kept))
        out = []
        for q in found:
            p = np.exp(np.asarray(q.logp, dtype=float))
            good, bad = (float(p[np.isin(q.ids, list(ids))].sum()) for ids in (yes, no))
            out.append(math.log(max(1e-6, good / (good + bad))) if good + bad > 0 else math.log(0.5))
        return out

    return check


def reward_check(score: Callable[[Sequence[Tokens], Sequence[Tokens]], Sequence[float]]) -> Check:
    """``score(prompts, answers)`` of a reward model. One pass per candidate."""

    def check(context: DecodeContext, candidates: Sequence[DecodedAnswer]) -> Decoding[list[float]]:
        yield from ()  # it requests nothing of the source
        kept = candidates[: context.budget.left]
        prompts, tokens = [context.question.prompt] * len(kept), [c.tokens for c in kept]
        context.budget.spend(len(kept), sum(map(len, prompts)) + sum(map(len, tokens)))
        return [float(s) for s in score(prompts, tokens)]

    return check


def verify(name: str) -> Callable[[DecodeContext], Decoding[Decision]]:
    """A decoder that spends half of what is left on finding other answers (``branches``) and the rest on a check, which
    weighs them: exp(log P(answer) + weight · check), summed over the wordings of a meaning."""

    def strategy(context: DecodeContext) -> Decoding[Decision]:
        check = context.question.checks.get(name)
        if check is None:
            raise UsageError(f"The decoder verify-{name} has nothing to check with for this model.", CHECKS[name].hint)
        found = yield from branches(context, context.budget.left - context.budget.left // 2)
        best = {c.tokens: c for c in found}
        known = sorted(best.values(), key=lambda c: -c.logp)
        mine = context.candidate(context.plain)
        known = [mine, *(c for c in known if c.tokens != mine.tokens)]
        # a single meaning needs no check, and a check of a single answer compares nothing
        if len({c.meaning for c in known}) < 2 or context.budget.left < 2:
            return Decision(mine, vote(known).shares)
        scores = yield from check(context, known)
        kept = known[: len(scores)]
        total = np.array([c.logp + context.tuning.weight * s for c, s in zip(kept, scores, strict=True)])
        # relative to the largest, which leaves the shares as they are: nothing overflows
        return vote(kept, np.exp(total - total.max()).tolist())

    return strategy


def vote(candidates: Sequence[DecodedAnswer], weights: Sequence[float] = ()) -> Decision:
    """The meaning of the largest total weight (of equals the first), represented by its most probable answer, a
    finished one if there is any.

    ``weights``: of the candidates; by default their probabilities.
    """
    sums = _sums(candidates, weights or [math.exp(c.logp) for c in candidates])
    total = sum(sums.values()) or 1.0
    order = sorted(sums, key=lambda meaning: -sums[meaning])
    # a whole answer represents its meaning rather than one that was cut off
    stands = {m: max((c for c in candidates if c.meaning == m), key=lambda c: (c.ended, c.logp)) for m in order}
    return Decision(stands[order[0]], tuple(Share(m, stands[m].text, sums[m] / total) for m in order))


@dataclass(frozen=True, slots=True)
class Decoder:
    """A row of the table of decoders. ``about``: which answer it chooses (translated in words/sentences). ``spends``:
    whether it can use more budget. ``needs``: the check that a question must bring."""

    name: str
    strategy: Callable[[DecodeContext], Decoding[Decision]]
    about: str
    spends: bool = True
    needs: str = ""


DRAWN = "each word drawn at random, as probable as the model makes it"
DECODERS = {
    decoder.name: decoder
    for decoder in (
        Decoder("greedy", plain, "always the most probable word", spends=False),
        Decoder("sample", plain, DRAWN, spends=False),
        Decoder("consensus", consensus, "the meaning that most drawn answers share"),
        Decoder("search", search, "the meaning whose answers are the most probable together"),
        *(Decoder(f"verify-{name}", verify(name), check.about, needs=name) for name, check in CHECKS.items()),
        Decoder("backtrack", backtrack, "the surer of the ways from where confidence fell"),
        Decoder("backspace", backspace, "what was left when the model had taken back its own words"),
    )
}


@dataclass(frozen=True, slots=True)
class DecoderResult:
    """What was decided. ``passes`` and ``positions``: in total, with the plain answer; ``plain_passes`` and
    ``plain_positions``: of that alone."""

    choice: Decision
    plain: Decision
    passes: int
    positions: int
    plain_passes: int
    plain_positions: int


def decoder(name: str) -> Decoder:
    if name not in DECODERS:
        raise UsageError(f"There is no decoder {name}.", f"There are: {', '.join(DECODERS)}.")
    return DECODERS[name]


def decide(
    source: Source,
    questions: Sequence[DecodeQuestion],
    name: str,
    budget: float = 4.0,
    tuning: DecoderSettings = DecoderSettings(),
    plain: Sequence[Trace] | None = None,
) -> list[DecoderResult]:
    """Decides every question within ``budget`` times the passes of its plain answer.

    ``name``: a decoder of ``DECODERS``. ``plain``: the plain answers, if they are already known with their
    distributions (their passes count all the same). Raises UsageError for an unknown decoder, and for a question
    without the check that the decoder needs.
    """
    assert budget >= 1
    row = decoder(name)
    requests = [first(question, tuning, name == "sample") for question in questions]
    if plain is None:
        plain = [trace for (trace,) in serve(source, requests)]  # type: ignore[misc]
    contexts = []
    for question, request, trace in zip(questions, requests, plain, strict=True):
        passes = PassBudget(int(budget * max(1, len(trace.steps))))
        passes.charge(request, [trace])
        contexts.append(DecodeContext(question, source.codec.decode, tuning, passes, trace))
    costs = [(context.budget.passes, context.budget.positions) for context in contexts]
    choices = run(source, [row.strategy(context) for context in contexts], [context.budget for context in contexts])
    return [
        DecoderResult(choice, Decision(c.candidate(c.plain)), c.budget.passes, c.budget.positions, *cost)
        for choice, c, cost in zip(choices, contexts, costs, strict=True)
    ]


def first(question: DecodeQuestion, tuning: DecoderSettings, drawn: bool = False) -> Draw:
    """The request for the plain answer: greedy, with the most probable tokens at every step; or one sample."""
    sampling = replace(question.sampling, temperature=tuning.temperature) if drawn else GREEDY
    return Draw(question.request(sampling, question.limit, top=0 if drawn else tuning.top))
