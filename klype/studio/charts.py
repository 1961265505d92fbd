"""Charts on pages: the report's option dictionaries, in colours that follow the theme without being drawn anew."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nicegui import ui

from klype.examine.charts import Cell, Option, Picture
from klype.studio.frame import MEANINGS, Visit, as_data, box, card, text_of
from klype.words import LANGUAGES

FONT = "ui-sans-serif, system-ui, sans-serif"
FORMATS = ("number", "percent", "value", "share", "bar", "whisker")
"""Functions of the report's ``formats.js``, which every page has."""


def chart(option: Option, lang: str, height: int, label: str) -> ui.echart:
    """An ECharts drawing of the report's kind; ``label`` is what a screen reader says instead of it."""
    drawn = ui.echart(revived(option, lang), renderer="svg").classes("k-chart").style(f"height: {height}px")
    drawn.props.update({"role": "img", "aria-label": label})
    return drawn


def redraw(drawn: ui.echart, option: Option, lang: str) -> None:
    drawn.options.clear()
    drawn.options.update(revived(option, lang))
    drawn.update()


def panels(drawings: Sequence[tuple[str, Option, int]], lang: str, label: str = "") -> list[ui.echart]:
    """Charts beside each other, each under its title: (title, option, height)."""
    made = []
    with box("k-panels"):
        for title, option, height in drawings:
            with box():
                if title:
                    text_of("h3", title)
                made.append(chart(option, lang, height, f"{label} {title}".strip()))
    return made


def picture(
    visit: Visit, found: Picture, rows: Callable[[], Sequence[Sequence[Cell]]] | None = None
) -> list[ui.echart]:
    """A report's picture: its finding as the title, its panels, how to read it, its data. Returns the charts.

    ``rows`` tells the data as it is when asked for; None: it does not change.
    """
    with card() as drawn:
        text_of("h2", found.title)
        made = panels([(panel.title, panel.option, panel.height) for panel in found.panels], visit.lang, found.title)
        text_of("p", found.how, "k-small")
        as_data(visit, found.id, found.columns, rows or (lambda: found.rows), drawn)
    return made


def revived(option: Mapping[str, Any], lang: str) -> Option:
    """``$ink`` becomes a variable of the theme, ``fn:percent`` a function (under a key that begins with a colon).

    Only values of our own option dictionaries become functions; texts of models and users stay texts.
    """
    functions = {f"fn:{name}": f"klypeFormats('{LANGUAGES[lang].tag}').{name}" for name in FORMATS}

    def mapping(given: Mapping[str, Any]) -> Option:
        found: Option = {}
        for key, one in given.items():
            if isinstance(one, str) and one in functions:
                found[f":{key}"] = functions[one]
            elif not key.startswith(":"):
                found[key] = value(one)
        return found

    def value(given: Any) -> Any:
        if isinstance(given, Mapping):
            return mapping(given)
        if isinstance(given, Sequence) and not isinstance(given, str):
            return [value(one) for one in given]
        if given == "inherit":  # what the page has, by name: text is measured with it
            return FONT
        return f"var(--k-{given[1:]})" if isinstance(given, str) and re.fullmatch(r"\$[a-z0-9]+", given) else given

    return mapping(option)


def meaning_colour(place: int) -> str:
    """The colour of the so-manieth meaning; grey from the ninth on."""
    return f"var(--k-m{place})" if 0 <= place < len(MEANINGS) else "var(--k-base)"
