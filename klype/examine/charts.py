"""The report's kinds of charts as ECharts options. Colours are ``$names`` of the theme; ``fn:`` names a function of
the page's script (number formats in the reader's language, the shape of a whisker)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from klype.examine.facts import FigureFacts

Option = dict[str, Any]
Cell = str | float | int | None
NARROW_PX = 330
"""The width of a drawing on a phone: a legend's rows are counted for it."""
MARKS = {"base": "circle", "finetuned": "diamond", "aligned": "rect"}


@dataclass(frozen=True)
class Panel:
    """One drawing. ``height`` in px; ``title`` may be empty when the picture has one panel only."""

    title: str
    option: Option
    height: int = 260


@dataclass(frozen=True)
class Picture:
    """Panels under one title that says the finding; ``how``: how to read it; the table holds the same data."""

    id: str
    title: str
    how: str
    panels: list[Panel]
    columns: list[str]
    rows: list[list[Cell]]
    wide: bool = field(default=False)


def canvas(**more: Any) -> Option:
    """What all charts share."""
    option: Option = {
        "animation": False,
        "textStyle": {"fontFamily": "inherit", "color": "$ink"},
        "grid": {"left": 8, "right": 16, "top": 34, "bottom": 30, "containLabel": True},
        "tooltip": {
            "trigger": "item",
            "renderMode": "richText",
            "confine": True,
            "backgroundColor": "$card",
            "borderColor": "$line",
            "textStyle": {"color": "$ink", "fontSize": 13},
        },
        "aria": {"enabled": True},
    }
    return {**option, **more}


def axis(name: str = "", kind: str = "value", percent: bool = False, **more: Any) -> Option:
    """An axis with its name and unit in the middle below or beside it."""
    found: Option = {
        "type": kind,
        "name": name,
        "nameLocation": "middle",
        "nameGap": 26,
        "nameTextStyle": {"color": "$muted", "fontSize": 12},
        "axisLabel": {"color": "$muted", "fontSize": 12, "hideOverlap": True},
        "axisLine": {"show": False},
        "axisTick": {"show": False},
        "splitLine": {"show": kind != "category", "lineStyle": {"color": "$line"}},
    }
    if kind != "category":
        found["axisLabel"]["formatter"] = "fn:percent" if percent else "fn:number"
        found["splitNumber"] = 4
    if percent and more.get("max") == 1:
        found["interval"] = 0.25 if more.get("min", 0) == 0 else 0.1
    return {**found, **more}


def whiskers(rows: Sequence[tuple[str, FigureFacts, str, str]], x: Option, line: float | None = None) -> Option:
    """A dot and its 95 % interval for each row: (label, figure, its text, the colour's name); rows from the top.

    The figure is written under its label, where it cannot collide with a mark.
    """
    rows = [row for row in rows if row[1]["value"] is not None]
    labels = [f"{{name|{label}}}\n{{figure|{text}}}" for label, _, text, _ in rows]
    dots, spans = [], []
    for i, (_, figure, text, colour) in enumerate(rows):
        dots.append(
            {
                "value": [figure["value"], i],
                "name": text,
                "symbol": MARKS.get(colour, "triangle"),
                "itemStyle": {"color": f"${colour}"},
            }
        )
        if figure.get("low") is not None and figure.get("high") is not None:
            spans.append({"value": [figure["low"], figure["high"], i], "itemStyle": {"color": f"${colour}"}})
    series: list[Option] = [
        {"type": "custom", "renderItem": "fn:whisker", "data": spans, "encode": {"x": [0, 1], "y": 2}, "silent": True},
        {
            "type": "scatter",
            "data": dots,
            "symbolSize": 11,
            "tooltip": {"formatter": "{b}"},
        },
    ]
    if line is not None:
        series[1]["markLine"] = _mark("xAxis", line)
    y = axis(kind="category", data=labels, inverse=True)
    y["axisLabel"] = {
        "interval": 0,
        "rich": {
            "name": {"color": "$ink", "fontSize": 13, "lineHeight": 18, "align": "right"},
            "figure": {"color": "$muted", "fontSize": 12, "lineHeight": 16, "align": "right"},
        },
    }
    return canvas(
        xAxis=x,
        yAxis=y,
        series=series,
        grid={"left": 156, "right": 22, "top": 6, "bottom": 50, "containLabel": False},
    )


def lines(x: Option, y: Option, series: Sequence[Option]) -> Option:
    """Lines, with a legend when there is more than one (bands have no name of their own in it)."""
    names = [s["name"] for s in series if s.get("type") == "line" and not s.get("stack")]
    rows = math.ceil(sum(34 + 7 * len(name) for name in names) / NARROW_PX) if len(names) > 1 else 0
    return canvas(
        xAxis=x,
        yAxis=y,
        series=list(series),
        tooltip={**canvas()["tooltip"], "trigger": "axis", "valueFormatter": "fn:number"},
        legend={"show": len(names) > 1, "data": names, "top": 0, "left": 0, "textStyle": {"color": "$ink"},
                "icon": "rect", "itemWidth": 16, "itemHeight": 3},
        grid={"left": 26, "right": 20, "top": 14 + 19 * rows, "bottom": 30, "containLabel": True},
    )  # fmt: skip


def shares(x: Option, y: Option, series: Sequence[Option]) -> Option:
    """Lines whose values are shares: percent beside the pointer."""
    drawn = lines(x, y, series)
    drawn["tooltip"]["valueFormatter"] = "fn:percent"
    return drawn


def line(name: str, points: Sequence[Sequence[float | None]], colour: str, **more: Any) -> Option:
    """A curve through (x, y); None breaks it."""
    found: Option = {
        "type": "line",
        "name": name,
        "data": [list(p) for p in points],
        "showSymbol": False,
        "lineStyle": {"color": f"${colour}", "width": 2},
        "itemStyle": {"color": f"${colour}"},
        "connectNulls": False,
    }
    return {**found, **more}


def rule(name: str, points: Sequence[Sequence[float | None]]) -> Option:
    """A thin dashed line to compare with."""
    return line(name, points, "muted", lineStyle={"color": "$muted", "type": "dashed", "width": 1})


def band(name: str, points: Sequence[tuple[float, float, float]], colour: str) -> list[Option]:
    """An interval (x, low, high) as a shaded band: an unseen line and what is stacked on it."""
    unseen = {"lineStyle": {"opacity": 0}, "silent": True, "tooltip": {"show": False}, "symbol": "none"}
    stack = {"type": "line", "name": f"{name} 95 %", "stack": f"{name} band", "stackStrategy": "all", **unseen}
    return [
        {**stack, "data": [[x, low] for x, low, _ in points]},
        {
            **stack,
            "data": [[x, high - low] for x, low, high in points],
            "areaStyle": {"color": f"${colour}", "opacity": 0.16},
        },
    ]


def curve_with_band(
    name: str, figures: Sequence[tuple[float, FigureFacts]], colour: str, dash: str = "solid", **more: Any
) -> list[Option]:
    """A curve of figures with their intervals."""
    known = [(x, f) for x, f in figures if f["value"] is not None]
    spans = [(x, f["low"], f["high"]) for x, f in known if f.get("low") is not None and f.get("high") is not None]
    found = (
        band(name, [(x, lo, hi) for x, lo, hi in spans if lo is not None and hi is not None], colour) if spans else []
    )
    style = {"lineStyle": {"color": f"${colour}", "width": 2, "type": dash}}
    return [*found, line(name, [(x, f["value"]) for x, f in known], colour, **style, **more)]


def bars(labels: Sequence[str], series: Mapping[str, tuple[str, Sequence[float]]], x: Option) -> Option:
    """Horizontal bars from the top, name → (colour, values): the first series filled, the second hollow."""
    y = axis(kind="category", data=list(labels), inverse=True)
    y["axisLabel"] = {"color": "$ink", "fontSize": 13, "width": 110, "overflow": "truncate"}
    return canvas(
        xAxis=x,
        yAxis=y,
        series=[
            {
                "type": "bar",
                "name": name,
                "data": list(values),
                "barMaxWidth": 13,
                "barGap": "12%",
                "itemStyle": {
                    "color": f"${colour}" if filled else "$card",
                    "borderColor": f"${colour}",
                    "borderWidth": 1.5,
                },
            }
            for filled, (name, (colour, values)) in zip((True, False), series.items(), strict=False)
        ],
        legend={"show": len(series) > 1, "top": 0, "left": 0, "textStyle": {"color": "$ink"}, "itemWidth": 12,
                "itemHeight": 12},
        tooltip={**canvas()["tooltip"], "trigger": "axis", "valueFormatter": "fn:percent"},
        grid={"left": 8, "right": 20, "top": 34 if len(series) > 1 else 8, "bottom": 30, "containLabel": True},
    )  # fmt: skip


def _mark(direction: str, at: float) -> Option:
    return {
        "symbol": "none",
        "silent": True,
        "label": {"show": False},
        "lineStyle": {"color": "$muted", "type": "dashed"},
        "data": [{direction: at}],
    }
