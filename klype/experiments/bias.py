"""The experiment of ``klype bias``: models trained on different targets, compared with one-hot targets and with the
true distribution p, at several numbers of documents."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from klype.errors import KlypeError
from klype.examine.charts import Cell, Option, Panel, Picture, axis, bars, curve_with_band, line, lines
from klype.examine.intervals import ratio_over_seeds
from klype.examine.run_facts import FigureFacts, clear_change, side_of
from klype.examine.say import Say
from klype.experiments import framework
from klype.experiments.bias_targets import TARGETS, WRITTEN, BiasCell, members, one_hot
from klype.experiments.corpus import SHOWN
from klype.experiments.experiment_report import OTHER, ArmNames, Report
from klype.experiments.framework import SHARE, BoardMeasure, BoardPart, Experiment, ExperimentPlan, ExperimentProgress
from klype.experiments.training import LabSettings
from klype.values import Figure
from klype.words import Words

CONTROL, TRUTH = "one-hot", "oracle"
# winners are named without a limit on compute, and within about three times that of one-hot (3.2, since it varies with
# early stopping)
WITHIN = (None, 3.2)
ENDED = 0.8  # share of the maximum number of steps that are usually taken before early stopping
OVERHEAD = 1.3  # duration relative to training alone: computing truth, labels and measures


class BiasRow(framework.Row):
    """``turned``: the number of seeds in which held-out loss rose before the end."""

    turned: int


class Curve(BoardPart):
    """A model's learning curve: (epoch, held-out loss, KL to the truth), nats per token. ``done``: it was measured."""

    target: str
    documents: int
    seed: int
    member: int
    done: bool
    points: list[tuple[int, float, float | None]]


class Bars(BoardPart):
    """Probabilities of the words that may follow ``text``: the truth, and the models of each target (mean over finished
    seeds, at the largest number of documents)."""

    text: str
    words: list[str]
    truth: list[float]
    targets: dict[str, list[float]]


class BestCure(BoardPart):
    """The cure with the lowest KL on that half of the test set from which no figure comes, among those whose compute is
    at most ``within`` times that of the control."""

    target: str
    within: float | None
    gap: FigureFacts


class BiasBoard(framework.Board):
    """Everything that a page shows of the experiment, while it runs and afterwards. ``epochs``: maximum per model."""

    FILE = "targets.json"
    epochs: int
    rows: Sequence[BiasRow] = ()
    curves: Sequence[Curve] = ()
    bars: Bars | None = None
    best: Sequence[BestCure] = ()

    def document(self) -> dict[str, Any]:
        """What ``klype bias --json`` prints: figures at the largest number of documents, and by number of documents."""
        most, by = self.documents[-1], {str(count): dict[str, Any]() for count in self.documents}
        for row in self.rows:
            by[str(row.documents)][row.arm] = {**row.figures, "turned": row.turned, "seeds": row.seeds}
        return {
            "targets": by[str(most)],
            "documents": most,
            "seeds": self.seeds,
            "source": self.source,
            "by_documents": by,
            "best": [best.model_dump() for best in self.best],
        }

    @staticmethod
    def read(folder: Path) -> "BiasBoard | None":
        """The board in an experiment's folder, None if none was written yet. Raises KlypeError when it is damaged."""
        file = folder / BiasBoard.FILE
        try:
            return BiasBoard.model_validate_json(file.read_bytes()) if file.is_file() else None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise KlypeError(f"{file} is damaged: {where}: {first['msg']}.", "Run klype bias again.") from None


def board_facts(progress: ExperimentProgress[BiasBoard], rows: Sequence[BiasRow]) -> dict[str, Any]:
    """The fields of the board that only this experiment has."""
    about = ("target", "documents", "seed", "member")
    curves = [
        Curve(points=one["curve"], done="values" in one, **{key: one[key] for key in about})
        for one in progress.found
        if one["curve"]
    ]
    told = {"epochs": progress.plan.settings.epochs, "curves": curves}
    return {**told, "bars": bars_of(progress), "best": [*winners(progress)]}


def gaps(cure: Sequence[float], one_hot: Sequence[float], oracle: Sequence[float]) -> Figure:
    """The share of the gap between one-hot and the oracle that a cure closes, paired by seed: Σ(o − c) / Σ(o − p)."""
    c, o, p = (np.asarray(values, float) for values in (cure, one_hot, oracle))
    figure = ratio_over_seeds(o - c, o - p, "share of the gap")  # it may be below 0, and above 1
    if figure.value is not None and ((c == o).all() or (c == p).all()):  # 0 or 1 by definition
        return replace(figure, low=figure.value, high=figure.value, certain=True, why="")
    return figure


def winners(progress: ExperimentProgress[BiasBoard]) -> Iterator[BestCure]:
    """The best cure within each limit on compute. It is chosen on one half of the test set and measured on the other,
    so that its luck does not count."""
    found, seeds = progress.by(progress.plan.documents[-1]), progress.plan.seeds
    by = {name: [rows[seed] for seed in sorted(rows)] for name, rows in found.items() if len(rows) >= seeds}
    if not {CONTROL, TRUTH} <= by.keys():
        return
    flops = {name: sum(one["flops"] for one in results) for name, results in by.items()}
    cures = [name for name in progress.names if name in by and TARGETS[name].kind == "cure"]
    for within in WITHIN:
        if allowed := [name for name in cures if within is None or flops[name] <= within * flops[CONTROL]]:
            best = min(allowed, key=lambda name: sum(one["values"]["kl_chosen"] for one in by[name]))
            gap = gaps(*([one["values"]["kl"] for one in by[arm]] for arm in (best, CONTROL, TRUTH)))
            yield BestCure(target=best, within=within, gap=framework.facts(gap))


def bars_of(progress: ExperimentProgress[BiasBoard]) -> Bars | None:
    """What models say after the sentence that is shown, None where its continuation is not known."""
    if progress.test.shown is None:
        return None
    measured = [by for count in progress.plan.documents if (by := progress.by(count))]
    last = measured[-1] if measured else {}
    told = {name: [one["bars"] for one in by.values() if "bars" in one] for name, by in last.items()}
    words = [progress.vocabulary[i] for i in progress.test.shown[1]]
    means = {name: np.mean(told[name], axis=0).tolist() for name in TARGETS if told.get(name)}
    return Bars(text=SHOWN, words=words, truth=list(progress.test.shown[1].values()), targets=means)


def cost(plan: ExperimentPlan, seconds: tuple[float, float], knows: bool, cores: int) -> tuple[int, float]:
    """The maximum number of steps of a plan, and about how many seconds it takes (see ``Experiment``)."""
    settings, rows = plan.settings, [TARGETS[name] for name in plan.arms]
    written = {"ensemble-written": 1, "steady-written": WRITTEN}  # written texts, relative to the documents
    hard = soft = 0  # epochs of one cell, with one-hot targets and with whole distributions
    for row in rows:
        epochs = row.how(settings).epochs
        if row.make is one_hot:
            hard += epochs
        elif row.kind in ("cure", "truth"):
            soft += epochs * (1 + written.get(row.name, 0))
    for name, count in members(settings).items():
        if any(row.members == name for row in rows):
            hard += (count - (name in plan.arms)) * TARGETS[name].how(settings).epochs
    per_epoch = plan.seeds * sum(-(-count // settings.rows) for count in plan.documents)
    hard, soft = hard * per_epoch, soft * per_epoch
    return hard + soft, OVERHEAD * ENDED * (hard * seconds[0] + soft * seconds[1]) / cores


BIAS = Experiment[BiasBoard](
    name="bias",
    noun="target",
    unknown="--targets: there are no targets",
    arms=TARGETS,
    control=CONTROL,
    measures={
        "kl": BoardMeasure("nats a token"),
        "reverse_kl": BoardMeasure("nats a token"),
        "s": BoardMeasure("share a token", most=1.0),
        "calibration": BoardMeasure("probability", most=1.0),
        "right": BoardMeasure(SHARE, most=1.0),
        "bits_per_byte": BoardMeasure("bits a byte"),
        "loss": BoardMeasure("nats a token"),
        "compute": BoardMeasure(
            of="flops", paired=partial(ratio_over_seeds, unit="times one-hot's"), beside=(CONTROL,)
        ),
        "gap": BoardMeasure(of="kl", paired=gaps, beside=(CONTROL, TRUTH)),
    },
    settings=LabSettings,
    choices=[
        ExperimentPlan(documents=(fewest, 2 * fewest, 4 * fewest), seeds=seeds)
        for fewest, seeds in ((300, 5), (200, 5), (150, 5), (150, 3), (100, 3), (75, 3), (50, 2))
    ],
    cost=cost,
    cell=BiasCell,
    board=BiasBoard,
    row=BiasRow,
    row_facts=lambda results: {"turned": sum(one["turned"] for one in results)},
    board_facts=board_facts,
)


# what the report says and draws


# the arms that have curves; the tables show all
COLOURS = {"one-hot": "base", "label-smoothing": "bad", "kneser-ney": "finetuned", "oracle": "truth",
           "ensemble": "aligned", "steady": "accent"}  # fmt: skip


def verdict(board: BiasBoard, say: Say, own: Words) -> list[str]:
    """What was found, in sentences; only of what was measured."""
    tell, found = ArmNames("target", say, own), board.figures()
    if board.source == "text":
        cures = [name for name in found if board.kinds[name] == "cure"]
        if CONTROL not in found or not cures:
            return []
        bits = {name: figures["bits_per_byte"] for name, figures in found.items()}
        name = min(cures, key=lambda name: bits[name]["value"] or 0.0)
        key = "text_best" if clear_change(bits[CONTROL], bits[name]) < 0 else "text_open"
        told = {"bits": say.figure(bits[name]), "base": say.figure(bits[CONTROL])}
        return [own(key, target=tell.name(name), n=len(cures), **told)]
    kl = {name: say.figure(figures["kl"]) for name, figures in found.items()}
    said = []
    if {CONTROL, TRUTH} <= kl.keys():
        said.append(own("hard", kl=kl[CONTROL], oracle=kl[TRUTH]))
    for best in board.best:
        key = f"best{'' if best.within is None else '_within'}{'' if side_of(best.gap, 0.0) > 0 else '_open'}"
        gap, compute = say.figure(best.gap, "right"), say.value(found[best.target]["compute"])
        said.append(own(key, target=tell.name(best.target), gap=gap, compute=compute))
    if "best-of-five" in kl:
        said.append(own("not_longer", kl=kl["best-of-five"]))
    if {"steady", "oracle-steady"} <= kl.keys():
        said.append(own("steadily", kl=kl["steady"], oracle=kl["oracle-steady"]))
    return said


def progress_lines(board: BiasBoard, own: Words, count: Callable[[int], str] = str) -> list[str]:
    """A sentence for each model that is being trained. ``count`` formats a number of documents."""
    return [
        own("running", target=own(f"target.{c.target}"), documents=count(c.documents), seed=c.seed,
            epoch=c.points[-1][0], epochs=board.epochs)
        for c in board.curves
        if not c.done and c.points
    ]  # fmt: skip


def gap_picture(board: BiasBoard, tell: ArmNames) -> Picture | None:
    """How much of the gap each target closes, the best first."""
    rows = [(name, gap) for name, gap in board.known_figures("gap").items() if name not in (CONTROL, TRUTH)]
    rows.sort(key=lambda row: -(row[1]["value"] or 0.0))
    return tell.whiskers("gap", rows, axis(tell.own("picture.axis_gap"), percent=True), 0.0, "right")


def bars_picture(board: BiasBoard, tell: ArmNames) -> Picture | None:
    """What may follow one sentence: the truth beside each target's models."""
    shown, own = board.bars, tell.own
    if shown is None or not shown.targets:
        return None
    panels, table = list[Panel](), list[list[Cell]]()
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
    """KL, or bits per byte, by the number of documents."""
    world, own = board.source == "world", tell.own
    key = "kl" if world else "bits_per_byte"
    series, table = list[Option](), list[list[Cell]]()
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
    name, panel = "documents" if world else "text_documents", Panel("", lines(x, y, series), 340)
    return replace(tell.picture(name, [panel], columns, table), id="documents")


def compute_picture(board: BiasBoard, tell: ArmNames) -> Picture | None:
    """KL against compute, with the names of targets on the Pareto front."""
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
        side = "left" if times > middle else "right"  # towards the middle, where there is space
        label = {"show": name in named, "formatter": tell.name(name), "color": "$ink", "position": side}
        point = {"showSymbol": True, "symbolSize": 11, "label": label}
        series.append(line(tell.name(name), [(times, kl)], COLOURS.get(name, OTHER), **point))
    x, y = axis(tell.own("picture.axis_compute"), kind="log"), axis(tell.own("picture.axis_kl"), scale=True)
    option = lines(x, y, series)
    option["legend"]["show"], option["grid"]["top"] = False, 24  # names stand beside the points
    table: list[list[Cell]] = [[tell.name(name), times, kl] for name, times, kl in rows]
    return tell.picture("compute", [Panel("", option, 380)], [tell.column("compute"), tell.column("kl")], table)


def pareto(rows: Sequence[tuple[str, float, float]]) -> set[str]:
    """The Pareto front of rows (name, compute, KL): the names of those with a lower KL than all that cost less."""
    ordered = sorted(rows, key=lambda row: row[1:])
    least = accumulate((kl for *_, kl in ordered), min, initial=math.inf)
    return {name for (name, _, kl), before in zip(ordered, least, strict=False) if kl < before}


def training_picture(board: BiasBoard, tell: ArmNames) -> Picture | None:
    """Learning curves of one seed's models: KL where it is known, else held-out loss."""
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


REPORT = Report[BiasBoard](
    BIAS,
    verdict,
    (gap_picture, bars_picture, documents_picture, compute_picture, training_picture),
    COLOURS,
    notes=("interval", "how_turned"),
    last=("turned", lambda row: f"{row.turned}/{row.seeds}"),
    special={
        "compute": lambda row, tell: tell.own(
            "compute_unit", times=tell.say.plain(round(row.figures["compute"]["value"] or 0.0, 1))
        ),
        "gap": lambda row, tell: "" if row.arm in (CONTROL, TRUTH) else tell.say.figure(row.figures["gap"], "right"),
    },
    running=progress_lines,
)
