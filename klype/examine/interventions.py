"""Forced mistakes: where a wrong token is put into a model's own right beginning, and which right ones beside it.

At a position fixed by rule beforehand, a whole token is forced: *wrong* ~ q outside A; *right* ~ q inside A; *near*:
the right one whose q is nearest to the wrong one's. Never the end of the text; forced at temperature 1.

*Near* is seldom as rare as *wrong*: a right word is mostly thousands of times as likely. Beginnings where it is, |Δ log
q| ≤ ln 3, are *matched*; only they keep rarity from being taken for wrongness. ``find_matched`` looks for more of them
than the rule gives: at every right beginning of an answer, answer by answer, until there are enough; the wrong word is
drawn from q among those that have a partner."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal
from zlib import crc32

import numpy as np
import numpy.typing as npt

from klype.examine.truth import Reader, Tokens, among, mass
from klype.sources.source import Source, answers
from klype.values import Distribution, Floats, Request, Sampling, Trace

Arm = Literal["wrong", "right", "near"]


ARMS: tuple[Arm, ...] = ("wrong", "right", "near")


LEAST = 1e-12  # words that are together less likely than this are none


AS_RARE = math.log(3)  # |Δ log q| up to which a right word is as rare as a wrong one


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its truth. ``edits``: what can follow where errors are counted by edit distance, if known."""

    question: str
    prompt: Tokens
    reader: Reader
    edits: Reader | None = None


@dataclass(frozen=True, slots=True)
class FeedbackSettings:
    """Question i is intervened at position i mod ``positions`` of its own answer, ``samples`` continuations an arm.

    ``back``: the token that takes the last word back, where the model has learnt one.
    """

    temperature: float = 1.0
    positions: int = 3
    distances: int = 6
    samples: int = 4
    seed: int = 0
    back: int | None = None


@dataclass(frozen=True, slots=True)
class Intervention:
    """A beginning of the model's own and the three tokens forced there; ``s``: mass on right tokens before it;
    ``rarity``: log q of *near* less that of *wrong*; ``by_rule``: not one that was looked for to be matched.

    Models are compared on the same interventions.
    """

    question: str
    before: Tokens
    tokens: tuple[int, int, int]
    s: float
    rarity: float = 0.0
    by_rule: bool = True

    @property
    def matched(self) -> bool:
        return abs(self.rarity) <= AS_RARE


def interventions(
    source: Source, asked: Sequence[Asked], settings: FeedbackSettings, is_word: Callable[[int], bool]
) -> tuple[list[Intervention], int]:
    """The interventions, and how many questions had none: their answer was not right or had ended before its position,
    or nothing wrong (or nothing right but the end) could follow."""
    stop = tuple(source.codec.stop)
    begun = _beginnings(source, asked, settings)
    places = [i for i, before in enumerate(begun) if before is not None]
    listed = source.next([(*asked[i].prompt, *(begun[i] or ())) for i in places], -1) if places else []
    word_V = words_among(listed, stop, is_word)
    found = []
    for i, q in zip(places, listed, strict=True):
        # each question its own: another question more changes no other's words
        rng = np.random.default_rng([settings.seed, crc32(asked[i].question.encode())])
        intervention = force(asked[i], begun[i] or (), q, word_V, rng)
        if intervention is not None:
            found.append(
                replace(intervention, s=mass(q, settings.temperature, asked[i].reader.next(intervention.before)))
            )
    return found, len(asked) - len(found)


def _beginnings(source: Source, asked: Sequence[Asked], settings: FeedbackSettings) -> list[Tokens | None]:
    """The first i mod ``positions`` tokens of an answer to each question; None: an error or the end is among them."""
    stop = tuple(source.codec.stop)
    # by the question's number, so that no answer decides where it is looked at
    lengths = [i % settings.positions for i in range(len(asked))]
    requests = [
        Request(
            one.prompt,
            limit=length,
            sampling=Sampling(temperature=settings.temperature),
            seed=crc32(f"{settings.seed} {one.question} begin".encode()),
            stop=stop,
        )
        for one, length in zip(asked, lengths, strict=True)
        if length
    ]
    drawn = iter(answers(source, requests))
    out: list[Tokens | None] = []
    for one, length in zip(asked, lengths, strict=True):
        tokens = next(drawn)[0].tokens if length else ()
        sound = not set(tokens) & set(stop) and one.reader.first_error(tokens) is None
        out.append(tokens if sound else None)
    return out


def words_among(
    listed: Sequence[Distribution], stop: Sequence[int], is_word: Callable[[int], bool]
) -> npt.NDArray[np.bool_]:
    """Which tokens say something, over all that are listed."""
    last = max((int(q.ids.max()) for q in listed), default=-1)
    return np.array([token not in stop and is_word(token) for token in range(last + 1)], bool)


def force(
    one: Asked,
    before: Tokens,
    q: Distribution,
    word_V: npt.NDArray[np.bool_],
    rng: np.random.Generator,
    matched: bool = False,
) -> Intervention | None:
    """The tokens that are forced after a beginning; None: nothing wrong, or nothing right but the end, can follow.

    ``matched``: the wrong one is among those that some right one is as rare as. ``s`` is that of temperature 1.
    """
    p_K = np.exp(q.logp.astype(np.float64))
    possible = one.reader.next(before)
    possible_K = among(q.ids, possible)
    right, wrong = (np.where(word_V[q.ids] & mask_K, p_K, 0.0) for mask_K in (possible_K, ~possible_K))
    if right.sum() <= LEAST or wrong.sum() <= LEAST:
        return None
    if matched:
        wrong = np.where(_paired(wrong, right), wrong, 0.0)
        if wrong.sum() <= LEAST:
            return None
    # drawn, not the most likely: errors as the model makes them
    w = int(rng.choice(len(p_K), p=wrong / wrong.sum()))
    r = int(rng.choice(len(p_K), p=right / right.sum()))
    with np.errstate(divide="ignore"):
        rarity_K = np.where(right > 0, np.log(right) - math.log(wrong[w]), np.inf)
    near = int(np.argmin(np.abs(rarity_K)))
    tokens = int(q.ids[w]), int(q.ids[r]), int(q.ids[near])
    return Intervention(one.question, before, tokens, mass(q, 1.0, possible), float(rarity_K[near]))


def _paired(wrong_K: Floats, right_K: Floats) -> npt.NDArray[np.bool_]:
    """Which wrong tokens have a right one as rare."""
    # sorted once and bisected: vocabularies have thousands of words of either kind
    rights = np.sort(np.log(right_K[right_K > LEAST]))
    logs_K = np.log(np.maximum(wrong_K, LEAST))
    first_K, after_K = np.searchsorted(rights, logs_K - AS_RARE), np.searchsorted(rights, logs_K + AS_RARE, "right")
    found: npt.NDArray[np.bool_] = (wrong_K > LEAST) & (after_K > first_K)
    return found


@dataclass(frozen=True, slots=True)
class MatchedSearch:
    """``wanted`` pairs are looked for in at most ``rounds`` times as many answers as are asked for at once, drawn at
    ``temperature``, of at most ``limit`` tokens."""

    temperature: float
    wanted: int = 100
    rounds: int = 20
    limit: int = 32
    seed: int = 0


@dataclass(frozen=True, slots=True)
class MatchedPairs:
    """``found``: matched interventions; ``asked``: their questions; ``dropped``: beginnings where there was no pair."""

    found: tuple[Intervention, ...] = ()
    asked: tuple[Asked, ...] = ()
    dropped: int = 0


def find_matched(
    source: Source, ask: Callable[[int], Sequence[Asked]], settings: MatchedSearch, is_word: Callable[[int], bool]
) -> MatchedPairs:
    """``ask(round)`` are the questions of a round: others each time, or the same, to which other answers are drawn. A
    round counts whole; a beginning, once."""
    found: list[Intervention] = []
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
                # answers to one question share their beginnings
                if (one.question, before) in seen:
                    continue
                seen.add((one.question, before))
                intervention = force(one, before, q, word_V, rng, matched=True)
                dropped += intervention is None
                if intervention is not None:
                    found.append(replace(intervention, by_rule=False))
                    asked[one.question] = one
    return MatchedPairs(tuple(found), tuple(asked.values()), dropped)


def _drawn(source: Source, asked: Sequence[Asked], settings: MatchedSearch, round_: int) -> list[Trace]:
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
