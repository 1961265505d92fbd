"""What a text names: words, numbers and choices, whatever the text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cures_tasks import choice_match, number_match
from klype.judge.text import choices_named, normalise, numbers
from klype.runs.dictionary import is_right
from klype.values import Question


def ask(*answers: str, choices: tuple[str, ...] = ()) -> Question:
    return Question("q", "?", answers=answers, choices=choices)


@pytest.mark.parametrize(
    ("reference", "answer", "right"),
    [
        ("Hunden drakk vann.", "hunden drakk vann", True),
        ("the dog", "A dog!", True),
        ("en ﬁsk", "FISK.", True),
        ("Kari", "Det var Kari.", False),
        ("Kari", "Det var ikke Kari.", False),
        ("Kari", "Ola", False),
        ("Kari", "", False),
        ("Kari", "…", False),
        ("…", "…", False),
    ],
)
def test_what_is_equal_but_for_case_punctuation_and_articles(reference: str, answer: str, right: bool) -> None:
    assert is_right(ask("Ida", reference), answer, finished=True) is right
    assert not is_right(ask("Ida", reference), answer, finished=False)


@pytest.mark.parametrize(
    ("reference", "answer", "right"),
    [
        ("7", "The answer is 7.", True),
        ("7", "seven", True),
        ("sju", "Det er 7", True),
        ("7", "8", False),
        ("7", "Either 7 or 8", False),
        ("7", "a dozen", False),
        ("seven", "many", False),
        ("1000", "1 000", True),
        ("1000", "1.000", False),
        ("3.5", "3,5", True),
        ("1234.5", "1.234,5", True),
        ("1234.5", "1,234.5", True),
        ("-2", "−2", True),
        ("2", "version x2", False),
        ("78", "7 8", False),
        ("1000000", "1\u00a0000\u202f000", True),
    ],
)
def test_the_numbers_of_an_answer_are_the_references(reference: str, answer: str, right: bool) -> None:
    assert number_match(ask(reference), answer) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("B", True),
        ("(b)", True),
        ("Bergen.", True),
        ("It is Bergen", True),
        ("A", False),
        ("Oslo", False),
        ("Oslo or Bergen", False),
        ("not Bergen", False),
        ("Paris", False),
        ("Bergen sentrum", False),
    ],
)
def test_the_choice_of_an_answer_is_the_references(answer: str, right: bool) -> None:
    choices = ("Oslo", "Bergen", "Bergen sentrum")
    assert all(choice_match(ask(reference, choices=choices), answer) is right for reference in ("Bergen", "B"))


@given(st.integers(-(10**6), 10**6))
def test_an_integer_is_read_back(value: int) -> None:
    assert numbers(f"x = {value}.") == [frozenset({float(value)})]


@given(st.text())
def test_any_text_can_be_read(text: str) -> None:
    assert not set("AB.!") & set(normalise(text))
    assert choices_named((text, "A"), text) <= {0, 1}
    assert all(isinstance(readings, frozenset) for readings in numbers(text))
