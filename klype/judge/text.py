"""The words, numbers and choices that a text names, and the little words by which its language is told (lexis.toml)."""

from __future__ import annotations

import re
import tomllib
import unicodedata
from importlib import resources
from types import SimpleNamespace
from typing import Any

ARTICLES = frozenset(["a", "an", "the", "en", "ei", "et"])
_SPACE = r"[\u0020\u00a0\u202f]"
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*(?:[+#]+|-(?!\w))?")  # "C++" and "A-", too
_NUMERAL = re.compile(rf"(?<![\w.,])[-\u2212]?(?:\d{{1,3}}(?:{_SPACE}\d{{3}})+|\d+)(?:[.,]\d+)*(?!\w)")


LITTLE: dict[str, Any] = tomllib.loads((resources.files(__package__) / "lexis.toml").read_text(encoding="utf-8"))


# by language; what each of them does is said there
LANGUAGES = {
    name: SimpleNamespace(**table, **{word: frozenset(text.split()) for word, text in table["words"].items()})
    for name, table in LITTLE.items()
    if name != "units"
}
# A Norwegian question is answered in English by many a model: these are understood in every language.
YES, NO, NEGATION = (
    frozenset().union(*(getattr(lexis, name) for lexis in LANGUAGES.values())) for name in ("yes", "no", "negation")
)


def language_of(question: str) -> str:
    """The language whose little words a question has most of; "" when it has none of either."""
    if set("æøåÆØÅ") & set(question):
        return "nb"
    spoken = set(words(question))
    found = {name: len(spoken & (lexis.empty | lexis.interrogative)) for name, lexis in LANGUAGES.items()}
    return max(found, key=lambda name: found[name]) if any(found.values()) else ""


def surely(question: str) -> str:
    """The language of a question where that is certain, else "". It is not where the language's little words are so few
    that the question may be in another one: it does not begin with a question word, and two thirds of its words or more
    are others."""
    if not (language := language_of(question)):
        return ""
    lexis, spoken = LANGUAGES[language], words(question)
    little = 3 * len({*spoken} & (lexis.empty | lexis.interrogative))
    asks = bool(lexis.interrogative & {*spoken[:3]})
    known = asks or little > len({*spoken}) or (spoken[0] in lexis.auxiliary and little == len({*spoken}))
    return language if known else ""


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
    values = [
        lexis.numerals.get(word, 99) for word in normalise(text, articles=True).split() for lexis in LANGUAGES.values()
    ]
    return found + [frozenset({float(value)}) for value in values if value <= 12]


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
