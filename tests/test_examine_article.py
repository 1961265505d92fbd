"""The article's claims: rulings follow from intervals, all have their words, and the page holds both languages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from benchmarks.rulings import FAMILY, RULED
from klype.cli import exits
from klype.cli.main import call
from klype.examine.hypothesis_tests import rulings
from klype.examine.say import Say
from klype.experiments.article import sentences
from klype.experiments.claims import How, claims, of_figures
from klype.words import LANGUAGES, words
from tests import contract
from tests.test_cli_models import Captured, document, question, run, world

__all__ = ["question", "run", "world"]


EXTRAS = ("not_likeliest", "both_ways", "meaning_gain", "growth", "parted", "clean_beside", "ended")
KNOWN = ("supports", "does_not_support", "undetermined")


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
        "dependence": None,
        "rulings": {},
        "tests": {},
    }


def ruling(name: str, document: dict[str, Any]) -> str:
    """By the tests that figures alone allow, and those that the document has."""
    known = {test: outcome for test, outcome in of_figures(document).items() if outcome is not None}
    document["rulings"] = {**rulings(known), **document["rulings"]}
    return next(claim.ruling for claim in claims(document) if claim.name == name)


def test_nothing_measured_leaves_all_undetermined_but_the_slip_in_the_formula() -> None:
    found = {claim.name: claim.ruling for claim in claims(made())}
    assert found.pop("formula") == "does_not_support"
    assert set(found.values()) == {"undetermined"}


@pytest.mark.parametrize("ruled", KNOWN)
def test_feedback_is_ruled_beside_words_as_rare_and_told_with_what_was_dropped(ruled: str) -> None:
    found = made(feedback=figure(0.6, 0.5, 0.7), feedback_ratio=figure(9.0, 8.0, 10.0))
    near = [figure(0.12, 0.06, 0.18)]
    pairs = {"matched": 119, "dropped": 3070, "ratio": [0.4, 1.4, 3.0], "ratio_by_rule": 1500.0}
    found["after_error"]["0.7"] = {"cautious": near, "difference": [figure(0.6, 0.5, 0.7)], "moved": [figure(None)]}
    found["after_error"]["0.7"]["pairs"] = pairs
    found["rulings"] = {"feedback": ruled}
    assert ruling("feedback", found) == ruled
    for lang in LANGUAGES:
        text = next(
            row[2] for row, c in zip(sentences(found, lang), claims(found), strict=True) if c.name == "feedback"
        )
        assert "119" in text
        assert Say(lang).count(3070) in text


def test_too_few_pairs_leave_feedback_undetermined_whatever_the_rest_says() -> None:
    found = made(feedback=figure(0.6, 0.5, 0.7), feedback_ratio=figure(9.0, 8.0, 10.0))
    found["after_error"]["0.7"] = {"cautious": [figure(None)], "pairs": {}, "moved": [figure(None)]}
    assert ruling("feedback", found) == "undetermined"
    assert ruling("grows", found) == "undetermined"


@pytest.mark.parametrize(
    ("right", "loops", "expected"),
    [
        (0.2, 0.9, "supports"),
        (0.2, 0.1, "does_not_support"),
        (0.9, 0.1, "does_not_support"),
        (0.45, 0.9, "undetermined"),
    ],
)
def test_greedy_is_poor_and_repetitive_or_not_both(right: float, loops: float, expected: str) -> None:
    found = made(right=figure(0.5, 0.4, 0.6), repetition=figure(0.5, 0.4, 0.6))
    found["figures"]["0"] = {
        "right": figure(right, right - 0.05, right + 0.05),
        "repetition": figure(loops, loops - 0.05, loops + 0.05),
    }
    assert ruling("greedy", found) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 0.1, "supports"), (0.1, 0.3, "undetermined"), (0.3, 0.6, "does_not_support"),
     (0.6, 0.9, "does_not_support")],
)  # fmt: skip
def test_seldom_is_less_than_one_in_five(low: float, high: float, expected: str) -> None:
    assert ruling("seldom_same", made(same_text=figure((low + high) / 2, low, high))) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.2, 0.4, "supports"), (0.02, 0.06, "does_not_support"), (0.05, 0.15, "undetermined")],
)
def test_much_likelier_is_a_tenth_of_the_answers(low: float, high: float, expected: str) -> None:
    found = made(right=figure(0.9, 0.8, 1.0), word_for_word=figure(0.5, 0.4, 0.6))
    found["extra"]["meaning_gain"] = figure((low + high) / 2, low, high)
    assert ruling("meaning", found) == expected


def test_one_example_is_enough_where_a_claim_says_that_something_happens() -> None:
    found = made()
    found["extra"] |= {"not_likeliest": figure(0.01, 0.0, 0.02), "both_ways": figure(0.0, 0.0, 0.05)}
    assert ruling("not_likeliest", found) == "supports"
    assert ruling("both_ways", found) == "undetermined"


def test_no_way_back_holds_by_construction_and_is_told_beside_what_follows_a_right_word() -> None:
    found = made(recovery=figure(0.5, 0.4, 0.6))
    found["extra"] |= {"clean_beside": figure(0.8, 0.7, 0.9), "ended": figure(0.3, 0.2, 0.4)}
    assert ruling("no_way_back", found) == "supports"
    row = next(row for row in sentences(found, "en") if "cannot go back" in row[0])
    assert "80% [70, 90]" in row[2]
    assert "not by measurement" in row[3]


def test_without_a_truth_the_direction_is_that_of_the_meaning_if_there_are_enough_answers() -> None:
    less = {**figure(0.3, 0.2, 0.4), "n": 40}
    assert ruling("direction_meaning", made(feedback_meaning=less)) == "supports"
    assert ruling("direction_meaning", made(feedback_meaning={**less, "n": 29})) == "undetermined"


@pytest.mark.parametrize("constant", KNOWN)
@pytest.mark.parametrize("independent", KNOWN)
def test_exponential_never_says_other_than_the_two_that_it_needs(constant: str, independent: str) -> None:
    """The same run cannot be called dependent and exponential at once."""
    found = made()
    curve = {name: figure(0.7, 0.6, 0.8) for name in ("k", "reference", "difference", "shape")}
    found["dependence"] = {"of": "documents", "texts": 1000, "n": 41, "stretches": [0.01, 0.02, 0.01, 0.01], **curve}
    found["rulings"] = {"constant": constant, "independent": independent}
    assert ruling("constant", found) == constant
    assert ruling("independent", found) == independent
    both = {constant, independent}
    expected = (
        "does_not_support" if "does_not_support" in both else "supports" if both == {"supports"} else "undetermined"
    )
    assert ruling("exponential", found) == expected


def test_the_formula_is_s_to_the_n() -> None:
    claim = next(c for c in claims(made(s=figure(0.99999, 0.9999, 1.0))) if c.name == "formula")
    assert claim.shown["right"][1]["value"] == pytest.approx(0.999, abs=1e-4)
    assert claim.shown["printed"][1]["value"] == pytest.approx(0, abs=1e-12)
    assert claim.shown["right"][1]["low"] == pytest.approx(0.9999**100)
    assert claim.shown["right"][1]["high"] == 1.0


ONLY = {
    "not_likeliest": {"does_not_support"}, "both_ways": {"does_not_support"}, "formula": {"supports", "undetermined"},
    "no_way_back": {"does_not_support", "undetermined"}, "passes": {"undetermined"},
    "targets": {"supports", "does_not_support"},
}  # fmt: skip
"""Rulings that a claim cannot get from figures, and so has no sentence for."""


@pytest.mark.parametrize("lang", LANGUAGES)
def test_every_claim_has_words_for_every_ruling_it_can_get_and_every_test_its_name(lang: str) -> None:
    own = words(lang, "article").messages
    names = [claim.name for claim in claims(made())]
    for name in (*names, "direction_meaning"):
        assert f"{name}.says" in own
        assert {r for r in KNOWN if f"{name}.{r}" in own} == set(KNOWN) - ONLY.get(name, set())
    assert {f"test.{how}" for how in get_args(How) if how not in ("test", "nothing")} <= own.keys()
    for name in (*RULED, *of_figures(made())):
        assert "{margin}" in own[f"margin.{name}"]
    assert len(sentences(made(), lang)) == len(names)


def test_a_whole_document_has_no_more_hypotheses_than_its_rulings_are_tried_for() -> None:
    tests = {*of_figures(made()), *RULED} - {"direction_meaning"}
    assert 2 * len(tests) <= FAMILY


@pytest.mark.slow
def test_the_command_rules_and_writes_its_page(run: Path, capsys: Captured, tmp_path: Path) -> None:
    argv = ["article", str(run), "-n", "2", "--limit", "4", "--out", str(tmp_path)]
    found = document(capsys, *argv)
    contract.holds(contract.Article, found)
    assert {row["ruling"] for row in found["claims"]} <= set(KNOWN)
    assert all(test["n"] > 0 for row in found["claims"] for test in row["tests"].values())
    page = (tmp_path / "article.html").read_text(encoding="utf-8")
    assert "claim by claim" in page
    assert "påstand for påstand" in page
    assert json.loads((tmp_path / "article.json").read_text(encoding="utf-8"))["claims"] == found["claims"]
    assert exits.exit_code(call, [*argv, "--lang", "nb"]) == 0
    assert "Sⁿ" in capsys.readouterr().out
