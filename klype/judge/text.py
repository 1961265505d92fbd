"""Judges of any text with references: right, wrong, or undecided, and by which rule.

Each is a plain function of the question and the answer. A judge that cannot decide says so: undecided answers are
counted and shown, never guessed. The demo world's own judge, which knows meanings, is passed in where it is needed.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from klype.values import Question

Decision = Literal["right", "wrong", "undecided"]
NEGATIONS = frozenset(
    ["not", "no", "never", "isn't", "wasn't", "doesn't", "neither", "nor", "ikke", "ingen", "aldri", "nei", "verken"]
)
ARTICLES = frozenset(["a", "an", "the", "en", "ei", "et"])
_NUMBER_EN = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_NUMBER_NB = ["null", "én", "to", "tre", "fire", "fem", "seks", "sju", "åtte", "ni", "ti", "elleve", "tolv"]
_SPACE = r"[\u0020\u00a0\u202f]"
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*(?:[+#]+|-(?!\w))?")  # "C++" and "A-", too
_NUMERAL = re.compile(rf"(?<![\w.,])[-\u2212]?(?:\d{{1,3}}(?:{_SPACE}\d{{3}})+|\d+)(?:[.,]\d+)*(?!\w)")


@dataclass(frozen=True, slots=True)
class Judgement:
    """``judge`` names the rule; it stands beside every figure."""

    decision: Decision
    judge: str

    @property
    def right(self) -> bool | None:
        """None when undecided."""
        return None if self.decision == "undecided" else self.decision == "right"


def word_for_word(question: Question, answer: str) -> Judgement:
    """Right when the answer equals a reference, character for character but for white space around it."""
    if not question.answers:
        return Judgement("undecided", "word for word")
    same = answer.strip() in {reference.strip() for reference in question.answers}
    return Judgement("right" if same else "wrong", "word for word")


def normalised_match(question: Question, answer: str) -> Judgement:
    """Right when equal to a reference but for case, punctuation, articles and compatibility forms of characters.

    Wrong when it is empty or shares no word with any reference; else undecided: it may be a paraphrase.
    """
    name = "normalised match"
    references = [normalise(reference) for reference in question.answers]
    if not references:
        return Judgement("undecided", name)
    said = normalise(answer)
    if said and said in references:
        return Judgement("right", name)
    shared = any(set(said.split()) & set(reference.split()) for reference in references)
    return Judgement("undecided" if shared else "wrong", name)


def number_match(question: Question, answer: str) -> Judgement:
    """Right when the numbers named are the reference's; wrong when none is; undecided without numbers or when mixed.

    "1.000" is a thousand in Norwegian and one in English: an ambiguous numeral decides only if both readings agree.
    """
    name = "number match"
    wanted = [reading for reference in question.answers for reading in numbers(reference)]
    said = numbers(answer)
    if not wanted or not said or any(len(readings) > 1 for readings in wanted):
        return Judgement("undecided", name)
    goal = frozenset(value for readings in wanted for value in readings)
    hits = {tuple(sorted({value in goal for value in readings})) for readings in said}
    if hits == {(True,)}:
        return Judgement("right", name)
    return Judgement("wrong" if hits == {(False,)} else "undecided", name)


def choice_match(question: Question, answer: str) -> Judgement:
    """Which one of ``question.choices`` the answer names, by its text or its letter; undecided when none or several."""
    name = "choice match"
    named = choices_named(question.choices, answer)
    goal = {i for reference in question.answers for i in choices_named(question.choices, reference)}
    if len(named) != 1 or not goal or NEGATIONS & set(normalise(answer, articles=True).split()):
        return Judgement("undecided", name)
    return Judgement("right" if named <= goal else "wrong", name)


def normalise(text: str, articles: bool = False) -> str:
    """Case-folded words without punctuation, and without articles unless asked for."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    words = re.findall(r"[^\W_]+(?:['-][^\W_]+)*", text)
    return " ".join(word for word in words if articles or word not in ARTICLES)


def words(text: str) -> list[str]:
    """A text's words in lower case."""
    return [word.replace("’", "'") for word in WORD.findall(unicodedata.normalize("NFKC", text).casefold())]


def bare(text: str) -> str:
    """A text but for case, space and the punctuation around it: signs and symbols stay."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(" .,;:!?…\"'“”«»()")


def numbers(text: str) -> list[frozenset[float]]:
    """Every number in a text, each as the set of its readings: numerals, and words up to twelve in both languages."""
    found = [_readings(numeral) for numeral in _NUMERAL.findall(text)]
    for word in normalise(text, articles=True).split():
        if word in _NUMBER_EN:
            found.append(frozenset({float(_NUMBER_EN.index(word))}))
        elif word in _NUMBER_NB:
            found.append(frozenset({float(_NUMBER_NB.index(word))}))
    return found


def choices_named(choices: tuple[str, ...], answer: str) -> set[int]:
    """Indices of the choices that a text names: by a bare letter ("B", "b)", "(B)."), else by their words."""
    letter = re.fullmatch(r"\(?([A-Za-z])\)?[.:]?", answer.strip())
    if letter and ord(letter[1].upper()) - ord("A") < len(choices):
        return {ord(letter[1].upper()) - ord("A")}
    said = f" {normalise(answer, articles=True)} "
    forms = [normalise(choice, articles=True) for choice in choices]
    named = {i for i, form in enumerate(forms) if form and f" {form} " in said}
    return {i for i in named if not any(j != i and f" {forms[i]} " in f" {forms[j]} " for j in named)}


def _readings(numeral: str) -> frozenset[float]:
    """ "1 000" → 1000; "1,5" → 1.5; "1.234,5" → 1234.5; "1.000" → both 1 and 1000."""
    text = re.sub(r"\s", "", numeral.replace("\u2212", "-"))
    marks = [c for c in text if c in ".,"]
    if len(set(marks)) == 2:
        thousands, decimal = (".", ",") if text.rfind(",") > text.rfind(".") else (",", ".")
        return frozenset({float(text.replace(thousands, "").replace(decimal, "."))} if text.count(decimal) == 1 else ())
    if len(marks) > 1:
        return frozenset({float(text.replace(marks[0], ""))})
    if marks and re.fullmatch(r"-?[1-9]\d{0,2}[.,]\d{3}", text):
        return frozenset({float(text.replace(marks[0], ".")), float(text.replace(marks[0], ""))})
    return frozenset({float(text.replace(",", "."))})
