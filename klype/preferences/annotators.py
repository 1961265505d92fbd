"""Annotators: simulated ones, models as annotators, how people's rankings are checked, and what they are shown."""

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
from klype.preferences.records import SIMULATED, Entry, with_repeats
from klype.sources.source import Source, tokens_of
from klype.values import Floats, Question, Ranking, Verdict

EQUAL = 1e-9


@dataclass(frozen=True, slots=True)
class Scorer:
    """A named scoring function: ``score(question, answer)``, higher is better."""

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
    """Ranks candidates by the annotator's score, equal scores tied, with errors.

    In one pass from best to worst, each group of tied candidates is swapped with the next with probability ``noise``:
    errors are mostly between neighbours, as people's are. ``label`` comes before the annotator's name. ``rng`` decides
    on the swaps only. Raises KlypeError for a score that is not finite.
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
    """The rank of each candidate: 0 is best, equal numbers are tied."""
    places = {index: place for place, group in enumerate(ranking.order) for index in group}
    return tuple(places.get(index, 0) for index in range(len(ranking.candidates)))


@dataclass(frozen=True, slots=True)
class Taste:
    """A simulated annotator's weights: what each property of an answer is worth. ``word``: the cost per word (negative:
    long answers are preferred); ``unfinished``: the cost of an answer that was cut off."""

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
    """Parses ``right=2,polite=.7,word=-.1``; weights that are not named keep their defaults. Raises UsageError for
    unknown names and values that are not finite numbers."""
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


LIKELY = 1e-6  # below this probability of yes and no together, a model does not answer what it is asked


def model_scorer(source: Source) -> Scorer:
    """A model as an annotator: an answer's score is log P(Yes) - log P(No) after "Is this a good answer?".

    Each answer is scored by itself, so that the order of answers has no effect. Raises UsageError for a model whose
    tokenizer does not have Yes and No as single tokens.
    """
    words = tokens_of(source.codec, "Yes"), tokens_of(source.codec, "No")
    if not all(words) or words[0] & words[1]:
        raise UsageError(f"The model {source.name} cannot judge: Yes and No are not told apart by one token.")

    def score(question: Question, answer: str) -> float:
        asked = f"Question: {question.transcript}\nAnswer: {answer}\nIs this a good answer? Yes or No?"
        (q,) = source.next([source.codec.prompt([{"role": "user", "content": asked}])], -1)
        yes, no = (sum(q.p(token) or 0.0 for token in tokens) for tokens in words)
        # an answer on which the model has no opinion is tied with all others like it
        return math.log(max(yes, 1e-9)) - math.log(max(no, 1e-9)) if yes + no >= LIKELY else 0.0

    return Scorer(source.name, score)


SURE = 1e-3  # an excess of first places whose p-value is below this is called a habit


@dataclass(frozen=True, slots=True)
class Contradictions:
    """Counts of inconsistent rankings. Of ``pairs`` ordered at least twice, ``opposed`` were ordered both ways; of
    ``triads`` whose three pairs are all decided by majority, ``cyclic`` are cycles (a over b over c over a)."""

    pairs: int
    opposed: int
    triads: int
    cyclic: int


def first_shown(entries: Sequence[Entry]) -> dict[str, Any]:
    """Tests whether an annotator favours the answer that is shown first.

    ``times``: how often it was ranked first, alone, ``of`` all entries with a single best candidate; ``expected``: how
    often it would be by chance, since answers are shown in random order; ``p``: the exact probability of that many or
    more; ``always``: whether it is a habit.
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
    """Counts contradictions within each question over all rankings. Candidates are identified by their text."""
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


# which answers annotators are shown


SIMILAR = 0.9  # Jaccard similarity of trigrams from which on two answers are near duplicates


def merge_near_duplicates(
    candidates: Sequence[str], meaning: Callable[[str], Hashable] = lambda text: None
) -> list[tuple[int, ...]]:
    """Groups near duplicates: one tuple of indices per candidate that is kept, its own index first.

    A candidate joins the first earlier one that has the same meaning and nearly the same text: the same words apart
    from case, punctuation and spaces, or character trigrams with a Jaccard similarity of at least SIMILAR. A different
    name in a long answer hardly changes its trigrams, but does change what it says: give ``meaning`` where it is known.
    """
    kept: list[tuple[str, frozenset[str], Hashable, list[int]]] = []
    for index, text in enumerate(candidates):
        plain, means = " ".join(re.findall(r"\w+", text.casefold())), meaning(text)
        padded = f"  {plain} "
        trigrams = frozenset(padded[i : i + 3] for i in range(len(padded) - 2))
        for other, known, meant, members in kept:
            if means != meant:
                continue
            both = len(trigrams & known) / len(trigrams | known) if plain and other else 0.0
            if plain == other or (plain and other and both >= SIMILAR):
                members.append(index)
                break
        else:
            kept.append((plain, trigrams, means, [index]))
    return [tuple(members) for *_, members in kept]


def spread(meanings: Sequence[Hashable], most: int) -> list[int]:
    """The indices of the ``most`` candidates to show, ascending: every meaning once before any is shown twice, earlier
    candidates first."""
    turns = [turn for _, turn in with_repeats(meanings)]
    return sorted(sorted(range(len(turns)), key=turns.__getitem__)[:most])


def information(scores_KH: Floats) -> Floats:
    """Expected information gain in nats, [K, K], about the H heads of an ensemble from learning which of two candidates
    is better.

    BALD (Houlsby et al. 2011) on Bradley–Terry: the entropy of the mean prediction minus the mean entropy of the heads.
    It is zero where the heads agree, however unsure they are: that is the annotator's noise and cannot be learned away.
    """
    p_KKH = special.expit(scores_KH[:, None, :] - scores_KH[None, :, :])
    entropy: Callable[[Floats], Floats] = lambda p: special.entr(p) + special.entr(1 - p)
    gain_KK: Floats = np.maximum(0.0, entropy(p_KKH.mean(-1)) - entropy(p_KKH).mean(-1))
    return gain_KK


def most_informative(groups: Sequence[Floats]) -> list[int]:
    """Indices of questions, those whose ranking is most informative first.

    ``groups``: for each question the ensemble's scores [candidates, heads]. A question's value is the sum over its
    pairs of candidates, since one ranking orders all of them.
    """
    value = [float(np.triu(information(scores), 1).sum()) for scores in groups]
    return sorted(range(len(groups)), key=lambda i: -value[i])
