"""Models opened from a page: any MODEL by its name, or a run of the studio's own; what a page without one offers."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from nicegui import ui

from klype.errors import UsageError
from klype.studio.fields import TextLine
from klype.studio.frame import Visit, box, button, card, retext, text_of

LONGEST = 1000  # characters of a MODEL


async def open_model(visit: Visit, model: str, note: ui.element, to: str) -> None:
    """Opens it, says in ``note`` what is waited for and how long, and leads to the page ``to``; or says why not."""
    note.classes(remove="k-warn")
    began, work = time.monotonic(), asyncio.ensure_future(asyncio.to_thread(visit.studio.open, model))
    while not (await asyncio.wait([work], timeout=1))[0]:
        if not note.is_deleted:
            said = visit.say.seconds(float(round(time.monotonic() - began)))
            retext(note, visit.frame("opening", model=visit.say.text(model), time=said))
    if note.is_deleted:
        return
    if (error := work.exception()) is None:
        ui.navigate.to(to)
    else:
        note.classes("k-warn")
        retext(note, visit.why(error))


def open_form(visit: Visit) -> None:
    """A field for a MODEL of whatever kind."""

    async def opened() -> None:
        if not visit.studio.opens:  # whatever a browser sends
            visit.tell(UsageError("Models are opened from the machine that the studio runs on only."))
        elif text := field.value.strip():
            go.props["disabled"] = True
            go.update()
            await open_model(visit, text, note, visit.page.route)
            go.props.pop("disabled", None)
            go.update()

    with box("k-row"):
        field = TextLine(visit.frame("open_what"), LONGEST, opened)
        field.classes("k-grow")
        go = button(visit.frame("open"), opened, "strong")
    note = text_of("p", "", "k-small", role="status", aria_live="polite")
    with box("k-small k-kinds", "ul"):
        for kind in ("demo", "folder", "hub", "gguf", "server"):
            with box(tag="li"):
                text_of("span", visit.frame(f"open_{kind}"))


def open_fold(visit: Visit) -> None:
    """The same for a page that has models already."""
    if visit.studio.opens:
        with box("k-fold k-card", "details"):
            text_of("summary", visit.frame("open_another"))
            open_form(visit)


def first_steps(visit: Visit, why: str) -> None:
    """What there is to do where a page has no model that it could show: open one, or train one."""
    with card():
        text_of("h2", why)
        text_of("a", visit.frame("train_one"), "k-button strong", href="/runs#start")
        text_of("p", visit.frame("train_how"), "k-small")
    if visit.studio.opens:
        with card():
            text_of("h2", visit.frame("open_one"))
            open_form(visit)


def way_back(visit: Visit) -> None:
    """From an address where there is nothing."""
    text_of("a", visit.words("back"), "k-button strong", href="/")


def ask_button(visit: Visit, run: str, note: ui.element) -> None:
    """Opens a run that the studio knows, and leads to where it is asked."""
    button(visit.frame("ask_it"), partial(open_model, visit, run, note, "/"), "strong")
