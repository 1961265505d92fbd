"""What every page has: who looks at it and in which language, its head and menu, cards, tables, and its data."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fastapi import Request
from nicegui import ui

from klype.errors import KlypeError
from klype.examine.charts import DARK, LIGHT, probability_scale
from klype.examine.say import Say, visible
from klype.serve.errors import ApiError
from klype.serve.guard import COOKIE
from klype.words import LANGUAGES, Words, spoken, words

if TYPE_CHECKING:
    from klype.studio.studio import Studio


LANGUAGE_COOKIE, THEME_COOKIE = "klype_lang", "klype_theme"
THEMES = ("auto", "light", "dark")
KEY_PAGE = "/key"
MEANINGS = ("#0072b2", "#b85000", "#00735a", "#a3377c", "#7a6000", "#3f6fd1", "#8a3b12", "#5a4fa2")
MEANINGS_DARK = ("#6cb8ea", "#f0a35e", "#4fc9a4", "#e79ac6", "#d9c25c", "#9db8ff", "#e8a184", "#bdb4f5")
"""Told apart by colour-blind readers too (after Okabe and Ito); text beside them says the same."""


@dataclass(frozen=True)
class Page:
    """``name`` is that of its catalogue (``studio_<name>``), which holds its title, lead and explanation."""

    name: str
    route: str
    icon: str
    build: Callable[[Visit], Awaitable[None] | None]


@dataclass(frozen=True)
class Visit:
    """``words`` are the page's own, ``frame`` those of all pages; ``say`` writes figures as the report does."""

    studio: Studio
    page: Page
    lang: str
    theme: str
    words: Words
    frame: Words
    say: Say
    request: Request

    @staticmethod
    def of(studio: Studio, page: Page, request: Request) -> Visit:
        lang = language_of(request)
        theme = request.cookies.get(THEME_COOKIE, "auto")
        return Visit(
            studio,
            page,
            lang,
            theme if theme in THEMES else "auto",
            words(lang, f"studio_{page.name}"),
            words(lang, "studio_frame"),
            Say(lang),
            request,
        )

    def tell(self, error: BaseException) -> None:
        ui.notify(self.why(error), type="negative", position="top", timeout=8000, multi_line=True)

    def why(self, error: BaseException) -> str:
        """What went wrong, in one sentence; klype's own fault is said to be one, and the log has the rest."""
        if isinstance(error, KlypeError | ApiError):
            return visible(str(error))
        logging.getLogger("klype.studio").error("The studio failed.", exc_info=error)
        return self.frame("fault", name=type(error).__name__)


def language_of(request: Request) -> str:
    """The one that was switched to, else the first that the browser asks for and klype speaks."""
    chosen = request.cookies.get(LANGUAGE_COOKIE, "")
    if chosen in LANGUAGES:
        return chosen
    return preferred(request.headers.get("accept-language", ""))


def preferred(header: str) -> str:
    """By an Accept-Language header: the first wish that klype speaks, or whose readers read what it speaks."""
    wishes: list[tuple[float, int, str]] = []
    for place, part in enumerate(header.split(",")[:20]):
        name, _, quality = part.strip().partition(";")
        try:
            weight = float(quality.strip().removeprefix("q=")) if quality.strip() else 1.0
        except ValueError:
            weight = 0.0
        wishes.append((-weight, place, name))
    for weight, _, name in sorted(wishes):
        if weight < 0 and (lang := spoken(name, read=True)):
            return lang
    return "en"


def text_of(tag: str, text: Any, classes: str = "") -> ui.element:
    """An element of this tag that holds a text: what it says is never parsed."""
    element = ui.element(tag)
    if classes:
        element.classes(classes)
    element._text = str(text)
    return element


Cell = str | float | int | None


def theme() -> str:
    """The page's colours as CSS: light and dark from the same names."""
    return (
        f"body{{{_variables(LIGHT, False)}}}\nbody.body--dark{{{_variables(DARK, True)}}}\n"
        f"html{{background:{LIGHT['paper']};color-scheme:light}}html:has(body.body--dark){{background:{DARK['paper']};color-scheme:dark}}\n"
        f"@media(prefers-color-scheme:dark){{html:not(:has(body.body--light)){{background:{DARK['paper']}}}}}"
    )


def _variables(colours: Mapping[str, str], dark: bool) -> str:
    out = [f"--k-{name}:{value}" for name, value in colours.items()]
    for i, (background, ink) in enumerate(probability_scale(dark)):
        out += [f"--k-p{i}:{background}", f"--k-q{i}:{ink}"]
    out += [f"--k-m{i}:{value}" for i, value in enumerate(MEANINGS_DARK if dark else MEANINGS)]
    return ";".join(out)


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
            text_of("a", visit.frame("leave")).props["href"] = KEY_PAGE
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
