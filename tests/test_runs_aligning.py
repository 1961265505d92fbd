"""Alignment as a run does it: watched, stopped when reward and annotator part, compared with before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from klype.errors import KlypeError
from klype.preferences.annotators import Scorer
from klype.runs.align_stage import EvaluatedBatches, Evaluation, best, scores_diverged
from klype.runs.best_weights import BestWeights
from klype.runs.gates import verdict, win_rate
from klype.runs.reward import scored_pairs, tau_ceiling
from klype.values import Batch, Question, Ranking


def seen(step: int, truth: float, reward: float) -> Evaluation:
    spread = tuple(truth + 0.1 * (i % 5 - 2) for i in range(60))
    return Evaluation(step, spread, reward, 0.5, 8.0, 1.0, 0.0)


def test_reward_up_and_annotator_down_is_parting_and_nothing_else_is() -> None:
    start = seen(0, 0.5, 0.0)
    assert scores_diverged([start, seen(10, -0.3, 0.8)])
    assert not scores_diverged([start])
    assert not scores_diverged([start, seen(10, 0.9, 0.8)])
    assert not scores_diverged([start, seen(10, -0.3, -0.5)])  # both fall: the reward model sees it, too


def test_chance_alone_is_no_parting() -> None:
    calm = Evaluation(10, tuple(0.5 + 0.1 * ((i * 7) % 5 - 2) for i in range(60)), 0.9, 0.5, 8.0, 1.0, 0.0)
    assert not scores_diverged([seen(0, 0.5, 0.0), calm])


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
    said, won, asked = scored_pairs([((0, 1, 1), (2.0, 0.0, -1.0))])
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
    assert verdict(document, looks, False, False, "en").startswith(en)
    assert verdict(document, looks, True, False, "nb").startswith(nb)
    assert "step 0" in verdict(document, looks, True, False, "en")
    assert [("the annotator's own fell" in verdict(document, looks, False, fell, "en")) for fell in (True, False)] == [
        True,
        False,
    ]


class Numbers:
    """Batches that say where they are."""

    def __init__(self) -> None:
        self.index = 0

    def __iter__(self) -> Numbers:
        return self

    def __next__(self) -> Batch:
        self.index += 1
        empty = torch.zeros(1, 1)
        return Batch(empty, empty, empty)

    def state(self) -> dict[str, Any]:
        return {"index": self.index}

    def restore(self, state: dict[str, Any]) -> None:
        self.index = state["index"]


def watched(folder: Path, model: torch.nn.Module, *truths: float) -> EvaluatedBatches:
    look = lambda step: seen(step, truths[step], float(step))
    return EvaluatedBatches(Numbers(), look, BestWeights(model, folder), 1, False)


def test_the_best_weights_stay_in_memory_until_a_state_is_saved(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1)
    watch = watched(tmp_path, model, 0.0, 1.0, 0.5, 2.0, 3.0)
    for step in range(3):
        torch.nn.init.constant_(model.weight, step)
        next(watch)
    assert not list(tmp_path.iterdir())
    state = json.loads(json.dumps(watch.state()))
    assert [file.name for file in tmp_path.iterdir()] == ["best-000001.safetensors"]

    other = torch.nn.Linear(1, 1)
    resumed = watched(tmp_path, other, 0.0, 1.0, 0.5, 2.0, 3.0)
    resumed.restore(state)
    resumed.restore_best()
    assert other.weight.item() == 1.0  # from the disk

    for step in (3, 4):
        torch.nn.init.constant_(other.weight, step)
        next(resumed)
        resumed.state()
    kept = sorted(file.name for file in tmp_path.iterdir())
    assert kept == ["best-000003.safetensors", "best-000004.safetensors"]
    resumed.restore_best()
    assert other.weight.item() == 4.0
    resumed.best.forget()
    assert not list(tmp_path.iterdir())


def test_best_weights_that_are_gone_are_said_to_be(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1)
    first = watched(tmp_path, model, 0.0)
    next(first)
    state = first.state()
    first.best.forget()
    resumed = watched(tmp_path, model, 0.0)
    resumed.restore(state)
    with pytest.raises(KlypeError, match="best weights"):
        resumed.restore_best()


def test_an_annotator_without_noise_agrees_with_itself_and_a_noisy_one_less() -> None:
    question = Question("1", "?")
    exact = [Ranking(question, tuple("abcd"), ((0,), (1,), (2,), (3,)), "a")] * 30

    def score(asked: Question, answer: str) -> float:
        return -float(ord(answer))

    still, noisy = (tau_ceiling(exact, noise, Scorer("a", score), 0).value for noise in (0.0, 0.3))
    assert still == pytest.approx(1.0)
    assert noisy is not None
    assert 0 < noisy < 0.95
    assert tau_ceiling(exact, None, Scorer("a", score), 0).value is None
