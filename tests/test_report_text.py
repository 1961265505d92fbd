"""The report of a run about text: what it says follows from its figures, in both languages."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path

import pytest
from report_facts import dictionary_facts, text_facts, world_facts

from klype.examine.run_facts import read, token_facts
from klype.examine.run_report import render, write
from klype.examine.say import Say
from klype.examine.training_pictures import pictures
from klype.examine.verdict import caution, verdict


def test_the_paragraph_is_chosen_by_the_figures() -> None:
    facts, say = dictionary_facts(), Say("en")
    said = " ".join(caution(facts, say))
    assert "It has the form in more than half of its answers about unknown words: 84% [70, 90]" in said
    assert "never seen right 80% [70, 90] of the time" in said
    assert "Of its explanations of such words only 2% [0, 6]" in said
    assert "repeats more of the training text" in said
    assert "0.09 bits per byte below" in said
    worse = deepcopy(facts)
    worse["stages"]["finetuned"]["well_formed"] |= {"value": 0.2, "low": 0.1, "high": 0.3}
    worse["stages"]["base"]["bits_per_byte"] = {"value": 1.9, "low": 1.8, "high": 2.0, "n": 9, "unit": "bits per byte"}
    worse["dictionary"][0]["trained"]["right"] = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 100, "unit": "share"}
    worse["copied"]["free"] = worse["copied"]["held_out"]
    said = " ".join(caution(worse, say))
    assert "does not have the form yet: only 20%" in said
    assert "needs 0.19 bits per byte less" in said
    assert "remembers most of the explanations" in said
    assert "It is uncertain whether it repeats more of the training text" in said


def test_a_world_and_no_model_have_cautions_of_their_own() -> None:
    assert "small language made for the purpose" in caution(world_facts(), Say("en"))[0]
    facts = text_facts()
    facts["stages"] = {"base": None, "finetuned": None, "aligned": None}
    assert caution(facts, Say("nb")) == []


@pytest.mark.parametrize("lang", ["en", "nb"])
def test_the_verdict_names_both_shares_and_leaves_no_gap(lang: str) -> None:
    said = " ".join(verdict(dictionary_facts(), Say(lang)))
    assert re.search(r"84\s?% \[70[,;] 90\]", said)
    assert re.search(r"31\s?% \[25[,;] 37\]", said)
    assert not re.search(r"\{|None|nan", said)


def test_pictures_of_words_and_of_what_is_known_by_heart() -> None:
    facts = dictionary_facts()
    shown = pictures(facts, Say("nb"))
    assert {"dictionary", "copied", "temperatures", "text"} <= set(shown)
    values = {(row[0], row[1]): row[2] for row in shown["dictionary"].rows}
    assert values["Ukjente ord: velformede svar", "Hva betyr ordet?"] == 0.84
    assert values["Innøvde ord: ordbokas egne ord", "Hvilken ordklasse?"] == 0.8
    assert "80\u00a0%" in shown["copied"].title
    assert "10\u00a0%" in shown["copied"].title


def test_every_place_in_the_page_has_one_name_and_every_link_leads_to_one() -> None:
    page = render(dictionary_facts())
    names = re.findall(r'\bid="([^"]+)"', page.split("<script")[0])
    assert len(names) == len(set(names))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(names)


@pytest.mark.slow
def test_figures_json_is_what_the_page_was_made_of_and_both_may_move(tmp_path: Path) -> None:
    facts = dictionary_facts()
    write(tmp_path, facts)
    moved = tmp_path.rename(tmp_path.with_name("elsewhere"))
    assert read(moved / "figures.json") == facts
    page = (moved / "report.html").read_text(encoding="utf-8")
    assert str(tmp_path) not in page
    assert page == render(read(moved / "figures.json"))


def test_tokens_that_are_one_character_together_are_shown_as_that_character() -> None:
    pieces = [
        (b" p", 0.5),
        (b"\xc3", 0.5),
        (b"\xa5", 0.25),
        (b" \xf0\x9f", 0.5),
        (b"\x90\xb6", 1.0),
        (b"\xff", 0.1),
        (b"!", 1.0),
    ]
    found = token_facts(pieces)
    assert [one["text"] for one in found] == [" p", "å", "", " 🐶", "", "\ufffd", "!"]
    assert (found[1]["p"], found[1]["bytes"], found[3]["bytes"]) == (0.125, "C3 A5", "20 F0 9F 90 B6")
    assert "bytes" not in found[0]
    assert [one["text"] for one in token_facts([(b"\xc3", 1.0)])] == ["\ufffd"]
    facts = world_facts()
    next(filter(None, facts["questions"][0]["answers"].values()))["tokens"] = found
    assert re.search(r'title="12[.]?5?%[^"]* · C3 A5">å<', render(facts))
