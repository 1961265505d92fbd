"""Tokens on a page: an answer's, coloured by probability, each of which can be picked; and any text's."""

from __future__ import annotations

import asyncio
import codecs
import math
from collections.abc import Callable, Sequence

from nicegui import ui
from nicegui.events import GenericEventArguments

from klype.examine.charts import step_of
from klype.examine.say import visible
from klype.studio.fields import Choice, Text
from klype.studio.frame import Visit, button, table, text_of
from klype.studio.studio import Model
from klype.values import Step

Row = list[str | int]
"""Text, step of the probability scale, class of how it came, tooltip."""


class Tokens(ui.element, component="tokens.js"):
    """``label`` is what a screen reader calls it. Tokens are sent once, as they come."""

    def __init__(self, rows: Sequence[Row], label: str, busy: bool, on_pick: Callable[[int], None]) -> None:
        super().__init__()
        self.rows, self.busy = list(rows), busy
        self._props["tokens"] = self.rows
        self._props["label"] = label
        self._props["busy"] = busy
        self._props["picked"] = -1
        self.on("pick", lambda event: on_pick(_index(event, len(self.rows))))

    def add(self, rows: Sequence[Row]) -> None:
        if rows:
            start = len(self.rows)
            self.rows.extend(rows)
            self.run_method("put", start, list(rows))


def rows_of(model: Model, steps: Sequence[Step], first: int, percent: Callable[[float], str]) -> list[Row]:
    """Rows of the steps from ``first`` on. A character of several tokens stands at the last of them (⋯ before)."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="backslashreplace")
    out: list[Row] = []
    for place, step in enumerate(steps):
        name = model.control(step.token)
        text = decoder.decode(b"" if name is not None else model.spell(step.token))
        if place < first:
            continue
        p = min(1.0, math.exp(step.logp)) if step.logp > -math.inf else 0.0
        shown_as = name if name is not None else visible(text) or "⋯"
        shown_as = shown_as.removeprefix(" ") if place == 0 else shown_as
        out.append([shown_as, step_of(p), how_of(model, step), percent(p)])
    return out


def spelled(model: Model, token: int) -> str:
    """A token's text: a control token's name, hidden characters and broken bytes made visible."""
    name = model.control(token)
    return name if name is not None else visible(model.spell(token).decode("utf-8", "backslashreplace"))


def shown(text: str) -> str:
    """A token's text where its white space matters: as a sign."""
    return text.strip(" ").replace("\n", "↵").replace("\t", "⇥") or ("␣" * len(text) if text else "∅")


def how_of(model: Model, step: Step) -> str:
    return {"drafted": "drafted", "forced": "forced"}.get(step.how, "control" if model.control(step.token) else "")


def _index(event: GenericEventArguments, size: int) -> int:
    """A browser may send anything: what is no place in the answer is the nearest one."""
    given = event.args
    return max(0, min(size - 1, int(given))) if isinstance(given, int | float) and math.isfinite(given) else 0


LONGEST_TEXT = 20_000
SHOWN_TOKENS = 2000
LISTED_TOKENS = 40


def tokenizer_view(visit: Visit) -> None:
    """A fold: a text, the model whose tokens are wanted, and the pieces, with their numbers."""
    w = visit.words
    with ui.element("details").classes("k-fold k-card"):
        text_of("summary", w("tokenizer"))
        text_of("p", w("tokenizer_how"), "k-small")
        names = {model.name: model.name for model in visit.studio.models}
        with ui.element("div").classes("k-row"):
            choice = Choice(w("model"), names, next(iter(names)), lambda: cut())
            text = Text(w("any_text"), 2, LONGEST_TEXT, lambda: cut())
        button(w("cut"), lambda: cut())
        found = ui.element("div").style("margin-top:10px")

    async def cut() -> None:
        model = visit.studio.voice(choice.value).model
        try:
            ids = await asyncio.to_thread(model.codec.encode, text.value)
        except Exception as error:
            visit.tell(error)
            return
        found.clear()
        with found:
            text_of(
                "p", w("cut_into", n=visit.say.count(len(ids)), characters=visit.say.count(len(text.value))), "k-small"
            )
            with ui.element("div").classes("k-answer"):
                for i, token in enumerate(ids[:SHOWN_TOKENS]):
                    classes = "k-tok plain even" if i % 2 else "k-tok plain"
                    text_of("span", spelled(model, token), classes).props["title"] = str(token)
            rows = [
                [str(token), shown(spelled(model, token)), model.spell(token).hex(" ")] for token in ids[:LISTED_TOKENS]
            ]
            table([w("number"), w("token"), w("bytes")], rows)
