"""The report of ``benchmarks cures`` in all languages: the Pareto front, the gains, and which cure helps with what."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from klype.answers.decoders import DECODERS
from klype.durable import write_out
from klype.examine import html
from klype.examine.charts import Cell, Option, Panel, Picture, axis, line, lines, whiskers
from klype.examine.html import Glossary, Part, Section, Table, Text, texts
from klype.examine.run_facts import FigureFacts, side_of
from klype.examine.say import Say
from klype.words import Words, words
from klype.words.sentences import Sentences

Document = Mapping[str, Any]
Row = Mapping[str, Any]
TRAINED = "aligned"


def write(folder: Path, document: Document, lang: str) -> list[Path]:
    """Writes ``report.html`` and ``cures.json`` into a folder, which is made if it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    return [write_out(folder / "report.html", render(document, lang)), write_out(folder / "cures.json", text)]


def render(document: Document, lang: str) -> str:
    return html.render(lambda say: _page(document, say, words(say.lang, "cures")), lang)


def verdict(part: Document, say: Say, own: Words) -> list[str]:
    """The findings for one kind of question, in sentences; only of what was measured."""
    base = part["rows"][0]
    said = [own("plain", right=say.figure(base["right"], "right"), n=say.count(part["test"]))]
    best = part["best"]
    if best is not None:
        shown = {
            "way": Sentences(say.lang)(DECODERS[best["decoder"]].about),
            "right": say.figure(best["right"], "right"),
            "gain": _points(best["gain"], say),
            "passes": say.number(best["passes"], 1),
            "work": say.number(best["work"], 1),
        }
        key = {1: "beats", 0: "not", -1: "worse"}[side_of(best["gain"], 0.0)]
        said.append(own(f"best_{key}", **shown))
    return said


def _page(document: Document, say: Say, own: Words) -> html.Document:
    several = len(document["models"]) > 1
    sections = []
    for part in document["tasks"]:
        table = Table(
            "", [own(f"column.{key}") for key in COLUMNS], [_cells(row, several, say) for row in part["rows"]]
        )
        pictures = [_front(part, several, say, own), _gains(part, several, say, own)]
        parts: list[Part] = [
            *texts(verdict(part, say, own), "verdict"),
            *pictures,
            table,
            *texts(_notes(part, own), "small"),
        ]
        sections.append(Section(parts, own(f"task.{part['task']}")))
    used = dict.fromkeys(row["decoder"] for part in document["tasks"] for row in part["rows"])
    advice = list(own.section("advice").values())
    if document["missing"]:
        names = ", ".join(own("not_run_one", name=own(f"task.{k}"), why=v) for k, v in document["missing"].items())
        advice.append(own("missing", names=names))
    ways = Glossary([(name, Sentences(say.lang)(DECODERS[name].about)) for name in used])
    sections.append(Section([*texts(advice), ways, Text(own("how_measured"), "small")], own("which")))
    lead = own("lead", models=", ".join(Path(name).name for name in document["models"]))
    return html.Document(say, own("title"), lead, sections)


COLUMNS = ("way", "budget", "right", "gain", "passes", "work", "joules", "changed")


def _cells(row: Row, several: bool, say: Say) -> list[str]:
    return [
        _name(row, several),
        f"{say.plain(row['budget'])}×",
        say.figure(row["right"], "right"),
        _points(row["gain"], say),
        say.number(row["passes"], 2),
        say.number(row["work"], 2),
        say.number(row["joules_each"], 2),
        say.share(row["changed"]),
    ]


def _notes(part: Document, own: Words) -> list[str]:
    estimated = any(row["joules_estimated"] for row in part["rows"])
    notes = [own("energy_estimated" if estimated else "energy_measured")]
    if part["skipped"]:
        names = ", ".join(own("not_run_one", name=name, why=why) for name, why in part["skipped"].items())
        notes.append(own("not_run", names=names))
    return notes


def _name(row: Row, several: bool) -> str:
    return f"{row['decoder']} ({Path(row['model']).name})" if several else str(row["decoder"])


def _points(figure: FigureFacts, say: Say) -> str:
    """A difference of shares with its sign, such as +0.06 [0.01, 0.11]."""
    text = say.figure(figure, "gain")
    return f"+{text}" if (figure["value"] or 0.0) > 0 else text


def _front(part: Document, several: bool, say: Say, own: Words) -> Picture:
    rows, on = part["rows"], part["front"]
    front = [rows[i] for i in on]

    def dot(row: Row) -> str:
        return f"{_name(row, several)} {say.plain(row['budget'])}×"

    def dots(chosen: Sequence[Row]) -> list[Option]:
        return [{"value": [row["passes"], row["right"]["value"]], "name": dot(row)} for row in chosen]

    beside = [row for i, row in enumerate(rows) if i not in on]
    scatter: Option = {"type": "scatter", "name": own("others"), "data": dots(beside), "symbolSize": 8,
                       "itemStyle": {"color": "$muted", "opacity": 0.7}, "tooltip": {"formatter": "{b}"}}  # fmt: skip
    names: Option = {"type": "scatter", "name": own("on_front"), "data": dots(front), "symbolSize": 11,
                     "itemStyle": {"color": "$accent"}, "tooltip": {"formatter": "{b}"},
                     "labelLayout": {"hideOverlap": True, "moveOverlap": "shiftY"},
                     "label": {"show": True, "formatter": "{b}", "position": "right", "color": "$ink"}}  # fmt: skip
    points = [(row["passes"], row["right"]["value"]) for row in front]
    drawn = lines(
        axis(own("axis_passes"), min=0),
        axis(own("axis_right"), percent=True, scale=True),
        [line(own("on_front"), points, "accent", step="end"), scatter, names],
    )
    drawn["tooltip"]["trigger"] = "item"
    drawn["grid"] |= {"right": 120, "left": 34}
    title = own("front", names=" → ".join(map(dot, front)))
    table: list[list[Cell]] = [
        [_name(row, several), row["budget"], row["passes"], row["right"]["value"], row["right"].get("low"),
         row["right"].get("high"), row["joules_each"]]
        for row in rows
    ]  # fmt: skip
    columns = [own("column.way"), own("column.budget"), own("column.passes"), own("column.right"), "2.5 %", "97.5 %",
               own("column.joules")]  # fmt: skip
    return Picture(f"front-{part['task']}", title, own("front_how"), [Panel("", drawn, 380)], columns, table, True)


def _gains(part: Document, several: bool, say: Say, own: Words) -> Picture:
    base = part["rows"][0]["model"]
    budgets = sorted({row["budget"] for row in part["rows"]})
    budget = 4.0 if 4.0 in budgets else budgets[-1]
    rows = [
        row
        for row in part["rows"]
        if row["budget"] in (budget, 1.0) and (row["decoder"] != "greedy" or row["model"] != base)
    ]
    rows.sort(key=lambda row: -row["gain"]["value"])
    drawn = [(_name(row, several), row["gain"], _points(row["gain"], say), _colour(row, base)) for row in rows]
    option = whiskers(drawn, axis(own("axis_gain"), percent=True), 0.0)
    table: list[list[Cell]] = [
        [name, figure["value"], figure.get("low"), figure.get("high")] for name, figure, *_ in drawn
    ]
    title = own("gains", budget=say.plain(budget))
    columns = [own("column.way"), own("column.gain"), "2.5 %", "97.5 %"]
    panel = Panel("", option, 70 + 44 * len(rows))
    return Picture(f"gains-{part['task']}", title, own("gains_how"), [panel], columns, table, True)


def _colour(row: Row, base: str) -> str:
    low, high = row["gain"].get("low"), row["gain"].get("high")
    if row["model"] != base:
        return TRAINED
    return "truth" if (low or 0.0) > 0 else "bad" if (high if high is not None else 1.0) < 0 else "base"
