"""A dictionary as a task: what is taken of an article, what is held out, what is well-formed."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klype.data.readers import BadRows, TextDocument
from klype.errors import KlypeError
from klype.examine.evidence import Evidence, JudgedAnswer
from klype.examine.measures import in_runs, measure
from klype.runs.dictionary import (
    JUDGE,
    Dictionary,
    DictionaryExam,
    Headword,
    WellFormedness,
    dictionary_rows,
    is_inflected,
    is_right,
    questions,
    read_articles,
)
from klype.values import Question

ROWS = [
    {"lemma": "hund", "word_class": "NOUN", "definitions": ["firbeint husdyr"], "examples": ["ha en hund", "to hund"]},
    {"lemma": "hund", "word_class": "NOUN", "definitions": ["kjøretøy i gruve"], "examples": []},
    {
        "lemma": "løpe",
        "word_class": "VERB",
        "definitions": ["springe (2)"],
        "examples": ["han kan løpe", "hun løpe fort"],
    },
    {"lemma": "like [bort i | borti] hogget", "word_class": "EXPR", "definitions": ["like i nærheten"], "examples": []},
    {"lemma": "som", "word_class": "ADV", "definitions": ["som i :", "se [det|noe]; brukt som adj:"], "examples": []},
    {"lemma": "tom", "word_class": "", "definitions": ["uten klasse"], "examples": []},
    {"lemma": "rar", "word_class": "ADJ", "definitions": ["underlig:"], "examples": ["en rar fyr"]},
]


def dictionary(rows: list[dict[str, object]] = ROWS) -> Dictionary:
    made = Dictionary()
    for row in rows:
        made.add(row["lemma"], row["word_class"], row["definitions"], row["examples"], ["hunden", "hunder"])  # type: ignore[arg-type]
    return made


def test_articles_of_one_word_are_one_and_what_cannot_be_used_is_left_out() -> None:
    words = dictionary().words
    assert set(words) == {"hund", "løpe", "like bort i hogget", "som"}
    assert words["hund"].definitions == ["firbeint husdyr", "kjøretøy i gruve"]
    assert words["hund"].examples == ["ha en hund"]  # "to hund" is not inflected
    assert (words["løpe"].definitions, words["løpe"].examples) == (["springe"], ["han kan løpe"])
    assert words["som"].definitions == ["se det"]
    assert words["hund"].text() == "hund (substantiv): firbeint husdyr; kjøretøy i gruve.\nEksempler: Ha en hund."


def test_questions_know_every_answer_and_an_idiom_has_no_class() -> None:
    words = dictionary().words
    asked = {q.question: q for q in questions(words["hund"])}
    assert asked["Hva betyr hund?"].answers == ("firbeint husdyr", "kjøretøy i gruve")
    assert asked["Bruk hund i en setning."].answers == ("ha en hund",)
    assert asked["Hvilken ordklasse er hund?"].answers == ("substantiv",)
    assert [q.question for q in questions(words["like bort i hogget"])] == ["Hva betyr uttrykket «like bort i hogget»?"]


def test_a_held_out_word_is_in_no_training_article_and_all_its_questions_are_held_out() -> None:
    rows = [
        {"lemma": f"ord{i}", "word_class": "NOUN", "definitions": [f"tegn nummer {i}"], "examples": []}
        for i in range(400)
    ]
    made = dictionary(rows)
    held = {word.lemma for word in made.words.values() if word.held_out}
    assert 5 <= len(held) <= 45
    assert {d.text.split()[0] for d in made.documents(held_out=True)} == held
    assert not held & {d.text.split()[0] for d in made.documents(held_out=False)}


def test_vulgar_words_are_read_and_not_asked_about() -> None:
    rows = [*ROWS, {"lemma": "dust", "word_class": "NOUN", "definitions": ["nedsettende: dum person"], "examples": []}]
    made = dictionary(rows)
    assert "dust" in made.words
    assert "dust" not in {q.extra["lemma"] for q in made.questions(100)}


@pytest.mark.parametrize(
    ("lemma", "kind", "quote", "good"),
    [
        ("øverst", "adjektiv", "de øverst gårdene", False),
        ("øverst", "adjektiv", "helt øverst", True),
        ("robbe", "verb", "bli robbe for klokke", False),
        ("robbe", "verb", "robbe en bank", True),
        ("bøttevis", "adverb", "de bøttevis", True),
        ("hund", "substantiv", "hundene bjeffet", True),
    ],
)
def test_an_uninflected_headword_is_seen_by_the_word_before_it(lemma: str, kind: str, quote: str, good: bool) -> None:
    assert is_inflected(lemma, kind, quote) is good


def test_articles_of_a_folder_add_words_and_change_none(tmp_path: Path) -> None:
    made = dictionary(ROWS[:1])
    file = tmp_path / "a.jsonl"
    rows = [{**ROWS[0], "definitions": ["noe annet"]}, ROWS[2], {"lemma": "x", "definitions": "ikke en liste"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    bad = BadRows(skip=True)
    read_articles(file, made, bad)
    assert made.words["hund"].definitions == ["firbeint husdyr"]
    assert set(made.words) == {"hund", "løpe"}
    assert bad.count == 1
    with pytest.raises(KlypeError, match="line 3 is not a dictionary article"):
        read_articles(file, made, BadRows())


KNOWN = {"et", "dyr", "som", "bjeffer", "ha", "en", "stor", "hus", "båt", "i", "bein", "av"}
RULES = WellFormedness(KNOWN, {"hund": {"hund", "hunden"}})


def asked(kind: str, lemma: str = "hund") -> Question:
    return Question("q", "?", answers=("dyr som bjeffer",), extra={"kind": kind, "lemma": lemma})


@pytest.mark.parametrize(
    ("kind", "answer", "good"),
    [
        ("meaning", "et dyr som bjeffer", True),
        ("meaning", "(stor) husbåt", True),
        ("meaning", "et dyr som blurper", False),
        ("meaning", "et (dyr som bjeffer", False),
        ("meaning", "et et dyr", False),
        ("meaning", "hund", False),
        ("meaning", ", et dyr", False),
        ("meaning", "", False),
        ("example", "ha en stor hund", True),
        ("example", "ha hunden i båt", True),
        ("example", "ha en stor båt", False),
        ("example", "en hund", False),
        ("class", "substantiv", True),
        ("class", "dyr", False),
        ("class", "uttrykk", False),
    ],
)
def test_rules_of_form(kind: str, answer: str, good: bool) -> None:
    assert RULES(asked(kind), answer, True) is good
    assert RULES(asked(kind), answer, False) is False


@given(st.lists(st.sampled_from(sorted(KNOWN)), min_size=1, max_size=3))
def test_repeating_an_answer_makes_it_malformed(words: list[str]) -> None:
    text = " ".join(words)
    assert not RULES(asked("meaning"), f"et {text} {text}", True)


def test_right_is_the_dictionarys_own_words() -> None:
    assert is_right(asked("meaning"), "Dyr som bjeffer.", True)
    assert not is_right(asked("meaning"), "dyr som bjeffer", False)
    assert not is_right(asked("meaning"), "et bjeffende dyr", True)


def answered(exam: DictionaryExam, *pairs: tuple[Question, str]) -> tuple[list[Question], list[str], Evidence]:
    """Finished answers with the verdicts of an exam, as an examination hands them on."""
    judged = [
        JudgedAnswer(
            str(i),
            tuple(text.split()),
            "stop",
            right=is_right(question, text, True),
            well_formed=exam.well_formed(question, text, True),
        )
        for i, (question, text) in enumerate(pairs)
    ]
    return [q for q, _ in pairs], [text for _, text in pairs], Evidence(judged, judge=JUDGE)


def test_figures_count_both_sides() -> None:
    exam = DictionaryExam(dictionary(), [asked("meaning")], [TextDocument("et dyr som bjeffer", "t")], 0)
    held = answered(exam, (asked("meaning"), "et dyr"), (asked("class"), "blurp"))
    trained = answered(exam, (asked("meaning"), "dyr som bjeffer"), (asked("meaning"), "et dyr"))
    rows = dictionary_rows({"held_out": held, "trained": trained})
    assert [row["kind"] for row in rows] == ["meaning", "class"]
    assert rows[0]["held_out"]["well_formed"]["value"] == 1.0
    assert rows[0]["trained"]["right"]["value"] == 0.5
    assert {s["trained"] for s in rows[0]["samples"]} == {True, False}
    formed = measure(held[2], in_runs("stages"))["well_formed"]  # a measure like any other
    assert (formed.value, formed.judge) == (0.5, "stated rules of form")
    right = measure(trained[2], ("right",))["right"]
    assert right.value == 0.5
    assert right.low is not None
    assert right.judge.startswith("the dictionary")


def test_beside_an_answer_stands_the_one_of_the_dictionarys_that_it_gave() -> None:
    question = replace(asked("class"), answers=("substantiv", "verb"))
    exam = DictionaryExam(dictionary(), [question], [TextDocument("et dyr som bjeffer", "t")], 0)
    samples = dictionary_rows({"held_out": answered(exam, (question, "Verb."), (question, "adverb"))})[0]["samples"]
    assert [(s["reference"], s["right"]) for s in samples] == [("verb", True), ("substantiv", False)]


def test_a_word_in_its_own_article_is_found_again() -> None:
    word = Headword("fjord", ["substantiv"], ["lang vik"], ["en blå fjord", "er det en fjord?"])
    assert re.findall(r"[^.?]+[.?]", word.text().split("Eksempler: ")[1]) == ["En blå fjord.", " Er det en fjord?"]
