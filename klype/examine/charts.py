"""Charts as ECharts options, in a light and a dark theme, and the script that draws them.

An option is plain JSON: ``$name`` is a colour of the theme, and ``fn:name`` a function of ``page/formats.js`` (numbers
in the reader's language, the shape of a whisker). Report and studio draw the same options.
"""

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from klype.errors import KlypeError
from klype.examine.run_facts import FigureFacts
from klype.examine.say import Say

Option = dict[str, Any]
Cell = str | float | int | None
Row = tuple[str, str, FigureFacts]  # of the table below a picture: what was measured, where, and the figure
# One panel of figures of one measure: (title, measure, axis, rows of label, figure and colour).
Group = tuple[str, str, Option, Sequence[tuple[str, FigureFacts, str]]]
NARROW_PX = 330  # the width of a drawing on a phone, for which the rows of a legend are counted
TOWERING, MAX_SPIKES = 3, 8  # height of a spike as a multiple of the median; most that are legible on a phone
MARKS = {"base": "circle", "finetuned": "diamond", "aligned": "rect"}
# A token's colour step is how many of these its probability is below: 0 (nearly certain, pale) to 5 (strong).
PROBABILITY_EDGES = (0.9, 0.7, 0.5, 0.3, 0.1)


def page_file(name: str) -> str:
    """The text of a packaged file of the report's page; the studio uses ``formats.js`` too."""
    return (resources.files("klype.examine") / "page" / name).read_text(encoding="utf-8")


_COLOURS: Mapping[str, tuple[str, str]] = tomllib.loads(page_file("colours.toml"))
LIGHT, DARK = ({name: pair[theme] for name, pair in _COLOURS.items()} for theme in (0, 1))
_LOOKS: Mapping[str, Option] = tomllib.loads(page_file("looks.toml"))


def look(part: str, **more: Any) -> Option:
    """A part of an option from ``looks.toml``, with ``more`` merged in."""
    return {**deepcopy(_LOOKS[part]), **more}


@dataclass(frozen=True)
class Panel:
    """One drawing. ``height`` and the minimum ``width`` in px (narrower pages scroll); ``title`` may be empty in a
    picture with a single panel."""

    title: str
    option: Option
    height: int = 260
    width: int = 0


@dataclass(frozen=True)
class Picture:
    """Panels under a title that states the finding; ``how``: how to read it; ``columns`` and ``rows``: the same data as
    a table."""

    id: str
    title: str
    how: str
    panels: list[Panel] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    rows: list[list[Cell]] = field(default_factory=list)
    wide: bool = False


def canvas(**more: Any) -> Option:
    """A chart's option, with what all charts have in common."""
    option = look("canvas")
    option["tooltip"] |= more.pop("tooltip", {})
    return {**option, **more}


def axis(name: str = "", kind: str = "value", percent: bool = False, **more: Any) -> Option:
    """An axis with its name and unit below or beside its middle."""
    found = look("axis", type=kind, name=name)
    if kind == "category":
        found["splitLine"]["show"] = False
    else:
        found["axisLabel"]["formatter"] = "fn:percent" if percent else "fn:number"
        found["splitNumber"] = 4
    if percent and more.get("max") == 1:
        found["axisLabel"]["showMaxLabel"] = True  # in little space another label is dropped instead
        found["interval"] = 0.25 if more.get("min", 0) == 0 else 0.1
    return {**found, **more}


def whiskers(rows: Sequence[tuple[str, FigureFacts, str, str]], x: Option, at: float | None = None) -> Option:
    """A dot with its 95 % interval for each row (label, figure, its text, colour), from the top.

    The text is written under the label, where it cannot collide with a mark. ``at``: the place of a dashed line.
    """
    rows = [row for row in rows if row[1]["value"] is not None]
    dots, spans = [], []
    for i, (_, figure, text, colour) in enumerate(rows):
        style = {"itemStyle": {"color": f"${colour}"}}
        dots.append({"value": [figure["value"], i], "name": text, "symbol": MARKS.get(colour, "triangle"), **style})
        if figure.get("low") is not None and figure.get("high") is not None:
            spans.append({"value": [figure["low"], figure["high"], i], **style})
    series = [look("intervals", data=spans), look("dots", data=dots)]
    if at is not None:
        series[1]["markLine"] = look("mark", label={"show": False}, data=[{"xAxis": at}])
    labels = [f"{{name|{label}}}\n{{figure|{text}}}" for label, _, text, _ in rows]
    looks = look("whiskers")
    y = axis(kind="category", data=labels, inverse=True, axisLabel=looks["axisLabel"])
    return canvas(xAxis=x, yAxis=y, series=series, grid=looks["grid"])


def lines(x: Option, y: Option, series: Sequence[Option], values: str = "value") -> Option:
    """A line chart, with a legend if there is more than one line (bands are not in it). ``values``: how values are
    formatted in the tooltip, ``value`` or ``share``."""
    names = [s["name"] for s in series if s.get("type") == "line" and not s.get("stack")]
    rows = math.ceil(sum(34 + 7 * len(name) for name in names) / NARROW_PX) if len(names) > 1 else 0
    looks, tooltip = look("lines"), {"trigger": "axis", "valueFormatter": f"fn:{values}"}
    looks["legend"] |= {"show": len(names) > 1, "data": names}
    looks["grid"]["top"] = 14 + 19 * rows
    return canvas(xAxis=x, yAxis={**y, "nameGap": 42}, series=list(series), tooltip=tooltip, **looks)


def shares(x: Option, series: Sequence[Option], **y: Any) -> Option:
    """A line chart of shares, with a y axis from 0 to 1 unless ``y`` sets it otherwise."""
    return lines(x, axis(percent=True, **(y or {"min": 0, "max": 1})), series, "share")


def line(name: str, points: Sequence[Sequence[float | None]], colour: str, **more: Any) -> Option:
    """A series through points (x, y); None breaks the line. ``more``: of the series, or ``dash`` (dashed, dotted) and
    ``width``."""
    style = {"color": f"${colour}", "width": more.pop("width", 2), "type": more.pop("dash", "solid")}
    found = look("line", name=name, data=[list(p) for p in points], lineStyle=style, itemStyle={"color": f"${colour}"})
    return {**found, **more}


def events(happened: Sequence[tuple[int, str]]) -> Option:
    """A mark line for a series: a vertical dashed line at each step, labelled with what happened there."""
    return look("mark", data=[{"xAxis": x, "label": {"formatter": what}} for x, what in happened])


def spikes(points: Sequence[Sequence[float]], say: Say) -> Option:
    """A mark point for a series: single points far above the rest, labelled with their values; the highest of
    neighbours."""
    if not points:
        return {"data": []}
    usual, span = median(y for _, y in points), points[-1][0] - points[0][0]
    high = sorted((point for point in points if point[1] > TOWERING * usual), key=lambda point: -point[1])
    chosen: list[Sequence[float]] = []
    for point in high[:MAX_SPIKES]:
        if all(abs(point[0] - other[0]) > span / MAX_SPIKES for other in chosen):
            chosen.append(point)
    marks = [{"coord": [*point], "label": {"formatter": say.number(point[1], 1)}} for point in chosen]
    return look("spikes", data=marks)


def rule(name: str, points: Sequence[Sequence[float | None]]) -> Option:
    """A thin dashed reference line."""
    return line(name, points, "muted", dash="dashed", width=1)


def curve_with_band(
    name: str, figures: Sequence[tuple[float, FigureFacts]], colour: str, dash: str = "solid", **more: Any
) -> list[Option]:
    """A curve of figures with their intervals as a shaded band: an invisible line, and an area stacked on it."""
    known = [(x, f) for x, f in figures if f["value"] is not None]
    spans = [(x, low, high) for x, f in known
             if (low := f.get("low")) is not None and (high := f.get("high")) is not None]  # fmt: skip
    unseen = look("unseen", name=f"{name} 95 %", stack=f"{name} band")
    shade = {"color": f"${colour}", "opacity": 0.16}
    band = [
        {**unseen, "data": [[x, low] for x, low, _ in spans]},
        {**unseen, "data": [[x, high - low] for x, low, high in spans], "areaStyle": shade},
    ]
    return [*(band if spans else []), line(name, [(x, f["value"]) for x, f in known], colour, dash=dash, **more)]


def thin(points: Sequence[tuple[float, float]], most: int) -> list[list[float]]:
    """A curve reduced to at most ``most`` points, each the mean of neighbouring ones."""
    size = -(-len(points) // most) or 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [[group[-1][0], sum(y for _, y in group) / len(group)] for group in groups]


def formula_curves(x: Option, curves: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> Option:
    """Shares of answers by number of words: corrected, as printed (dashed), and with dependent errors (dotted)."""
    styles = (("truth", "solid", 2.0), ("bad", "dashed", 2.0), ("finetuned", "dotted", 2.5))
    drawn = zip(curves, styles, strict=False)
    return shares(x, [line(*curve, colour, dash=dash, width=width) for curve, (colour, dash, width) in drawn])


def bars(
    labels: Sequence[str],
    series: Mapping[str, tuple[str, Sequence[float]]],
    x: Option,
    numbers: bool = False,
    values: str = "share",
) -> Option:
    """Horizontal bars from the top. ``series``: name → (colour, values); the second is hollow, the others filled.
    ``numbers``: whether each bar is labelled with its value; ``values``: see ``lines``."""
    looks, several, drawn = look("bars"), len(series) > 1, []
    y = axis(kind="category", data=list(labels), inverse=True, axisLabel=looks.pop("axisLabel"))
    label = looks.pop("label")
    for filled, (name, (colour, lengths)) in zip((True, False, True), series.items(), strict=False):
        style = {"color": f"${colour}" if filled else "$card", "borderColor": f"${colour}", "borderWidth": 1.5}
        drawn.append({"type": "bar", "name": name, "data": list(lengths), "barMaxWidth": 13, "barGap": "12%",
                      "itemStyle": style, **({"label": label} if numbers else {})})  # fmt: skip
    looks["legend"] |= {"show": several, "itemGap": 14 if numbers else 10}
    looks["grid"] |= {"right": 52 if numbers else 20, "top": 34 if several else 8}
    looks["tooltip"]["valueFormatter"] = f"fn:{values}"
    return canvas(xAxis=x, yAxis=y, series=drawn, **looks)


def whisker_panels(
    groups: Sequence[Group], of: str, say: Say, at: float | None = None
) -> tuple[list[Panel], list[str], list[list[Cell]]]:
    """The panels of a picture, one per group, and its table's columns and rows. ``of``: the key of the word for what
    the labels are."""
    panels, rows = [], list[Row]()
    for name, measure, across, figures in groups:
        drawn = [(label, figure, say.figure(figure, measure), colour) for label, figure, colour in figures]
        panels.append(Panel(name if len(groups) > 1 else "", whiskers(drawn, across, at), 66 + 48 * len(drawn)))
        rows += [(name, label, figure) for label, figure, _ in figures]
    return panels, *figure_table(say, rows, "column.measure", of)


def figure_table(say: Say, rows: Sequence[Row], what: str, *place: str) -> tuple[list[str], list[list[Cell]]]:
    """A table's columns and rows. ``what``, ``place``: keys of the words for the first two columns. The judge has a
    column if any figure has one."""
    judged = any(figure.get("judge") for _, _, figure in rows)
    ends = [say(f"column.{key}") for key in ("value", "low", "high", "n", "judge")[: 4 + judged]]
    return [say(what), ", ".join(map(say, place)), *ends], [
        [name, at, f["value"], f.get("low"), f.get("high"), f.get("n"), *([say.judge_note(f)] * judged)]
        for name, at, f in rows
    ]


def step_of(p: float) -> int:
    return sum(p < edge for edge in PROBABILITY_EDGES)


def echarts_script() -> str:
    """A module script that defines ``globalThis.echarts``, safe between <script> tags. Raises KlypeError without
    NiceGUI, whose copy it is."""
    spec = find_spec("nicegui")
    if spec is None or not spec.submodule_search_locations:
        raise KlypeError("The report's charts need NiceGUI, which is not installed.", "Run: pip install nicegui")
    return echarts_from(Path(next(iter(spec.submodule_search_locations))))


def echarts_from(package: Path) -> str:
    """The script from NiceGUI's folder, where an entry file re-exports a bundle: ``import{aS as a}from"./index-X.js";
    export{a as echarts}``."""
    entry = package / "elements" / "echart" / "dist" / "index.js"
    text = entry.read_text(encoding="utf-8") if entry.is_file() else ""
    source, inner = re.search(r"from\s*[\"']\./([\w.-]+\.js)[\"']", text), _exported_as("echarts", text)
    bundle = (entry.parent / source[1]).read_text(encoding="utf-8") if source else ""
    exports, outer = re.search(r"export\s*\{([^}]*)\};?\s*(?://#[^\n]*\s*)?$", bundle), _exported_as(inner, text)
    if exports is None or not (name := _exported_as(outer, exports[1])):
        raise KlypeError(
            f"Cannot find ECharts in {package}: this version of NiceGUI keeps it elsewhere.",
            "Run: pip install 'nicegui>=3,<4'",
        )
    script = f"{bundle[: exports.start()]}globalThis.echarts={name};"
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _exported_as(name: str, text: str) -> str:
    """The inner name of what a module exports as ``name``; "" if it does not."""
    found = re.search(rf"([\w$]+) as {re.escape(name)}(?![\w$])", text) if name else None
    return found[1] if found else ""
