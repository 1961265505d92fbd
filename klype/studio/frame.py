"""What stands around every page: its head, where else to go, language and theme, the explanation, and its data."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import resources
from typing import Any
from urllib.parse import quote

from nicegui import ui

from klype.serve.guard import COOKIE
from klype.studio.charts import theme
from klype.studio.door import PATH
from klype.studio.visit import Page, Visit, text_of
from klype.words import LANGUAGES

Cell = str | float | int | None


def head() -> str:
    """The styles of all pages."""
    return f"<style>{theme()}\n{_file('look.css')}</style>"


@contextmanager
def framed(visit: Visit, pages: Sequence[Page], titles: Callable[[Page], str]) -> Iterator[None]:
    """The page's content goes inside."""
    with text_of("a", visit.frame("skip"), "k-skip") as skip:
        skip.props["href"] = "#main"
    with ui.element("header").classes("k-head"), ui.element("div").classes("k-bar"):
        text_of("a", "klype", "k-brand").props["href"] = "/"
        with ui.element("nav").classes("k-nav") as nav:
            nav.props["aria-label"] = visit.frame("pages")
            for page in pages:
                with ui.element("a") as link:
                    link.props["href"] = page.route
                    if page.name == visit.page.name:
                        link.props["aria-current"] = "page"
                    ui.icon(page.icon)
                    text_of("span", titles(page))
        _switches(visit)
    with ui.element("main").classes("k-main") as main:
        main.props["id"] = "main"
        main.props["tabindex"] = "-1"
        text_of("h1", visit.words("heading"))
        text_of("p", visit.words("lead"), "k-lead")
        with ui.element("details").classes("k-how"):
            text_of("summary", visit.frame("how"))
            for key, text in visit.words.section("explain").items():
                text_of("p", text, "k-formula" if key.startswith("formula") else "")
        yield


def _switches(visit: Visit) -> None:
    here = quote(str(visit.request.url.path) + (f"?{visit.request.url.query}" if visit.request.url.query else ""))
    following = {"auto": "dark", "dark": "light", "light": "auto"}[visit.theme]
    icons = {"auto": "brightness_auto", "dark": "dark_mode", "light": "light_mode"}
    with ui.element("div").classes("k-switches"):
        for other, row in LANGUAGES.items():
            if other != visit.lang:
                link = text_of("a", row.name)
                link.props["href"] = f"/choose?lang={other}&to={here}"
                link.props["lang"] = other
                link.props["hreflang"] = other
        if COOKIE in visit.request.cookies:
            text_of("a", visit.frame("leave")).props["href"] = PATH
        with ui.element("a") as toggle:
            toggle.props["href"] = f"/choose?theme={following}&to={here}"
            said = visit.frame(f"theme_{visit.theme}")
            toggle.props["aria-label"] = said
            toggle.props["title"] = said
            ui.icon(icons[visit.theme])


@contextmanager
def card(classes: str = "") -> Iterator[ui.element]:
    with ui.element("section").classes(f"k-card {classes}".strip()) as section:
        yield section


def button(text: str, on_click: Callable[[], Any], classes: str = "") -> ui.element:
    made = text_of("button", text, f"k-button {classes}".strip())
    made.props["type"] = "button"
    made.on("click", lambda _: on_click())
    return made


def as_data(
    visit: Visit,
    name: str,
    columns: Sequence[str],
    rows: Callable[[], Sequence[Sequence[Cell]]],
    picture: ui.element | None = None,
) -> None:
    """``Show as data``: numbers as CSV and JSON, and the picture that they stand behind as PNG, where there is one."""

    def save_csv() -> None:
        ui.download.content(to_csv(columns, rows()), f"{name}.csv", "text/csv;charset=utf-8")

    def save_json() -> None:
        found = [dict(zip(columns, row, strict=True)) for row in rows()]
        text = json.dumps({"name": name, "rows": found}, ensure_ascii=False, allow_nan=False, indent=1)
        ui.download.content(text.encode(), f"{name}.json", "application/json")

    def save_png(drawn: ui.element) -> None:
        script = _file("save.js").replace("ID", json.dumps(drawn.html_id)).replace("NAME", json.dumps(f"{name}.png"))
        ui.run_javascript(script)

    kinds: list[tuple[str, Callable[[], None]]] = [("CSV", save_csv), ("JSON", save_json)]
    if picture is not None:
        kinds.append(("PNG", partial(save_png, picture)))
    with ui.element("div").classes("k-row k-data k-small"):
        text_of("span", visit.frame("data"))
        for text, act in kinds:
            button(text, act, "tiny").props["aria-label"] = f"{visit.frame('data')} {text}"


def to_csv(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> bytes:
    """For spreadsheets: UTF-8 with its mark; a text that would start a formula is quoted."""
    out = io.StringIO()
    writer = csv.writer(out)
    for row in (columns, *rows):
        writer.writerow([_safe(cell) for cell in row])
    return out.getvalue().encode("utf-8-sig")


def table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], numeric: Sequence[int] = (), caption: str = ""
) -> ui.element:
    """A table whose cells are texts, or functions that fill their cell."""
    with ui.element("table").classes("k-table") as made:
        if caption:
            text_of("caption", caption)
        with ui.element("thead"), ui.element("tr"):
            for i, column in enumerate(columns):
                text_of("th", column, "num" if i in numeric else "").props["scope"] = "col"
        with ui.element("tbody"):
            for row in rows:
                with ui.element("tr"):
                    for i, cell in enumerate(row):
                        with ui.element("td").classes("num" if i in numeric else "") as td:
                            if callable(cell):
                                cell()
                            else:
                                td._text = str(cell)
    return made


def _safe(cell: Cell) -> Cell:
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell


def _file(name: str) -> str:
    return (resources.files("klype.studio") / name).read_text(encoding="utf-8")
