"""The hard-target experiment: every target trained towards at several numbers of documents, beside one-hot and p."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from klype.errors import KlypeError
from klype.examine.facts import FigureFacts
from klype.examine.intervals import ratio_over_seeds
from klype.experiments import framework
from klype.experiments.bias.targets import TARGETS, WRITTEN, Lab, members, one_hot, target
from klype.experiments.corpus import SHOWN
from klype.experiments.framework import (
    SHARE,
    BoardMeasure,
    BoardPart,
    Experiment,
    ExperimentPlan,
    PlanChoice,
    Progress,
    Result,
    Speed,
    facts,
)
from klype.experiments.training import LabSettings
from klype.values import Figure

CONTROL, TRUTH = "one-hot", "oracle"
# winners are named without a limit on compute, and within about three times that of one-hot (3.2, since early stopping
# makes it vary)
WITHIN = (None, 3.2)
ENDED = 0.8  # of all steps are usually taken before held-out loss has turned for long enough
OTHER = 1.3  # times the training: truth, labels, measures


class BiasRow(framework.Row):
    """``turned``: in so many of the seeds held-out loss rose before the end."""

    turned: int


class Curve(BoardPart):
    """One model's way: (epoch, held-out loss, KL to the truth), nats a token. ``done``: it has been measured."""

    target: str
    documents: int
    seed: int
    member: int
    done: bool
    points: list[tuple[int, float, float | None]]


class Bars(BoardPart):
    """What may follow ``text``: the truth, and each target's model (mean over finished seeds, most documents)."""

    text: str
    words: list[str]
    truth: list[float]
    targets: dict[str, list[float]]


class Best(BoardPart):
    """The cure with the least KL on the half of the test that no figure comes from, of those within a compute."""

    target: str
    within: float | None
    gap: FigureFacts


class BiasBoard(framework.Board):
    """All that a page needs to show the experiment while it runs and afterwards. ``epochs`` of a model at most."""

    FILE = "targets.json"
    epochs: int
    rows: Sequence[BiasRow] = ()
    curves: Sequence[Curve] = ()
    bars: Bars | None = None
    best: Sequence[Best] = ()

    def document(self) -> dict[str, Any]:
        """What ``klype bias --json`` prints: the figures at the most documents, and all of them by documents."""
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
    def read(folder: Path) -> BiasBoard:
        """KlypeError when there is none, or it is not one."""
        file = folder / BiasBoard.FILE
        try:
            return BiasBoard.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            raise KlypeError(f"There is no {BiasBoard.FILE} in {folder}.", "Make one with klype bias --out.") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise KlypeError(f"{file} is damaged: {where}: {first['msg']}.", "Run klype bias again.") from None


def board(stand: Progress[BiasBoard]) -> BiasBoard:
    """How it stands."""
    about = ("target", "documents", "seed", "member")
    curves = [
        Curve(points=one["curve"], done="values" in one, **{key: one[key] for key in about})
        for one in stand.found
        if one["curve"]
    ]
    return BiasBoard(
        **stand.common(),
        epochs=stand.plan.settings.epochs,
        rows=stand.rows(BiasRow, lambda results: {"turned": sum(one["turned"] for one in results)}),
        curves=curves,
        bars=_bars(stand),
        best=list(_best(stand)),
    )


def gaps(one_hot: Sequence[float], cure: Sequence[float], oracle: Sequence[float]) -> Figure:
    """The share of the way from one-hot to the oracle that a cure goes, paired by seed: Σ(o − c) / Σ(o − p)."""
    o, c, p = (np.asarray(values, float) for values in (one_hot, cure, oracle))
    figure = ratio_over_seeds(o - c, o - p, "share of the gap")  # it may be below 0, and above 1
    if figure.value is not None and ((c == o).all() or (c == p).all()):  # no way at all, or all of it: by definition
        return replace(figure, low=figure.value, high=figure.value, certain=True, why="")
    return figure


def _gap(own: list[Result], control: list[Result], truth: list[Result]) -> Figure:
    return gaps(*([one["values"]["kl"] for one in group] for group in (control, own, truth)))


def _best(stand: Progress[BiasBoard]) -> Iterator[Best]:
    """Chosen on one half of the test, told by the other: a winner's own luck is not counted for it."""
    by = {
        name: [results[seed] for seed in sorted(results)]
        for name, results in stand.by(stand.plan.documents[-1]).items()
        if len(results) >= stand.plan.seeds
    }
    if not {CONTROL, TRUTH} <= by.keys():
        return
    flops = {name: sum(one["flops"] for one in results) for name, results in by.items()}
    for within in WITHIN:
        allowed = [
            name
            for name in stand.names
            if name in by and target(name).kind == "cure" and (within is None or flops[name] <= within * flops[CONTROL])
        ]
        if allowed:
            name = min(allowed, key=lambda name: sum(one["values"]["kl_chosen"] for one in by[name]))
            yield Best(target=name, within=within, gap=facts(_gap(by[name], by[CONTROL], by[TRUTH])))


def _bars(stand: Progress[BiasBoard]) -> Bars | None:
    if stand.test.shown is None:
        return None
    measured = [by for count in stand.plan.documents if (by := stand.by(count))]
    last = measured[-1] if measured else {}
    told = {name: [one["bars"] for one in by.values() if "bars" in one] for name, by in last.items()}
    words = [stand.vocabulary[i] for i in stand.test.shown[1]]
    means = {row.name: np.mean(told[row.name], axis=0).tolist() for row in TARGETS if told.get(row.name)}
    return Bars(text=SHOWN, words=words, truth=list(stand.test.shown[1].values()), targets=means)


def steps(documents: int, targets: Sequence[str], settings: LabSettings) -> tuple[int, int]:
    """Steps of one cell at most: one-hot ones, and with whole distributions."""
    rows = [target(name) for name in targets]
    written = {"ensemble-written": 1, "steady-written": WRITTEN}  # times the documents, beside those there are
    hard = soft = 0
    for row in rows:
        epochs = row.how(settings).epochs
        if row.make is one_hot:
            hard += epochs
        elif row.kind in ("cure", "truth"):
            soft += epochs * (1 + written.get(row.name, 0))
    for name, count in members(settings).items():
        if any(row.members == name for row in rows):
            hard += (count - (name in targets)) * target(name).how(settings).epochs
    once = -(-documents // settings.rows)
    return hard * once, soft * once


def cost(plan: ExperimentPlan, speed: Speed, knows: bool, cores: int) -> tuple[int, float]:
    """Steps at most, and seconds."""
    both = [steps(count, plan.arms, plan.settings) for count in plan.documents]
    hard, soft = (plan.seeds * sum(part) for part in zip(*both, strict=True))
    return hard + soft, OTHER * ENDED * (hard * speed.hard + soft * speed.soft) / cores


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
            paired=lambda own, control: ratio_over_seeds(
                [one["flops"] for one in own], [one["flops"] for one in control], "times one-hot's"
            ),
            beside=(CONTROL,),
        ),
        "gap": BoardMeasure(paired=_gap, beside=(CONTROL, TRUTH)),
    },
    settings=LabSettings,
    choices=[
        PlanChoice((fewest, 2 * fewest, 4 * fewest), seeds)
        for fewest, seeds in ((300, 5), (200, 5), (150, 5), (150, 3), (100, 3), (75, 3), (50, 2))
    ],
    cost=cost,
    cell=Lab,
    board=board,
)
