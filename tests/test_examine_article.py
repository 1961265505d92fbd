"""The article's claims: rulings follow from intervals, all have their words, and the page holds both languages."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

from klype.cli import guard
from klype.cli.main import call
from klype.experiments import article
from klype.experiments.article import claims, sentences
from klype.words import LANGUAGES, words
from tests.test_cli_models import Captured, document, question, run, world

__all__ = ["question", "run", "world"]


EXTRAS = ("not_likeliest", "both_ways", "meaning_gain", "growth", "clean_beside", "ended")


def figure(value: float | None, low: float = 0.0, high: float = 0.0) -> dict[str, Any]:
    if value is None:
        return {"value": None, "why": "nothing was measured"}
    return {"value": value, "low": low, "high": high, "n": 9, "unit": "share of answers"}


def made(**main: dict[str, Any]) -> dict[str, Any]:
    return {
        "main": "0.7",
        "figures": {"0": {}, "0.7": main, "1.3": {}},
        "feedback": {},
        "after_error": {},
        "would_survive": {},
        "settings": {"n": 8},
        "extra": {name: figure(None) for name in EXTRAS},
    }


def ruling(name: str, document: dict[str, Any]) -> str:
    return next(claim.ruling for claim in claims(document) if claim.name == name)


def test_nothing_measured_leaves_all_open_but_the_slip_in_the_formula() -> None:
    found = {claim.name: claim.ruling for claim in claims(made())}
    assert found.pop("formula") == "bent"
    assert set(found.values()) == {"open"}


@pytest.mark.parametrize(
    ("low", "high", "near", "expected"),
    [(0.1, 0.5, 0.1, "supported"), (0.1, 0.5, -0.1, "bent"), (-0.1, 0.3, 0.1, "open"), (-0.5, -0.1, 0.1, "refuted")],
)
def test_feedback_is_ruled_by_its_interval_and_by_words_as_rare(
    low: float, high: float, near: float, expected: str
) -> None:
    found = made(feedback=figure((low + high) / 2, low, high), feedback_ratio=figure(2.0, 1.0, 3.0))
    found["after_error"]["0.7"] = {"beside_near": [figure(near + 0.1, near, near + 0.2)], "moved": [figure(None)]}
    assert ruling("feedback", found) == expected


@pytest.mark.parametrize(
    ("right", "loops", "expected"), [(0.2, 0.9, "supported"), (0.2, 0.1, "bent"), (0.9, 0.1, "refuted")]
)
def test_greedy_is_poor_repetitive_both_or_neither(right: float, loops: float, expected: str) -> None:
    found = made(right=figure(0.5, 0.4, 0.6), repetition=figure(0.5, 0.4, 0.6))
    found["figures"]["0"] = {
        "right": figure(right, right - 0.05, right + 0.05),
        "repetition": figure(loops, loops - 0.05, loops + 0.05),
    }
    assert ruling("greedy", found) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 0.1, "supported"), (0.1, 0.3, "open"), (0.3, 0.6, "bent"), (0.6, 0.9, "refuted")],
)
def test_seldom_is_less_than_one_in_five(low: float, high: float, expected: str) -> None:
    assert ruling("seldom_same", made(same_text=figure((low + high) / 2, low, high))) == expected


def test_no_way_back_is_told_beside_what_follows_a_right_word() -> None:
    found = made(recovery=figure(0.5, 0.4, 0.6))
    found["extra"] |= {"clean_beside": figure(0.8, 0.7, 0.9), "ended": figure(0.3, 0.2, 0.4)}
    assert ruling("no_way_back", found) == "bent"
    assert "80% [70, 90]" in next(text for says, _, text in sentences(found, "en") if "cannot go back" in says)
    found["figures"]["0.7"]["recovery"] = figure(0.01, 0.0, 0.02)
    assert ruling("no_way_back", found) == "supported"


def test_without_a_truth_the_direction_is_that_of_the_meaning() -> None:
    found = made(feedback_meaning=figure(0.3, 0.2, 0.4))
    assert ruling("direction_meaning", found) == "supported"
    found["after_error"]["0.7"] = {"moved": [figure(0.6, 0.5, 0.7)], "beside_near": [figure(None)]}
    assert ruling("direction", found) == "supported"


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.9, 1.2, "supported"), (0.2, 0.8, "bent"), (1.1, 2.0, "bent"), (0.3, 3.0, "open")]
)
def test_exponential_means_shape_one(low: float, high: float, expected: str) -> None:
    assert ruling("exponential", made(weibull_shape=figure((low + high) / 2, low, high))) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.1, 0.3, "supported"), (-0.1, 0.1, "open"), (-0.3, -0.1, "refuted")]
)
def test_growth_is_that_of_the_second_word_beside_the_first(low: float, high: float, expected: str) -> None:
    found = made()
    found["feedback"]["0.7"] = [{**figure(0.6, 0.5, 0.7), "distance": 1}, {**figure(0.5, 0.4, 0.7), "distance": 2}]
    found["extra"]["growth"] = figure((low + high) / 2, low, high)
    assert ruling("grows", found) == expected


def test_the_formula_is_s_to_the_n() -> None:
    claim = next(c for c in claims(made(s=figure(0.99999, 0.9999, 1.0))) if c.name == "formula")
    assert claim.shown["right"][1]["value"] == pytest.approx(0.999, abs=1e-4)
    assert claim.shown["printed"][1]["value"] == pytest.approx(0, abs=1e-12)
    assert claim.shown["right"][1]["low"] == pytest.approx(0.9999**100)
    assert claim.shown["right"][1]["high"] == 1.0


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_claim_has_words_for_every_ruling_it_can_get(lang: str) -> None:
    own, source = words(lang, "article"), inspect.getsource(article)
    for claim in claims(made()):
        assert f"{claim.name}.says" in own.messages
        body = source.split(f"def _{claim.name}(")[1].split("\ndef ")[0]
        for ruled in set(re.findall(r'"(supported|bent|refuted|open)"', body)) - {"open"}:
            assert f"{claim.name}.{ruled}" in own.messages
    assert len(sentences(made(), lang)) == len(claims(made()))


@pytest.mark.slow
def test_the_command_rules_and_writes_its_page(run: Path, capsys: Captured, tmp_path: Path) -> None:
    argv = ["article", str(run), "-n", "2", "--limit", "4", "--out", str(tmp_path)]
    found = document(capsys, *argv)
    assert {row["ruling"] for row in found["claims"]} <= {"supported", "bent", "refuted", "open"}
    page = (tmp_path / "article.html").read_text(encoding="utf-8")
    assert "claim by claim" in page
    assert "påstand for påstand" in page
    assert json.loads((tmp_path / "article.json").read_text(encoding="utf-8"))["claims"] == found["claims"]
    assert guard.guarded(call, [*argv, "--lang", "nb"]) == 0
    assert "Sⁿ" in capsys.readouterr().out
