"""Who looks at which page, in which language and theme, and what pages are built of: boxes, buttons, tables, and the
report's charts in colours that follow the theme without being drawn anew; each with its data."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial, wraps
from importlib import resources
from typing import Any, ParamSpec, TypeVar

from fastapi import Request
from nicegui import ui

from klype.errors import KlypeError
from klype.examine.charts import DARK, LIGHT, Cell, Option, Panel, Picture
from klype.examine.say import Say, visible
from klype.serve.api_errors import ApiError
from klype.studio.background_jobs import Work
from klype.studio.studio import Studio
from klype.words import LANGUAGES, spoken, words
from klype.words.sentences import Sentences

P = ParamSpec("P")
T = TypeVar("T")
LANGUAGE_COOKIE, THEME_COOKIE = "klype_lang", "klype_theme"
# the theme after each, and its icon
THEMES = {"auto": ("dark", "brightness_auto"), "light": ("auto", "light_mode"), "dark": ("light", "dark_mode")}
# Told apart by colour-blind readers too (after Okabe and Ito); text beside them says the same.
MEANINGS = ("#0072b2", "#b85000", "#00735a", "#a3377c", "#7a6000", "#3f6fd1", "#8a3b12", "#5a4fa2")
MEANINGS_DARK = ("#6cb8ea", "#f0a35e", "#4fc9a4", "#e79ac6", "#d9c25c", "#9db8ff", "#e8a184", "#bdb4f5")
LONGEST_FIGURE = 24  # in a table a number stands in one line, one that says why it is uncertain in several
PAGE_BEGINS = "message"  # the element in which one writes to a model
FONT = "ui-sans-serif, system-ui, sans-serif"
Rows = Callable[[], Sequence[Sequence[Cell]]]  # data as they are when they are asked for
FORMATS = ("number", "percent", "value", "share", "bar", "whisker")  # functions of ``formats.js``, which all pages have


@dataclass(frozen=True)
class Page:
    """``name`` is that of its catalogue (``studio_<name>``), which holds its title, lead and explanation. ``skips``:
    where a model is there, the first link leads past whatever stands before ``PAGE_BEGINS``."""

    name: str
    route: str
    icon: str
    build: Callable[[Visit], Awaitable[None] | None]
    skips: bool = False


class Visit:
    """``words`` are the page's own, ``frame`` those of all pages; ``say`` writes figures as the report does."""

    def __init__(self, studio: Studio, page: Page, request: Request) -> None:
        self.studio, self.page, self.request = studio, page, request
        theme = request.cookies.get(THEME_COOKIE, "auto")
        self.lang, self.theme = language_of(request), theme if theme in THEMES else "auto"
        self.words, self.frame = words(self.lang, f"studio_{page.name}"), words(self.lang, "studio_frame")
        self.say = Say(self.lang, decimals=1)

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

    async def attempt(self, work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T | None:
        """What it returns, done in a thread; None where it failed, which the visitor is told."""
        try:
            return await asyncio.to_thread(work, *args, **named)
        except Exception as error:
            self.tell(error)
            return None


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


@dataclass
class PagePart:
    """A page, or a part of one, as one visitor has it: ``w`` are its words, ``say`` writes figures."""

    visit: Visit

    def __post_init__(self) -> None:
        self.studio, self.w, self.say = self.visit.studio, self.visit.words, self.visit.say
        self.busy = asyncio.Lock()
        self.build()

    def build(self) -> None:
        """Lays it out, where it is made."""
        raise NotImplementedError


Part = TypeVar("Part", bound=PagePart)


def unless_busy(look: Callable[[Part], Awaitable[None]]) -> Callable[[Part], Coroutine[Any, Any, None]]:
    """A part's method that is left out while the part is at work already: a timer may find a busy disk, and a button is
    pressed twice."""

    @wraps(look)
    async def once(part: Part) -> None:
        if not part.busy.locked():
            async with part.busy:
                await look(part)

    return once


@dataclass
class WorkPart(PagePart):
    """A part that shows a piece of ``work``: how it stands, how far it is, and what can be done about it."""

    def __post_init__(self) -> None:
        self.work: Work | None = None
        super().__post_init__()

    async def look(self) -> None:
        """What has come of it, read beside the page; drawn when it has changed."""
        raise NotImplementedError

    def lay(self, on: str, go_on: Callable[[], Any] | None = None) -> ui.element:
        """The note, the bar and a row of buttons, which is returned. The one called ``on`` goes on with the work, or
        does ``go_on``."""
        self.note, self.progress = status(), ProgressBar()
        with box("k-row") as row:
            self.stop = button(self.visit.frame("cancel"), partial(self.act, Work.cancel))
            self.on = button(on, go_on or partial(self.act, Work.go_on), "strong")
        return row

    def tell(self, said: str, state: str, share: float, more: bool | None = None) -> None:
        """How it stands. ``more``: whether it can be gone on with, where its state does not say it."""
        retext(self.note, said)
        self.progress.fill(state == "running", share)
        self.stop.set_visibility(state == "running" and self.work is not None)
        stopped = state in ("cancelled", "stopped", "failed") and self.work is not None
        self.on.set_visibility(stopped if more is None else more)

    async def act(self, what: Callable[[Work], None]) -> None:
        if self.work is not None:
            await self.visit.attempt(what, self.work)
            await self.look()


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


def figure_table(
    visit: Visit, name: str, columns: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str], label: str
) -> None:
    """Figures by what they are of (title → measure → figure) and their data; ``titles`` of measures in their order, and
    ``label``, what the rows are."""
    rows = [
        [title, *(visit.say.told(found[key], key) if known(found.get(key)) else "–" for found in columns.values())]
        for key, title in titles.items()
        if any(known(found.get(key)) for found in columns.values())
    ]
    table(visit, [label, *columns], rows, range(1, len(columns) + 1), label)
    data = [[key, of, *ends(found.get(key))] for of, found in columns.items() for key in titles]
    as_data(visit, name, ["measure", "model", "value", "low", "high", "n"], lambda: data)


def big_numbers(shown: Mapping[str, str]) -> None:
    """Numbers beside each other, each over what it is: name → number."""
    with box("r-numbers"):
        for name, number in shown.items():
            with box():
                text_of("b", number)
                text_of("span", name)


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


def panels(visit: Visit, drawings: Sequence[Panel], label: str = "") -> list[ui.echart]:
    """Charts beside each other, each under its title; one that may be wider than a phone scrolls."""
    made = []
    with box("k-panels"):
        for panel in drawings:
            called = f"{label} {panel.title}".strip()
            with Scroll(visit, called) if panel.width else box():
                if panel.title:
                    text_of("h3", panel.title)
                made.append(chart(panel.option, visit.lang, panel.height, called))
                made[-1].style(f"min-width:{panel.width}px")
    return made


def picture(visit: Visit, found: Picture, rows: Rows | None = None) -> list[ui.echart]:
    """A report's picture: its finding as the title, its panels, how to read it, and its rows, or those of now, for who
    asks for them. Returns the charts."""
    with card(found.title) as drawn:
        made = panels(visit, found.panels, found.title)
        small(found.how)
        as_data(visit, found.id, found.columns, rows or (lambda: found.rows), drawn)
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
            one, (before, charts) = self._now.get(name), self._drawn.get(name, (None, []))
            shape = one and (one.title, [(panel.title, panel.height) for panel in one.panels])
            if shape == before:
                for drawn, panel in zip(charts, one.panels if one else (), strict=True):
                    redraw(drawn, panel.option, self._visit.lang)
                continue
            place.clear()
            with place:
                rows = self._rows or partial(lambda name: self._now[name].rows, name)
                self._drawn[name] = shape, picture(self._visit, one, rows) if one else []


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


def language_of(request: Request) -> str:
    """The one that was switched to, else the first that the browser asks for and klype speaks."""
    chosen = request.cookies.get(LANGUAGE_COOKIE, "")
    return chosen if chosen in LANGUAGES else preferred(request.headers.get("accept-language", ""))


def preferred(header: str) -> str:
    """By an Accept-Language header: the first wish that klype speaks, or whose readers read what it speaks."""
    wishes: list[tuple[float, int, str]] = []
    for place, part in enumerate(header.split(",")[:20]):
        name, _, quality = part.strip().partition(";")
        with suppress(ValueError):
            wishes.append((-float(quality.strip().removeprefix("q=") or 1), place, name))
    found = (spoken(name, read=True) for weight, _, name in sorted(wishes) if weight < 0)
    return next(filter(None, found), "en")


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
    out += [f"--k-m{i}:{value}" for i, value in enumerate(MEANINGS_DARK if dark else MEANINGS)]
    return ";".join(out)
