"""What pages are built of: boxes, buttons, tables, and the report's charts in colours that follow the theme without
being drawn anew; each with its data."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from nicegui import ui

from klype.examine.charts import Cell, Option, Panel, Picture
from klype.examine.say import Say
from klype.studio.page_context import MEANINGS, Visit, text_file
from klype.words import LANGUAGES

LONGEST_FIGURE = 24  # in a table a number stands in one line, one that says why it is uncertain in several
PAGE_BEGINS = "message"  # the element in which one writes to a model
FONT = "ui-sans-serif, system-ui, sans-serif"
Rows = Callable[[], Sequence[Sequence[Cell]]]  # data as they are when they are asked for
FORMATS = ("number", "percent", "value", "share", "bar", "whisker")  # functions of ``formats.js``, which all pages have


def text_of(tag: str, text: Any, classes: str = "", **props: Any) -> ui.element:
    """An element of this tag that holds a text: what it says is never parsed."""
    element = box(classes, tag, **props)
    element._text = str(text)
    return element


def small(text: str) -> ui.element:
    """A paragraph that explains."""
    return text_of("p", text, "k-small")


def status() -> ui.element:
    """A sentence that a screen reader says when it changes."""
    return text_of("p", "", "k-small", role="status", aria_live="polite")


def retext(element: ui.element, text: str) -> None:
    """Another text into an element that is there."""
    element._text = text
    element.update()


def box(classes: str = "", tag: str = "div", **props: Any) -> ui.element:
    """An element to be filled; underscores in the names of properties stand for hyphens."""
    element = ui.element(tag).classes(classes)
    element.props.update({name.replace("_", "-"): value for name, value in props.items()})
    return element


def card(title: str = "", classes: str = "", **props: Any) -> ui.element:
    made = box(f"k-card {classes}".strip(), "section", **props)
    if title:
        with made:
            text_of("h2", title)
    return made


def fold(title: str, classes: str = "") -> ui.element:
    """What is opened by its title."""
    made = box(f"k-fold {classes}".strip(), "details")
    with made:
        text_of("summary", title)
    return made


class Scroll(ui.element, component="scroll.js"):
    """What is too wide for a phone scrolls in it, by keys, too, and it says what is cut off; ``label`` is its name."""

    def __init__(self, visit: Visit, label: str) -> None:
        super().__init__()
        further, picture = visit.frame("cut", rest="{rest}"), visit.frame("cut_picture")
        self._props.update(label=label, further=further, picture=picture)


def button(text: str, on_click: Callable[[], Any], classes: str = "", **props: Any) -> ui.element:
    made = text_of("button", text, f"k-button {classes}".strip(), type="button", **props)
    made.on("click", lambda _: on_click())
    return made


class ProgressBar(ui.element):
    """A bar that fills."""

    def __init__(self, classes: str = "") -> None:
        super().__init__("div")
        self.classes(f"k-progress {classes}".strip())
        with self:
            self._bar = box().style("width:0%")

    def fill(self, shown: bool, share: float) -> None:
        self.set_visibility(shown)
        self._bar.style(f"width:{100 * share:.1f}%")


def table(
    visit: Visit, columns: Sequence[str], rows: Sequence[Sequence[Any]], numeric: Sequence[int] = (), label: str = ""
) -> None:
    """A table whose cells are texts, or functions that fill their cell; ``label``: its name, else its columns'."""
    with Scroll(visit, label or ", ".join(columns)), box("k-table", "table"):
        with box(tag="thead"), box(tag="tr"):
            for i, column in enumerate(columns):
                text_of("th", column, "num" if i in numeric else "", scope="col")
        with box(tag="tbody"):
            for row in rows:
                with box(tag="tr"):
                    for i, cell in enumerate(row):
                        long = " long" if isinstance(cell, str) and len(cell) > LONGEST_FIGURE else ""
                        with box(f"num{long}" if i in numeric else "", "td") as td:
                            if callable(cell):
                                cell()
                            else:
                                td._text = str(cell)


def known(figure: object) -> bool:
    return isinstance(figure, Mapping) and isinstance(figure.get("value"), int | float)


def ends(figure: Mapping[str, Any] | None) -> list[Cell]:
    """A figure as data: value, low, high, n."""
    return [(figure or {}).get(name) for name in ("value", "low", "high", "n")]


def figure_rows(say: Say, columns: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> list[list[str]]:
    """A row a measure (name → title) that any column knows, a cell a column."""
    return [
        [title, *(say.told(found[name], name) if known(found.get(name)) else "–" for found in columns)]
        for name, title in titles.items()
        if any(known(found.get(name)) for found in columns)
    ]


def big_numbers(shown: Mapping[str, str]) -> None:
    """Numbers beside each other, each over what it is: name → number."""
    with box("r-numbers"):
        for name, number in shown.items():
            with box():
                text_of("b", number)
                text_of("span", name)


def examples(title: str, questions: Sequence[str], take: Callable[[str], Any]) -> None:
    """Questions to begin with, each a button; nothing where there are none."""
    if questions:
        with box("k-chips"):
            text_of("span", title, "k-small")
            for question in questions:
                button(question, partial(take, question), "tiny")


def as_data(visit: Visit, name: str, columns: Sequence[str], rows: Rows, picture: ui.element | None = None) -> None:
    """``Show as data``: numbers as CSV and JSON, and the picture that they stand behind as PNG, where there is one."""

    def save_csv() -> None:
        ui.download.content(to_csv(columns, rows()), f"{name}.csv", "text/csv;charset=utf-8")

    def save_json() -> None:
        found = [dict(zip(columns, row, strict=True)) for row in rows()]
        text = json.dumps({"name": name, "rows": found}, ensure_ascii=False, allow_nan=False, indent=1)
        ui.download.content(text.encode(), f"{name}.json", "application/json")

    def save_png() -> None:
        assert picture is not None
        script = text_file("save.js").replace("ID", json.dumps(picture.html_id))
        ui.run_javascript(script.replace("NAME", json.dumps(f"{name}.png")))

    kinds = {"CSV": save_csv, "JSON": save_json} | ({} if picture is None else {"PNG": save_png})
    with box("k-row k-data k-small"):
        text_of("span", visit.frame("data"))
        for kind, save in kinds.items():
            button(kind, save, "tiny", aria_label=f"{visit.frame('data')} {kind}")


def to_csv(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> bytes:
    """For spreadsheets: UTF-8 with its mark; a text that would start a formula is quoted."""
    out = io.StringIO()
    writer = csv.writer(out)
    for row in (columns, *rows):
        starts = ("=", "+", "-", "@", "\t", "\r")
        writer.writerow([f"'{cell}" if isinstance(cell, str) and cell.startswith(starts) else cell for cell in row])
    return out.getvalue().encode("utf-8-sig")


def chart(option: Option, lang: str, height: int, label: str) -> ui.echart:
    """An ECharts drawing of the report's kind; ``label`` is what a screen reader says instead of it."""
    drawn = ui.echart(revived(option, lang), renderer="svg").classes("k-chart").style(f"height: {height}px")
    drawn.props.update({"role": "img", "aria-label": label})
    return drawn


def redraw(drawn: ui.echart, option: Option, lang: str) -> None:
    drawn.options.clear()  # the element stays: a new one takes a browser three times as long
    drawn.options.update(revived(option, lang))
    drawn.update()


def panels(drawings: Sequence[Panel], lang: str, label: str = "") -> list[ui.echart]:
    """Charts beside each other, each under its title."""
    made = []
    with box("k-panels"):
        for panel in drawings:
            with box():
                if panel.title:
                    text_of("h3", panel.title)
                made.append(chart(panel.option, lang, panel.height, f"{label} {panel.title}".strip()))
    return made


def picture(visit: Visit, found: Picture, rows: Rows) -> list[ui.echart]:
    """A report's picture: its finding as the title, its panels, how to read it, its ``rows`` when they are asked for.
    Returns the charts."""
    with card(found.title) as drawn:
        made = panels(found.panels, visit.lang, found.title)
        small(found.how)
        as_data(visit, found.id, found.columns, rows, drawn)
    return made


class GrowingPictures:
    """Pictures of what grows, in the order of their ``names``: charts are redrawn while the same panels are there, and
    laid anew when there are others. They stand where it is made. ``rows``: their data, where it is not in them."""

    def __init__(self, visit: Visit, names: Sequence[str], rows: Rows | None = None) -> None:
        self._visit, self._boxes, self._rows = visit, {name: box() for name in names}, rows
        self._drawn: dict[str, tuple[object, list[ui.echart]]] = {}
        self._now: dict[str, Picture] = {}

    def show(self, pictures: Sequence[Picture]) -> None:
        self._now = {picture.id: picture for picture in pictures}
        for name, place in self._boxes.items():
            one = self._now.get(name)
            shape = None if one is None else (one.title, [(panel.title, panel.height) for panel in one.panels])
            before, charts = self._drawn.get(name, (None, []))
            if shape != before:
                place.clear()
            if one is None:
                self._drawn.pop(name, None)
            elif shape != before:
                with place:
                    rows = self._rows or partial(lambda name: self._now[name].rows, name)
                    self._drawn[name] = shape, picture(self._visit, one, rows)
            else:
                for drawn, panel in zip(charts, one.panels, strict=True):
                    redraw(drawn, panel.option, self._visit.lang)


def revived(option: Mapping[str, Any], lang: str) -> Option:
    """``$ink`` becomes a variable of the theme, ``fn:percent`` a function (under a key that begins with a colon).

    Only values of our own option dictionaries become functions; texts of models and users stay texts.
    """
    functions = {f"fn:{name}": f"klypeFormats('{LANGUAGES[lang].tag}').{name}" for name in FORMATS}

    def value(given: Any) -> Any:
        if isinstance(given, Mapping):
            found: Option = {}
            for key, one in given.items():
                if isinstance(one, str) and one in functions:
                    found[f":{key}"] = functions[one]
                elif not key.startswith(":"):
                    found[key] = value(one)
            return found
        if isinstance(given, Sequence) and not isinstance(given, str):
            return [value(one) for one in given]
        if given == "inherit":  # what the page has, by name: text is measured with it
            return FONT
        return f"var(--k-{given[1:]})" if isinstance(given, str) and re.fullmatch(r"\$[a-z0-9]+", given) else given

    return {**value(option)}


def meaning_colour(place: int) -> str:
    """The colour of the so-manieth meaning; grey from the ninth on."""
    return f"var(--k-m{place})" if 0 <= place < len(MEANINGS) else "var(--k-base)"
