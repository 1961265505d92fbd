"""Tokens on a page: an answer's, coloured by probability, each of which can be picked; and any text's."""

from __future__ import annotations

import asyncio
import codecs
import math
from collections.abc import Callable, Sequence

from nicegui import ui
from nicegui.events import GenericEventArguments

from klype.api.model import Model
from klype.examine.charts import step_of
from klype.examine.say import visible
from klype.studio.fields import Select, Text
from klype.studio.frame import Visit, box, button, table, text_of
from klype.values import Step

Row = list[str | int]
"""Text, step of the probability scale, class of how it came, tooltip."""
MOST_OF_A_CHARACTER = 3
"""Bytes, and so tokens, that stand before the last one of a character."""
LONGEST_TEXT, SHOWN_TOKENS, LISTED_TOKENS = 20_000, 2000, 40


class Tokens(ui.element, component="tokens.js"):
    """``label`` is what a screen reader calls it. Tokens are sent once, as they come."""

    def __init__(self, rows: Sequence[Row], label: str, busy: bool, on_pick: Callable[[int], None]) -> None:
        super().__init__()
        self.rows, self.busy = list(rows), busy
        self._props.update(tokens=self.rows, label=label, busy=busy, picked=-1)
        self.on("pick", lambda event: on_pick(_index(event, len(self.rows))))

    def add(self, rows: Sequence[Row]) -> None:
        if rows:
            start = len(self.rows)
            self.rows.extend(rows)
            self.run_method("put", start, list(rows))


def pieces(model: Model, ids: Sequence[int]) -> list[str]:
    """Each token's text. A character of several tokens stands at the last of them (⋯ before)."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="backslashreplace")
    out = []
    for token in ids:
        name = model.opened.control(token)
        text = decoder.decode(b"" if name is not None else model.opened.spell(token))
        out.append(name if name is not None else visible(text) or "⋯")
    return out


def rows_of(model: Model, steps: Sequence[Step], first: int, percent: Callable[[float], str]) -> list[Row]:
    """Rows of the steps from ``first`` on."""
    out: list[Row] = []
    texts = pieces(model, [step.token for step in steps])
    for place, (step, text) in enumerate(zip(steps, texts, strict=True)):
        if place < first:
            continue
        p = min(1.0, math.exp(step.logp)) if step.logp > -math.inf else 0.0
        control = "control" if model.opened.control(step.token) is not None else ""
        how = step.source if step.source in ("drafted", "forced") else control
        out.append([text.removeprefix(" ") if place == 0 else text, step_of(p), how, percent(p)])
    return out


def shown(model: Model, token: int, before: Sequence[int] = ()) -> str:
    """A token's text where its white space matters: as a sign. What it completes of the tokens ``before`` it is one
    character, and a token that only begins one is ⋯ with its bytes."""
    text = pieces(model, [*before[-MOST_OF_A_CHARACTER:], token])[-1]
    if text == "⋯":
        data = model.opened.spell(token).hex(" ").upper()
        return f"⋯ ({data})" if data else "∅"
    return text.strip(" ").replace("\n", "↵").replace("\t", "⇥") or "␣" * len(text)


def tokenizer_view(visit: Visit) -> None:
    """A fold: a text, the model whose tokens are wanted, and the pieces, with their numbers."""
    w, say = visit.words, visit.say

    async def cut() -> None:
        model = visit.studio.model(choice.value)
        try:
            ids = await asyncio.to_thread(model.opened.plain, text.value)
        except Exception as error:
            visit.tell(error)
            return
        texts = pieces(model, ids[:SHOWN_TOKENS])
        found.clear()
        with found:
            text_of("p", w("cut_into", n=say.count(len(ids)), characters=say.count(len(text.value))), "k-small")
            with box("k-answer"):
                for i, (token, piece) in enumerate(zip(ids[:SHOWN_TOKENS], texts, strict=False)):
                    classes = "k-tok plain even" if i % 2 else "k-tok plain"
                    text_of("span", piece, classes, title=str(token))
            rows = [
                [str(t), text, model.opened.spell(t).hex(" ")]
                for t, text in zip(ids[:LISTED_TOKENS], texts, strict=False)
            ]
            with box("k-fold", "details"):
                text_of("summary", w("as_bytes"))
                table(visit, [w("number"), w("token"), w("bytes")], rows)

    with box("k-fold k-card", "details"):
        text_of("summary", w("tokenizer"))
        text_of("p", w("tokenizer_how"), "k-small")
        with box("k-row"):
            names = {model.name: model.name for model in visit.studio.models}
            choice = Select(w("model"), names, next(iter(names)), cut)
            text = Text(w("any_text"), 2, LONGEST_TEXT, cut)
        button(w("cut"), cut)
        found = box().style("margin-top:10px")


def _index(event: GenericEventArguments, size: int) -> int:
    """A browser may send anything: what is no place in the answer is the nearest one."""
    given = event.args
    return max(0, min(size - 1, int(given))) if isinstance(given, int | float) and math.isfinite(given) else 0
