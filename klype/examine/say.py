"""Figures, durations and texts as a reader meets them, in one language."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from klype.examine.measures import KNOWN
from klype.examine.run_figures import FigureFacts, LocalText
from klype.values import Figure
from klype.words import LANGUAGES, Words, count, interval_decimals, number, percent, words
from klype.words import figure as figure_text

NBSP = "\u00a0"
HIDDEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")  # controls, formats, surrogates, private use, separators of lines
EXACT = "share a word"  # the unit of shares so near to one that they are written as numbers: 0.974


class Say:
    """The report's words in one language. ``decimals`` of every figure that is a share, where a page has many of them
    below each other; by default each has as many as its interval deserves."""

    def __init__(self, lang: str, decimals: int | None = None) -> None:
        self.lang, self.decimals = lang, decimals
        self.words: Words = words(lang, "report")

    def __call__(self, key: str, **values: object) -> str:
        return self.words(key, **values)

    def get(self, key: str, otherwise: str) -> str:
        """What the catalogue has under a key, if it has it."""
        return self.words.messages.get(key, otherwise)

    def text(self, text: LocalText) -> str:
        """In the reader's language, or the one there is; hidden characters made visible."""
        if isinstance(text, str):
            return visible(text)
        return visible(text.get(self.lang) or next(iter(text.values()), ""))

    def figure(self, figure: FigureFacts | None, name: str = "") -> str:
        """``83% [79, 87]`` for shares, ``0.83 [0.79, 0.87]`` for other numbers; why, when there is none."""
        if figure is None:
            return "–"
        value, low, high = figure["value"], figure.get("low"), figure.get("high")
        why = f" ({self.why(figure['why'])})" if figure.get("why") else ""
        if value is None:
            return f"–{why}"
        if low is None and why:
            return f"{self.value(figure, name)}{why}"
        if is_share(figure, name) and _unit(name) != EXACT:
            if low is None or high is None:
                return self.share(value, self.decimals)
            decimals = min(2, interval_decimals(100 * low, 100 * high)) if 0 < high - low < 0.02 else 0
            if 0 < value < 1 and round(100 * value) in (0, 100):  # neither none nor all
                decimals = max(1, decimals)
            decimals = decimals if self.decimals is None else self.decimals
            ends = [self.number(100 * x, decimals) for x in (low, high)]
            if {*ends} == {self.number(100 * value, decimals)}:  # it is known more exactly than it is written
                return percent(value, self.lang, decimals)
            return f"{percent(value, self.lang, decimals)} [{LANGUAGES[self.lang].between.join(ends)}]"
        if abs(value) >= 10_000:
            return self.big(value)
        if abs(value) >= 10 and low is None:
            return self.number(value, 0 if value == int(value) else 1)
        return figure_text(Figure(value, low, high), self.lang)

    def value(self, figure: FigureFacts, name: str = "") -> str:
        """Without its interval."""
        return self.figure(FigureFacts(value=figure["value"], unit=figure.get("unit", "")), name)

    def number(self, value: float, decimals: int = 2) -> str:
        return number(value, self.lang, decimals)

    def plain(self, value: float) -> str:
        """As short as it can be: 0, 0.7, 1."""
        return self.number(value, 0 if value == int(value) else 1 if value * 10 == int(value * 10) else 2)

    def share(self, value: float, decimals: int | None = None) -> str:
        """With a decimal more where whole percents would say 0 or 100 of what is neither."""
        if decimals is None:
            decimals = 1 if 0 < value < 0.01 or 0.99 < value < 1 else 0
        return percent(value, self.lang, decimals)

    def apart(self, shares: Mapping[str, float | None]) -> dict[str, str]:
        """Shares that one sentence compares: with equally many decimals, so that different ones read differently."""
        known = {name: share for name, share in shares.items() if share is not None}
        said: dict[str, str] = {}
        for decimals in range(any(self.share(share) != self.share(share, 0) for share in known.values()), 4):
            said = {name: self.share(share, decimals) for name, share in known.items()}
            if len({*said.values()}) == len({*known.values()}):
                break
        return {name: said.get(name, "–") for name in shares}

    def chance(self, p: float) -> str:
        """A p-value: 0.032, < 0.001."""
        return f"< {self.number(0.001, 3)}" if p < 0.001 else self.number(p, 3)

    def count(self, value: int) -> str:
        return count(value, self.lang)

    def big(self, value: float) -> str:
        """12.3 million."""
        for size, key in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
            if abs(value) >= size:
                scaled = value / size
                return f"{self.number(scaled, 0 if scaled >= 100 else 1)} {self(f'unit.{key}')}"
        return self.count(round(value))

    def seconds(self, value: float) -> str:
        """4 min 52 s."""
        if value < 1:
            return f"{self.number(1000 * value, 0 if value >= 0.01 else 1)}{NBSP}ms"
        if value < 60:
            return f"{self.number(value, 1 if value < 10 else 0)}{NBSP}s"
        minutes, seconds = divmod(round(value), 60)
        if minutes < 60:
            return f"{minutes}{NBSP}min" + (f" {seconds}{NBSP}s" if seconds else "")
        return f"{minutes // 60}{NBSP}{LANGUAGES[self.lang].hour} {minutes % 60}{NBSP}min"

    def why(self, why: str) -> str:
        """A reason in the reader's language, when the catalogue knows it."""
        return self.get(f"why.{_slug(why)}", visible(why))

    def judge(self, judge: str) -> str:
        """Who said right or wrong."""
        for prefix, named in (("judge model ", "model"), ("sentence embedding ", "embedding")):
            if judge.startswith(prefix):
                return self(f"judge.{named}", name=visible(judge.removeprefix(prefix)))
        return self.get(f"judge.{_slug(judge)}", visible(judge))

    def judged(self, figure: Mapping[str, Any]) -> str:
        """Who judged it, and how often that judge errs."""
        judge, error = self.judge(figure.get("judge", "")), figure.get("error_rate")
        if not judge or error is None:
            return judge
        if error["value"] is None:
            return self("judge.unmeasured", judge=judge)
        return self("judge.errs", judge=judge, share=self.figure(error))

    def bounds(self, figure: FigureFacts, name: str = "") -> str:
        """Between what it lies when its judge's errors and what was left undecided are allowed for; "" where there is
        nothing to allow for."""
        found = figure.get("bounds")
        if found is None:
            return ""
        low, high = ("∞" if end is None else self.value(FigureFacts(value=end, unit=figure.get("unit", "")), name)
                     for end in (found["low"], found["high"]))  # fmt: skip
        return f"{low}–{high}"

    def allowing(self, figure: FigureFacts, name: str = "") -> str:
        """The same as a phrase."""
        bounds = self.bounds(figure, name)
        return self("exam.allowing", bounds=bounds) if bounds else ""

    def told(self, figure: FigureFacts, name: str = "") -> str:
        """The figure, and its bounds where it has some."""
        return f"{self.figure(figure, name)} {self.allowing(figure, name)}".strip()

    def allowed(self, figure: FigureFacts, name: str) -> list[str]:
        """A sentence with the figure's bounds; none where it has none. ``name``: right or same_meaning."""
        if not (bounds := self.bounds(figure, name)):
            return []
        error = figure["error_rate"]
        key = "unmeasured" if error["value"] is None else "bounds"
        return [self(f"exam.{name}_{key}", bounds=bounds, error=self.figure(error))]

    def measure(self, name: str) -> str:
        """Its title: the catalogue's, else its own."""
        return self.get(f"measure.{name}", self.text(KNOWN[name].title if name in KNOWN else name.replace("_", " ")))

    def explained(self, name: str) -> str:
        """What a measure of the table means, in one line."""
        return self.get(f"measure.{name}_how", self.text(KNOWN[name].help))

    def unit(self, unit: str) -> str:
        """What a figure counts; nothing for plain shares, which are written as percent."""
        return self.get(f"unit.{_slug(unit)}", visible(unit)) if unit != "share" else ""

    def stage(self, name: str) -> str:
        return self.get(f"stage.{name}", name)


def is_share(figure: Mapping[str, Any], name: str = "") -> bool:
    """By what the figure counts, or what its measure does (records made before have no units)."""
    return any(unit.startswith("share") for unit in (_unit(name), str(figure.get("unit", ""))))


def _unit(measure: str) -> str:
    return KNOWN[measure].unit if measure in KNOWN else ""


def visible(text: str) -> str:
    """Hidden characters (controls, bidirectional overrides, tags, lone surrogates) shown as ⟨U+202E⟩."""
    return "".join(
        f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in HIDDEN and c not in "\n\t\u00ad\u200c\u200d" else c
        for c in text
    )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z]+", "_", text.lower()).strip("_")
