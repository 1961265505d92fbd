"""The article's formula to play with: as printed, corrected, and with errors that bring the next."""

from __future__ import annotations

import math

from nicegui import ui

from klype.examine.charts import axis, line, lines
from klype.studio.charts import Option, chart, redraw
from klype.studio.fields import Slider
from klype.studio.frame import as_data, button, card
from klype.studio.visit import Visit, text_of

POINTS = 160
FIRST = (2.0, 100)
EXAMPLE = (5.0, 100)
"""The article's own: S = 0.99999, n = 100, on the slider's scale −log10(1 − S)."""


def clean(s: float, words: int) -> float:
    """S^n: all words right, independently."""
    return s**words


def printed(s: float, words: int) -> float:
    """(1 − S)^n, as the article has it."""
    return (1 - s) ** words


def in_error(s: float, after: float, word: int) -> float:
    """The share of wrong words at place ``word`` (1, 2, …) when an error makes the next word wrong with probability
    ``after``: a chain of two states, from a right beginning. Its limit is (1 − S) / (1 − S + 1 − after)."""
    first, memory = 1 - s, after - (1 - s)
    settled = first / (first + 1 - after) if after < 1 or first else 1.0
    return settled * (1 - memory**word)


class Formula:
    """Always on the page: it needs no model, and takes a model's own S when there is one."""

    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        w, say = visit.words, visit.say
        self._known: float | None = None
        with card() as box:
            text_of("h2", w("formula_title"))
            with ui.element("div").classes("k-sliders"):
                self.s = Slider(w("formula_s"), (0.0, 6.0, 0.05), FIRST[0], lambda v: self._share(1 - 10**-v))
                self.n = Slider(w("formula_n"), (1, 1000, 1), FIRST[1], lambda v: say.count(round(v)))
                self.after = Slider(w("formula_after"), (0.0, 0.99, 0.01), 0.3, lambda v: say.share(v))
            for slider in (self.s, self.n, self.after):
                slider.moved(self._draw)
            with ui.element("div").classes("k-chips").style("margin:8px 0"):
                button(w("formula_example"), lambda: self._set(*EXAMPLE), "tiny")
                self.own = button("", self._take_own, "tiny")
            self.own.set_visibility(False)
            self.result = ui.element("div").classes("k-result")
            self.result.props["aria-live"] = "polite"
            self.drawn = chart(self._option(), visit.lang, 320, w("formula_title"))
            text_of("p", w("formula_how"), "k-small")
            as_data(
                visit,
                "formula",
                [w("words"), w("formula_right"), w("formula_printed"), w("formula_errors")],
                self._rows,
                box,
            )
        self._say()

    def know(self, s: float | None) -> None:
        """The S that was measured: another place for the slider."""
        self._known = s
        self.own.set_visibility(s is not None)
        if s is not None:
            self.own._text = self.visit.words("formula_own", s=self._share(s))
            self.own.update()

    def _take_own(self) -> None:
        if self._known is not None:
            self._set(min(6.0, -math.log10(max(1e-6, 1 - self._known))), 50)

    def _set(self, s: float, n: float) -> None:
        self.s.set(s)
        self.n.set(n)
        self._draw()

    def _values(self) -> tuple[float, int, float]:
        return 1 - 10**-self.s.value, round(self.n.value), self.after.value

    def _share(self, value: float) -> str:
        decimals = 1 if value < 0.99 else max(1, math.ceil(-math.log10(max(1e-7, 1 - value))) - 1)
        return self.visit.say.share(value, decimals)

    def _draw(self) -> None:
        redraw(self.drawn, self._option(), self.visit.lang)
        self._say()

    def _say(self) -> None:
        w, say = self.visit.words, self.visit.say
        s, n, after = self._values()
        half = max(1, math.ceil(math.log(0.5) / math.log(s))) if 0 < s < 1 else 1
        told = (
            (w("formula_right"), self._chance(clean(s, n))),
            (w("formula_printed"), self._chance(printed(s, n))),
            (w("formula_errors"), self._chance(in_error(s, after, n))),
            (w("formula_half"), say.count(half)),
        )
        self.result.clear()
        with self.result:
            for name, value in told:
                with ui.element("span"):
                    text_of("span", name, "k-small")
                    text_of("b", value)

    def _chance(self, p: float) -> str:
        say = self.visit.say
        return self.visit.words("practically_zero") if p < 1e-4 else say.share(p, 3 if p > 0.99 else 1)

    def _places(self) -> list[int]:
        n = round(self.n.value)
        return sorted({round(1 + i * (n - 1) / max(1, min(n, POINTS) - 1)) for i in range(min(n, POINTS))})

    def _option(self) -> Option:
        w = self.visit.words
        s, n, after = self._values()
        places = self._places()
        dashed = {"lineStyle": {"color": "$bad", "type": "dashed", "width": 2}}
        dotted = {"lineStyle": {"color": "$finetuned", "type": "dotted", "width": 2.5}}
        drawn = lines(
            axis(w("words"), min=1, max=max(2, n)),
            axis(percent=True, min=0, max=1),
            [
                line(w("formula_right"), [(i, clean(s, i)) for i in places], "truth"),
                line(w("formula_printed"), [(i, printed(s, i)) for i in places], "bad", **dashed),
                line(w("formula_errors"), [(i, in_error(s, after, i)) for i in places], "finetuned", **dotted),
            ],
        )
        drawn["tooltip"]["valueFormatter"] = "fn:percent"
        drawn["legend"]["type"] = "scroll"
        return drawn

    def _rows(self) -> list[list[float]]:
        s, _, after = self._values()
        return [[i, clean(s, i), printed(s, i), in_error(s, after, i)] for i in self._places()]
