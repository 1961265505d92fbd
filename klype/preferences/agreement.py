"""How well rankings of the same candidates agree: pairs, Kendall's τ, and Krippendorff's α of several annotators.

α = 1 - observed / expected disagreement (1: perfect, 0: chance), whoever rated what, ties and gaps allowed:
Krippendorff, Content Analysis (2013), ch. 12; his "Computing Krippendorff's Alpha-Reliability" (2011) has the worked
example that the tests recompute.
"""

import math
import random
from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import numpy as np

from klype.errors import KlypeError
from klype.preferences.annotators import ranks
from klype.preferences.records import with_repeats
from klype.values import Figure, Floats, Ints, Ranking


def pair_agreement(judge: Ranking, other: Ranking) -> tuple[float, int]:
    """(pairs that ``other`` orders as ``judge`` does, a tie counting half; all pairs that ``judge`` orders)."""
    a_P, b_P = _signs(*_same_candidates(judge, other))
    ordered_P = a_P != 0
    return float((a_P * b_P > 0).sum() + 0.5 * (ordered_P & (b_P == 0)).sum()), int(ordered_P.sum())


def kendall_tau_b(one: Ranking, two: Ranking) -> float | None:
    """Kendall's rank correlation, corrected for ties (τ-b); None when either ranking ties everything."""
    return tau_b(*_same_candidates(one, two))


def tau_b(one: Sequence[float], two: Sequence[float]) -> float | None:
    """Kendall's τ-b of two sequences of ranks or scores; None when either is constant."""
    # equal to scipy.stats.kendalltau bit for bit, whose import alone takes a second
    a_P, b_P = _signs(one, two)
    untied = [math.sqrt(np.count_nonzero(sign_P)) for sign_P in (a_P, b_P)]
    return max(-1.0, min(1.0, int((a_P * b_P).sum()) / untied[0] / untied[1])) if all(untied) else None


def _signs(one: Sequence[float], two: Sequence[float]) -> tuple[Ints, Ints]:
    """For every pair of positions, which of the two is higher in each sequence (0: tied)."""
    i, j = np.triu_indices(len(one), 1)
    a_P, b_P = (np.sign(value_N[j] - value_N[i]).astype(int) for value_N in map(np.asarray, (one, two)))
    return a_P, b_P


def with_itself(
    rank: Callable[[int, random.Random], Ranking], questions: int, seed: int, repeats: int = 20
) -> list[tuple[float, float]]:
    """Self-agreement of a noisy annotator, per question: (pairs ordered alike, pairs), means of ``repeats``.

    ``rank(question's index, rng)`` ranks once more, with errors. Not an upper bound for a model: one
    without the annotator's noise can agree with it more often than it does with itself.
    """
    out = []
    for index in range(questions):
        rng = random.Random(f"{seed} {index}")
        found = [pair_agreement(rank(index, rng), rank(index, rng)) for _ in range(repeats)]
        out.append((sum(right for right, _ in found) / repeats, sum(pairs for _, pairs in found) / repeats))
    return out


def _same_candidates(one: Ranking, two: Ranking) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Both rankings' ranks of the first one's candidates. KlypeError when they rank different candidates."""
    there = ranks(two)
    if one.candidates != two.candidates:
        if len(set(one.candidates)) < len(one.candidates) or set(one.candidates) != set(two.candidates):
            raise KlypeError(f"Two rankings of {one.question.question!r} have different candidates.")
        place = dict(zip(two.candidates, there, strict=True))
        there = tuple(place[candidate] for candidate in one.candidates)
    return ranks(one), there


Level = Literal["nominal", "ordinal", "interval"]
RESAMPLES = 1000


def alpha(groups: Sequence[Sequence[Ranking]], level: Literal["nominal", "ordinal"], seed: int = 0) -> Figure:
    """α of rankings of the same candidates (one group per question, one ranking per annotator); bootstrap interval.

    Units are candidates. "ordinal": their places (the mean place where tied); "nominal": whether they were put first.
    Questions are resampled, since places within one question depend on each other.
    """
    units: list[list[float]] = []
    owner: list[int] = []
    compared = [group for group in groups if len(group) > 1]
    for index, group in enumerate(compared):
        by_text = [_ratings(ranking, level) for ranking in group]
        for key in by_text[0]:
            units.append([rating[key] for rating in by_text if key in rating])
            owner.append(index)
    unit = f"α, {level}"
    if len(compared) < 2:
        return Figure(None, n=len(compared), unit=unit, why="fewer than two questions were ranked by two annotators")
    values = sorted({value for ratings in units for value in ratings})
    per_unit = coincidences(units, values)
    per_question = np.zeros((len(compared), len(values), len(values)))
    np.add.at(per_question, np.array(owner), per_unit)
    found = krippendorff(per_question.sum(0), values, level)
    if found is None:
        return Figure(None, n=len(compared), unit=unit, why="everything was rated the same: chance is not known")
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(compared), np.full(len(compared), 1 / len(compared)), RESAMPLES)
    resampled = [krippendorff(np.tensordot(weights, per_question, 1), values, level) for weights in drawn.astype(float)]
    known = np.array([value for value in resampled if value is not None])
    low, high = np.quantile(known, (0.025, 0.975)) if known.size else (found, found)
    return Figure(found, min(float(low), found), max(float(high), found), len(compared), unit)


def _ratings(ranking: Ranking, level: str) -> dict[Hashable, float]:
    """Each candidate's rating."""
    places = ranks(ranking)
    before = [sum(p < place for p in places) + (places.count(place) - 1) / 2 for place in places]
    rated = [float(place == 0) for place in places] if level == "nominal" else before
    return dict(zip(with_repeats(ranking.candidates), rated, strict=True))


def coincidences(units: Sequence[Sequence[float]], values: Sequence[float]) -> Floats:
    """[U, V, V]: each unit's ordered pairs of ratings by different annotators, over (ratings - 1)."""
    place = {value: i for i, value in enumerate(values)}
    out_UVV = np.zeros((len(units), len(values), len(values)))
    for u, unit in enumerate(units):
        if len(unit) < 2:
            continue
        count_V = np.bincount([place[value] for value in unit], minlength=len(values)).astype(float)
        out_UVV[u] = (np.outer(count_V, count_V) - np.diag(count_V)) / (len(unit) - 1)
    return out_UVV


def krippendorff(coincidence_VV: Floats, values: Sequence[float], level: Level) -> float | None:
    """α of summed coincidences. None: nothing to compare, or no variation."""
    count_V = coincidence_VV.sum(0)
    total = float(count_V.sum())
    if level == "nominal":
        distance_VV: Floats = 1 - np.eye(len(values))
    else:  # squared; ordinal: the number of ratings between the two, each end counted as half
        at_V = np.asarray(values, dtype=float) if level == "interval" else np.cumsum(count_V) - count_V / 2
        distance_VV = (at_V[:, None] - at_V[None]) ** 2
    expected = float((np.outer(count_V, count_V) * distance_VV).sum())
    if total <= 1 or expected == 0:
        return None
    return 1 - (total - 1) * float((coincidence_VV * distance_VV).sum()) / expected
