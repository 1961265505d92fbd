"""Who looks at which page, in which language and theme, and what the parts of a page have in common."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from importlib import resources
from typing import Any, ParamSpec, TypeVar

from fastapi import Request
from nicegui import ui

from klype.errors import KlypeError
from klype.examine.charts import DARK, LIGHT
from klype.examine.say import Say, visible
from klype.serve.errors import ApiError
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


@dataclass
class PagePart:
    """A page, or a part of one, as one visitor has it: ``w`` are its words, ``say`` writes figures."""

    visit: Visit

    def __post_init__(self) -> None:
        self.studio, self.w, self.say = self.visit.studio, self.visit.words, self.visit.say
        self.busy = asyncio.Lock()


@dataclass
class WorkPart(PagePart):
    """A part that shows a piece of work, which can be cancelled and gone on with."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.work: Work | None = None

    async def look(self) -> None:
        """What has come of it, read beside the page; drawn when it has changed."""
        raise NotImplementedError

    async def cancel(self) -> None:
        if self.work is not None:
            await self.visit.attempt(self.work.cancel)
            await self.look()

    async def resume(self) -> None:
        if self.work is not None:
            await self.visit.attempt(self.work.go_on)
            await self.look()


Part = TypeVar("Part", bound=PagePart)


def unless_busy(look: Callable[[Part], Awaitable[None]]) -> Callable[[Part], Coroutine[Any, Any, None]]:
    """A part's method that is left out while it is at work already: a timer may find a busy disk."""

    @wraps(look)
    async def once(part: Part) -> None:
        if not part.busy.locked():
            async with part.busy:
                await look(part)

    return once


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
            weight = float(quality.strip().removeprefix("q=") or 1)
        except ValueError:
            weight = 0.0
        wishes.append((-weight, place, name))
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
