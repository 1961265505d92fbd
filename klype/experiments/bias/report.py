"""``report.html`` of the hard-target experiment, both languages in it: what each target leaves, costs and closes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from klype.examine.caution import beyond, clearly
from klype.examine.charts import (
    Cell,
    Option,
    Panel,
    Picture,
    axis,
    bars,
    curve_with_band,
    line,
    lines,
    whiskers,
)
from klype.examine.facts import FigureFacts
from klype.examine.say import Say
from klype.experiments import page as experiment
from klype.experiments.bias.board import MEASURES, Best, Board, Row
from klype.experiments.page import Table, View, figure_cells
from klype.words import LANGUAGES, Words, words

COLOURS = {"one-hot": "base", "label-smoothing": "bad", "kneser-ney": "finetuned", "oracle": "truth",
           "ensemble": "aligned", "steady": "accent"}  # fmt: skip
"""The targets that have curves; all are in the tables."""
OTHER = "muted"
WITHOUT_GAP = ("one-hot", "oracle")


def write(folder: Path, board: Board, lang: str) -> Path:
    """Writes ``report.html`` into the folder."""
    return experiment.write(folder, render(board, lang))


def render(board: Board, lang: str) -> str:
    return experiment.render([_view(board, Say(code), words(code, "bias")) for code in LANGUAGES], "bias", lang)


def verdict(board: Board, say: Say, own: Words) -> list[str]:
    """What was found, in words; nothing is said that was not measured."""
    most = board.documents[-1]
    found = {row.target: row.figures for row in board.rows if row.documents == most}
    said = []
    if board.source == "text":
        cures = [name for name in found if board.kinds[name] == "cure"]
        if "one-hot" in found and cures:
            name = min(cures, key=lambda name: found[name]["bits_per_byte"]["value"] or 0.0)
            better = clearly(*(found[of]["bits_per_byte"] for of in ("one-hot", name))) < 0
            bits, base = (say.figure(found[of]["bits_per_byte"]) for of in (name, "one-hot"))
            key = "text_best" if better else "text_open"
            said.append(own(key, target=_name(own, name), bits=bits, base=base, n=len(cures)))
        return said
    if {"one-hot", "oracle"} <= found.keys():
        said.append(own("hard", kl=say.figure(found["one-hot"]["kl"]), oracle=say.figure(found["oracle"]["kl"])))
    for best in board.best:
        said.append(_best(best, found, say, own))
    if "best-of-five" in found:
        said.append(own("not_longer", kl=say.figure(found["best-of-five"]["kl"])))
    if {"steady", "oracle-steady"} <= found.keys():
        said.append(
            own("steadily", kl=say.figure(found["steady"]["kl"]), oracle=say.figure(found["oracle-steady"]["kl"]))
        )
    return said


def running(board: Board, own: Words, count: Callable[[int], str] = str) -> list[str]:
    """Which models are being trained, each in a sentence. ``count`` writes a number of documents."""
    return [
        own("running", target=_name(own, c.target), documents=count(c.documents), seed=c.seed, epoch=c.points[-1][0],
            epochs=board.epochs)
        for c in board.curves
        if not c.done and c.points
    ]  # fmt: skip


def table(board: Board, documents: int, say: Say, own: Words) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of all figures at one number of documents."""
    rows = [row for row in board.rows if row.documents == documents]
    kept = [name for name in MEASURES if any(name in row.figures for row in rows)]
    columns = [own("column.target"), *(own(f"column.{name}") for name in kept), own("turned")]
    return columns, [
        [_name(own, row.target), *(_cell(row, name, say, own) for name in kept), f"{row.turned}/{row.seeds}"]
        for row in rows
    ]


def pictures(board: Board, say: Say, own: Words) -> list[Picture]:
    """All of which there is something to show."""
    made = [_gap(board, say, own), _bars(board, say, own), _documents(board, say, own), _compute(board, say, own),
            _training(board, own)]  # fmt: skip
    return [picture for picture in made if picture is not None]


def _view(board: Board, say: Say, own: Words) -> View:
    tables = [
        Table(own("table", documents=say.count(n)), *table(board, n, say, own)) for n in reversed(board.documents)
    ]
    lead = f"{own('lead', seeds=board.seeds)} {own('lead_world' if board.source == 'world' else 'lead_text')}"
    return View(
        say=say,
        own=own,
        lead=lead,
        verdict=verdict(board, say, own),
        pictures=pictures(board, say, own),
        tables=tables,
        notes=f"{own('interval')} {own('how_turned')}",
        described=[(_name(own, name), own(f"what.{name}")) for name in board.kinds],
    )


def _best(best: Best, found: dict[str, dict[str, FigureFacts]], say: Say, own: Words) -> str:
    gap = say.figure(best.gap, "right")
    key = f"best{'' if best.within is None else '_within'}{'' if beyond(best.gap, 0.0) > 0 else '_open'}"
    compute = say.value(found[best.target]["compute"])
    return own(key, target=_name(own, best.target), gap=gap, compute=compute)


def _gap(board: Board, say: Say, own: Words) -> Picture | None:
    rows = [
        (r.target, r.figures["gap"])
        for r in _most(board)
        if r.target not in WITHOUT_GAP and "gap" in r.figures and r.figures["gap"]["value"] is not None
    ]
    if not rows:
        return None
    rows.sort(key=lambda row: -(row[1]["value"] or 0.0))
    drawn = [(_name(own, name), figure, say.figure(figure, "right"), COLOURS.get(name, OTHER)) for name, figure in rows]
    option = whiskers(drawn, axis(own("picture.axis_gap"), percent=True), 0.0)
    table = [figure_cells(_name(own, name), figure) for name, figure in rows]
    panel = Panel("", option, 70 + 44 * len(rows))
    columns = [own("column.target"), own("column.gap"), say("end.low"), say("end.high")]
    return Picture("gap", own("picture.gap"), own("picture.gap_how"), [panel], columns, table, True)


def _bars(board: Board, say: Say, own: Words) -> Picture | None:
    if board.bars is None or not board.bars.targets:
        return None
    shown = board.bars
    panels: list[Panel] = []
    table: list[list[Cell]] = []
    for name, values in shown.targets.items():
        if board.kinds[name] == "beside":
            continue
        series = {
            own("picture.truth"): ("truth", shown.truth),
            own("picture.model"): (COLOURS.get(name, "aligned") if name != "oracle" else "aligned", values),
        }
        x = axis(percent=True, min=0, max=max(0.5, *shown.truth, *(v for vs in shown.targets.values() for v in vs)))
        panels.append(Panel(_name(own, name), bars(shown.words, series, x), 210))
        table += [[_name(own, name), w, p, q] for w, p, q in zip(shown.words, shown.truth, values, strict=True)]
    columns = [own("column.target"), own("column.word"), own("picture.truth"), own("picture.model")]
    title = own("picture.bars", text=shown.text, count=len(panels))
    return Picture("bars", title, own("picture.bars_how"), panels, columns, table, True)


def _documents(board: Board, say: Say, own: Words) -> Picture | None:
    key, place = ("kl", "documents") if board.source == "world" else ("bits_per_byte", "text_documents")
    series: list[Option] = []
    table: list[list[Cell]] = []
    for name in board.kinds:
        figures = [(float(r.documents), r.figures[key]) for r in board.rows if r.target == name and key in r.figures]
        table += [figure_cells(_name(own, name), figure, int(count)) for count, figure in figures]
        if name in COLOURS and figures:
            series += curve_with_band(_name(own, name), figures, COLOURS[name], showSymbol=True)
    if not series or len(board.documents) < 2:
        return None
    x = axis(own("picture.axis_documents"), kind="log", min=board.documents[0], max=board.documents[-1])
    y = axis(own("picture.axis_kl") if key == "kl" else own("column.bits_per_byte"), scale=key != "kl")
    columns = [own("column.target"), own("column.documents"), own(f"column.{key}"), say("end.low"), say("end.high")]
    panel = Panel("", lines(x, y, series), 340)
    return Picture("documents", own(f"picture.{place}"), own(f"picture.{place}_how"), [panel], columns, table, True)


def _compute(board: Board, say: Say, own: Words) -> Picture | None:
    rows = [
        (r.target, times, kl)
        for r in _most(board)
        if {"kl", "compute"} <= r.figures.keys()
        and (times := r.figures["compute"]["value"])
        and (kl := r.figures["kl"]["value"]) is not None
    ]
    if not rows:
        return None
    point = {"showSymbol": True, "symbolSize": 11}
    named = _worth_it([row for row in rows if board.kinds[row[0]] != "truth"])
    named |= {name for name, _, _ in rows if board.kinds[name] in ("baseline", "truth")}
    series = [
        line(_name(own, name), [(times, kl)], COLOURS.get(name, OTHER), **point,
             label={"show": name in named, "formatter": _name(own, name), "color": "$ink", "position": "right"})
        for name, times, kl in rows
    ]  # fmt: skip
    option = lines(axis(own("picture.axis_compute"), kind="log"), axis(own("picture.axis_kl"), scale=True), series)
    option["legend"]["show"], option["grid"]["top"] = False, 24  # names stand beside the points
    table: list[list[Cell]] = [[_name(own, name), times, kl] for name, times, kl in rows]
    columns = [own("column.target"), own("column.compute"), own("column.kl")]
    panel = Panel("", option, 380)
    return Picture("compute", own("picture.compute"), own("picture.compute_how"), [panel], columns, table, True)


def _worth_it(rows: Sequence[tuple[str, float, float]]) -> set[str]:
    """Of (name, compute, KL): those that leave less than all that cost less."""
    found, least = set(), float("inf")
    for name, _, kl in sorted(rows, key=lambda row: row[1:]):
        if kl < least:
            found.add(name)
            least = kl
    return found


def _training(board: Board, own: Words) -> Picture | None:
    """The way of one seed's models: KL where it is known, else held-out loss."""
    at = 2 if board.source == "world" else 1
    most = board.documents[-1]
    chosen = [c for c in board.curves if c.documents == most and c.member == 0 and c.target in COLOURS]
    first = min((c.seed for c in chosen), default=0)
    chosen = [c for c in chosen if c.seed == first]
    if not chosen:
        return None
    ordered = [c for name in board.kinds for c in chosen if c.target == name]
    series = [line(_name(own, c.target), [(p[0], p[at]) for p in c.points], COLOURS[c.target]) for c in ordered]
    x, y = (
        axis(own("picture.axis_epoch"), min=1),
        axis(own("picture.axis_kl" if at == 2 else "picture.axis_loss"), scale=True),
    )
    table: list[list[Cell]] = [[_name(own, c.target), *p] for c in ordered for p in c.points]
    columns = [own("column.target"), own("column.epoch"), own("column.loss"), own("column.kl")]
    panel = Panel("", lines(x, y, series), 320)
    return Picture("training", own("picture.training"), own("picture.training_how"), [panel], columns, table, True)


def _cell(row: Row, name: str, say: Say, own: Words) -> str:
    figure = row.figures.get(name)
    if figure is None or figure["value"] is None:
        return ""
    if name == "compute":
        return own("compute_unit", times=say.plain(round(figure["value"], 1)))
    if name == "gap":
        return "" if row.target in WITHOUT_GAP else say.figure(figure, "right")
    return say.figure(figure, name)


def _most(board: Board) -> Sequence[Row]:
    return [row for row in board.rows if row.documents == board.documents[-1]]


def _name(own: Words, target: str) -> str:
    return own(f"target.{target}")
