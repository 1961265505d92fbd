"""Forced errors: where a wrong token is put after an error-free prefix of the model's own, and the controls for it.

At a position fixed beforehand, one token is forced in each of three arms, with A the tokens that can follow: *wrong*,
drawn from q outside A; *right*, drawn from q inside A; *near*, the token in A whose q is nearest to the wrong one's.
The end of the text is never forced. Tokens are drawn at temperature 1.

*Near* is seldom as rare as *wrong*: a correct word is usually thousands of times as likely. Prefixes where it is as
rare, |Δ log q| ≤ ln 3, are *matched*; only with them can the effect of an error be told from that of a rare word.
``find_matched`` searches for more of them, at every error-free prefix of many answers; there, the wrong word is drawn
from q among those that have a partner.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from zlib import crc32

import numpy as np
import numpy.typing as npt

from klype.examine.truth import Reader, among
from klype.sources.source import Source, answers
from klype.values import Distribution, Request, Sampling, Tokens

Arm = Literal["wrong", "right", "near"]
ARMS: tuple[Arm, ...] = ("wrong", "right", "near")
MIN_MASS = 1e-12  # a set of words with less probability than this counts as empty
AS_RARE = math.log(3)  # |Δ log q| up to which a correct word is as rare as a wrong one


@dataclass(frozen=True, slots=True)
class Query:
    """A question with its truth. ``edits``: the truth with errors counted by edit distance, where known."""

    question: str
    prompt: Tokens
    reader: Reader
    edits: Reader | None = None


@dataclass(frozen=True, slots=True)
class FeedbackSettings:
    """How the feedback experiment is run.

    Question i is intervened at position i mod ``positions`` of its own answer; ``samples`` continuations are drawn per
    arm, and followed for ``distances`` tokens. ``pairs``: how many matched pairs are searched for. ``limit``: the
    length of an answer in tokens. ``back``: the backspace token, which deletes the last word, where the model has one.
    """

    temperature: float = 1.0
    positions: int = 3
    distances: int = 6
    samples: int = 4
    seed: int = 0
    back: int | None = None
    pairs: int = 100
    limit: int = 32


@dataclass(frozen=True, slots=True)
class Intervention:
    """A prefix of the model's own and the tokens forced after it: wrong, right, near. Models are compared on the same
    interventions.

    ``rarity``: log q of *near* minus that of *wrong*. ``by_rule``: at the position fixed beforehand, not from the
    search for matched pairs.
    """

    question: str
    before: Tokens
    tokens: tuple[int, int, int]
    rarity: float = 0.0
    by_rule: bool = True

    @property
    def is_matched(self) -> bool:
        return abs(self.rarity) <= AS_RARE


@dataclass(frozen=True, slots=True)
class MatchedPairs:
    """``found``: matched interventions; ``asked``: their questions; ``dropped``: the number of prefixes without one."""

    found: tuple[Intervention, ...] = ()
    asked: tuple[Query, ...] = ()
    dropped: int = 0


def going_on(
    source: Source, prompt: Tokens, limit: int, settings: FeedbackSettings, about: str, **more: Any
) -> Request:
    """A request to continue a prompt. ``about``: names the request; its noise is seeded by this."""
    return Request(
        prompt,
        limit=limit,
        sampling=Sampling(temperature=settings.temperature),
        # crc32, because Python's hash of a string differs from process to process
        seed=crc32(f"{settings.seed} {about}".encode()),
        stop=tuple(source.codec.stop),
        **more,
    )


def interventions(
    source: Source, asked: Sequence[Query], settings: FeedbackSettings, is_word: Callable[[int], bool]
) -> list[Intervention]:
    """One intervention per question, after the first i mod ``positions`` tokens of an answer to question i; none where
    these contain an error or the end, or where no wrong token, or no correct one but the end, could follow."""
    stop = tuple(source.codec.stop)
    # by the question's number, so that the position does not depend on the answer
    begun = [(one, i % settings.positions) for i, one in enumerate(asked)]
    drawn = iter(answers(source, [going_on(source, one.prompt, length, settings, f"{one.question} begin")
                                  for one, length in begun if length]))  # fmt: skip
    places = []
    for one, length in begun:
        before = next(drawn)[0].tokens if length else ()
        if not set(before) & set(stop) and one.reader.first_error(before) is None:
            places.append((one, before))
    listed = source.next([(*one.prompt, *before) for one, before in places], -1) if places else []
    word_V = words_among(listed, stop, is_word)
    found = []
    for (one, before), q in zip(places, listed, strict=True):
        # a generator per question: adding a question does not change the others' words
        rng = np.random.default_rng([settings.seed, crc32(one.question.encode())])
        if (intervention := force(one, before, q, word_V, rng)) is not None:
            found.append(intervention)
    return found


def words_among(
    listed: Sequence[Distribution], stop: Sequence[int], is_word: Callable[[int], bool]
) -> npt.NDArray[np.bool_]:
    """Which tokens are words, [V]: not control tokens, and not the end."""
    last = max((int(q.ids.max()) for q in listed), default=-1)
    return np.array([token not in stop and is_word(token) for token in range(last + 1)], bool)


def force(
    one: Query,
    before: Tokens,
    q: Distribution,
    word_V: npt.NDArray[np.bool_],
    rng: np.random.Generator,
    matched: bool = False,
) -> Intervention | None:
    """The intervention after one prefix; None where no wrong token, or no correct one but the end, can follow.

    ``matched``: the wrong token is drawn among those that have a correct token as rare.
    """
    p_K = np.exp(q.logp.astype(np.float64))
    possible_K = among(q.ids, one.reader.next(before))
    right, wrong = (np.where(word_V[q.ids] & mask_K, p_K, 0.0) for mask_K in (possible_K, ~possible_K))
    if right.sum() <= MIN_MASS or wrong.sum() <= MIN_MASS:
        return None
    if matched:
        # bisection: vocabularies have thousands of words of either kind
        rights = np.sort(np.log(right[right > MIN_MASS]))
        logs_K = np.log(np.maximum(wrong, MIN_MASS))
        first_K, after_K = np.searchsorted(rights, logs_K - AS_RARE), np.searchsorted(rights, logs_K + AS_RARE, "right")
        wrong = np.where((wrong > MIN_MASS) & (after_K > first_K), wrong, 0.0)
        if wrong.sum() <= MIN_MASS:
            return None
    # drawn rather than the most likely: errors as the model makes them
    w = int(rng.choice(len(p_K), p=wrong / wrong.sum()))
    r = int(rng.choice(len(p_K), p=right / right.sum()))
    with np.errstate(divide="ignore"):
        rarity_K = np.where(right > 0, np.log(right) - math.log(wrong[w]), np.inf)
    near = int(np.argmin(np.abs(rarity_K)))
    tokens = int(q.ids[w]), int(q.ids[r]), int(q.ids[near])
    return Intervention(one.question, before, tokens, float(rarity_K[near]))


def find_matched(
    source: Source, rounds: Iterable[Sequence[Query]], settings: FeedbackSettings, is_word: Callable[[int], bool]
) -> MatchedPairs:
    """Searches the answers to one round of questions after another until ``settings.pairs`` matched pairs are found.

    A round may have new questions, or the same ones, to which other answers are drawn. The last one is searched to its
    end, so there may be more pairs. Each beginning is looked at once.
    """
    found: list[Intervention] = []
    asked: dict[str, Query] = {}
    seen: set[tuple[str, Tokens]] = set()
    dropped = 0
    for round_, questions in enumerate(rounds):
        requests = [going_on(source, one.prompt, settings.limit, settings, f"{one.question} search {round_}", top=-1)
                    for one in questions]  # fmt: skip
        drawn = [group[0] for group in answers(source, requests)]
        word_V = words_among([q for t in drawn for s in t.steps if (q := s.distribution)], source.codec.stop, is_word)
        for one, trace in zip(questions, drawn, strict=True):
            rng = np.random.default_rng([settings.seed, crc32(one.question.encode()), 1 + round_])
            tokens = trace.tokens
            for t, step in enumerate(trace.steps):
                before = tokens[:t]
                if one.reader.first_error(before) is not None:
                    break
                # answers to one question share prefixes
                if (one.question, before) in seen:
                    continue
                seen.add((one.question, before))
                assert step.distribution is not None
                intervention = force(one, before, step.distribution, word_V, rng, matched=True)
                dropped += intervention is None
                if intervention is not None:
                    found.append(replace(intervention, by_rule=False))
                    asked[one.question] = one
        if len(found) >= settings.pairs:
            break
    return MatchedPairs(tuple(found), tuple(asked.values()), dropped)
