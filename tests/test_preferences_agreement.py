"""Agreement between annotators, habits and contradictions: published figures, laws, and planted faults."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klype.errors import UsageError
from klype.preferences.agreement import Level, alpha, coincidences, krippendorff
from klype.preferences.annotators import (
    Scorer,
    Taste,
    contradictions,
    first_shown,
    information,
    merge_near_duplicates,
    most_informative,
    rank_simulated,
    spread,
    taste,
)
from klype.preferences.records import Candidate, Entry, RankingItem
from klype.values import Question, Ranking, Verdict

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section D: four observers, twelve units, gaps.
OBSERVERS = (
    (1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None),
    (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3),
    (None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None),
    (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None),
)
UNITS = [[float(r) for r in unit if r is not None] for unit in zip(*OBSERVERS, strict=True)]


def alpha_of(units: list[list[float]], level: Level) -> float | None:
    values = sorted({value for unit in units for value in unit})
    return krippendorff(coincidences(units, values).sum(0), values, level)


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_the_published_one(level: Level, published: float) -> None:
    assert alpha_of(UNITS, level) == pytest.approx(published, abs=6e-4)


ratings = st.lists(st.lists(st.integers(0, 3).map(float), min_size=1, max_size=4), min_size=2, max_size=8)


@given(ratings, st.sampled_from(["nominal", "ordinal"]), st.randoms(use_true_random=False))
def test_alpha_knows_neither_order_nor_names(units: list[list[float]], level: Level, rng: random.Random) -> None:
    found = alpha_of(units, level)
    mixed = [rng.sample(unit, len(unit)) for unit in rng.sample(units, len(units))]
    again = alpha_of(mixed, level)
    renamed = alpha_of([[2 * r + 1 for r in unit] for unit in units], level)
    assert (found is None) == (again is None) == (renamed is None)
    if found is not None:
        assert found <= 1 + 1e-12
        assert again == pytest.approx(found)
        assert renamed == pytest.approx(found)


def ranking(question: int, order: tuple[tuple[int, ...], ...], who: str = "a") -> Ranking:
    n = sum(map(len, order))
    return Ranking(Question(f"q{question}", "?"), tuple(f"c{i}" for i in range(n)), order, who)


def test_alpha_of_rankings_is_one_for_twins_and_near_zero_for_strangers() -> None:
    rng = random.Random(0)
    orders = [tuple((i,) for i in rng.sample(range(4), 4)) for _ in range(400)]
    twins = [[ranking(i, order), ranking(i, order, "b")] for i, order in enumerate(orders)]
    strangers = [[ranking(i, a), ranking(i, b, "b")] for i, (a, b) in enumerate(pairwise(orders))]
    for level in ("ordinal", "nominal"):
        assert alpha(twins, level).value == pytest.approx(1)  # type: ignore[arg-type]
        figure = alpha(strangers, level)  # type: ignore[arg-type]
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low < 0.05
        assert figure.high > -0.05
        assert abs(figure.value or 0.0) < 0.12
    assert alpha(twins[:1], "ordinal").value is None


def entry(order: tuple[tuple[int, ...], ...]) -> Entry:
    n = sum(map(len, order))
    return Entry(RankingItem(Question("q", "?"), tuple(Candidate(str(i)) for i in range(n))), order, "me")


def test_who_always_picks_the_first_is_flagged_and_who_picks_by_taste_is_not() -> None:
    lazy = first_shown([entry(((0,), (1, 2, 3)))] * 12)
    assert lazy["always"]
    assert lazy["p"] == pytest.approx(0.25**12)
    rng = random.Random(1)
    fair = first_shown([entry(tuple((i,) for i in rng.sample(range(4), 4))) for _ in range(200)])
    assert not fair["always"]
    assert fair["expected"] == pytest.approx(50)
    assert not first_shown([entry(((0,), (1,)))] * 5)["always"]  # five of two: 1/32
    assert first_shown([entry(((0, 1),))] * 20)["of"] == 0
    assert first_shown([])["p"] == 1.0


def test_a_cycle_is_counted_and_opposites_are_too() -> None:
    def pair(good: str, poor: str) -> Ranking:
        return Ranking(Question("q", "?"), (good, poor), ((0,), (1,)), "me")

    round_trip = contradictions([pair("a", "b"), pair("b", "c"), pair("c", "a")])
    assert (round_trip.triads, round_trip.cyclic, round_trip.pairs) == (1, 1, 0)
    straight = contradictions([pair("a", "b"), pair("b", "c"), pair("a", "c")])
    assert (straight.triads, straight.cyclic) == (1, 0)
    torn = contradictions([pair("a", "b"), pair("b", "a")])
    assert (torn.pairs, torn.opposed, torn.triads) == (1, 1, 0)


@given(st.permutations(range(5)))
def test_one_order_never_contradicts_itself(order: list[int]) -> None:
    found = contradictions([ranking(0, tuple((i,) for i in order))])
    assert (found.triads, found.cyclic, found.opposed) == (10, 0, 0)


def test_tastes_are_read_and_refused_by_name() -> None:
    assert taste("right=1, word=-.5") == Taste(right=1, word=-0.5)
    assert taste("") == Taste()
    assert taste(str(Taste(polite=3, concise=1))) == Taste(polite=3, concise=1)
    for bad in ("rigth=1", "right", "right=much", "right=nan", "right=inf"):
        with pytest.raises(UsageError, match="is not a taste"):
            taste(bad)
    verdict = Verdict(True, False, True, 5, 0.0)
    assert Taste(right=2, word=0.1, concise=1).score(verdict) == pytest.approx(2.5)


def test_annotators_of_other_tastes_disagree() -> None:
    words = {"ja": 1, "ja det er riktig": 4, "nei": 1, "nei det er galt nok": 5}
    verdicts = {t: Verdict(t.startswith("ja"), None, None, n, 0.0) for t, n in words.items()}
    tastes = [Taste(), Taste(right=0, word=-1)]
    a, b = (
        rank_simulated(
            Scorer(str(t), lambda q, x, t=t: t.score(verdicts[x])),
            Question("q", "?"),
            list(words),
            0.0,
            random.Random(0),
        )
        for t in tastes
    )
    assert a.order[0] == (0,)
    assert b.order[0] == (3,)
    assert a.annotator != b.annotator


def test_near_duplicates_that_mean_something_else_stay() -> None:
    long = "Ja, det er det mange som lurer på, men jeg tror at Sara har sykkelen, og det er alt jeg vet om den saken"
    other = long.replace("Sara", "Sari")
    assert len(merge_near_duplicates([long, other])) == 1
    assert len(merge_near_duplicates([long, other], meaning=lambda text: "Sara" in text)) == 2


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(1, 9))
def test_spread_shows_as_many_meanings_as_it_can(meanings: list[int], most: int) -> None:
    kept = spread(meanings, most)
    assert len(kept) == min(most, len(meanings)) == len(set(kept))
    assert len({meanings[i] for i in kept}) == min(most, len(set(meanings)))


def test_information_is_where_the_heads_disagree_not_where_all_are_unsure() -> None:
    agreed = np.array([[1.0, 1.0], [0.0, 0.0]])
    unsure = np.zeros((2, 2))
    torn = np.array([[2.0, -2.0], [0.0, 0.0]])
    assert information(agreed)[0, 1] == pytest.approx(0, abs=1e-9)
    assert information(unsure)[0, 1] == pytest.approx(0, abs=1e-9)
    assert information(torn)[0, 1] > 0.2
    assert information(torn + 7.0) == pytest.approx(information(torn))  # a constant changes nothing
    assert most_informative([agreed, torn, unsure])[0] == 1
