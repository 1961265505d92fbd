"""Judges decide what they can, and say when they cannot."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from klype.judge.text import choice_match, normalised_match, number_match, numbers, word_for_word
from klype.values import Question


def ask(*answers: str, choices: tuple[str, ...] = ()) -> Question:
    return Question("q", "?", answers=answers, choices=choices)


@given(st.text(min_size=1), st.text())
def test_a_reference_is_right_and_without_one_nothing_is_decided(reference: str, answer: str) -> None:
    assert word_for_word(ask(reference), reference).right is True
    assert word_for_word(ask(reference), answer).right is (answer.strip() == reference.strip())
    for judge in (word_for_word, normalised_match, number_match, choice_match):
        assert judge(ask(), answer).decision == "undecided"


@pytest.mark.parametrize(
    ("reference", "answer", "decision"),
    [
        ("Hunden drakk vann.", "hunden drakk vann", "right"),
        ("the dog", "A dog!", "right"),
        ("en ﬁsk", "FISK.", "right"),
        ("Kari", "Det var Kari.", "undecided"),
        ("Kari", "Det var ikke Kari.", "undecided"),
        ("Kari", "Ola", "wrong"),
        ("Kari", "", "wrong"),
        ("Kari", "…", "wrong"),
    ],
)
def test_normalised_match(reference: str, answer: str, decision: str) -> None:
    assert normalised_match(ask(reference), answer).decision == decision


@pytest.mark.parametrize(
    ("reference", "answer", "decision"),
    [
        ("7", "The answer is 7.", "right"),
        ("7", "seven", "right"),
        ("sju", "Det er 7", "right"),
        ("7", "8", "wrong"),
        ("7", "Either 7 or 8", "undecided"),
        ("7", "a dozen", "undecided"),
        ("seven", "many", "undecided"),
        ("1000", "1 000", "right"),
        ("1000", "1.000", "undecided"),
        ("3.5", "3,5", "right"),
        ("1234.5", "1.234,5", "right"),
        ("1234.5", "1,234.5", "right"),
        ("-2", "−2", "right"),
        ("2", "version x2", "undecided"),
        ("78", "7 8", "wrong"),
        ("1000000", "1\u00a0000\u202f000", "right"),
    ],
)
def test_number_match(reference: str, answer: str, decision: str) -> None:
    assert number_match(ask(reference), answer).decision == decision


@pytest.mark.parametrize(
    ("answer", "decision"),
    [
        ("B", "right"),
        ("(b)", "right"),
        ("Bergen.", "right"),
        ("It is Bergen", "right"),
        ("A", "wrong"),
        ("Oslo", "wrong"),
        ("Oslo or Bergen", "undecided"),
        ("not Bergen", "undecided"),
        ("Paris", "undecided"),
        ("Bergen sentrum", "wrong"),
    ],
)
def test_choice_match(answer: str, decision: str) -> None:
    question = ask("Bergen", choices=("Oslo", "Bergen", "Bergen sentrum"))
    assert choice_match(question, answer).decision == decision
    assert choice_match(ask("B", choices=question.choices), answer).decision == decision


@given(st.integers(-(10**6), 10**6))
def test_an_integer_is_read_back(value: int) -> None:
    assert numbers(f"x = {value}.") == [frozenset({float(value)})]


@given(st.text())
def test_any_text_can_be_judged(text: str) -> None:
    for judge in (word_for_word, normalised_match, number_match, choice_match):
        judge(ask(text, text[::-1], choices=(text, "A")), text)
