"""The article's claims: rulings follow from intervals, all have their words, and the page holds both languages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from klype.cli import guard
from klype.cli.main import call
from klype.experiments.article import claims, sentences
from klype.words import LANGUAGES, words
from tests.test_cli_models import Captured, document, question, run, world

__all__ = ["question", "run", "world"]


def figure(value: float | None, low: float = 0.0, high: float = 0.0) -> dict[str, Any]:
    if value is None:
        return {"value": None, "why": "nothing was measured"}
    return {"value": value, "low": low, "high": high, "n": 9, "unit": "share of answers"}


def made(**main: dict[str, Any]) -> dict[str, Any]:
    return {
        "main": "0.7",
        "figures": {"0": {}, "0.7": main, "1.3": {}},
        "feedback": {},
        "extra": {name: figure(None) for name in ("not_likeliest", "both_ways", "meaning_gain")},
    }


def ruling(name: str, document: dict[str, Any]) -> str:
    return next(claim.ruling for claim in claims(document) if claim.name == name)


def test_nothing_measured_leaves_all_open_but_the_slip_in_the_formula() -> None:
    found = {claim.name: claim.ruling for claim in claims(made())}
    assert found.pop("formula") == "bent"
    assert set(found.values()) == {"open"}


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.1, 0.5, "supported"), (-0.1, 0.3, "open"), (-0.5, -0.1, "refuted")]
)
def test_feedback_is_ruled_by_its_interval(low: float, high: float, expected: str) -> None:
    found = made(feedback=figure((low + high) / 2, low, high), feedback_ratio=figure(2.0, 1.0, 3.0))
    assert ruling("feedback", found) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.9, 1.2, "supported"), (0.2, 0.8, "bent"), (1.1, 2.0, "bent"), (0.3, 3.0, "open")]
)
def test_exponential_means_shape_one(low: float, high: float, expected: str) -> None:
    assert ruling("exponential", made(weibull_shape=figure((low + high) / 2, low, high))) == expected


def test_an_effect_that_fades_refutes_and_so_on() -> None:
    found = made()
    found["feedback"]["0.7"] = [{**figure(0.6, 0.5, 0.7), "distance": 1}, {**figure(0.1, 0.0, 0.2), "distance": 5}]
    assert ruling("grows", found) == "refuted"
    found["feedback"]["0.7"][1] = {**figure(0.9, 0.8, 1.0), "distance": 5}
    assert ruling("grows", found) == "supported"


def test_the_formula_is_s_to_the_n() -> None:
    claim = next(c for c in claims(made(s=figure(0.99999, 0.9999, 1.0))) if c.name == "formula")
    assert claim.shown["right"][1]["value"] == pytest.approx(0.999, abs=1e-4)
    assert claim.shown["printed"][1]["value"] == pytest.approx(0, abs=1e-12)


def test_every_claim_has_words_for_every_ruling_it_can_get() -> None:
    for lang in LANGUAGES:
        own = words(lang, "article")
        for claim in claims(made()):
            assert f"{claim.name}.says" in own.messages
        assert len(sentences(made(), lang)) == len(claims(made()))


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
