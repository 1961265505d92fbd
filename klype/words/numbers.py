"""Numbers as they are written: ``0.83 [0.79, 0.87]``; in Norwegian a decimal comma, and a space before ``%``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from klype.words.catalogue import LANGUAGES

if TYPE_CHECKING:
    from klype.values import Figure


def number(value: float, lang: str, decimals: int = 2) -> str:
    """With so many decimals; a true minus sign; the decimal mark of the language."""
    text = f"{abs(value):.{decimals}f}"
    sign = "\u2212" if value < 0 and float(text) != 0 else ""
    return sign + _mark(text, lang)


def short(value: float, lang: str) -> str:
    """A setting as it was typed: 0.7, 1; 0,7 in Norwegian."""
    return _mark(f"{value:g}", lang)


def count(value: int, lang: str) -> str:
    """A whole number in groups of three: 1,234,567, and with narrow spaces in Norwegian from five digits on."""
    row = LANGUAGES[lang]
    return f"{value:,}".replace(",", row.group) if abs(value) >= row.grouped_from else str(value)


def percent(share: float, lang: str, decimals: int = 0) -> str:
    """A share (0 … 1) in percent: 83%, 83 % in Norwegian."""
    return number(100 * share, lang, decimals) + LANGUAGES[lang].percent


def figure(value: Figure, lang: str, unit: bool = False) -> str:
    """The figure with its interval; why, when there is none. In Norwegian a semicolon parts the ends."""
    if value.value is None or not math.isfinite(value.value):
        return f"\u2013 ({value.why})" if value.why else "\u2013"
    tail = f" {value.unit}" if unit and value.unit else ""
    if value.low is None or value.high is None:
        return number(value.value, lang) + tail + (f" ({value.why})" if value.why else "")
    decimals = interval_decimals(value.low, value.high)
    ends = LANGUAGES[lang].between.join(number(end, lang, decimals) for end in (value.low, value.high))
    return f"{number(value.value, lang, decimals)} [{ends}]{tail}"


def interval_decimals(low: float, high: float) -> int:
    """How many decimals an interval's half-width deserves: two digits of it when they read 10 … 35, else one.

    The rule of the Particle Data Group (Review of Particle Physics, introduction, 5.3); at least two below one.
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
