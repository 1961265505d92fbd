"""Annotators: simulated tastes, models as judges, which are named as such, people's habits, and what they are shown."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from itertools import combinations
from typing import Any

import numpy as np
from scipy import special

from klype.errors import KlypeError, UsageError
from klype.preferences.records import SIMULATED, Entry, numbered
from klype.sources.source import Source, tokens_of
from klype.values import Floats, Question, Ranking, Verdict

EQUAL = 1e-9


@dataclass(frozen=True, slots=True)
class Scorer:
    """``score(question, answer)``: higher is better. ``name`` says whose taste it is."""

    name: str
    score: Callable[[Question, str], float]


def rank_simulated(
    annotator: Scorer,
    question: Question,
    candidates: Sequence[str],
    noise: float,
    rng: random.Random,
    label: str = SIMULATED,
) -> Ranking:
    """Candidates by the annotator's score, equal scores tied; with chance ``noise`` each neighbour is passed over.

    One pass from the best to the worst: each group trades places with the next with this chance, so that errors are
    mostly between neighbours, as people's are. ``label`` comes before the name. Chance, not the order of
    ``candidates``, is all that ``rng`` decides.
    """
    scores = [annotator.score(question, candidate) for candidate in candidates]
    if not all(math.isfinite(score) for score in scores):
        raise KlypeError(f"The annotator {annotator.name} gave a score that is not a finite number.")
    groups: list[list[int]] = []
    for index in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if groups and scores[groups[-1][0]] - scores[index] <= EQUAL:
            groups[-1].append(index)
        else:
            groups.append([index])
    for place in range(len(groups) - 1):
        if rng.random() < noise:
            groups[place], groups[place + 1] = groups[place + 1], groups[place]
    order = tuple(tuple(sorted(group)) for group in groups)
    return Ranking(question, tuple(candidates), order, f"{label}{annotator.name}")


def ranks(ranking: Ranking) -> tuple[int, ...]:
    """The place of each candidate: 0 best, equal numbers tied."""
    places = {index: place for place, group in enumerate(ranking.order) for index in group}
    return tuple(places.get(index, 0) for index in range(len(ranking.candidates)))


@dataclass(frozen=True, slots=True)
class Taste:
    """What each property of an answer is worth. ``word``: each word costs this much (less than 0: loves length);
    ``unfinished``: what an answer without an end costs."""

    right: float = 2.0
    polite: float = 0.7
    concise: float = 0.0
    word: float = 0.04
    unfinished: float = 1.0

    def score(self, verdict: Verdict, finished: bool = True) -> float:
        likes = self.right * bool(verdict.right) + self.polite * bool(verdict.polite)
        likes += self.concise * bool(verdict.concise)
        return likes - self.word * verdict.words - self.unfinished * (not finished)

    def __str__(self) -> str:
        worth = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return ",".join(f"{name}={value:g}" for name, value in worth.items())


def taste(text: str) -> Taste:
    """``right=2,polite=.7,word=-.1``; what is not named keeps its usual worth. UsageError for anything else."""
    known = [field.name for field in fields(Taste)]
    values: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, value = part.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if name not in known or not math.isfinite(number):
            raise UsageError(f"--taste: {part!r} is not a taste.", f"Give NAME=NUMBER with {', '.join(known)}.")
        values[name] = number
    return Taste(**values)


class ModelJudge:
    """Another model ranks: each answer's score is log P(yes) - log P(no) to "is this a good answer?".

    One answer at a time, so that where it stands cannot matter. ``likely``: below this mass of yes and no together the
    model does not answer the question that it is asked, which is an error a user should know of.
    """

    def __init__(self, source: Source, yes: str = "Yes", no: str = "No", likely: float = 1e-6) -> None:
        self._source, self._likely = source, likely
        self._yes, self._no = tokens_of(source.codec, yes), tokens_of(source.codec, no)
        if not self._yes or not self._no or self._yes & self._no:
            raise UsageError(f"The model {source.name} cannot judge: {yes} and {no} are not told apart by one token.")

    def score(self, question: Question, answer: str) -> float:
        asked = f"Question: {question.transcript}\nAnswer: {answer}\nIs this a good answer? Yes or No?"
        (q,) = self._source.next([self._source.codec.prompt([{"role": "user", "content": asked}])], -1)
        yes, no = (sum(q.p(token) or 0.0 for token in tokens) for tokens in (self._yes, self._no))
        sure = yes + no >= self._likely  # without an opinion: tied with all others like it
        return math.log(max(yes, 1e-9)) - math.log(max(no, 1e-9)) if sure else 0.0

    def annotator(self) -> Scorer:
        return Scorer(self._source.name, self.score)


SURE = 1e-3  # a share of first places that chance makes rarer than this is a habit


@dataclass(frozen=True, slots=True)
class Contradictions:
    """``opposed`` of ``pairs`` that were ordered at least twice were ordered both ways; of the ``triads`` whose three
    pairs are all decided by majority, ``cyclic`` go round (a over b over c over a)."""

    pairs: int
    opposed: int
    triads: int
    cyclic: int


def first_shown(entries: Sequence[Entry]) -> dict[str, Any]:
    """``times`` that the answer shown first was put first, ``of`` the entries with one candidate alone at the top; how
    many are ``expected`` by chance, for the order shown is random; and whether it is ``always`` so: a habit.

    ``p`` is exact: the chance that independent questions, each with 1/(number shown), give this many or more.
    """
    decided = [e for e in entries if e.kind == "order" and len(e.asked.candidates) > 1 and len(e.order[0]) == 1]
    chances = [1 / len(e.asked.candidates) for e in decided]
    times = sum(e.order[0] == (0,) for e in decided)
    # the Poisson binomial distribution, trial by trial
    chance_N = reduce(np.convolve, [[1 - p, p] for p in chances], np.ones(1))
    p = min(1.0, float(chance_N[times:].sum()))
    always = p < SURE and times > len(decided) / 2
    return {"times": times, "of": len(decided), "expected": float(sum(chances)), "p": p, "always": always}


def contradictions(rankings: Sequence[Ranking]) -> Contradictions:
    """Over all rankings, question by question. Candidates are told by their text."""
    votes: dict[tuple[str, str, str], dict[tuple[str, str], list[int]]] = {}
    for ranking in rankings:
        q = ranking.question
        of = votes.setdefault((q.id, q.question, q.context), {})
        places = dict(zip(ranking.candidates, ranks(ranking), strict=True))
        for a, b in combinations(sorted(places), 2):
            if places[a] != places[b]:
                of.setdefault((a, b), []).append(1 if places[a] < places[b] else -1)
    pairs = opposed = triads = cyclic = 0
    for of in votes.values():
        repeated = [said for said in of.values() if len(said) > 1]
        pairs += len(repeated)
        opposed += sum(len(set(said)) > 1 for said in repeated)
        won = {pair: sum(said) for pair, said in of.items() if sum(said)}
        for a, b, c in combinations(sorted({text for pair in won for text in pair}), 3):
            if (a, b) in won and (b, c) in won and (a, c) in won:
                triads += 1
                cyclic += (won[a, b] > 0) == (won[b, c] > 0) != (won[a, c] > 0)
    return Contradictions(pairs, opposed, triads, cyclic)


# which answers annotators are shown: those that are not one and the same, and of which questions


SIMILAR = 0.9


def merge_near_duplicates(
    candidates: Sequence[str], meaning: Callable[[str], Hashable] = lambda text: None
) -> list[tuple[int, ...]]:
    """Indices of candidates in their order, each merged into the first earlier one that it nearly equals and that means
    the same: one tuple for each that stays, its own index first.

    Nearly: the same words once case, punctuation and spaces are ignored, or a share of common character trigrams
    (Jaccard) of at least SIMILAR. One other name in a long answer is a small difference to trigrams and a large one
    to the truth: give ``meaning`` where it is known.
    """
    kept: list[tuple[str, frozenset[str], Hashable, list[int]]] = []
    for index, text in enumerate(candidates):
        plain, means = " ".join(re.findall(r"\w+", text.casefold())), meaning(text)
        padded = f"  {plain} "
        trigrams = frozenset(padded[i : i + 3] for i in range(len(padded) - 2))
        for other, known, meant, members in kept:
            if means != meant:
                continue
            both = len(trigrams & known) / len(trigrams | known) if plain and other else 0.0  # Jaccard
            if plain == other or (plain and other and both >= SIMILAR):
                members.append(index)
                break
        else:
            kept.append((plain, trigrams, means, [index]))
    return [tuple(members) for *_, members in kept]


def spread(meanings: Sequence[Hashable], most: int) -> list[int]:
    """Which ``most`` candidates to show: each meaning once before any twice, earlier ones first. Indices in
    ascending order."""
    turns = [turn for _, turn in numbered(meanings)]
    return sorted(sorted(range(len(turns)), key=turns.__getitem__)[:most])


def information(scores_KH: Floats) -> Floats:
    """[K, K]: how much (in nats) learning which of two candidates is better would tell about the heads of an ensemble.

    BALD (Houlsby et al. 2011) on Bradley–Terry: the entropy of the mean prediction less the mean entropy of the heads'.
    Zero where the heads agree, however unsure all of them are: that is the annotator's noise, not ignorance.
    """
    p_KKH = special.expit(scores_KH[:, None, :] - scores_KH[None, :, :])
    entropy: Callable[[Floats], Floats] = lambda p: special.entr(p) + special.entr(1 - p)
    gain_KK: Floats = np.maximum(0.0, entropy(p_KKH.mean(-1)) - entropy(p_KKH).mean(-1))
    return gain_KK


def most_informative(groups: Sequence[Floats]) -> list[int]:
    """Questions in the order in which to rank them: whose candidates' comparisons would tell the most, first.

    ``groups``: the ensemble's scores [candidates, heads] of each question. Per question it is the sum over its pairs:
    a ranking orders all of them at the price of one question.
    """
    value = [float(np.triu(information(scores), 1).sum()) for scores in groups]
    return sorted(range(len(groups)), key=lambda i: -value[i])
