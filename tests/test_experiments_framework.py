"""An experiment is a table: arms, measures and a cell are all that a new one takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from bias_toys import Chain

from klype.errors import KlypeError, UsageError
from klype.experiments import framework
from klype.experiments.corpus import Corpus
from klype.experiments.framework import (
    BoardMeasure,
    Cell,
    Experiment,
    ExperimentPlan,
    ExperimentProgress,
    by_name,
    over_seeds,
)
from klype.experiments.training import LabSettings
from klype.values import Figure


@dataclass(frozen=True)
class Coin:
    name: str
    kind: str = "cure"
    needs_truth: bool = False


class Drawn(Chain):
    """Tells in a file which seeds' documents were drawn, in whatever process."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def corpus(self, seed: int, documents: int, held_out: int) -> Corpus:
        with self.file.open("a") as stream:
            stream.write(f"{seed} {documents}\n")
        return super().corpus(seed, documents, held_out)


class Tosses(Cell):
    """An arm's result is made of its name, the seed and the documents; nothing is trained."""

    def run(self, names: Sequence[str]) -> None:
        for name in names:
            file = self.folder / f"{name}.0.json"
            if not file.exists():
                values = {"heads": (len(name) + self.seed) / 100, "tosses": [1.0, 3.0 + self.seed]}
                about = {"coin": name, "seed": self.seed, "documents": len(self.corpus.train), "values": values}
                file.write_text(json.dumps(about))


class Tossed(framework.Board):
    FILE = "tossed.json"


def less(own: list[float], control: list[float]) -> Figure:
    return over_seeds([a - b for a, b in zip(own, control, strict=True)], "heads")


COINS = Experiment[Tossed](
    name="coins",
    noun="coin",
    unknown="--coins: there is no coin",
    arms=by_name(Coin("fair", "control"), Coin("loaded"), Coin("known", needs_truth=True)),
    control="fair",
    measures={
        "heads": BoardMeasure("share", most=0.065),
        "mean": BoardMeasure("tosses", of="tosses"),
        "less": BoardMeasure(of="heads", paired=less, beside=("fair",)),
    },
    settings=LabSettings,
    choices=(ExperimentPlan(documents=(8, 16), seeds=4), ExperimentPlan(documents=(8,), seeds=2)),
    cost=lambda plan, seconds, knows, cores: (plan.seeds, 60.0 * plan.seeds),
    cell=Tosses,
    board=Tossed,
)


@pytest.mark.slow
def test_figures_are_summed_over_seeds_and_paired_with_the_control(tmp_path: Path) -> None:
    asked = ExperimentPlan(arms=("loaded",), settings=LabSettings(width=16, layers=1))
    plan = COINS.plan(Chain(), tmp_path, asked, 2.5, 1)  # type: ignore[arg-type]
    assert (plan.documents, plan.seeds, plan.arms) == ((8,), 2, ("fair", "loaded"))
    plan = plan.model_copy(update={"documents": (8, 12)})
    told: list[Any] = []
    made = COINS.run(Drawn(tmp_path / "drawn"), plan, tmp_path, told.append, workers=1)  # type: ignore[arg-type]
    assert (tmp_path / "drawn").read_text() == "0 12\n1 12\n"  # a seed's documents once, of as many as are needed
    assert (made.cells_done, made.cells, made.done, made.kinds) == (8, 8, True, {"fair": "control", "loaded": "cure"})
    assert told[-1] == made == Tossed.model_validate_json((tmp_path / "tossed.json").read_bytes())
    assert [(row.arm, row.documents, row.seeds) for row in made.rows] == [
        (name, count, 2) for count in (8, 12) for name in ("fair", "loaded")
    ]
    figures = made.figures()["loaded"]
    assert figures["heads"]["value"] == pytest.approx(0.065)
    assert figures["heads"]["high"] == 0.065
    assert figures["mean"]["value"] == pytest.approx((2.0 + 2.5) / 2)
    assert figures["less"]["value"] == pytest.approx(0.02)
    assert figures["less"]["low"] == pytest.approx(0.02)


def tossed(experiment: Experiment[Tossed], plan: ExperimentPlan, folder: Path) -> Tossed:
    """The board, with all cells run in this process."""
    for seed in range(plan.seeds):
        place = folder / "cells" / f"{plan.documents[-1]}-{seed}"
        place.mkdir(parents=True, exist_ok=True)
        corpus = Chain().corpus(seed, plan.documents[-1], 8)
        Tosses(corpus, Chain().test(), plan.settings, plan.documents[-1], seed, place).run(plan.arms)
    found = framework.results(folder / "cells")
    return ExperimentProgress(experiment, plan, found, Chain().test(), done=True).board()


@pytest.mark.slow
def test_what_is_finished_is_kept_and_the_rest_is_run(tmp_path: Path) -> None:
    plan = ExperimentPlan(documents=(8,), seeds=2, arms=("fair", "loaded"))
    whole = tossed(COINS, plan, tmp_path)
    kept, lost = (tmp_path / "cells" / f"8-{seed}" / "loaded.0.json" for seed in (0, 1))
    before = kept.stat().st_mtime_ns
    lost.unlink()
    assert COINS.run(Chain(), plan, tmp_path, lambda board: None, workers=1) == whole  # type: ignore[arg-type]
    assert kept.stat().st_mtime_ns == before


def test_a_damaged_result_is_not_counted(tmp_path: Path) -> None:
    plan = ExperimentPlan(documents=(8,), seeds=2, arms=("fair", "loaded"))
    tossed(COINS, plan, tmp_path)
    (tmp_path / "cells" / "8-1" / "loaded.0.json").write_text("{")
    half = tossed(COINS, plan, tmp_path)
    assert (half.cells_done, half.cells) == (3, 4)
    assert [row.seeds for row in half.rows] == [2, 1]
    assert not COINS.is_finished(tmp_path / "cells" / "8-1", plan.arms)


def test_a_new_arm_and_a_new_measure_are_rows(tmp_path: Path) -> None:
    measures = {**COINS.measures, "tails": BoardMeasure("share", of="heads")}
    more = replace(COINS, arms={**COINS.arms, "bent": Coin("bent")}, measures=measures)
    assert more.select_arms(("bent",), truth=False) == ("fair", "bent")
    figures = tossed(more, ExperimentPlan(documents=(8,), seeds=1, arms=("fair", "bent")), tmp_path).figures()
    assert figures["bent"]["tails"]["value"] == figures["bent"]["heads"]["value"] == pytest.approx(0.04)


def test_arms_that_need_a_truth_are_refused_where_there_is_none() -> None:
    assert COINS.select_arms((), truth=False) == ("fair", "loaded")
    with pytest.raises(UsageError, match="no coin called known"):
        COINS.select_arms(("known",), truth=False)


def test_plans_of_both_kinds_are_read_back_and_damaged_ones_are_named(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    assert ExperimentPlan.read(file, "coin", LabSettings) is None
    plan = ExperimentPlan(documents=(8,), questions=4, seeds=2, arms=("fair",), seconds=1.5)
    file.write_text(json.dumps(plan.document("coin", one_size=True)))
    assert json.loads(file.read_text())["documents"] == 8
    assert ExperimentPlan.read(file, "coin", LabSettings) == plan
    several = plan.model_copy(update={"documents": (8, 16), "questions": 0, "steps": 9})
    file.write_text(json.dumps(several.document("coin", one_size=False)))
    assert ExperimentPlan.read(file, "coin", LabSettings) == several
    kept = {"coins": ["fair"], "documents": [8], "settings": {}}
    for text in ("{", "{}", json.dumps(kept), json.dumps({**kept, "seeds": "many"})):
        file.write_text(text)
        with pytest.raises(KlypeError, match="damaged"):
            ExperimentPlan.read(file, "coin", LabSettings)
