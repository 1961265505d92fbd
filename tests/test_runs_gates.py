"""Gates: what all of an interval says, what some of it says, what nothing says; and what starts alignment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from klype.examine.intervals import proportion
from klype.runs.gates import MIN_CASES, figure_of, gains, gates, reason_not_to_align, retention, status
from klype.runs.listener import SilentListener
from klype.runs.recipe import Recipe, current_settings, read
from klype.runs.run_json import Record
from klype.runs.run_options import RunOptions
from klype.runs.stages import RunContext
from klype.values import Figure

NAMES = ["retrieval_hard", "s", "finetuned_right", "aligned_right", "aligned_polite", "kl", "reward_pairs",
         "aligned_score_up", "retrieval_kept"]  # fmt: skip


def figure(value: float, half: float, n: int = 1500) -> dict[str, Any]:
    return Figure(value, value - half, value + half, n, "share").json()


def run_of(folder: Path, reward: dict[str, Any] | None, recipe: str = "world", **figures: dict[str, Any]) -> RunContext:
    """A run that has measured these figures."""
    options = RunOptions(out=folder)
    record = Record.start(folder, options, {"recipe": recipe})
    record.content |= {
        "figures": figures,
        "reward": reward,
        "scores": {"finetuned": [1.0] * 40, "aligned": [2.0, 2.2] * 20},
    }
    return RunContext(folder, options, read(recipe), None, record, SilentListener())  # type: ignore[arg-type]


def good(half: float = 0.01, n: int = 1500) -> dict[str, dict[str, Any]]:
    def share(value: float) -> dict[str, Any]:
        return figure(value, half, n)

    base = {"retrieval_hard": share(0.97), "retrieval_text": share(0.98), "s": share(0.985), "kl": share(0.06)}
    aligned = {"right": share(0.93), "polite": share(0.96), "retrieval_text": share(0.97)}
    return {"base": base, "finetuned": {"right": share(0.92)}, "aligned": aligned}


@pytest.mark.parametrize(
    ("low", "high", "below", "expected"),
    [
        (0.90, 0.95, False, "passed"),
        (0.899, 0.95, False, "within"),
        (0.85, 0.90, False, "within"),
        (0.85, 0.899, False, "missed"),
        (0.85, 0.90, True, "passed"),
        (0.85, 0.901, True, "within"),
        (0.90, 0.95, True, "within"),
        (0.901, 0.95, True, "missed"),
    ],
)
def test_the_near_end_passes_and_the_far_end_misses(low: float, high: float, below: bool, expected: str) -> None:
    assert status(Figure((low + high) / 2, low, high, 100), 0.9, below) == expected


def test_every_gate_has_its_interval_and_passes_by_its_near_end(tmp_path: Path) -> None:
    reward = {"pair_accuracy": figure(0.9, 0.01, 200), "ceiling": figure(0.92, 0.01, 200)}
    found, few = gates(run_of(tmp_path, reward, **good()))
    assert [row["name"] for row in found] == NAMES
    assert not few
    for row in found:
        assert {"value", "low", "high", "n", "threshold", "status", "passed"} <= row.keys()
        assert row["low"] <= row["value"] <= row["high"]  # type: ignore[operator]
        assert (row["status"], row["passed"]) == ("passed", True), row
    wide, _ = gates(run_of(tmp_path, reward, **good(half=0.06)))
    states = {row["name"]: (row["status"], row["passed"]) for row in wide}
    assert states["finetuned_right"] == states["kl"] == states["retrieval_kept"] == ("within", False)


def test_too_few_cases_are_no_gate_and_what_was_not_reached_is_missed(tmp_path: Path) -> None:
    reward = {"pair_accuracy": {**figure(1.0, 0.0, 3)}, "ceiling": figure(0.92, 0.01, 3)}
    figures = good(n=MIN_CASES - 1)
    figures["base"]["kl"] = figure(0.06, 0.01, MIN_CASES)
    del figures["aligned"]
    found, few = gates(run_of(tmp_path, reward, **figures))
    assert {row["name"]: row["n"] for row in few} == {
        "retrieval_hard": 29,
        "s": 29,
        "finetuned_right": 29,
        "reward_pairs": 3,
    }
    states = {row["name"]: row["status"] for row in found}
    assert states.pop("kl") == states.pop("aligned_score_up") == "passed"
    assert states == {"aligned_right": "missed", "aligned_polite": "missed", "retrieval_kept": "missed"}


def test_nothing_is_kept_of_nothing() -> None:
    def share(value: float, half: float = 0.02) -> Figure:
        return Figure(value, value - half, value + half, 400)

    assert retention(share(0.03), share(0.1)).value is None  # an untrained model: 3.5 times as much of what is chance
    assert retention(share(0.98), share(0.3)).value is None
    left = retention(share(0.98), share(0.95))
    assert left.value == pytest.approx(0.95 / 0.98)
    assert (left.low, left.high) == (pytest.approx(0.93), pytest.approx(0.97 / 0.96))


@pytest.mark.parametrize(
    ("accuracy", "known", "starts"),
    [
        (figure(0.87, 0.02), True, True),
        (figure(0.85, 0.02), True, True),  # within the uncertainty
        (figure(0.83, 0.02), True, False),
        (figure(0.83, 0.02), False, True),  # people err as nobody knows: better than chance is enough
        (figure(0.55, 0.06), False, False),
        ({"value": 0.6, "low": None, "high": None, "n": 1}, False, False),
        ({"value": None, "why": "no held-out pair is ordered"}, False, True),
    ],
)
def test_alignment_starts_unless_the_pairs_are_known_to_be_too_few(
    accuracy: dict[str, Any], known: bool, starts: bool, tmp_path: Path
) -> None:
    ceiling = figure(0.92, 0.01) if known else {"value": None, "why": "a person's own noise is known only from repeats"}
    why = reason_not_to_align(run_of(tmp_path, {"pair_accuracy": accuracy, "ceiling": ceiling}))
    assert (why is None) == starts
    if why is not None:
        assert "--force" in why["en"]
        assert "--force" in why["nb"]


def test_the_settings_of_an_earlier_run_are_read() -> None:
    settings = read("world").model_dump(mode="json")
    settings["reward"]["threshold"] = 0.75
    settings["reward"]["fit"] |= {"margin": 0.0, "centre": 0.1, "ties": "efron", "tie_weight": 1.0}
    assert Recipe.model_validate(current_settings(settings)) == read("world")
    assert figure_of({"right": {"value": None, "why": "no trials"}}, "right") == Figure(None, why="no trials")


def test_what_alignment_changed_is_told_question_by_question(tmp_path: Path) -> None:
    run = run_of(tmp_path, None)
    assert list(gains(run)) == ["annotator"]  # all that an earlier klype kept
    before, after = [True] * 200 + [False] * 200, [True] * 212 + [False] * 188
    polite = [None, *before[1:]]
    run.record.content["judged"] = {
        "finetuned": {"right": before, "polite": before, "annotator": [1.0] * 400},
        "aligned": {"right": after, "polite": polite, "annotator": [1.0] * 399},
    }
    found = gains(run)
    assert list(found) == ["polite", "right"]  # unequal numbers are no pairs
    assert (found["polite"].n, found["polite"].value) == (399, 0.0)
    right = found["right"]
    assert right.value == 0.03
    assert right.low is not None
    assert right.low > 0  # twelve of 400 became right and none wrong
    alone = [proportion(sum(side), 400) for side in (before, after)]
    assert alone[0].high is not None
    assert alone[1].low is not None
    assert alone[0].high > alone[1].low  # which two intervals side by side do not show
