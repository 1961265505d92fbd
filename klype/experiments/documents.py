"""Long texts that a base model of the demo world writes, judged word by word: the article speaks of a hundred words."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from klype.examine.evidence import Answered
from klype.examine.truth import Tokens, Truth, mass
from klype.sources.source import Source, answers
from klype.values import Distribution, Request, Sampling, Trace
from klype.world import Spellings, TokenFilter, World

LEAST = 80
"""Words of the documents whose first sentences are given."""
CHUNK = 50
"""Texts that are written at once: their distributions are not kept."""


@dataclass(frozen=True, slots=True)
class Writing:
    """``number`` texts of ``words`` tokens each, none of which may end before."""

    number: int = 1000
    words: int = 100
    temperature: float = 0.7
    seed: int = 0

    @property
    def passes(self) -> int:
        return self.number * self.words


def openings(world: World, settings: Writing) -> Iterator[tuple[str, ...]]:
    """First sentences of the language's own documents of at least ``LEAST`` words: proverbs and walks are too short
    for a language that must end after them."""
    rng = random.Random(f"documents {settings.seed}")
    left = settings.number
    while left:
        words = world.document(rng).words
        if len(words) >= LEAST:
            left -= 1
            yield words[: words.index(".") + 1]


def write(
    source: Source,
    world: World,
    spellings: Spellings,
    begin: int,
    settings: Writing,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Answered]:
    """Each text with S before every token up to its first error: of what may be drawn, which the end is not."""
    out: list[Answered] = []
    begun = list(openings(world, settings))
    end = source.codec.stop[0]
    for first in range(0, len(begun), CHUNK):
        some = [tuple(t for word in words for t in spellings.of[word]) for words in begun[first : first + CHUNK]]
        requests = [
            Request(
                (begin, *opening),
                limit=settings.words,
                sampling=Sampling(temperature=settings.temperature, logit_bias=((end, -100.0),)),
                seed=settings.seed * 1_000_003 + first + i,
                stop=tuple(source.codec.stop),
                top=-1,
            )
            for i, opening in enumerate(some)
        ]
        for opening, (trace,) in zip(some, answers(source, requests), strict=True):
            truth = TokenFilter(world.filter("document"), spellings)
            out.append(judged(str(len(out)), trace, after(truth, opening), settings.temperature, end))
        progress(len(out))
    return out


def after(truth: TokenFilter, opening: Tokens) -> TokenFilter:
    for token in opening:
        truth.push(token)
    return truth


def judged(name: str, trace: Trace, truth: Truth, temperature: float, end: int) -> Answered:
    """Up to the first token that cannot follow, or to where the language has to end."""
    s: list[float] = []
    error = None
    for step in trace.steps:
        possible = {token: p for token, p in truth.next().items() if token != end}
        if not possible:
            break
        assert step.distribution is not None
        s.append(mass(_without(step.distribution, end), temperature, possible))
        if step.token not in possible:
            error = len(s)
            break
        truth.push(step.token)
    words = tuple(str(token) for token in trace.tokens[: len(s)])
    return Answered(name, words, "length", first_error=error, s=tuple(s))


def _without(q: Distribution, end: int) -> Distribution:
    """What is drawn from where the end is not: taking its share off would leave nothing, where it is nearly all."""
    going_on_K = q.ids != end
    return Distribution(q.ids[going_on_K], q.logp[going_on_K])
