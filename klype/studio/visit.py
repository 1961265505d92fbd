"""One person's look at one page: in which language and theme, and how numbers and refusals are said there."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import Request
from nicegui import ui

from klype.errors import KlypeError
from klype.examine.say import Say, visible
from klype.serve.errors import ApiError
from klype.words import LANGUAGES, Words, words
from klype.words.catalogue import spoken

if TYPE_CHECKING:
    from klype.studio.studio import Studio

LANGUAGE_COOKIE, THEME_COOKIE = "klype_lang", "klype_theme"
THEMES = ("auto", "light", "dark")


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
