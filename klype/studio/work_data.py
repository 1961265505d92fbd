"""``Show as data`` for tables, which have no picture."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from nicegui import ui

from klype.studio.frame import Cell, button, to_csv
from klype.studio.visit import Visit, text_of


def table_data(visit: Visit, name: str, columns: Sequence[str], rows: Callable[[], Sequence[Sequence[Cell]]]) -> None:
    """The numbers of a table as CSV and JSON."""

    def save_csv() -> None:
        ui.download.content(to_csv(columns, rows()), f"{name}.csv", "text/csv;charset=utf-8")

    def save_json() -> None:
        found = [dict(zip(columns, row, strict=True)) for row in rows()]
        text = json.dumps({"name": name, "rows": found}, ensure_ascii=False, allow_nan=False, indent=1)
        ui.download.content(text.encode(), f"{name}.json", "application/json")

    with ui.element("div").classes("k-row k-data k-small"):
        text_of("span", visit.frame("data"))
        for text, act in (("CSV", save_csv), ("JSON", save_json)):
            button(text, act, "tiny").props["aria-label"] = f"{visit.frame('data')} {text}"
