"""More matched pairs for the feedback experiment: beginnings where some right word is as rare as some wrong one.

They are rare: a right word is mostly thousands of times as likely as a wrong one. Every right beginning of an answer is
looked at, answer by answer, until there are enough; the wrong word is drawn from q among those that have a partner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np

from klype.examine.feedback import Asked, Shock, force, words_among
from klype.examine.truth import Tokens
from klype.sources.source import Source, answers
from klype.values import Distribution, Request, Sampling, Trace


@dataclass(frozen=True, slots=True)
class Search:
    """``wanted`` pairs are looked for in at most ``rounds`` times as many answers as are asked for at once, drawn at
    ``temperature``, of at most ``limit`` tokens."""

    temperature: float
    wanted: int = 100
    rounds: int = 20
    limit: int = 32
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Matching:
    """``found``: matched shocks; ``asked``: their questions; ``dropped``: beginnings where there was no pair."""

    found: tuple[Shock, ...] = ()
    asked: tuple[Asked, ...] = ()
    dropped: int = 0


def search(
    source: Source, ask: Callable[[int], Sequence[Asked]], settings: Search, is_word: Callable[[int], bool]
) -> Matching:
    """``ask(round)`` are the questions of a round: others each time, or the same, to which other answers are drawn. A
    round counts whole; a beginning, once."""
    found: list[Shock] = []
    asked: dict[str, Asked] = {}
    seen: set[tuple[str, Tokens]] = set()
    dropped = 0
    for round_ in range(settings.rounds):
        if len(found) >= settings.wanted:
            break
        questions = ask(round_)
        drawn = _drawn(source, questions, settings, round_)
        word_V = words_among([q for t in drawn for s in t.steps if (q := s.distribution)], source.codec.stop, is_word)
        for one, trace in zip(questions, drawn, strict=True):
            rng = np.random.default_rng([settings.seed, crc32(one.question.encode()), 1 + round_])
            for before, q in _right(one, trace):
                if (one.question, before) in seen:
                    continue
                seen.add((one.question, before))
                shock = force(one, before, q, word_V, rng, matched=True)
                dropped += shock is None
                if shock is not None:
                    found.append(replace(shock, by_rule=False))
                    asked[one.question] = one
    return Matching(tuple(found), tuple(asked.values()), dropped)


def _drawn(source: Source, asked: Sequence[Asked], settings: Search, round_: int) -> list[Trace]:
    requests = [
        Request(
            one.prompt,
            limit=settings.limit,
            sampling=Sampling(temperature=settings.temperature),
            seed=crc32(f"{settings.seed} {one.question} search {round_}".encode()),
            stop=tuple(source.codec.stop),
            top=-1,
        )
        for one in asked
    ]
    return [group[0] for group in answers(source, requests)]


def _right(one: Asked, drawn: Trace) -> Iterator[tuple[Tokens, Distribution]]:
    """The right beginnings of an answer that had not ended, and what the model said of the next word."""
    for t, step in enumerate(drawn.steps):
        before = drawn.tokens[:t]
        if one.reader.first_error(before) is not None:
            return
        assert step.distribution is not None
        yield before, step.distribution
