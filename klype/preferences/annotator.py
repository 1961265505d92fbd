"""Annotators that are functions: always labelled as simulated, with a chance to err."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from klype.errors import KlypeError
from klype.preferences.records import SIMULATED
from klype.values import Question, Ranking

EQUAL = 1e-9


@dataclass(frozen=True, slots=True)
class Annotator:
    """``score(question, answer)``: higher is better. ``name`` says whose taste it is."""

    name: str
    score: Callable[[Question, str], float]


def rank_simulated(
    annotator: Annotator,
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
    places = [0] * len(ranking.candidates)
    for place, group in enumerate(ranking.order):
        for index in group:
            places[index] = place
    return tuple(places)
