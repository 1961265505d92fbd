"""The experiment as a whole: seeds side by side, read back from their files, summed up over seeds and questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from klype.answers.traces import replace
from klype.examine.feedback import FeedbackSettings
from klype.examine.intervals import ratio_of_means, ratio_over_seeds
from klype.experiments.bias.corpus import Source
from klype.experiments.bias.study import HELD_OUT, over_seeds
from klype.experiments.cells import follow, side_by_side
from klype.experiments.mistakes.cell import Seed, finished
from klype.experiments.mistakes.methods import BEFORE, CONTROL, method
from klype.experiments.mistakes.plan import DISTANCES, SAMPLES, Plan
from klype.jsons import saved
from klype.values import Figure

FILE = "figures.json"
MEASURES = (
    *("feedback", "ratio", "ratio_by_question", "after_wrong", "after_right"),
    *("kl", "kl_drawn", "kl_change", "s_own", "s", "right_5", "right_10", "right_20"),
    *("right", "right_greedy", "excess_error", "recovery", "standing", "alarm", "calibration", "bits_per_byte"),
    *("bits_change", "teacher_kl", "teacher_kl_own", "passes", "passes_greedy", "compute"),
)
"""What a method may tell, in the order of columns. feedback: hazard after a forced error less after a right word, mean
over distances, and these two themselves (a method that makes mistakes everywhere lowers the difference, too); ratio:
feedback, times the control's (by seed, and by question); changes are from the control's, of KL as drawn (with the mass
on the token that takes a word back: at least ``alarm`` nats)."""
UNITS = {
    "kl": "nats a word",
    "kl_drawn": "nats a word",
    "excess_error": "% more",
    "bits_per_byte": "bits a byte",
    "teacher_kl": "nats a token",
    "teacher_kl_own": "nats a token",
    "passes": "passes a word",
    "passes_greedy": "passes a word",
    "calibration": "probability",
}
Document = dict[str, Any]
Finished = dict[str, Any]


def run(
    source: Source,
    plan: Plan,
    folder: Path,
    tell: Callable[[Document], None],
    workers: int = 2,
    compiled: Path | None = None,
) -> Document:
    """Runs what of the plan is not finished, telling how it stands (and writing figures.json); the figures at the end.

    ``compiled``: where compiled code is kept. KlypeError when one of the processes ends unasked.
    """
    seeds = range(plan.seed, plan.seed + plan.seeds)
    left = [seed for seed in seeds if not finished(_place(folder, seed), (BEFORE, *plan.methods))]

    def look(done: bool = False) -> Document:
        found = document(folder, plan, source.knows, done)
        replace(folder / FILE, json.dumps(found, allow_nan=False).encode())
        tell(found)
        return found

    if left:
        with side_by_side(workers) as pool:
            feedback = FeedbackSettings(positions=8, distances=DISTANCES, samples=SAMPLES)
            running = [
                pool.submit(_seed, source, plan, seed, _place(folder, seed), feedback, compiled) for seed in left
            ]
            follow(running, look)
    return look(done=True)


def document(folder: Path, plan: Plan, knows: bool, done: bool) -> Document:
    """How it stands, from the seeds' files: what ``klype mistakes --json`` prints and figures.json holds."""
    found = [one for file in sorted((folder / "cells").glob("*/*.json")) if (one := saved(file)) is not None]
    by: dict[str, dict[int, Finished]] = {}
    for one in found:
        by.setdefault(one["method"], {})[one["seed"]] = one
    names = [name for name in (BEFORE, *plan.methods) if name in by]
    methods = {name: _row(name, by) for name in names}
    return {
        "source": "world" if knows else "text",
        "documents": plan.documents,
        "seeds": plan.seeds,
        "steps": plan.settings.steps,
        "questions": plan.questions,
        "done": done,
        "finished": sum(len(by[name]) for name in names),
        "all": (1 + len(plan.methods)) * plan.seeds,
        "methods": methods,
        "halved": [name for name in names if halves(methods[name])],
    }


def halves(row: Document) -> bool:
    """Whether a cure's feedback is less than half of the control's, beyond both of its intervals. What that costs in KL
    is told beside it: a loss that cannot be told from none is not shown to be none."""
    ratios = [row["figures"].get(name, {}).get("high") for name in ("ratio", "ratio_by_question")]
    return row["kind"] == "cure" and all(high is not None and high < 0.5 for high in ratios)


def _row(name: str, by: dict[str, dict[int, Finished]]) -> Document:
    own, control = by[name], by.get(CONTROL, {})
    both = sorted(own.keys() & control.keys())
    values = {seed: one["values"] for seed, one in own.items()}
    figures: dict[str, Figure] = {}
    first = next(iter(values.values()))
    for key in MEASURES:
        if all(isinstance(v.get(key), float) for v in values.values()):
            most = np.inf if key in UNITS else 1.0
            least = -np.inf if key == "excess_error" else 0.0
            figures[key] = over_seeds([v[key] for v in values.values()], UNITS.get(key, "share"), most, least)
    row = None if name == BEFORE else method(name)
    told: Document = {
        "kind": "before" if row is None else row.kind,
        "knows": "nothing" if row is None else row.knows,
        "seeds": len(own),
        "seconds": round(float(np.mean([one["seconds"] for one in own.values()])), 1),
    }
    if "feedback" in first:
        figures["feedback"] = _difference([float(np.mean(v["feedback"])) for v in values.values()])
        told["shocks"] = sum(v["shocks"] for v in values.values())
        for key in ("feedback", "beside_near"):
            if not all(v[key] for v in values.values()):
                continue
            at = [np.mean(v[key], axis=0) for v in values.values()]
            told[f"{key}_by_distance"] = [
                _difference([float(row_D[d]) for row_D in at]).json() for d in range(len(at[0]))
            ]
        for key, shown in (("hazard_wrong", "after_wrong"), ("hazard_right", "after_right")):
            figures[shown] = over_seeds([float(np.mean(v[key])) for v in values.values()], "share", 1.0)
            told[key] = np.mean([np.mean(v[key], axis=0) for v in values.values()], axis=0).tolist()
    if both and name != BEFORE:
        flops = [[group[s]["flops"] for s in both] for group in (own, control)]
        figures["compute"] = ratio_over_seeds(flops[0], flops[1], "times the control's")
    if both:
        figures |= _beside([own[s]["values"] for s in both], [control[s]["values"] for s in both])
    told["figures"] = {key: figures[key].json() for key in MEASURES if key in figures}
    return told


def _beside(own: Sequence[dict[str, Any]], control: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """What can be told only beside the control: paired by seed, and by question over all seeds."""
    if "feedback" not in own[0]:
        return {
            "bits_change": _difference(
                [a["bits_per_byte"] - b["bits_per_byte"] for a, b in zip(own, control, strict=True)]
            )
        }
    means = [[float(np.mean(v["feedback"])) for v in group] for group in (own, control)]
    tops, unders = dict[str, float](), dict[str, float]()
    for group, sums in ((own, tops), (control, unders)):
        for v in group:
            for question, row in zip(v["questions"], v["feedback"], strict=True):
                sums[question] = sums.get(question, 0.0) + float(np.mean(row))
    unit = "times the control's"
    found = {
        "ratio": ratio_over_seeds(means[0], means[1], unit),
        "ratio_by_question": ratio_of_means([tops[q] for q in unders], list(unders.values()), unit),
    }
    if all("kl_drawn" in v for v in (*own, *control)):  # cells of an earlier klype know the KL of words alone
        changes = [a["kl_drawn"] - b["kl_drawn"] for a, b in zip(own, control, strict=True)]
        found["kl_change"] = _difference(changes, "nats a word")
    return found


def _difference(values: Sequence[float], unit: str = "difference of probabilities") -> Figure:
    return over_seeds(values, unit, np.inf, -np.inf)


def _place(folder: Path, seed: int) -> Path:
    return folder / "cells" / str(seed)


# in the processes


def _seed(
    source: Source, plan: Plan, seed: int, folder: Path, feedback: FeedbackSettings, compiled: Path | None
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    corpus = source.corpus(seed, plan.documents, HELD_OUT)
    Seed(corpus, source.test(plan.questions), source.beginning, plan.settings, feedback, seed, folder, compiled).run(
        plan.methods
    )
    for file in (folder / "models").glob("*.safetensors"):  # they were kept for resuming within the seed
        file.unlink()
