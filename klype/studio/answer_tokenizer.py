"""How a model cuts any text into tokens."""

from __future__ import annotations

import asyncio

from nicegui import ui

from klype.studio.fields import Choice, Text
from klype.studio.frame import button, table
from klype.studio.tokens import shown, spelled
from klype.studio.visit import Visit, text_of

LONGEST = 20_000
SHOWN = 2000
LISTED = 40


def tokenizer_view(visit: Visit) -> None:
    """A fold: a text, the model whose tokens are wanted, and the pieces, with their numbers."""
    w = visit.words
    with ui.element("details").classes("k-fold k-card"):
        text_of("summary", w("tokenizer"))
        text_of("p", w("tokenizer_how"), "k-small")
        names = {model.name: model.name for model in visit.studio.models}
        with ui.element("div").classes("k-row"):
            choice = Choice(w("model"), names, next(iter(names)), lambda: cut())
            text = Text(w("any_text"), 2, LONGEST, lambda: cut())
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
                for i, token in enumerate(ids[:SHOWN]):
                    classes = "k-tok plain even" if i % 2 else "k-tok plain"
                    text_of("span", spelled(model, token), classes).props["title"] = str(token)
            rows = [[str(token), shown(spelled(model, token)), model.spell(token).hex(" ")] for token in ids[:LISTED]]
            table([w("number"), w("token"), w("bytes")], rows)
