"""Messages and number formats of every language.

A language has one TOML file, and one for each catalogue of its messages (``cli_nb.toml``). A new language needs one
file, ``klype/words/xx.toml``; what is missing from it is said in English. (Errors and help: ``sentences``.)
"""

import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from klype.values import Figure


@dataclass(frozen=True, slots=True)
class Language:
    """A language and how it writes numbers.

    ``tag``: its BCP 47 tag. ``also``: other codes for it; ``reads``: codes of languages whose readers understand it.
    ``decimal``: the decimal mark; ``group``: the mark between groups of three digits, from ``grouped_from`` on;
    ``percent``: the percent sign; ``between``: the separator of an interval's ends; ``hour``: the unit's symbol.
    ``messages``: of catalogues without a file of their own.
    """

    name: str
    tag: str
    also: Sequence[str]
    reads: Sequence[str]
    decimal: str
    group: str
    grouped_from: int
    percent: str
    between: str
    hour: str
    quotes: Sequence[str]
    messages: Mapping[str, Mapping[str, Any]]


def _languages() -> dict[str, Language]:
    files = {f.name.removesuffix(".toml"): f for f in resources.files("klype.words").iterdir() if f.name[2:] == ".toml"}
    found = {}
    for lang in sorted(files):
        told = tomllib.loads(files[lang].read_text(encoding="utf-8"))
        messages = {key: told.pop(key) for key in list(told) if isinstance(told[key], dict)}
        found[lang] = Language(**told, messages=messages)
    return found


# by code
LANGUAGES: Mapping[str, Language] = _languages()


@dataclass(frozen=True, slots=True)
class Words:
    """The messages of one catalogue in one language: ``w("chat.full", dropped=2)``."""

    lang: str
    messages: Mapping[str, str]

    def __call__(self, key: str, **values: object) -> str:
        """The message with its placeholders filled in. Raises KeyError for an unknown key or a missing value."""
        return self.messages[key].format_map(values)

    def section(self, prefix: str) -> dict[str, str]:
        """The messages whose keys start with ``prefix`` and a dot, by the rest of the key."""
        start = f"{prefix}."
        return {key.removeprefix(start): text for key, text in self.messages.items() if key.startswith(start)}


def spoken_language(wish: str, read: bool = False) -> str:
    """The code of the language of a locale ("nb_NO.UTF-8") or of a browser's preference ("nn"), or with ``read`` of one
    that its readers understand; "" if klype speaks none."""
    code = re.split(r"[-_.@]", wish.strip().lower())[0]
    known = {other: lang for lang, row in LANGUAGES.items() for other in (*row.also, *(row.reads if read else ()))}
    return code if code in LANGUAGES else known.get(code, "")


def words(lang: str, catalogue: str = "cli") -> Words:
    """The catalogue ``klype/words/<catalogue>_<lang>.toml``, with dotted keys. Without such a file it is English,
    except for the messages in the language's own file."""
    file = resources.files("klype.words") / f"{catalogue}_{lang}.toml"
    if not file.is_file():
        own = LANGUAGES[lang].messages.get(catalogue, {})
        return Words(lang, {**words("en", catalogue).messages, **dict(_flatten(own))})
    return Words(lang, dict(_flatten(tomllib.loads(file.read_text(encoding="utf-8")))))


def in_all_languages(catalogue: str, key: str, **values: object) -> dict[str, str]:
    """A message of a catalogue in every language, by the language's code."""
    return {lang: words(lang, catalogue)(key, **values) for lang in LANGUAGES}


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def number(value: float, lang: str, decimals: int = 2) -> str:
    """A number with a fixed number of decimals, a real minus sign and the language's decimal mark."""
    text = f"{abs(value):.{decimals}f}"
    sign = "\u2212" if value < 0 and float(text) != 0 else ""
    return sign + _mark(text, lang)


def short(value: float, lang: str) -> str:
    """A number with as few digits as it needs: 0.7, 1; 0,7 in Norwegian."""
    return _mark(f"{value:g}", lang)


def count(value: int, lang: str) -> str:
    """An integer in groups of three digits: 1,234,567; with narrow spaces, from five digits on, in Norwegian."""
    row = LANGUAGES[lang]
    return f"{value:,}".replace(",", row.group) if abs(value) >= row.grouped_from else str(value)


def percent(share: float, lang: str, decimals: int = 0) -> str:
    """A share (0 to 1) in percent: 83%; 83 % in Norwegian."""
    return number(100 * share, lang, decimals) + LANGUAGES[lang].percent


def figure(value: "Figure", lang: str) -> str:
    """A figure with its interval, or why there is none: "0.83 [0.79, 0.87]"; "0,83 [0,79; 0,87]" in Norwegian."""
    if value.value is None or not math.isfinite(value.value):
        return f"\u2013 ({value.why})" if value.why else "\u2013"
    if value.low is None or value.high is None:
        return number(value.value, lang) + (f" ({value.why})" if value.why else "")
    decimals = interval_decimals(value.low, value.high)
    ends, said = [number(end, lang, decimals) for end in (value.low, value.high)], number(value.value, lang, decimals)
    if {*ends} == {said}:  # the interval vanishes in rounding
        return said
    return f"{said} [{LANGUAGES[lang].between.join(ends)}]"


def interval_decimals(low: float, high: float) -> int:
    """The number of decimals for an interval: two digits of its half-width if these are 10 to 35, else one; at least
    two decimals for numbers up to one.

    This is the rule of the Particle Data Group (Review of Particle Physics, introduction, 5.3).
    """
    half = (high - low) / 2
    if not math.isfinite(half) or half <= 0:
        return 2
    exponent = math.floor(math.log10(half))
    digits = 2 if half / 10**exponent < 3.55 else 1
    fewest = 2 if max(abs(low), abs(high)) <= 1 else 0
    return min(6, max(fewest, digits - 1 - exponent))


def _mark(text: str, lang: str) -> str:
    return text.replace(".", LANGUAGES[lang].decimal)
