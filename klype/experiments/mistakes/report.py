"""What the report of learning from mistakes says and draws: what is left of the feedback, and at what price."""

from __future__ import annotations

from collections.abc import Mapping

from klype.examine.charts import Panel, Picture, axis, line, lines
from klype.examine.facts import FigureFacts, beyond
from klype.examine.say import Say
from klype.experiments.experiment_report import ArmNames, Report
from klype.experiments.mistakes.experiment import MISTAKES, MistakesBoard
from klype.experiments.mistakes.methods import BEFORE, CONTROL, knows
from klype.words import Words

COLOURS = {BEFORE: "muted", CONTROL: "base", "scheduled-sampling": "bad", "own-truth": "truth",
           "own-teachers": "finetuned", "backspace": "aligned", "outcome": "accent"}  # fmt: skip
Figures = Mapping[str, FigureFacts]


def verdict(board: MistakesBoard, say: Say, own: Words) -> list[str]:
    """What was found, in words; nothing is said that was not measured."""
    tell, figures = ArmNames("method", say, own), board.figures()
    cures = [name for name in figures if board.kinds[name] == "cure"]
    if board.source == "text":
        if not cures or CONTROL not in figures:
            return []
        best = min(cures, key=lambda name: _value(figures[name], "bits_per_byte") or 0.0)
        told = {key: say.figure(figures[best][key]) for key in ("bits_per_byte", "bits_change")}
        key = "text" if beyond(figures[best]["bits_change"], 0.0) < 0 else "text_open"
        control = say.figure(figures[CONTROL]["bits_per_byte"])
        return [own(f"said.{key}", method=tell.name(best), control=control, n=len(cures), **told)]
    said = []
    if {BEFORE, CONTROL} <= figures.keys():
        sides = {key: figures[name]["feedback"] for key, name in (("before", BEFORE), ("after", CONTROL))}
        key = "control" if all(beyond(figure, 0.0) > 0 for figure in sides.values()) else "control_open"
        said.append(own(f"said.{key}", **{side: say.figure(figure) for side, figure in sides.items()}))
    if cures := [name for name in cures if _value(figures[name], "ratio")]:
        best = min(cures, key=lambda name: _value(figures[name], "ratio") or 0.0)
        told = {key: say.figure(figures[best][key]) for key in ("ratio", "ratio_by_question")}
        told["kl_change"] = say.figure(figures[best].get("kl_change"))
        said.append(own("said.best", method=tell.name(best), n=len(cures), **told))
        halved = [f"{tell.name(name)} ({say.figure(figures[name].get('kl_change'))})" for name in board.halved]
        said.append(own("said.halved", methods=", ".join(halved)) if halved else own("said.not_halved"))
    if "backspace" in figures:
        told = {key: say.figure(figures["backspace"][key], "right") for key in ("standing", "alarm")}
        said.append(own("said.backspace", passes=say.figure(figures["backspace"]["passes"]), **told))
    return said


def pictures(board: MistakesBoard, say: Say, own: Words) -> list[Picture]:
    """All of which there is something to show."""
    tell = ArmNames("method", say, own, COLOURS)
    made = [_whiskers(board, tell, "ratio", 0.5), _distance(board, tell), _whiskers(board, tell, "kl_change", 0.0)]
    return [picture for picture in made if picture is not None]


def _whiskers(board: MistakesBoard, tell: ArmNames, key: str, at: float) -> Picture | None:
    found = board.figures()
    rows = [(name, found[name][key]) for name in found if name != CONTROL and _value(found[name], key) is not None]
    return tell.whiskers(key, rows, axis(tell.column(key)), at)


def _distance(board: MistakesBoard, tell: ArmNames) -> Picture | None:
    by = {row.arm: [*enumerate(row.feedback_by_distance, 1)] for row in board.rows if row.feedback_by_distance}
    if not by:
        return None
    series = [
        line(tell.name(name), [(float(d), f["value"]) for d, f in by[name]], COLOURS[name], showSymbol=True)
        for name in by
        if name in COLOURS
    ]
    distance = tell.own("picture.axis_distance")
    option = lines(axis(distance, min=1, minInterval=1), axis(tell.own("picture.axis_feedback")), series)
    rows = [tell.cells(name, figure, d) for name, figures in by.items() for d, figure in figures]
    columns = [distance, tell.column("feedback"), *tell.ends()]
    return tell.picture("distance", [Panel("", option, 340)], columns, rows)


def _value(figures: Figures, key: str) -> float | None:
    figure = figures.get(key)
    return None if figure is None else figure["value"]


REPORT = Report[MistakesBoard](
    MISTAKES,
    verdict,
    pictures,
    notes=("notes",),
    last=("column.seeds", lambda row: str(row.seeds)),
    narrow=("ratio", "after_wrong", "after_right", "kl_change", "bits_per_byte", "teacher_kl_own"),
    told=lambda arm, own: f" ({own(f'knows.{knows(arm)}')})",
)
