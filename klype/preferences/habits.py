"""What an annotator does whatever the answers are, and where preferences contradict each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from klype.preferences.annotator import ranks
from klype.preferences.records import Entry
from klype.values import Ranking

SURE = 1e-3  # a share of first places that chance makes rarer than this is a habit


@dataclass(frozen=True, slots=True)
class FirstShown:
    """How often the answer shown first was put first alone, how often chance would do so, and how sure that is more.

    ``p`` is exact: the chance that independent questions, each with 1/(number shown), give so many or more.
    """

    times: int
    rankings: int
    expected: float
    p: float

    @property
    def flagged(self) -> bool:
        return self.p < SURE and self.times > self.rankings / 2


@dataclass(frozen=True, slots=True)
class Contradictions:
    """``opposed`` of ``pairs`` that were ordered at least twice were ordered both ways; of the ``triads`` whose three
    pairs are all decided by majority, ``cyclic`` go round (a over b over c over a)."""

    pairs: int
    opposed: int
    triads: int
    cyclic: int


def first_shown(entries: Sequence[Entry]) -> FirstShown:
    """Of entries with one candidate alone at the top; shown in an order of chance, that tells a habit."""
    decided = [e for e in entries if e.kind == "order" and len(e.asked.candidates) > 1 and len(e.order[0]) == 1]
    chances = [1 / len(e.asked.candidates) for e in decided]
    times = sum(e.order[0] == (0,) for e in decided)
    return FirstShown(times, len(decided), float(sum(chances)), _at_least(times, chances))


def _at_least(times: int, chances: Sequence[float]) -> float:
    """P(so many or more) of independent trials with these chances."""
    chance_N = np.zeros(len(chances) + 1)
    chance_N[0] = 1.0
    for p in chances:
        chance_N[1:] = chance_N[1:] * (1 - p) + chance_N[:-1] * p
        chance_N[0] *= 1 - p
    return min(1.0, float(chance_N[times:].sum()))


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
