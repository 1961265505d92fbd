"""What the report of the hard-target experiment says and draws: what each target leaves, costs and closes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from klype.examine.charts import Cell, Option, Panel, Picture, axis, bars, curve_with_band, line, lines
from klype.examine.facts import beyond, clearly
from klype.examine.say import Say
from klype.experiments.bias.experiment import BIAS, CONTROL, TRUTH, BiasBoard
from klype.experiments.experiment_report import ArmNames, Report
from klype.words import Words

# the arms that have curves; the tables show all
COLOURS = {"one-hot": "base", "label-smoothing": "bad", "kneser-ney": "finetuned", "oracle": "truth",
           "ensemble": "aligned", "steady": "accent"}  # fmt: skip


def verdict(board: BiasBoard, say: Say, own: Words) -> list[str]:
    """What was found, in words; nothing is said that was not measured."""
    tell, found = _telling(say, own), board.figures()
    if board.source == "text":
        cures = [name for name in found if board.kinds[name] == "cure"]
        if CONTROL not in found or not cures:
            return []
        bits = {name: figures["bits_per_byte"] for name, figures in found.items()}
        name = min(cures, key=lambda name: bits[name]["value"] or 0.0)
        key = "text_best" if clearly(bits[CONTROL], bits[name]) < 0 else "text_open"
        told = {"bits": say.figure(bits[name]), "base": say.figure(bits[CONTROL])}
        return [own(key, target=tell.name(name), n=len(cures), **told)]
    kl = {name: say.figure(figures["kl"]) for name, figures in found.items()}
    said = []
    if {CONTROL, TRUTH} <= kl.keys():
        said.append(own("hard", kl=kl[CONTROL], oracle=kl[TRUTH]))
    for best in board.best:
        key = f"best{'' if best.within is None else '_within'}{'' if beyond(best.gap, 0.0) > 0 else '_open'}"
        gap, compute = say.figure(best.gap, "right"), say.value(found[best.target]["compute"])
        said.append(own(key, target=tell.name(best.target), gap=gap, compute=compute))
    if "best-of-five" in kl:
        said.append(own("not_longer", kl=kl["best-of-five"]))
    if {"steady", "oracle-steady"} <= kl.keys():
        said.append(own("steadily", kl=kl["steady"], oracle=kl["oracle-steady"]))
    return said


def running(board: BiasBoard, own: Words, count: Callable[[int], str] = str) -> list[str]:
    """Which models are being trained, each in a sentence. ``count`` writes a number of documents."""
    return [
        own("running", target=own(f"target.{c.target}"), documents=count(c.documents), seed=c.seed,
            epoch=c.points[-1][0], epochs=board.epochs)
        for c in board.curves
        if not c.done and c.points
    ]  # fmt: skip


def pictures(board: BiasBoard, say: Say, own: Words) -> list[Picture]:
    """All of which there is something to show."""
    tell = _telling(say, own)
    made = [draw(board, tell) for draw in PICTURES]
    return [picture for picture in made if picture is not None]


def _telling(say: Say, own: Words) -> ArmNames:
    return ArmNames("target", say, own, COLOURS)


def gap_picture(board: BiasBoard, tell: ArmNames) -> Picture | None:
    gaps = {name: figures["gap"] for name, figures in board.figures().items() if "gap" in figures}
    rows = [(name, gap) for name, gap in gaps.items() if name not in (CONTROL, TRUTH) and gap["value"] is not None]
    rows.sort(key=lambda row: -(row[1]["value"] or 0.0))
    return tell.whiskers("gap", rows, axis(tell.own("picture.axis_gap"), percent=True), 0.0, "right")


def bars_picture(board: BiasBoard, tell: ArmNames) -> Picture | None:
    shown, own = board.bars, tell.own
    if shown is None or not shown.targets:
        return None
    panels: list[Panel] = []
    table: list[list[Cell]] = []
    most = max(0.5, *shown.truth, *(v for values in shown.targets.values() for v in values))
    for name, values in shown.targets.items():
        if board.kinds[name] == "beside":
            continue
        colour = COLOURS.get(name, "aligned") if name != TRUTH else "aligned"
        series = {own("picture.truth"): ("truth", shown.truth), own("picture.model"): (colour, values)}
        x = axis(percent=True, min=0, max=most)
        panels.append(Panel(tell.name(name), bars(shown.words, series, x), 210))
        table += [[tell.name(name), w, p, q] for w, p, q in zip(shown.words, shown.truth, values, strict=True)]
    columns = [tell.column("word"), own("picture.truth"), own("picture.model")]
    return tell.picture("bars", panels, columns, table, own("picture.bars", text=shown.text, count=len(panels)))


def documents_picture(board: BiasBoard, tell: ArmNames) -> Picture | None:
    world, own = board.source == "world", tell.own
    key = "kl" if world else "bits_per_byte"
    series: list[Option] = []
    table: list[list[Cell]] = []
    for name in board.kinds:
        figures = [(float(r.documents), r.figures[key]) for r in board.rows if r.arm == name and key in r.figures]
        table += [tell.cells(name, figure, int(count)) for count, figure in figures]
        if name in COLOURS and figures:
            series += curve_with_band(tell.name(name), figures, COLOURS[name], showSymbol=True)
    if not series or len(board.documents) < 2:
        return None
    x = axis(own("picture.axis_documents"), kind="log", min=board.documents[0], max=board.documents[-1])
    y = axis(own("picture.axis_kl") if world else tell.column(key), scale=not world)
    columns = [tell.column("documents"), tell.column(key), *tell.ends()]
    made = tell.picture(
        "documents" if world else "text_documents", [Panel("", lines(x, y, series), 340)], columns, table
    )
    return replace(made, id="documents")


def compute_picture(board: BiasBoard, tell: ArmNames) -> Picture | None:
    rows = [
        (name, times, kl)
        for name, figures in board.figures().items()
        if {"kl", "compute"} <= figures.keys()
        and (times := figures["compute"]["value"])
        and (kl := figures["kl"]["value"]) is not None
    ]
    if not rows:
        return None
    named = pareto([row for row in rows if board.kinds[row[0]] != "truth"])
    named |= {name for name, _, _ in rows if board.kinds[name] in ("baseline", "truth")}
    series = []
    middle = math.sqrt(min(times for _, times, _ in rows) * max(times for _, times, _ in rows))  # of a log axis
    for name, times, kl in rows:
        side = "left" if times > middle else "right"  # towards the middle, where there is room
        label = {"show": name in named, "formatter": tell.name(name), "color": "$ink", "position": side}
        point = {"showSymbol": True, "symbolSize": 11, "label": label}
        series.append(line(tell.name(name), [(times, kl)], tell.colour(name), **point))
    x, y = axis(tell.own("picture.axis_compute"), kind="log"), axis(tell.own("picture.axis_kl"), scale=True)
    option = lines(x, y, series)
    option["legend"]["show"], option["grid"]["top"] = False, 24  # names stand beside the points
    table: list[list[Cell]] = [[tell.name(name), times, kl] for name, times, kl in rows]
    return tell.picture("compute", [Panel("", option, 380)], [tell.column("compute"), tell.column("kl")], table)


def pareto(rows: Sequence[tuple[str, float, float]]) -> set[str]:
    """The Pareto front of (name, compute, KL): those that leave less than all that cost less."""
    found, least = set(), float("inf")
    for name, _, kl in sorted(rows, key=lambda row: row[1:]):
        if kl < least:
            found.add(name)
            least = kl
    return found


def training_picture(board: BiasBoard, tell: ArmNames) -> Picture | None:
    """The way of one seed's models: KL where it is known, else held-out loss."""
    at, y = (2, "kl") if board.source == "world" else (1, "loss")
    chosen = [c for c in board.curves if c.documents == board.documents[-1] and c.member == 0 and c.target in COLOURS]
    first = min((c.seed for c in chosen), default=0)
    ordered = [c for name in board.kinds for c in chosen if c.target == name and c.seed == first]
    if not ordered:
        return None
    series = [line(tell.name(c.target), [(p[0], p[at]) for p in c.points], COLOURS[c.target]) for c in ordered]
    x, y_axis = axis(tell.own("picture.axis_epoch"), min=1), axis(tell.own(f"picture.axis_{y}"), scale=True)
    table: list[list[Cell]] = [[tell.name(c.target), *p] for c in ordered for p in c.points]
    columns = [tell.column(key) for key in ("epoch", "loss", "kl")]
    return tell.picture("training", [Panel("", lines(x, y_axis, series), 320)], columns, table)


PICTURES = (gap_picture, bars_picture, documents_picture, compute_picture, training_picture)
REPORT = Report[BiasBoard](
    BIAS,
    verdict,
    pictures,
    notes=("interval", "how_turned"),
    last=("turned", lambda row: f"{row.turned}/{row.seeds}"),
    special={
        "compute": lambda row, tell: tell.own(
            "compute_unit", times=tell.say.plain(round(row.figures["compute"]["value"] or 0.0, 1))
        ),
        "gap": lambda row, tell: "" if row.arm in (CONTROL, TRUTH) else tell.say.figure(row.figures["gap"], "right"),
    },
    running=running,
)
