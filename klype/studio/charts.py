"""Charts on pages: the report's option dictionaries, in colours that follow the theme without being drawn anew."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nicegui import ui

from klype.examine.charts import Cell, Picture
from klype.studio.frame import MEANINGS, Visit, as_data, card, text_of
from klype.words import LANGUAGES

Option = dict[str, Any]
FONT = "ui-sans-serif, system-ui, sans-serif"
NUMBER = (
    "(v => typeof v === 'number' ? new Intl.NumberFormat('{locale}', {{maximumSignificantDigits: 4}}).format(v) : v)"
)
PERCENT = (
    "(v => typeof v === 'number' ? new Intl.NumberFormat('{locale}', {{style: 'percent', maximumFractionDigits: "
    "Math.abs(v) < 0.01 || (v > 0.99 && v < 1) ? 2 : 1}}).format(v) : v)"
)
WHISKER = """((params, api) => {
  const [low, y] = api.coord([api.value(0), api.value(2)]), [high] = api.coord([api.value(1), api.value(2)]);
  const style = {stroke: api.visual('color'), lineWidth: 2, opacity: 0.75};
  const stroke = (x1, y1, x2, y2) => ({type: 'line', shape: {x1, y1, x2, y2}, style});
  return {type: 'group', children: [stroke(low, y, high, y),
    stroke(low, y - 5, low, y + 5), stroke(high, y - 5, high, y + 5)]};
})"""


def chart(option: Option, lang: str, height: int, label: str) -> ui.echart:
    """An ECharts drawing of the report's kind; ``label`` is what a screen reader says instead of it."""
    drawn = ui.echart(revived(option, lang), renderer="svg").classes("k-chart")
    drawn.style(f"height: {height}px").props["role"] = "img"
    drawn.props["aria-label"] = label
    return drawn


def redraw(drawn: ui.echart, option: Option, lang: str) -> None:
    drawn.options.clear()
    drawn.options.update(revived(option, lang))
    drawn.update()


def revived(option: Mapping[str, Any], lang: str) -> Option:
    """``$ink`` becomes a variable of the theme, ``fn:percent`` a function (under a key that begins with a colon).

    Only values of our own option dictionaries become functions; texts of models and users stay texts.
    """
    found: Option = {}
    for key, value in option.items():
        if isinstance(value, str) and value.startswith("fn:") and value[3:] in ("number", "percent", "bar", "whisker"):
            found[f":{key}"] = _function(value[3:], lang)
        elif not key.startswith(":"):
            found[key] = _value(value, lang)
    return found


def meaning_colour(place: int) -> str:
    """The colour of the so-manieth meaning; grey from the ninth on."""
    return f"var(--k-m{place})" if 0 <= place < len(MEANINGS) else "var(--k-base)"


def _value(value: Any, lang: str) -> Any:
    if isinstance(value, Mapping):
        return revived(value, lang)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_value(one, lang) for one in value]
    if value == "inherit":  # what the page has, by name: text is measured with it
        return FONT
    if isinstance(value, str) and re.fullmatch(r"\$[a-z0-9]+", value):
        return f"var(--k-{value[1:]})"
    return value


def _function(name: str, lang: str) -> str:
    locale = LANGUAGES[lang].tag
    percent = PERCENT.format(locale=locale)
    bar = f"(p => p.value < 0.0005 ? '' : ({percent})(p.value))"
    return {"number": NUMBER.format(locale=locale), "percent": percent, "bar": bar, "whisker": WHISKER}[name]


def picture(
    visit: Visit, found: Picture, rows: Callable[[], Sequence[Sequence[Cell]]] | None = None
) -> list[ui.echart]:
    """Its finding as the title, its panels, how to read it, its data; the charts of the panels, to be redrawn.

    ``rows`` tells the data as it is when asked for; None: it does not change.
    """
    made = []
    with card() as box:
        text_of("h2", found.title)
        with ui.element("div").classes("k-panels"):
            for panel in found.panels:
                with ui.element("div"):
                    if panel.title:
                        text_of("h3", panel.title)
                    made.append(chart(panel.option, visit.lang, panel.height, f"{found.title} {panel.title}".strip()))
        text_of("p", found.how, "k-small")
        as_data(visit, found.id, found.columns, rows or (lambda: found.rows), box)
    return made
