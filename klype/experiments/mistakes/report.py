"""``report.html`` of learning from mistakes, both languages in it: what is left of the feedback, and at what price."""

from __future__ import annotations

from pathlib import Path

from klype.examine.caution import beyond
from klype.examine.charts import Panel, Picture, axis, lines, whiskers
from klype.examine.charts import line as curve
from klype.examine.facts import FigureFacts
from klype.examine.say import Say
from klype.experiments import page as experiment
from klype.experiments.mistakes.methods import BEFORE, CONTROL
from klype.experiments.mistakes.study import MEASURES, Document
from klype.experiments.page import Table, View, figure_cells
from klype.words import LANGUAGES, Words, words

COLOURS = {BEFORE: "muted", CONTROL: "base", "scheduled-sampling": "bad", "own-truth": "truth",
           "own-teachers": "finetuned", "backspace": "aligned", "outcome": "accent"}  # fmt: skip
"""The methods that have curves; all are in the table."""
OTHER = "muted"
SHARES = (
    *("after_wrong", "after_right", "s", "s_own", "right_5", "right_10", "right_20", "right", "right_greedy"),
    *("recovery", "standing", "alarm"),
)


def write(folder: Path, found: Document, lang: str) -> Path:
    """Writes ``report.html`` into the folder."""
    views = [_view(found, Say(code), words(code, "mistakes")) for code in LANGUAGES]
    return experiment.write(folder, experiment.render(views, "mistakes", lang))


def table(found: Document, say: Say, own: Words) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of all figures."""
    methods = found["methods"]
    kept = [key for key in MEASURES if any(key in row["figures"] for row in methods.values())]
    columns = [own("column.method"), *(own(f"column.{key}") for key in kept), own("column.seeds")]
    return columns, [
        [own(f"method.{name}"), *(_cell(row["figures"].get(key), key, say) for key in kept), str(row["seeds"])]
        for name, row in methods.items()
    ]


def verdict(found: Document, say: Say, own: Words) -> list[str]:
    """What was found, in words; nothing is said that was not measured."""
    figures = {name: row["figures"] for name, row in found["methods"].items()}
    if found["source"] == "text":
        return _text_verdict(found, figures, say, own)
    said = []
    if {BEFORE, CONTROL} <= figures.keys():
        sides = {key: figures[name]["feedback"] for key, name in (("before", BEFORE), ("after", CONTROL))}
        key = "control" if all(beyond(figure, 0.0) > 0 for figure in sides.values()) else "control_open"
        said.append(own(f"said.{key}", **{side: say.figure(figure) for side, figure in sides.items()}))
    cures = [name for name, row in found["methods"].items() if row["kind"] == "cure" and _value(figures[name], "ratio")]
    if cures:
        best = min(cures, key=lambda name: _value(figures[name], "ratio") or 0.0)
        told = {key: say.figure(figures[best][key]) for key in ("ratio", "ratio_by_question")}
        told["kl_change"] = _change(figures[best], say)
        said.append(own("said.best", method=own(f"method.{best}"), n=len(cures), **told))
    halved = [f"{own(f'method.{name}')} ({_change(figures[name], say)})" for name in found["halved"]]
    if cures:
        said.append(own("said.halved", methods=", ".join(halved)) if halved else own("said.not_halved"))
    if "backspace" in figures:
        one = figures["backspace"]
        told = {key: say.figure(one[key], "right" if key in SHARES else "") for key in ("standing", "alarm", "passes")}
        said.append(own("said.backspace", **told))
    return said


def pictures(found: Document, say: Say, own: Words) -> list[Picture]:
    """All of which there is something to show."""
    made = [_whiskers(found, say, own, "ratio", 0.5), _distance(found, say, own),
            _whiskers(found, say, own, "kl_change", 0.0)]  # fmt: skip
    return [picture for picture in made if picture is not None]


def _view(found: Document, say: Say, own: Words) -> View:
    lead = own("lead", seeds=found["seeds"], steps=say.count(found["steps"]))
    return View(
        say=say,
        own=own,
        lead=f"{lead} {own('lead_world' if found['source'] == 'world' else 'lead_text')}",
        verdict=verdict(found, say, own),
        pictures=pictures(found, say, own),
        tables=[Table(own("table", documents=say.count(found["documents"])), *table(found, say, own))],
        notes=own("notes"),
        described=[
            (own(f"method.{name}"), f"{own(f'what.{name}')} ({own('knows.' + row['knows'])})")
            for name, row in found["methods"].items()
        ],
    )


def _whiskers(found: Document, say: Say, own: Words, key: str, at: float) -> Picture | None:
    rows: list[tuple[str, FigureFacts]] = [
        (name, row["figures"][key])
        for name, row in found["methods"].items()
        if name != CONTROL and _value(row["figures"], key) is not None
    ]
    if not rows:
        return None
    drawn = [(own(f"method.{name}"), figure, say.figure(figure), COLOURS.get(name, OTHER)) for name, figure in rows]
    panel = Panel("", whiskers(drawn, axis(own(f"column.{key}")), at), 70 + 44 * len(rows))
    cells = [figure_cells(own(f"method.{name}"), figure) for name, figure in rows]
    columns = [own("column.method"), own(f"column.{key}"), say("end.low"), say("end.high")]
    return Picture(key, own(f"picture.{key}"), own(f"picture.{key}_how"), [panel], columns, cells, True)


def _distance(found: Document, say: Say, own: Words) -> Picture | None:
    key = "feedback_by_distance"
    rows = {name: row[key] for name, row in found["methods"].items() if key in row}
    if not rows:
        return None
    points = {name: [(float(d), f["value"]) for d, f in enumerate(figures, 1)] for name, figures in rows.items()}
    series = [
        curve(own(f"method.{name}"), points[name], COLOURS[name], showSymbol=True) for name in rows if name in COLOURS
    ]
    x = axis(own("picture.axis_distance"), min=1, minInterval=1)
    option = lines(x, axis(own("picture.axis_feedback")), series)
    cells = [
        figure_cells(own(f"method.{name}"), figure, d)
        for name, figures in rows.items()
        for d, figure in enumerate(figures, 1)
    ]
    columns = [
        own("column.method"),
        own("picture.axis_distance"),
        own("column.feedback"),
        say("end.low"),
        say("end.high"),
    ]
    panel = Panel("", option, 340)
    return Picture("distance", own("picture.distance"), own("picture.distance_how"), [panel], columns, cells, True)


def _text_verdict(found: Document, figures: dict[str, dict[str, FigureFacts]], say: Say, own: Words) -> list[str]:
    cures = [name for name, row in found["methods"].items() if row["kind"] == "cure"]
    if not cures or CONTROL not in figures:
        return []
    best = min(cures, key=lambda name: _value(figures[name], "bits_per_byte") or 0.0)
    told = {key: say.figure(figures[best][key]) for key in ("bits_per_byte", "bits_change")}
    control = say.figure(figures[CONTROL]["bits_per_byte"])
    key = "text" if beyond(figures[best]["bits_change"], 0.0) < 0 else "text_open"
    return [own(f"said.{key}", method=own(f"method.{best}"), control=control, n=len(cures), **told)]


def _change(figures: dict[str, FigureFacts], say: Say) -> str:
    return say.figure(figures["kl_change"]) if "kl_change" in figures else "–"


def _value(figures: dict[str, FigureFacts], key: str) -> float | None:
    figure = figures.get(key)
    return None if figure is None else figure["value"]


def _cell(figure: FigureFacts | None, key: str, say: Say) -> str:
    if figure is None or figure["value"] is None:
        return ""
    return say.figure(figure, "right" if key in SHARES else "")
