"""An answer on a page: its tokens coloured by probability, each of which can be picked."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Sequence

from nicegui import ui
from nicegui.events import GenericEventArguments

from klype.examine.charts import step_of
from klype.examine.say import visible
from klype.studio.models import Model
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
