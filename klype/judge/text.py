"""Words, numbers and choices in a text, and its language by the function words of lexis.toml."""

import re
import tomllib
import unicodedata
from importlib import resources
from types import SimpleNamespace
from typing import Any

ARTICLES = frozenset(["a", "an", "the", "en", "ei", "et"])
_SPACE = r"[\u0020\u00a0\u202f]"
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*(?:[+#]+|-(?!\w))?")  # "C++" and "A-", too
NUMERAL = re.compile(rf"(?<![\w.,])[-\u2212]?(?:\d{{1,3}}(?:{_SPACE}\d{{3}})+|\d+)(?:[.,]\d+)*(?!\w)")


LITTLE: dict[str, Any] = tomllib.loads((resources.files(__package__) / "lexis.toml").read_text(encoding="utf-8"))


# by language; lexis.toml explains the entries
LANGUAGES = {
    name: SimpleNamespace(**table, **{word: frozenset(text.split()) for word, text in table["words"].items()})
    for name, table in LITTLE.items()
    if name != "units"
}
# understood in every language, since many models answer Norwegian questions in English
YES, NO, NEGATION = (
    frozenset().union(*(getattr(lexis, name) for lexis in LANGUAGES.values())) for name in ("yes", "no", "negation")
)


def language_of(question: str) -> str:
    """The language ("nb" or "en") of a question by its function words; "" if it has none."""
    if set("æøåÆØÅ") & set(question):
        return "nb"
    spoken = set(words(question))
    found = {name: len(spoken & (lexis.empty | lexis.interrogative)) for name, lexis in LANGUAGES.items()}
    return max(found, key=lambda name: found[name]) if any(found.values()) else ""


def surely(question: str) -> str:
    """The language of a question if it is certain, else "". It is certain if the question begins with a question word,
    or if more than a third of its words are function words (after an auxiliary verb a third is enough)."""
    if not (language := language_of(question)):
        return ""
    lexis, spoken = LANGUAGES[language], words(question)
    little = 3 * len({*spoken} & (lexis.empty | lexis.interrogative))
    asks = bool(lexis.interrogative & {*spoken[:3]})
    known = asks or little > len({*spoken}) or (spoken[0] in lexis.auxiliary and little == len({*spoken}))
    return language if known else ""


def normalise(text: str, articles: bool = False) -> str:
    """Case-folded words without punctuation; ``articles``: with articles."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    words = re.findall(r"[^\W_]+(?:['-][^\W_]+)*", text)
    return " ".join(word for word in words if articles or word not in ARTICLES)


def words(text: str) -> list[str]:
    """The words of a text, case-folded; "C++" and "A-" keep their signs."""
    return [word.replace("’", "'") for word in WORD.findall(unicodedata.normalize("NFKC", text).casefold())]


def bare(text: str) -> str:
    """A text without case, extra space and surrounding punctuation; symbols inside it stay."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(" .,;:!?…\"'“”«»()")


def numbers(text: str) -> list[frozenset[float]]:
    """Every number in a text as the set of its possible values: numerals, and number words up to twelve in both
    languages."""
    found = [_readings(numeral) for numeral in NUMERAL.findall(text)]
    values = [
        lexis.numerals.get(word, 99) for word in normalise(text, articles=True).split() for lexis in LANGUAGES.values()
    ]
    return found + [frozenset({float(value)}) for value in values if value <= 12]


def choices_named(choices: tuple[str, ...], answer: str) -> set[int]:
    """Indices of the choices that a text names, by a bare letter ("B", "b)", "(B).") or by their words."""
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
