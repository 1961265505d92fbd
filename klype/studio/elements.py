"""A visit to a page, with its language and theme, and the elements that pages are built of: boxes, buttons, tables, and
the report's charts, whose colours follow the theme without a redraw; each with its data to download."""

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
from klype.examine.charts import DARK, LIGHT, Cell, Option, Picture
from klype.examine.say import Say, visible
from klype.serve.api_errors import ApiError
from klype.studio.background_jobs import Work
from klype.studio.studio import Studio
from klype.words import LANGUAGES, spoken_language, words
from klype.words.sentences import Sentences

P = ParamSpec("P")
T = TypeVar("T")
LANGUAGE_COOKIE, THEME_COOKIE = "klype_lang", "klype_theme"
# the theme after each, and its icon
THEMES = {"auto": ("dark", "brightness_auto"), "light": ("auto", "light_mode"), "dark": ("light", "dark_mode")}
# Colours of meanings, which colour-blind readers can tell apart (after Okabe and Ito); text beside them says the same.
MEANINGS = ("#0072b2", "#b85000", "#00735a", "#a3377c", "#7a6000", "#3f6fd1", "#8a3b12", "#5a4fa2")
MEANINGS_DARK = ("#6cb8ea", "#f0a35e", "#4fc9a4", "#e79ac6", "#d9c25c", "#9db8ff", "#e8a184", "#bdb4f5")
LONGEST_FIGURE = 24  # characters of a figure that is kept on one line of a table; longer ones wrap
PAGE_BEGINS = "message"  # id of the card with the input field, where the skip link leads
FONT = "ui-sans-serif, system-ui, sans-serif"
Rows = Callable[[], Sequence[Sequence[Cell]]]  # returns the data at the time of a download
FORMATS = ("number", "percent", "value", "share", "bar", "whisker")  # functions of ``formats.js``, which all pages load


@dataclass(frozen=True)
class Page:
    """A page of the menu. ``name``: its catalogue is ``studio_<name>``, with title, lead and explanation. ``build``
    adds its content. ``skips``: the skip link leads to ``PAGE_BEGINS`` if there is a model."""

    name: str
    route: str
    icon: str
    build: "Callable[[Visit], Awaitable[None] | None]"
    skips: bool = False


class Visit:
    """A request for a page: ``words`` is the page's catalogue in the visitor's language, ``frame`` that of all pages;
    ``say`` formats figures as the report does."""

    def __init__(self, studio: Studio, page: Page, request: Request) -> None:
        self.studio, self.page, self.request = studio, page, request
        theme = request.cookies.get(THEME_COOKIE, "auto")
        self.lang, self.theme = language_of(request), theme if theme in THEMES else "auto"
        self.words, self.frame = words(self.lang, f"studio_{page.name}"), words(self.lang, "studio_frame")
        self.say = Say(self.lang, decimals=1)

    def tell(self, error: BaseException) -> None:
        ui.notify(self.why(error), type="negative", position="top", timeout=8000, multi_line=True)

    def why(self, error: BaseException) -> str:
        """Returns what went wrong in one sentence of the visitor's language. A bug is called one, and logged."""
        if isinstance(error, KlypeError):
            said = Sentences(self.lang)
            return visible(str(KlypeError(said(error.message), said(error.hint))))
        if isinstance(error, ApiError):
            return visible(str(error))
        logging.getLogger("klype.studio").error("The studio failed.", exc_info=error)
        return self.frame("fault", name=type(error).__name__)

    async def attempt(self, work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T | None:
        """Runs ``work`` in a thread and returns its result; shows an error to the visitor and returns None."""
        try:
            return await asyncio.to_thread(work, *args, **named)
        except Exception as error:
            self.tell(error)
            return None


def text_of(tag: str, text: Any, classes: str = "", **props: Any) -> ui.element:
    """An element that holds plain text: it is never parsed as HTML."""
    element = box(classes, tag, **props)
    element._text = str(text)
    return element


def small(text: str) -> ui.element:
    """A paragraph of explanation."""
    return text_of("p", text, "k-small")


def status() -> ui.element:
    """An empty paragraph that a screen reader announces when its text changes."""
    return text_of("p", "", "k-small", role="status", aria_live="polite")


def retext(element: ui.element, text: str) -> None:
    """Replaces the text of an element."""
    element._text = text
    element.update()


def box(classes: str = "", tag: str = "div", **props: Any) -> ui.element:
    """An element for others; underscores in the names of properties become hyphens."""
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
    """A section that is opened by its title."""
    made = box(f"k-fold {classes}".strip(), "details")
    with made:
        text_of("summary", title)
    return made


class Scroll(ui.element, component="scroll.js"):
    """A box whose content scrolls sideways, by keys too, and that says what is cut off. ``label``: for screen
    readers."""

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
    """A page, or a part of one, of one visitor: ``w`` is its catalogue, ``say`` formats figures."""

    visit: Visit

    def __post_init__(self) -> None:
        self.studio, self.w, self.say = self.visit.studio, self.visit.words, self.visit.say
        self.busy = asyncio.Lock()
        self.build()

    def build(self) -> None:
        """Adds the elements to the page; called once, at the end of the constructor."""
        raise NotImplementedError


Part = TypeVar("Part", bound=PagePart)


def unless_busy(look: Callable[[Part], Awaitable[None]]) -> Callable[[Part], Coroutine[Any, Any, None]]:
    """A decorator for methods of a part, which then do nothing while another one of them runs: a disk may be slower
    than the timer, and buttons are pressed twice."""

    @wraps(look)
    async def once(part: Part) -> None:
        if not part.busy.locked():
            async with part.busy:
                await look(part)

    return once


async def follow(look: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Looks now, and again at this interval. The timer is made last, because NiceGUI sends a page off, however empty,
    as soon as a timer on it waits for the browser."""
    await look()
    ui.timer(seconds, look)


class WorkPart(PagePart):
    """A part that shows a piece of ``work``: its state, its progress, and buttons to cancel or resume it."""

    work: Work | None = None

    async def look(self) -> None:
        """Reads the work's files in a thread, and redraws what has changed."""
        raise NotImplementedError

    def add_controls(self, on: str, go_on: Callable[[], Any] | None = None) -> ui.element:
        """Adds a note, a progress bar and a row of buttons, which is returned. The button labelled ``on`` resumes the
        work, or calls ``go_on``."""
        self.note, self.progress = status(), progress_bar()
        with box("k-row") as row:
            self.stop = button(self.visit.frame("cancel"), partial(self.act, Work.cancel))
            self.on = button(on, go_on or partial(self.act, Work.go_on), "strong")
        return row

    def show_state(self, said: str, state: str, share: float, more: bool | None = None) -> None:
        """Shows the state. ``more``: whether the work can be resumed, where its state does not tell."""
        retext(self.note, said)
        self.progress.props(f"value={share:.3f}").set_visibility(state == "running")
        self.stop.set_visibility(state == "running" and self.work is not None)
        stopped = state in ("cancelled", "stopped", "failed") and self.work is not None
        self.on.set_visibility(stopped if more is None else more)

    async def act(self, what: Callable[[Work], None]) -> None:
        if self.work is not None:
            await self.visit.attempt(what, self.work)
            await self.look()


def progress_bar(classes: str = "") -> ui.element:
    """A progress bar; ``value``: the share that is done. A text beside it tells screen readers the same."""
    return box(f"k-progress {classes}".strip(), "progress", value=0, aria_hidden="true")


def table(
    visit: Visit, columns: Sequence[str], rows: Sequence[Sequence[Any]], numeric: Sequence[int] = (), label: str = ""
) -> None:
    """A table. Cells are values, or functions that add elements to their cell. ``numeric``: the columns of numbers;
    ``label``: for screen readers, by default the columns' names."""
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
    """Returns a figure's value, low, high and n, None where one is missing."""
    return [(figure or {}).get(name) for name in ("value", "low", "high", "n")]


def figure_table(
    visit: Visit, name: str, columns: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str], label: str
) -> None:
    """A table of figures, and its data. ``columns``: title → measure → figure; ``titles``: of the measures, in the
    order of the rows; ``label``: the heading above the measures."""
    rows = [
        [title, *(visit.say.in_full(found[key], key) if known(found.get(key)) else "–" for found in columns.values())]
        for key, title in titles.items()
        if any(known(found.get(key)) for found in columns.values())
    ]
    table(visit, [label, *columns], rows, range(1, len(columns) + 1), label)
    data = [[key, of, *ends(found.get(key))] for of, found in columns.items() for key in titles]
    as_data(visit, name, ["measure", "model", "value", "low", "high", "n"], lambda: data)


def big_numbers(shown: Mapping[str, str]) -> None:
    """A row of large numbers, each above its name; ``shown``: name → number."""
    with box("r-numbers"):
        for name, number in shown.items():
            with box():
                text_of("b", number)
                text_of("span", name)


def as_data(visit: Visit, name: str, columns: Sequence[str], rows: Rows, picture: ui.element | None = None) -> None:
    """Buttons that download ``rows`` as CSV and JSON, and the charts in ``picture`` as PNG."""

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
    """CSV for spreadsheets: UTF-8 with a byte order mark; a text that would start a formula is quoted."""
    out = io.StringIO()
    writer = csv.writer(out)
    for row in (columns, *rows):
        starts = ("=", "+", "-", "@", "\t", "\r")
        writer.writerow([f"'{cell}" if isinstance(cell, str) and cell.startswith(starts) else cell for cell in row])
    return out.getvalue().encode("utf-8-sig")


def chart(option: Option, lang: str, height: int, label: str) -> ui.echart:
    """A chart of the report's kind, ``height`` pixels high; ``label``: for screen readers."""
    drawn = ui.echart(to_browser_option(option, lang), renderer="svg").classes("k-chart").style(f"height: {height}px")
    drawn.props.update({"role": "img", "aria-label": label})
    return drawn


def redraw(drawn: ui.echart, option: Option, lang: str) -> None:
    """Draws other data in the same element: a new one would take the browser three times as long."""
    drawn.options.clear()
    drawn.options.update(to_browser_option(option, lang))
    drawn.update()


def picture(visit: Visit, found: Picture, rows: Rows | None = None) -> list[ui.echart]:
    """A card with a report's picture: title, charts side by side (which are returned), how to read them, and the data.

    A chart with a least width scrolls where there is less room. ``rows``: the data where they are not in the picture.
    """
    made = []
    with card(found.title) as drawn:
        with box("k-panels"):
            for panel in found.panels:
                label = f"{found.title} {panel.title}".strip()
                with Scroll(visit, label) if panel.width else box():
                    if panel.title:
                        text_of("h3", panel.title)
                    made.append(chart(panel.option, visit.lang, panel.height, label))
                    made[-1].style(f"min-width:{panel.width}px")
        small(found.how)
        as_data(visit, found.id, found.columns, rows or (lambda: found.rows), drawn)
    return made


class GrowingPictures:
    """Pictures of data that grow, in the order of ``names``. A chart is redrawn as long as its picture has the same
    panels, and made anew otherwise. ``rows``: the data where they are not in the pictures."""

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


def to_browser_option(option: Mapping[str, Any], lang: str) -> Option:
    """Returns a chart's option for the browser: ``$ink`` becomes a variable of the theme, ``fn:percent`` a JavaScript
    function (under a key that begins with a colon).

    Only the names in ``FORMATS`` become functions; texts of models and users stay texts.
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
        if given == "inherit":  # ECharts measures text with the font, so it has to be named
            return FONT
        return f"var(--k-{given[1:]})" if isinstance(given, str) and re.fullmatch(r"\$[a-z0-9]+", given) else given

    return {**value(option)}


def meaning_colour(place: int) -> str:
    """The colour of the meaning at this place, from 0; grey for places without a colour of their own."""
    return f"var(--k-m{place})" if 0 <= place < len(MEANINGS) else "var(--k-base)"


def language_of(request: Request) -> str:
    """The language that the visitor chose, else the first of the browser's languages that klype has."""
    chosen = request.cookies.get(LANGUAGE_COOKIE, "")
    return chosen if chosen in LANGUAGES else preferred_language(request.headers.get("accept-language", ""))


def preferred_language(header: str) -> str:
    """Returns the language for an Accept-Language header: the most wanted one that klype has, or whose speakers read
    one that it has; "en" if there is none."""
    wishes: list[tuple[float, int, str]] = []
    for place, part in enumerate(header.split(",")[:20]):
        name, _, quality = part.strip().partition(";")
        with suppress(ValueError):
            wishes.append((-float(quality.strip().removeprefix("q=") or 1), place, name))
    found = (spoken_language(name, read=True) for weight, _, name in sorted(wishes) if weight < 0)
    return next(filter(None, found), "en")


def text_file(*names: str) -> str:
    """The text of these files of the studio (scripts, styles), joined."""
    return "".join((resources.files("klype.studio") / name).read_text(encoding="utf-8") for name in names)


def theme() -> str:
    """CSS with the colours of both themes as variables of the same names."""
    return (
        f"body{{{_variables(LIGHT, False)}}}\nbody.body--dark{{{_variables(DARK, True)}}}\n"
        f"html{{background:{LIGHT['paper']};color-scheme:light}}html:has(body.body--dark){{background:{DARK['paper']};color-scheme:dark}}\n"
        f"@media(prefers-color-scheme:dark){{html:not(:has(body.body--light)){{background:{DARK['paper']}}}}}"
    )


def _variables(colours: Mapping[str, str], dark: bool) -> str:
    out = [f"--k-{name}:{value}" for name, value in colours.items()]
    out += [f"--k-m{i}:{value}" for i, value in enumerate(MEANINGS_DARK if dark else MEANINGS)]
    return ";".join(out)
