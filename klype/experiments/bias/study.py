"""The experiment as a whole: cells side by side in processes, read back from their files, summed up over seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from klype.examine.facts import FigureFacts
from klype.examine.intervals import ratio_over_seeds, student
from klype.experiments.bias.board import MEASURES, Bars, Best, Board, Curve, Row
from klype.experiments.bias.cell import Cell, Written, finished
from klype.experiments.bias.corpus import SHOWN, Source, Test
from klype.experiments.bias.plan import Plan
from klype.experiments.bias.targets import TARGETS, target
from klype.experiments.cells import follow, side_by_side
from klype.values import Figure

Finished = dict[str, Any]
"""What a cell wrote of one model."""
UNITS = {"kl": "nats a token", "reverse_kl": "nats a token", "loss": "nats a token", "s": "share a token",
         "right": "share", "calibration": "probability", "bits_per_byte": "bits a byte"}  # fmt: skip
AT_MOST_ONE = ("s", "right", "calibration")
WITHIN = (None, 3.2)
"""Winners: at any compute, and at three times that of one-hot (early stopping makes it vary a little)."""
HELD_OUT = 150


def run(
    source: Source,
    plan: Plan,
    folder: Path,
    tell: Callable[[Board], None],
    workers: int = 2,
    compiled: Path | None = None,
) -> Board:
    """Runs what of the plan is not finished, telling how it stands (and writing targets.json); the board at the end.

    ``compiled``: where compiled code is kept. KlypeError when one of the processes ends unasked.
    """
    left = [
        (count, seed)
        for count in sorted(plan.documents, reverse=True)  # the longest first, so that processes end together
        for seed in range(plan.seed, plan.seed + plan.seeds)
        if not finished(_place(folder, count, seed), plan.targets)
    ]
    with side_by_side(workers) as pool:
        drawing = pool.submit(source.test)
        seeds = sorted({seed for _, seed in left})
        drawn = {seed: pool.submit(source.corpus, seed, plan.documents[-1], HELD_OUT) for seed in seeds}
        test = drawing.result()
        written = Written(folder / "cells")
        last: Board | None = None

        def look(done: bool = False) -> Board:
            nonlocal last
            found, new = written.read()
            if new or done or last is None:
                last = board(found, source, plan, test, done)
            last.write(folder)  # in any case: what was written just now goes on
            tell(last)
            return last

        follow(drawn.values(), look)
        running = [
            pool.submit(_cell, Cell(drawn[seed].result().first(count), test, plan.settings, count, seed,
                                    _place(folder, count, seed), compiled), plan.targets)
            for count, seed in left
        ]  # fmt: skip
        follow(running, look)
    return look(done=True)


def board(found: Sequence[Finished], source: Source, plan: Plan, test: Test, done: bool) -> Board:
    """How it stands, from what the cells have written."""
    asked = [one for one in found if one["target"] in plan.targets]  # others were trained only to teach
    measured = [one for one in asked if "values" in one and one["member"] == 0]
    summed = [r for count in plan.documents for name in plan.targets if (r := _row(measured, name, count)) is not None]
    curves = [
        Curve(
            points=one["curve"], done="values" in one, **{k: one[k] for k in ("target", "documents", "seed", "member")}
        )
        for one in found
        if one["curve"]
    ]
    return Board(
        source="world" if test.truth is not None else "text",
        documents=plan.documents,
        seeds=plan.seeds,
        kinds={name: target(name).kind for name in plan.targets},
        steps=plan.steps,
        epochs=plan.settings.epochs,
        done=done,
        cells_done=len(measured),
        cells=len(plan.targets) * len(plan.documents) * plan.seeds,
        rows=summed,
        curves=curves,
        bars=_bars(measured, test, source.vocabulary),
        best=list(_best(measured, plan)),
    )


def gaps(one_hot: Sequence[float], cure: Sequence[float], oracle: Sequence[float]) -> Figure:
    """The share of the way from one-hot to the oracle that a cure goes, paired by seed: Σ(o − c) / Σ(o − p)."""
    o, c, p = (np.asarray(values, float) for values in (one_hot, cure, oracle))
    figure = ratio_over_seeds(o - c, o - p, "share of the gap")  # it may be below 0, and above 1
    if figure.value is not None and ((c == o).all() or (c == p).all()):  # no way at all, or all of it: by definition
        return replace(figure, low=figure.value, high=figure.value, certain=True, why="")
    return figure


def over_seeds(values: Sequence[float], unit: str, most: float = np.inf, least: float = 0.0) -> Figure:
    """Mean over seeds (documents, first weights and order all drawn anew) with Student's t; one seed: no interval.

    The interval ends at the ``least`` and the ``most`` that there can be.
    """
    value_S = np.asarray(values, float)
    mean, n = float(value_S.mean()), value_S.size
    if n < 2:
        return Figure(mean, None, None, n, unit, why="one seed only")
    low, high = student(mean, value_S)
    return Figure(mean, max(least, low), min(most, high), n, unit)


def _row(measured: Sequence[Finished], name: str, documents: int) -> Row | None:
    own = _by_seed(measured, name, documents)
    if not own:
        return None
    figures = {
        key: over_seeds([one["values"][key] for one in own.values()], UNITS[key], 1.0 if key in AT_MOST_ONE else np.inf)
        for key in MEASURES
        if all(key in one["values"] for one in own.values())
    }
    base = _by_seed(measured, "one-hot", documents)
    both = sorted(own.keys() & base.keys())
    if both:
        figures["compute"] = ratio_over_seeds(
            [own[s]["flops"] for s in both], [base[s]["flops"] for s in both], "times one-hot's"
        )
        truth = _by_seed(measured, "oracle", documents)
        if shared := sorted(truth.keys() & set(both)):
            parts = ([group[s]["values"]["kl"] for s in shared] for group in (base, own, truth))
            figures["gap"] = gaps(*parts)
    turned = sum(one["turned"] for one in own.values())
    shown = {key: _facts(figure) for key, figure in figures.items()}
    return Row(target=name, documents=documents, seeds=len(own), turned=turned, figures=shown)


def _facts(figure: Figure) -> FigureFacts:
    return cast(FigureFacts, figure.json())


def _by_seed(measured: Sequence[Finished], name: str, documents: int) -> dict[int, Finished]:
    return {one["seed"]: one for one in measured if one["target"] == name and one["documents"] == documents}


def _best(measured: Sequence[Finished], plan: Plan) -> Iterator[Best]:
    """Chosen on one half of the test, told by the other: a winner's own luck is not counted for it."""
    most = plan.documents[-1]
    base, truth = (_by_seed(measured, name, most) for name in ("one-hot", "oracle"))
    if len(base) < plan.seeds or len(truth) < plan.seeds:
        return
    cures = {
        name: own
        for name in plan.targets
        if target(name).kind == "cure" and len(own := _by_seed(measured, name, most)) == plan.seeds
    }
    for within in WITHIN:
        allowed = {
            name: own
            for name, own in cures.items()
            if within is None
            or sum(o["flops"] for o in own.values()) <= within * sum(o["flops"] for o in base.values())
        }
        if allowed:
            name = min(allowed, key=lambda n: sum(one["values"]["kl_chosen"] for one in allowed[n].values()))
            parts = ([group[s]["values"]["kl"] for s in sorted(base)] for group in (base, allowed[name], truth))
            yield Best(target=name, within=within, gap=_facts(gaps(*parts)))


def _bars(measured: Sequence[Finished], test: Test, vocabulary: Sequence[str]) -> Bars | None:
    if test.shown is None:
        return None
    most = max((one["documents"] for one in measured), default=0)
    by_target: dict[str, list[list[float]]] = {}
    for one in measured:
        if one["documents"] == most and "bars" in one:
            by_target.setdefault(one["target"], []).append(one["bars"])
    words = [vocabulary[i] for i in test.shown[1]]
    means = {name: [float(x) for x in np.mean(rows, axis=0)] for name, rows in by_target.items()}
    ordered = {row.name: means[row.name] for row in TARGETS if row.name in means}
    return Bars(text=SHOWN, words=words, truth=list(test.shown[1].values()), targets=ordered)


def _place(folder: Path, documents: int, seed: int) -> Path:
    return folder / "cells" / f"{documents}-{seed}"


# in the processes


def _cell(cell: Cell, names: Sequence[str]) -> None:
    cell.folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        cell.taught(name)
    for file in cell.folder.glob("*.safetensors"):  # they were kept for resuming within the cell
        file.unlink()
