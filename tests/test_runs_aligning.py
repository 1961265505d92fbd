"""Alignment as a run does it: watched, stopped when reward and annotator part, compared with before."""

from __future__ import annotations

import pytest

from klype.runs.comparing import verdict, win_rate
from klype.runs.judging import pairs
from klype.runs.watch import Seen, best, parted


def seen(step: int, truth: float, reward: float) -> Seen:
    spread = tuple(truth + 0.1 * (i % 5 - 2) for i in range(60))
    return Seen(step, spread, reward, 0.5, 8.0, 1.0, 0.0)


def test_reward_up_and_annotator_down_is_parting_and_nothing_else_is() -> None:
    start = seen(0, 0.5, 0.0)
    assert parted([start, seen(10, -0.3, 0.8)])
    assert not parted([start])
    assert not parted([start, seen(10, 0.9, 0.8)])
    assert not parted([start, seen(10, -0.3, -0.5)])  # both fall: the reward model sees it, too


def test_chance_alone_is_no_parting() -> None:
    calm = Seen(10, tuple(0.5 + 0.1 * ((i * 7) % 5 - 2) for i in range(60)), 0.9, 0.5, 8.0, 1.0, 0.0)
    assert not parted([seen(0, 0.5, 0.0), calm])


def test_the_best_look_is_the_annotators_first_of_equals() -> None:
    looks = [seen(0, 0.1, 0.0), seen(10, 0.7, 0.1), seen(20, 0.7, 0.9)]
    assert best(looks).step == 10


def test_wins_count_ties_half() -> None:
    figure = win_rate([0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 4.0])
    assert figure.value == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert figure.low is not None
    assert figure.high is not None
    assert 0 <= figure.low <= figure.value <= figure.high <= 1


def test_pairs_for_calibration_come_once_each_and_are_turned_with_their_outcome() -> None:
    said, won, asked = pairs([((0, 1, 1), (2.0, 0.0, -1.0))])
    assert asked == [0, 0, 0]
    for p, outcome in zip(said, won, strict=True):
        assert outcome == 0.5 or (p > 0.5) == (outcome == 1.0)  # the scores are in the ranking's order
    assert won.count(0.5) == 1


@pytest.mark.parametrize(
    ("low", "high", "en", "nb"),
    [(0.1, 0.3, "Better", "Bedre"), (-0.3, -0.1, "Worse", "Verre"), (-0.1, 0.1, "No ", "Ingen")],
)
def test_the_verdict_follows_the_interval_in_both_languages(low: float, high: float, en: str, nb: str) -> None:
    figure = {"value": (low + high) / 2, "low": low, "high": high}
    document = {"gain": {"score": figure}, "before": {}, "after": {}}
    looks = [seen(0, 0.5, 0.0), seen(10, 0.1, 0.9)]
    assert verdict(document, looks, False, "en").startswith(en)
    assert verdict(document, looks, True, "nb").startswith(nb)
    assert "step 0" in verdict(document, looks, True, "en")
