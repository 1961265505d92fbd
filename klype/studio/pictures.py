"""A report's picture on a page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nicegui import ui

from klype.examine.charts import Cell, Picture
from klype.studio.charts import chart
from klype.studio.frame import as_data, card
from klype.studio.visit import Visit, text_of


def picture(
    visit: Visit, found: Picture, rows: Callable[[], Sequence[Sequence[Cell]]] | None = None
) -> list[ui.echart]:
    """Its finding as the title, its panels, how to read it, its data; the charts of the panels, to be redrawn.

    ``rows`` tells the data as it is when asked for; None: it does not change.
    """
    made = []
    with card() as box:
        text_of("h2", found.title)
        with ui.element("div").classes("k-panels"):
            for panel in found.panels:
                with ui.element("div"):
                    if panel.title:
                        text_of("h3", panel.title)
                    made.append(chart(panel.option, visit.lang, panel.height, f"{found.title} {panel.title}".strip()))
        text_of("p", found.how, "k-small")
        as_data(visit, found.id, found.columns, rows or (lambda: found.rows), box)
    return made
