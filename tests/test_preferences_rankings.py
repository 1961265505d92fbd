"""Simulated rankings, agreement, merged candidates."""

from __future__ import annotations

import random

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from klype.errors import KlypeError
from klype.preferences.agreement import kendall_tau_b, pair_agreement, with_itself
from klype.preferences.annotators import Scorer, merge_near_duplicates, rank_simulated, ranks
from klype.values import Question, Ranking

QUESTION = Question("q1", "Hvor bor Per?")
LONG = Scorer("long", lambda question, answer: float(len(answer)))


def ranking(places: list[int]) -> Ranking:
    order = tuple(tuple(i for i, p in enumerate(places) if p == place) for place in sorted(set(places)))
    return Ranking(QUESTION, tuple(f"c{i}" for i in range(len(places))), order, "test")


places_of = st.lists(st.integers(0, 3), min_size=2, max_size=6)


def test_without_noise_the_order_is_the_scores_and_equals_are_tied() -> None:
    found = rank_simulated(LONG, QUESTION, ["aa", "b", "cccc", "dd"], 0.0, random.Random(0))
    assert found.order == ((2,), (0, 3), (1,))
    assert ranks(found) == (1, 2, 0, 1)
    assert found.annotator == "simulated: long"
    assert found.question is QUESTION


def test_noise_swaps_neighbours_as_often_as_asked() -> None:
    rng = random.Random(1)
    swapped = sum(rank_simulated(LONG, QUESTION, ["a", "bb"], 0.2, rng).order == ((0,), (1,)) for _ in range(2000))
    assert swapped / 2000 == pytest.approx(0.2, abs=0.03)
    again = [rank_simulated(LONG, QUESTION, ["a", "bb", "ccc"], 0.5, random.Random(s)).order for s in range(9)]
    assert again == [rank_simulated(LONG, QUESTION, ["a", "bb", "ccc"], 0.5, random.Random(s)).order for s in range(9)]
    assert len(set(again)) > 1


def test_a_score_that_is_no_number_is_said_clearly() -> None:
    broken = Scorer("broken", lambda question, answer: float("nan"))
    with pytest.raises(KlypeError, match="broken"):
        rank_simulated(broken, QUESTION, ["a"], 0.0, random.Random(0))


@given(places_of)
def test_ranks_and_order_are_inverse(places: list[int]) -> None:
    dense = [sorted(set(places)).index(p) for p in places]
    assert list(ranks(ranking(places))) == dense


@given(places_of, st.data())
def test_tau_b_equals_scipy_and_agreement_is_its_kin(places: list[int], data: st.DataObject) -> None:
    other = data.draw(st.lists(st.integers(0, 3), min_size=len(places), max_size=len(places)))
    a, b = ranking(places), ranking(other)
    tau = kendall_tau_b(a, b)
    if len(set(places)) == 1 or len(set(other)) == 1:
        assert tau is None
    else:
        assert tau == pytest.approx(scipy.stats.kendalltau(places, other).statistic)
    right, pairs = pair_agreement(a, b)
    turned = ranking([3 - p for p in other])
    assert right + pair_agreement(a, turned)[0] == pairs
    assert pair_agreement(a, a) == (pairs, pairs)


def test_agreement_follows_texts_not_positions() -> None:
    one = Ranking(QUESTION, ("x", "y"), ((0,), (1,)), "a")
    two = Ranking(QUESTION, ("y", "x"), ((1,), (0,)), "b")
    assert pair_agreement(one, two) == (1.0, 1)
    assert kendall_tau_b(one, two) == 1.0
    with pytest.raises(KlypeError, match="different candidates"):
        pair_agreement(one, Ranking(QUESTION, ("x", "z"), ((0,), (1,)), "b"))


def test_an_annotator_agrees_with_itself_when_both_rankings_err_or_neither() -> None:
    candidates = ["a", "bb"]

    def rank(index: int, rng: random.Random) -> Ranking:
        return rank_simulated(LONG, QUESTION, candidates, 0.1, rng)

    found = with_itself(rank, 40, seed=0, repeats=50)
    assert sum(r for r, _ in found) / sum(n for _, n in found) == pytest.approx(0.1**2 + 0.9**2, abs=0.02)
    assert found == with_itself(rank, 40, 0, 50)


def test_near_duplicates_are_merged_and_differences_kept() -> None:
    merged = merge_near_duplicates(["Per bor i Oslo.", "per bor i  oslo", "Per bor i Bergen.", "Ja", "ja!", "Nei"])
    assert merged == [(0, 1), (2,), (3, 4), (5,)]
    long = "Katten ligger i den store røde sofaen i stuen hjemme hos oss og sover godt hele dagen"
    assert len(merge_near_duplicates([long, long + "e"])) == 1
    assert len(merge_near_duplicates(["", "...", "a"])) == 2


@given(st.lists(st.text(max_size=12), max_size=8))
def test_merging_keeps_every_candidate_once_and_is_idempotent(texts: list[str]) -> None:
    merged = merge_near_duplicates(texts)
    assert sorted(i for m in merged for i in m) == list(range(len(texts)))
    assert all(m[0] == min(m) for m in merged)
    assert merge_near_duplicates([texts[m[0]] for m in merged]) == [(i,) for i in range(len(merged))]
