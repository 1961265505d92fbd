"""Formats figures, durations and texts for readers, in one language."""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from klype.examine.measures import KNOWN
from klype.examine.run_facts import FigureFacts, LocalText
from klype.values import Figure
from klype.words import LANGUAGES, Words, count, interval_decimals, number, percent, words
from klype.words import figure as figure_text

NBSP = "\u00a0"
HIDDEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")  # control, format, surrogate, private use, line separators
EXACT = "share a word"  # the unit of shares so close to 1 that they are written as 0.974, not in percent


class Say:
    """The words of reports in one language, and figures as text. ``decimals``: of all shares, for columns of them; by
    default each has as many as its interval justifies."""

    def __init__(self, lang: str, decimals: int | None = None) -> None:
        self.lang, self.decimals = lang, decimals
        self.words: Words = words(lang, "report")

    def __call__(self, key: str, **values: object) -> str:
        return self.words(key, **values)

    def get(self, key: str, otherwise: str) -> str:
        """The message of a key, or ``otherwise`` if the catalogue has none."""
        return self.words.messages.get(key, otherwise)

    def text(self, text: LocalText) -> str:
        """The text in the reader's language, or in any it has; hidden characters are made visible."""
        if isinstance(text, str):
            return visible(text)
        return visible(text.get(self.lang) or next(iter(text.values()), ""))

    def figure(self, figure: FigureFacts | None, name: str = "") -> str:
        """``83% [79, 87]`` for shares, ``0.83 [0.79, 0.87]`` for other numbers; – and the reason without a value.
        ``name``: of the figure's measure."""
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
            if 0 < value < 1 and round(100 * value) in (0, 100):  # not 0 % or 100 % of what is neither
                decimals = max(1, decimals)
            decimals = decimals if self.decimals is None else self.decimals
            ends = [self.number(100 * x, decimals) for x in (low, high)]
            if {*ends} == {self.number(100 * value, decimals)}:  # narrower than can be shown
                return percent(value, self.lang, decimals)
            return f"{percent(value, self.lang, decimals)} [{LANGUAGES[self.lang].between.join(ends)}]"
        if abs(value) >= 10_000:
            return self.big(value)
        if abs(value) >= 10 and low is None:
            return self.number(value, 0 if value == int(value) else 1)
        return figure_text(Figure(value, low, high), self.lang)

    def value(self, figure: FigureFacts, name: str = "") -> str:
        """The figure without its interval."""
        return self.figure(FigureFacts(value=figure["value"], unit=figure.get("unit", "")), name)

    def number(self, value: float, decimals: int = 2) -> str:
        return number(value, self.lang, decimals)

    def plain(self, value: float) -> str:
        """A number as short as possible: 0, 0.7, 1."""
        return self.number(value, 0 if value == int(value) else 1 if value * 10 == int(value * 10) else 2)

    def share(self, value: float, decimals: int | None = None) -> str:
        """A share in percent, with one decimal where whole percents would show 0 or 100 for what is neither."""
        if decimals is None:
            decimals = 1 if 0 < value < 0.01 or 0.99 < value < 1 else 0
        return percent(value, self.lang, decimals)

    def apart(self, shares: Mapping[str, float | None]) -> dict[str, str]:
        """Shares that are compared in one sentence, with as many decimals as it takes to tell different ones apart."""
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
        """A large number: 12.3 million."""
        for size, key in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
            if abs(value) >= size:
                scaled = value / size
                return f"{self.number(scaled, 0 if scaled >= 100 else 1)} {self(f'unit.{key}')}"
        return self.count(round(value))

    def seconds(self, value: float) -> str:
        """A duration: 4 min 52 s."""
        if value < 1:
            return f"{self.number(1000 * value, 0 if value >= 0.01 else 1)}{NBSP}ms"
        if value < 60:
            return f"{self.number(value, 1 if value < 10 else 0)}{NBSP}s"
        minutes, seconds = divmod(round(value), 60)
        if minutes < 60:
            return f"{minutes}{NBSP}min" + (f" {seconds}{NBSP}s" if seconds else "")
        return f"{minutes // 60}{NBSP}{LANGUAGES[self.lang].hour} {minutes % 60}{NBSP}min"

    def why(self, why: str) -> str:
        """A reason in the reader's language, if the catalogue has it."""
        return self.get(f"why.{_slug(why)}", visible(why))

    def judge(self, judge: str) -> str:
        """The judge's name in the reader's language."""
        for prefix, named in (("judge model ", "model"), ("sentence embedding ", "embedding")):
            if judge.startswith(prefix):
                return self(f"judge.{named}", name=visible(judge.removeprefix(prefix)))
        return self.get(f"judge.{_slug(judge)}", visible(judge))

    def judge_note(self, figure: Mapping[str, Any]) -> str:
        """The figure's judge, and how often it errs."""
        judge, error = self.judge(figure.get("judge", "")), figure.get("error_rate")
        if not judge or error is None:
            return judge
        if error["value"] is None:
            return self("judge.unmeasured", judge=judge)
        return self("judge.errs", judge=judge, share=self.figure(error))

    def bounds(self, figure: FigureFacts, name: str = "") -> str:
        """The figure's bounds, which allow for its judge's errors and undecided answers; "" where it has none."""
        found = figure.get("bounds")
        if found is None:
            return ""
        low, high = ("∞" if end is None else self.value(FigureFacts(value=end, unit=figure.get("unit", "")), name)
                     for end in (found["low"], found["high"]))  # fmt: skip
        return f"{low}–{high}"

    def bounds_note(self, figure: FigureFacts, name: str = "") -> str:
        """The figure's bounds as a phrase; "" where it has none."""
        bounds = self.bounds(figure, name)
        return self("exam.allowing", bounds=bounds) if bounds else ""

    def in_full(self, figure: FigureFacts, name: str = "") -> str:
        """The figure with its bounds, if it has any."""
        return f"{self.figure(figure, name)} {self.bounds_note(figure, name)}".strip()

    def bounds_sentences(self, figure: FigureFacts, name: str) -> list[str]:
        """A sentence with the figure's bounds; none where it has none. ``name``: right or same_meaning."""
        if not (bounds := self.bounds(figure, name)):
            return []
        error = figure["error_rate"]
        key = "unmeasured" if error["value"] is None else "bounds"
        return [self(f"exam.{name}_{key}", bounds=bounds, error=self.figure(error))]

    def measure(self, name: str) -> str:
        """The title of a measure: the catalogue's, or else its own."""
        return self.get(f"measure.{name}", self.text(KNOWN[name].title if name in KNOWN else name.replace("_", " ")))

    def help_text(self, name: str) -> str:
        """The meaning of a measure, in one line."""
        return self.get(f"measure.{name}_how", self.text(KNOWN[name].help))

    def unit(self, unit: str) -> str:
        """The name of a unit; "" for plain shares, which are written in percent."""
        return self.get(f"unit.{_slug(unit)}", visible(unit)) if unit != "share" else ""

    def stage(self, name: str) -> str:
        return self.get(f"stage.{name}", name)


def is_share(figure: Mapping[str, Any], name: str = "") -> bool:
    """Whether the figure is a share, by its unit or that of its measure (older records have no units)."""
    return any(unit.startswith("share") for unit in (_unit(name), str(figure.get("unit", ""))))


def _unit(measure: str) -> str:
    return KNOWN[measure].unit if measure in KNOWN else ""


def visible(text: str) -> str:
    """The text with hidden characters (controls, bidirectional overrides, tags, lone surrogates) as ⟨U+202E⟩."""
    return "".join(
        f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in HIDDEN and c not in "\n\t\u00ad\u200c\u200d" else c
        for c in text
    )


def _slug(text: str) -> str:
    return re.sub(r"[^a-z]+", "_", text.lower()).strip("_")
