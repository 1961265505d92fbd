"""The most probable word always, beside words that are drawn: what it costs and what it gives."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from klype.examine.charts import Panel, axis, whiskers
from klype.examine.facts import FigureFacts
from klype.studio.charts import chart
from klype.studio.frame import as_data, card
from klype.studio.visit import Visit, text_of

COMPARED = ("right", "s", "same_meaning", "repetition", "well_formed")
COLOURS = ("accent", "finetuned", "aligned", "base")


def greedy(visit: Visit, document: dict[str, Any]) -> None:
    """A panel a measure, a row a temperature."""
    w, say = visit.words, visit.say
    panels, table = [], []
    for name in COMPARED:
        rows: list[tuple[str, FigureFacts, str, str]] = []
        for (t, figures), colour in zip(document["figures"].items(), COLOURS * 4, strict=False):
            found: FigureFacts | None = figures.get(name)
            if found is None or found["value"] is None:
                continue
            label = w("greedy") if t == "0" else f"τ = {say.plain(float(t))}"
            rows.append((label, found, say.figure(found, name), colour))
            table.append([say.measure(name), t, found["value"], found.get("low"), found.get("high"), found.get("n")])
        if len(rows) > 1:
            option = whiskers(rows, axis(percent=True, min=0, max=1))
            panels.append(Panel(say.measure(name), option, 70 + 46 * len(rows)))
    if not panels:
        return
    with card() as box:
        text_of("h2", w("greedy_title"))
        with ui.element("div").classes("k-panels"):
            for panel in panels:
                with ui.element("div"):
                    text_of("h3", panel.title)
                    chart(panel.option, visit.lang, panel.height, f"{w('greedy_title')} {panel.title}")
        text_of("p", w("how_greedy"), "k-small")
        columns = [
            say("column.measure"),
            say("axis.temperature"),
            *(say(f"column.{c}") for c in ("value", "low", "high", "n")),
        ]
        as_data(visit, "greedy", columns, lambda: table, box)
