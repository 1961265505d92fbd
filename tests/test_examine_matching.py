"""Matched pairs: the control word is as rare as the wrong one, and rarity alone is then no feedback."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from klype.examine.error_feedback import FEW, effect, outcomes, separation
from klype.examine.evidence import Evidence
from klype.examine.examination_report import pairs
from klype.examine.interventions import (
    AS_RARE,
    FeedbackSettings,
    Intervention,
    Query,
    find_matched,
    interventions,
)
from klype.examine.truth import Reader
from klype.sources.source import NativeSource
from tests.toy_sources import table_source

END, START, LIKELY, RARE, WRONG = range(5)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Open:
    """After anything, the likely and the rare word are right; the wrong one never is."""

    def next(self) -> dict[int, float]:
        return {LIKELY: 0.9, RARE: 0.1}

    def push(self, token: int) -> float:
        return self.next().get(token, 0.0)


def rarity_alone() -> NativeSource:
    """After a rare word, right or wrong, an error is likely; after a likely one it is not."""
    after_likely, after_rare = [0, 0, 0.96, 0.02, 0.02], [0, 0, 0.78, 0.02, 0.2]
    return table_source(np.array([[1, 0, 0, 0, 0], after_likely, after_likely, after_rare, after_rare]))[0]


def questions(n: int, first: int = 0) -> list[Query]:
    return [Query(f"q{first + i}", (START,), Reader(Open)) for i in range(n)]


def test_rarity_is_not_taken_for_wrongness() -> None:
    source, settings = rarity_alone(), FeedbackSettings(distances=2)
    asked = questions(60)
    forced = interventions(source, asked, settings, lambda t: True)
    rounds = (questions(40, 100 * i) for i in range(1, 21))
    found = find_matched(source, rounds, FeedbackSettings(limit=3), lambda t: True)
    after = outcomes(source, asked, forced, settings) + outcomes(source, found.asked, found.found, settings)
    shown = effect(after)
    assert len(found.found) >= 100
    assert shown.difference[0].value > 0.1  # beside a word as the model draws it, mostly the likely one
    assert shown.beside_near[0].value == pytest.approx(0, abs=1e-6)
    assert shown.cautious[0].value == pytest.approx(0, abs=1e-6)
    assert shown.beside_near[0].n == sum(one.intervention.is_matched for one in after) >= 100


def test_every_pair_found_is_as_rare_and_each_beginning_counts_once() -> None:
    source = rarity_alone()
    found = find_matched(source, [questions(30)] * 4, FeedbackSettings(pairs=10**6, limit=5), lambda t: True)
    assert all(intervention.is_matched and not intervention.by_rule for intervention in found.found)
    assert all(abs(intervention.rarity) <= AS_RARE for intervention in found.found)
    assert all(intervention.tokens[0] == WRONG and intervention.tokens[2] == RARE for intervention in found.found)
    places = [(intervention.question, intervention.before) for intervention in found.found]
    assert len(set(places)) == len(places)
    assert {one.question for one in found.asked} == {intervention.question for intervention in found.found}


def test_where_nothing_is_as_rare_all_are_dropped_and_nothing_is_said() -> None:
    likely = [0, 0, 0.99, 0, 0.01]
    source = table_source(np.array([[1, 0, 0, 0, 0], likely, likely, likely, likely]))[0]
    found = find_matched(source, [questions(20)] * 2, FeedbackSettings(limit=3), lambda t: True)
    assert found.found == ()
    assert found.dropped > 20
    forced = interventions(source, questions(40), FeedbackSettings(distances=1, samples=1), lambda t: True)
    after = outcomes(source, questions(40), forced, FeedbackSettings(distances=1, samples=1))
    shown = effect(after)
    assert shown.cautious[0].value is None
    assert str(FEW) in shown.cautious[0].why
    told = pairs(Evidence(outcomes=after, dropped=found.dropped))
    assert told == {
        "matched": 0,
        "dropped": found.dropped + len(forced),
        "ratio": None,
        "ratio_by_rule": pytest.approx(99, rel=0.01),
    }


def test_the_search_ends_when_there_are_enough() -> None:
    asked: list[int] = []

    def rounds() -> Iterator[list[Query]]:
        for round_ in range(20):
            asked.append(round_)
            yield questions(50, 50 * round_)

    found = find_matched(rarity_alone(), rounds(), FeedbackSettings(pairs=60, limit=6), lambda t: True)
    assert len(found.found) >= 60
    assert asked == list(range(len(asked)))
    assert len(asked) < 20


@pytest.mark.parametrize(("ratio", "matched"), [(2.9, True), (1 / 2.9, True), (3.1, False), (1 / 3.1, False)])
def test_a_factor_of_three_is_as_rare(ratio: float, matched: bool) -> None:
    assert Intervention("q", (), (1, 2, 3), math.log(ratio)).is_matched is matched


def test_errors_by_edits_are_counted_beside_errors_word_by_word() -> None:
    """By edits everything is right: no error is left of what word by word are some."""

    class All(Open):
        def next(self) -> dict[int, float]:
            return {LIKELY: 0.5, RARE: 0.3, WRONG: 0.2}

    asked = [Query(f"q{i}", (START,), Reader(Open), Reader(All)) for i in range(40)]
    settings = FeedbackSettings(distances=3)
    found = find_matched(rarity_alone(), [asked], FeedbackSettings(limit=3), lambda t: True)
    shown = effect(outcomes(rarity_alone(), asked, found.found, settings))
    assert shown.further["wrong_errors"].value > 0.2
    assert shown.further["wrong_edits"].value == pytest.approx(0, abs=1e-6)
    assert shown.cautious[0].value == pytest.approx(0, abs=1e-6)


def test_two_halves_of_one_sample_are_not_parted_in_the_mean_and_two_words_are() -> None:
    rng = np.random.default_rng(0)
    alike = [separation(*rng.integers(0, 4, (2, 2, 5))) for _ in range(2000)]
    assert np.mean([x for x in alike if x is not None]) == pytest.approx(0, abs=0.02)
    a, b = np.zeros((2, 5), np.int64), np.ones((2, 5), np.int64)
    assert separation(a, b) == 1.0
    assert separation(a, a) == 0.0
    assert separation(a[:1], b) is None
