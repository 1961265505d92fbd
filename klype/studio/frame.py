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
from klype.examine.charts import DARK, LIGHT, Cell, probability_scale
from klype.examine.say import Say, visible
from klype.serve.errors import ApiError
from klype.serve.guard import COOKIE
from klype.words import LANGUAGES, Words, spoken, words
from klype.words.sentences import Sentences

if TYPE_CHECKING:
    from klype.studio.studio import Studio

LANGUAGE_COOKIE, THEME_COOKIE = "klype_lang", "klype_theme"
THEMES = {"auto": ("dark", "brightness_auto"), "light": ("auto", "light_mode"), "dark": ("light", "dark_mode")}
"""The theme after each, and its icon."""
KEY_PAGE = "/key"
LONGEST_FIGURE = 24
"""In a table a number stands in one line, one that says why it is uncertain in several."""
ARROWS = """(e) => {
  const links = [...e.currentTarget.querySelectorAll("a")], last = links.length - 1;
  const at = links.indexOf(document.activeElement);
  const to = {ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: last}[e.key];
  if (to === undefined) return;
  e.preventDefault();
  links.forEach((link) => { link.tabIndex = -1; });
  Object.assign(links[Math.min(last, Math.max(0, to))], {tabIndex: 0}).focus();
}"""
"""In a toolbar, which is one stop for the Tab key: from link to link."""
PAGE_BEGINS = "message"
"""The element in which one writes to a model."""
MEANINGS = ("#0072b2", "#b85000", "#00735a", "#a3377c", "#7a6000", "#3f6fd1", "#8a3b12", "#5a4fa2")
MEANINGS_DARK = ("#6cb8ea", "#f0a35e", "#4fc9a4", "#e79ac6", "#d9c25c", "#9db8ff", "#e8a184", "#bdb4f5")
"""Told apart by colour-blind readers too (after Okabe and Ito); text beside them says the same."""


@dataclass(frozen=True)
class Page:
    """``name`` is that of its catalogue (``studio_<name>``), which holds its title, lead and explanation. ``skips``:
    where a model is there, the first link leads past whatever stands before ``PAGE_BEGINS``."""

    name: str
    route: str
    icon: str
    build: Callable[[Visit], Awaitable[None] | None]
    styles: Sequence[str] = ("look.css",)
    skips: bool = False


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
        lang, theme = language_of(request), request.cookies.get(THEME_COOKIE, "auto")
        own, frame = words(lang, f"studio_{page.name}"), words(lang, "studio_frame")
        return Visit(
            studio, page, lang, theme if theme in THEMES else "auto", own, frame, Say(lang, decimals=1), request
        )

    def tell(self, error: BaseException) -> None:
        ui.notify(self.why(error), type="negative", position="top", timeout=8000, multi_line=True)

    def why(self, error: BaseException) -> str:
        """What went wrong, in one sentence; klype's own fault is said to be one, and the log has the rest."""
        if isinstance(error, KlypeError):
            said = Sentences(self.lang)
            return visible(str(KlypeError(said(error.message), said(error.hint))))
        if isinstance(error, ApiError):
            return visible(str(error))
        logging.getLogger("klype.studio").error("The studio failed.", exc_info=error)
        return self.frame("fault", name=type(error).__name__)


def language_of(request: Request) -> str:
    """The one that was switched to, else the first that the browser asks for and klype speaks."""
    chosen = request.cookies.get(LANGUAGE_COOKIE, "")
    return chosen if chosen in LANGUAGES else preferred(request.headers.get("accept-language", ""))


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


def text_of(tag: str, text: Any, classes: str = "", **props: Any) -> ui.element:
    """An element of this tag that holds a text: what it says is never parsed."""
    element = box(classes, tag, **props)
    element._text = str(text)
    return element


def retext(element: ui.element, text: str) -> None:
    """Another text into an element that is there."""
    element._text = text
    element.update()


def box(classes: str = "", tag: str = "div", **props: Any) -> ui.element:
    """An element to be filled; underscores in the names of properties stand for hyphens."""
    element = ui.element(tag).classes(classes)
    element.props.update({name.replace("_", "-"): value for name, value in props.items()})
    return element


def card(classes: str = "") -> ui.element:
    return box(f"k-card {classes}".strip(), "section")


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


def status() -> ui.element:
    """A sentence that a screen reader says when it changes."""
    return text_of("p", "", "k-small", role="status", aria_live="polite")


class Progress(ui.element):
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
    visit: Visit,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    numeric: Sequence[int] = (),
    label: str = "",
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
        script = text_file("save.js").replace("ID", json.dumps(drawn.html_id))
        ui.run_javascript(script.replace("NAME", json.dumps(f"{name}.png")))

    kinds: list[tuple[str, Callable[[], None]]] = [("CSV", save_csv), ("JSON", save_json)]
    if picture is not None:
        kinds.append(("PNG", partial(save_png, picture)))
    with box("k-row k-data k-small"):
        text_of("span", visit.frame("data"))
        for text, act in kinds:
            button(text, act, "tiny", aria_label=f"{visit.frame('data')} {text}")


def to_csv(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> bytes:
    """For spreadsheets: UTF-8 with its mark; a text that would start a formula is quoted."""
    out = io.StringIO()
    writer = csv.writer(out)
    for row in (columns, *rows):
        starts = [isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") for cell in row]
        writer.writerow([f"'{cell}" if starting else cell for cell, starting in zip(row, starts, strict=True)])
    return out.getvalue().encode("utf-8-sig")


def text_file(*names: str) -> str:
    """Scripts and styles of the studio's own, one after the other."""
    return "".join((resources.files("klype.studio") / name).read_text(encoding="utf-8") for name in names)


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


@contextmanager
def framed(visit: Visit, pages: Sequence[Page]) -> Iterator[None]:
    """The page's content goes inside."""
    skips = visit.page.skips and visit.studio.models
    text_of(
        "a", visit.frame("skip_message" if skips else "skip"), "k-skip", href=f"#{PAGE_BEGINS if skips else 'main'}"
    )
    with box("k-head", "header"), box("k-bar"):
        text_of("a", "klype", "k-brand", href="/")
        stop = visit.page if visit.page in pages else pages[0]
        nav, bar = box(tag="nav", aria_label=visit.frame("pages")), {"aria_label": visit.frame("pages_by_arrows")}
        with nav, box("k-nav", role="toolbar", **bar).on("keydown", js_handler=ARROWS):
            for page in pages:
                here = {"aria-current": "page"} if page is visit.page else {}
                with box(tag="a", href=page.route, tabindex=0 if page is stop else -1, **here):
                    ui.icon(page.icon)
                    text_of("span", words(visit.lang, f"studio_{page.name}")("title"))
        _switches(visit)
    with box("k-main", "main", id="main", tabindex="-1"):
        text_of("h1", visit.words("heading"))
        text_of("p", visit.words("lead"), "k-lead")
        if explained := visit.words.section("explain"):
            with box("k-how", "details"):
                text_of("summary", visit.frame("how"))
                for key, text in explained.items():
                    text_of("p", text, "k-formula" if key.startswith("formula") else "")
        yield


def _switches(visit: Visit) -> None:
    here = quote(str(visit.request.url.path) + (f"?{visit.request.url.query}" if visit.request.url.query else ""))
    with box("k-switches"):
        for other, row in LANGUAGES.items():
            if other != visit.lang:
                text_of("a", row.name, href=f"/choose?lang={other}&to={here}", lang=other, hreflang=other)
        if COOKIE in visit.request.cookies:
            text_of("a", visit.frame("leave"), href=KEY_PAGE)
        (following, icon), said = THEMES[visit.theme], visit.frame(f"theme_{visit.theme}")
        with box(tag="a", href=f"/choose?theme={following}&to={here}", aria_label=said, title=said):
            ui.icon(icon)
