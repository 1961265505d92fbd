"""The experiment of ``klype mistakes``: for every seed one model is trained on documents, and every method continues
from it.

A folder cells/SEED holds a JSON file for each method, and in ``models`` those of the first model and the teachers.
"""

import copy
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any

import numpy as np
import torch

from klype import durable
from klype.data.seeds import mix
from klype.examine.charts import Panel, Picture, axis, line, lines
from klype.examine.intervals import ratio_of_means, ratio_over_seeds
from klype.examine.run_facts import FigureFacts, side_of
from klype.examine.say import Say
from klype.experiments import framework, mistakes_methods
from klype.experiments.bias_targets import BiasCell
from klype.experiments.experiment_report import ArmNames, Report
from klype.experiments.framework import SHARE, BoardMeasure, Experiment, ExperimentPlan, ExperimentProgress, Result
from klype.experiments.mistakes_measures import text_values, world_values
from klype.experiments.mistakes_methods import BEFORE, CONTROL, METHODS, MistakesSettings, Student, TrainingContext
from klype.experiments.training import TrainedModel, loop_settings, optimize
from klype.jsons import read_saved
from klype.model.transformer import Transformer
from klype.train.loop import TrainSession
from klype.train.optimizer import fused_parts
from klype.values import Batch, Figure, NumberedBatches
from klype.words import Words

ENDED = 0.9  # share of the first training's maximum number of steps that are usually taken before early stopping
LOOKED = 0.3  # seconds per question to measure a model in the demo world, most of them spent on the truth
LABELLED = 0.2  # seconds to compute the truth of one of the model's own texts
DIFFERENCE, TIMES = "difference of probabilities", "times the control's"


class SeedCell(framework.Cell):
    """All methods of one seed. ``test.documents``: one for each question of the feedback experiment."""

    settings: MistakesSettings

    def run(self, names: Sequence[str]) -> None:
        left = [name for name in (BEFORE, *names) if read_saved(self.folder / f"{name}.json") is None]
        if not left:
            return
        corpus = replace(self.corpus, vocabulary=(*self.corpus.vocabulary, mistakes_methods.BACK))
        place = self.folder / "models"
        models = BiasCell(corpus, self.test, self.settings, len(corpus.train), self.seed, place, self.compiled)
        place.mkdir(parents=True, exist_ok=True)
        first = models.trained_model("one-hot").model
        assert isinstance(first, Transformer)

        def teachers() -> list[TrainedModel]:
            return [models.trained_model("one-hot", k) for k in range(1, 1 + self.settings.teachers)]

        if self.test.truth is not None:
            reader = partial(mistakes_methods.reader, self.initial_truth)
            look = world_values(self.test, reader, Student(first, corpus), self.seed)
        else:
            look = lambda student, back: text_values(student, self.test, [one.model for one in teachers()])
        for name in left:
            began, flops = time.perf_counter(), 0.0
            student = Student(copy.deepcopy(first), corpus)
            if name != BEFORE:
                learner = Student(student.model.with_backend(self.backend), corpus)
                seed, truth = mix(self.seed, 21), self.initial_truth
                context = TrainingContext(corpus, self.settings, seed, learner, truth, teachers)
                flops = go_on(context, METHODS[name])
            student.refresh()
            about = {"method": name, "seed": self.seed, "flops": flops}
            about["values"] = look(student, name != BEFORE and METHODS[name].back)
            about["seconds"] = time.perf_counter() - began
            durable.write_out(self.folder / f"{name}.json", json.dumps(about, allow_nan=False).encode())


def go_on(context: TrainingContext, row: mistakes_methods.Method) -> float:
    """Trains the context's student by this method, and returns the FLOPs, including those of teachers and own texts."""
    model, settings = context.student.model, context.settings
    torch.manual_seed(mix(context.seed, 22) % 2**63)
    batches = CountedBatches(row.batches(context))
    loop = loop_settings(settings, row.times * settings.steps, settings.again * row.rate)
    optimize(model, row.objective, batches, loop, TrainSession(parts=fused_parts(model.config), keeps=False))
    model.eval()
    return model.config.flops_per_token * (3.0 * batches.tokens + context.tokens) + context.teacher_flops


class CountedBatches(NumberedBatches):
    """A method's batches. ``tokens``: how many tokens they held so far."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.tokens = 0

    def batch(self, index: int) -> Batch:
        batch = next(self._batches)
        again = batch.extra.get("rehearsal")
        self.tokens += batch.tokens_BT.numel() + (0 if again is None else again.tokens_BT.numel())
        return batch


def knows(name: str) -> mistakes_methods.Knows:
    """What the method of this name must be told (``Method.knows``); "nothing" for the model before any method."""
    return METHODS[name].knows if name in METHODS else "nothing"


class MistakesRow(framework.Row):
    """``seconds`` per seed; ``shocks``: how often a word was forced.

    By distance from a forced word: ``feedback``, the same relative to a matched word, and the probability of an error
    after a wrong word and after a correct one.
    """

    seconds: float
    shocks: int | None = None
    feedback_by_distance: list[FigureFacts] | None = None
    beside_near_by_distance: list[FigureFacts] | None = None
    hazard_wrong: list[float] | None = None
    hazard_right: list[float] | None = None


class MistakesBoard(framework.Board):
    """``questions``: test documents in the demo world (0: the default number). ``halved``: cures that halve
    feedback."""

    FILE = "figures.json"
    questions: int = 0
    rows: Sequence[MistakesRow] = ()
    halved: Sequence[str] = ()

    def document(self) -> dict[str, Any]:
        """What ``klype mistakes --json`` prints."""
        methods = {
            row.arm: {"kind": self.kinds[row.arm], "knows": knows(row.arm)}
            | row.model_dump(exclude={"arm", "documents"}, exclude_unset=True)
            for row in self.rows
        }
        told = self.model_dump(include={"source", "seeds", "steps", "questions", "done", "halved"})
        about = {"documents": self.documents[-1], "finished": self.cells_done, "all": self.cells}
        return {**told, **about, "methods": methods}

    def text(self) -> str:
        return json.dumps(self.document(), allow_nan=False)


def halves(kind: str, figures: dict[str, FigureFacts]) -> bool:
    """Whether a cure's feedback is significantly less than half of the control's, by seed and by question. Its cost in
    KL is reported beside it: that a loss is not significant does not show that there is none."""
    highs = [figures[name].get("high") if name in figures else None for name in ("ratio", "ratio_by_question")]
    return kind == "cure" and all(high is not None and high < 0.5 for high in highs)


def board_facts(progress: ExperimentProgress[MistakesBoard], rows: Sequence[MistakesRow]) -> dict[str, Any]:
    """The fields of the board that only this experiment has."""
    halved = [row.arm for row in rows if row.arm != BEFORE and halves(METHODS[row.arm].kind, row.figures)]
    return {"questions": progress.plan.questions, "halved": halved}


def row_facts(results: list[Result]) -> dict[str, Any]:
    """The fields of a row that only this experiment has, from one arm's results."""
    values = [one["values"] for one in results]
    told: dict[str, Any] = {"seconds": round(float(np.mean([one["seconds"] for one in results])), 1)}
    if "feedback" not in values[0]:
        return told
    told["shocks"] = sum(v["shocks"] for v in values)
    for key in ("feedback", "beside_near"):
        if all(v[key] for v in values):
            at_SD = np.array([np.mean(v[key], axis=0) for v in values])
            told[f"{key}_by_distance"] = [framework.facts(difference(at_S.tolist())) for at_S in at_SD.T]
    for key in ("hazard_wrong", "hazard_right"):
        told[key] = np.mean([np.mean(v[key], axis=0) for v in values], axis=0).tolist()
    return told


# differences from the control and ratios to it, paired by seed


def difference(values: Sequence[float], unit: str = DIFFERENCE) -> Figure:
    return framework.over_seeds(values, unit, least=-inf)


def change(of: str, unit: str) -> BoardMeasure:
    """The value minus the control's."""
    less = lambda own, control: difference(np.subtract(own, control).tolist(), unit)
    return BoardMeasure(of=of, paired=less, beside=(CONTROL,))


def times(own: Sequence[float], control: Sequence[float]) -> Figure | None:
    """The ratio to the control; None for the model before any method, which took no compute."""
    return ratio_over_seeds(own, control, TIMES) if any(own) else None


class QuestionRatio(BoardMeasure):
    """The ratio of feedback to the control's, with an interval over the questions of all seeds."""

    def figure(self, key: str, name: str, by: framework.Results) -> Figure | None:
        seeds = sorted(by[name].keys() & by.get(CONTROL, {}).keys())
        tops, unders = dict[str, float](), dict[str, float]()
        for arm, sums in ((name, tops), (CONTROL, unders)):
            for values in (by[arm][seed]["values"] for seed in seeds):
                for question, row in zip(values.get("questions", ()), values.get("feedback", ()), strict=True):
                    sums[question] = sums.get(question, 0.0) + float(np.mean(row))
        return ratio_of_means([tops[q] for q in unders], list(unders.values()), TIMES) if unders else None


def cost(plan: ExperimentPlan, seconds: tuple[float, float], knows: bool, cores: int) -> tuple[int, float]:
    """0 steps (they are a setting), and the seconds for training first model, teachers and methods, and measuring."""
    settings, rows = plan.settings, [METHODS[name] for name in plan.arms]
    assert isinstance(settings, MistakesSettings)
    first = settings.epochs * -(-plan.documents[-1] // settings.rows) * seconds[0] * ENDED
    teachers = settings.teachers if not knows or any(row.knows == "teachers" for row in rows) else 0
    steps = sum(row.times for row in rows) * settings.steps
    looked = (len(rows) + 1) * plan.questions * LOOKED if knows else 0.0
    own = sum(row.own for row in rows) * settings.rounds * settings.own * LABELLED
    a_seed = (1 + teachers) * first + steps * seconds[1] + looked + own
    return 0, plan.seeds * a_seed / max(1, min(cores, plan.seeds))


_share = BoardMeasure(SHARE, most=1.0)
_kl = BoardMeasure("nats a word")
MISTAKES = Experiment[MistakesBoard](
    name="mistakes",
    noun="method",
    unknown="--methods: there is no method",
    arms=METHODS,
    control=CONTROL,
    # feedback: the hazard after a forced error minus that after a correct word, mean over distances. Both hazards are
    # measures, too: a method that makes mistakes everywhere also lowers the difference. kl_change is of KL as drawn,
    # with the mass on the backspace token, which costs at least ``alarm`` nats.
    measures={
        "feedback": BoardMeasure(DIFFERENCE, least=-inf),
        "ratio": BoardMeasure(of="feedback", paired=partial(ratio_over_seeds, unit=TIMES), beside=(CONTROL,)),
        "ratio_by_question": QuestionRatio(),
        "after_wrong": replace(_share, of="hazard_wrong"),
        "after_right": replace(_share, of="hazard_right"),
        "kl": _kl,
        "kl_drawn": _kl,
        "kl_change": change("kl_drawn", "nats a word"),
        **dict.fromkeys(("s_own", "s", "right_5", "right_10", "right_20", "right", "right_greedy"), _share),
        "excess_error": BoardMeasure("% more", least=-inf),
        **dict.fromkeys(("recovery", "standing", "alarm"), _share),
        "calibration": BoardMeasure("probability"),
        "bits_per_byte": BoardMeasure("bits a byte"),
        "bits_change": change("bits_per_byte", DIFFERENCE),
        **dict.fromkeys(("teacher_kl", "teacher_kl_own"), BoardMeasure("nats a token")),
        **dict.fromkeys(("passes", "passes_greedy"), BoardMeasure("passes a word")),
        "compute": BoardMeasure(of="flops", paired=times, beside=(CONTROL,)),
    },
    settings=MistakesSettings,
    choices=[
        ExperimentPlan(documents=(documents,), seeds=seeds, questions=questions)
        for documents, seeds, questions in ((3000, 5, 200), (3000, 3, 160), (2000, 3, 120), (1000, 3, 80), (600, 2, 60))
    ],
    cost=cost,
    cell=SeedCell,
    board=MistakesBoard,
    row=MistakesRow,
    row_facts=row_facts,
    board_facts=board_facts,
    first=(BEFORE,),
    one_size=True,
)


# what the report says and draws


COLOURS = {BEFORE: "muted", CONTROL: "base", "scheduled-sampling": "bad", "own-truth": "truth",
           "own-teachers": "finetuned", "backspace": "aligned", "outcome": "accent"}  # fmt: skip


def verdict(board: MistakesBoard, say: Say, own: Words) -> list[str]:
    """What was found, in sentences; only of what was measured."""
    tell, figures = ArmNames("method", say, own), board.figures()
    cures = [name for name in figures if board.kinds[name] == "cure"]
    if board.source == "text":
        if not cures or CONTROL not in figures:
            return []
        best = min(cures, key=lambda name: figures[name]["bits_per_byte"]["value"] or 0.0)
        told = {key: say.figure(figures[best][key]) for key in ("bits_per_byte", "bits_change")}
        key = "text" if side_of(figures[best]["bits_change"], 0.0) < 0 else "text_open"
        control = say.figure(figures[CONTROL]["bits_per_byte"])
        return [own(f"said.{key}", method=tell.name(best), control=control, n=len(cures), **told)]
    said = []
    if {BEFORE, CONTROL} <= figures.keys():
        sides = {key: figures[name]["feedback"] for key, name in (("before", BEFORE), ("after", CONTROL))}
        key = "control" if all(side_of(figure, 0.0) > 0 for figure in sides.values()) else "control_open"
        said.append(own(f"said.{key}", **{side: say.figure(figure) for side, figure in sides.items()}))
    known = board.known_figures("ratio")
    if ratios := {name: ratio for name in cures if name in known and (ratio := known[name]["value"])}:
        best = min(ratios, key=lambda name: ratios[name])
        told = {key: say.figure(figures[best][key]) for key in ("ratio", "ratio_by_question")}
        told["kl_change"] = say.figure(figures[best].get("kl_change"))
        said.append(own("said.best", method=tell.name(best), n=len(ratios), **told))
        halved = [f"{tell.name(name)} ({say.figure(figures[name].get('kl_change'))})" for name in board.halved]
        said.append(own("said.halved", methods=", ".join(halved)) if halved else own("said.not_halved"))
    if "backspace" in figures:
        told = {key: say.figure(figures["backspace"][key], "right") for key in ("standing", "alarm")}
        said.append(own("said.backspace", passes=say.figure(figures["backspace"]["passes"]), **told))
    return said


def beside_picture(board: MistakesBoard, tell: ArmNames, key: str, at: float) -> Picture | None:
    """One measure of all methods but the control; ``at``: where to draw a line."""
    rows = [(name, figure) for name, figure in board.known_figures(key).items() if name != CONTROL]
    return tell.whiskers(key, rows, axis(tell.column(key)), at)


def distance_picture(board: MistakesBoard, tell: ArmNames) -> Picture | None:
    """Feedback by distance from the forced word."""
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


REPORT = Report[MistakesBoard](
    MISTAKES,
    verdict,
    (partial(beside_picture, key="ratio", at=0.5), distance_picture, partial(beside_picture, key="kl_change", at=0.0)),
    COLOURS,
    notes=("notes",),
    last=("column.seeds", lambda row: str(row.seeds)),
    narrow=("ratio", "after_wrong", "after_right", "kl_change", "bits_per_byte", "teacher_kl_own"),
    told=lambda arm, own: f" ({own(f'knows.{knows(arm)}')})",
)
