"""Experiments: arms that are trained and measured with several seeds, averaged over seeds and compared with a control.

A new arm is a row of its experiment's table of arms, a new measure a row of its table of measures. A new experiment is
an ``Experiment`` with these two tables, a ``Cell`` that trains an arm, and a ``Board``; a ``Report`` shows it.
"""

import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast

import numpy as np
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SerializeAsAny

from klype import config, durable
from klype.child_processes import end_with
from klype.device import memory_policy, set_threads, thread_policy
from klype.errors import KlypeError, UsageError
from klype.examine.intervals import student
from klype.examine.run_facts import FigureFacts
from klype.examine.truth import Truth
from klype.experiments.corpus import Corpus, Source, TestSet
from klype.experiments.training import LabSettings, TrainingSet, train_model, uniform
from klype.jsons import read_saved
from klype.model.attention import TORCH, Backend
from klype.model.compiled import compiled_backend
from klype.planner import first_that_fits
from klype.values import Figure

# what a cell writes for an arm: its name, seed, flops, seconds, and its values once it has been measured
Result = dict[str, Any]
# arm → seed → result
Results = dict[str, dict[int, Result]]
HELD_OUT = 150  # documents for early stopping
PROBED = 8  # steps that are timed
SHARE = "share"


@dataclass(frozen=True)
class Arm:
    """One way to train. ``make``: the function that does it, or prepares it. ``kind``: a cure, or what cures are
    compared with: the control or a baseline, something "beside" (such as a larger model), or training on the truth."""

    name: str
    make: Callable[..., Any]
    kind: Literal["control", "baseline", "cure", "beside", "truth"] = "cure"

    @property
    def needs_truth(self) -> bool:
        return self.kind == "truth"


A = TypeVar("A", bound=Arm)


def by_name(*arms: A) -> dict[str, A]:
    """Arms as a table by name."""
    return {arm.name: arm for arm in arms}


@dataclass(frozen=True, slots=True)
class BoardMeasure:
    """A measure of an arm: the mean over seeds of one of its values, with an interval within ``least`` and ``most``.

    ``of``: the value's name, if it is not the measure's. A list counts as its mean. ``paired``: instead of the mean,
    a function of the arm's values and those of the arms ``beside``, at the seeds that all of them have; it returns None
    where there is no figure.
    """

    unit: str = SHARE
    most: float = math.inf
    least: float = 0.0
    of: str = ""
    paired: Callable[..., Figure | None] | None = None
    beside: tuple[str, ...] = ()

    def figure(self, key: str, name: str, by: Results) -> Figure | None:
        """The figure of the arm ``name``, None if it has none. ``key``: the measure's name."""
        groups = [by.get(arm, {}) for arm in (name, *self.beside)]
        seeds = sorted(set.intersection(*map(set, groups)))
        of, found = self.of or key, list[list[Any]]()
        for group in groups:
            found.append([{**group[seed], **group[seed]["values"]}.get(of) for seed in seeds])
        if not seeds or any(value is None for values in found for value in values):
            return None
        means = [[float(np.mean(value)) for value in values] for values in found]
        return self.paired(*means) if self.paired else over_seeds(means[0], self.unit, self.most, self.least)


def over_seeds(values: Sequence[float], unit: str, most: float = math.inf, least: float = 0.0) -> Figure:
    """Mean over seeds, with Student's interval; with one seed there is no interval.

    Documents, initial weights and order are drawn anew for every seed. ``least``, ``most``: possible values.
    """
    value_S = np.asarray(values, float)
    mean, n = float(value_S.mean()), value_S.size
    if n < 2:
        return Figure(mean, None, None, n, unit, why="one seed only")
    low, high = student(mean, value_S)
    return Figure(mean, max(least, low), min(most, high), n, unit)


class BoardPart(BaseModel):
    """Base class of what a board is made of: frozen, strict JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Row(BoardPart):
    """Figures of one arm at one number of documents, over the seeds that are finished."""

    arm: str = Field(validation_alias=AliasChoices("arm", "target"))
    documents: int
    seeds: int
    figures: dict[str, FigureFacts]


class Board(BoardPart):
    """Results of an experiment so far, kept in ``FILE`` in its folder.

    ``kinds``: of the arms, in the table's order. ``steps``: maximum number of training steps. ``cells_done``: how many
    of the ``cells`` (an arm, a seed and a number of documents each) have been measured.
    """

    FILE: ClassVar[str]
    version: Literal[1] = 1
    source: Literal["world", "text"]
    documents: tuple[int, ...]
    seeds: int
    kinds: dict[str, str]
    steps: int
    done: bool = False
    cells_done: int = 0
    cells: int = 0
    rows: Sequence[SerializeAsAny[Row]] = ()

    def figures(self) -> dict[str, dict[str, FigureFacts]]:
        """Figures by arm, at the largest number of documents."""
        return {row.arm: row.figures for row in self.rows if row.documents == self.documents[-1]}

    def known_figures(self, key: str) -> dict[str, FigureFacts]:
        """One measure's figures that have a value, by arm, at the largest number of documents."""
        found = {arm: figures[key] for arm, figures in self.figures().items() if key in figures}
        return {arm: figure for arm, figure in found.items() if figure["value"] is not None}

    def document(self) -> dict[str, Any]:
        """The board as ``--json`` prints it."""
        raise NotImplementedError

    def text(self) -> str:
        """The content of its file."""
        return self.model_dump_json()

    def write(self, folder: Path) -> None:
        """Writes its file atomically. Raises KlypeError when that fails."""
        durable.write_out(folder / self.FILE, self.text().encode())


B = TypeVar("B", bound=Board)


class ExperimentPlan(config.Settings):
    """What an experiment trains and measures.

    ``documents``: numbers of documents to train on. ``questions``: test documents (0: the default number). ``steps``:
    maximum over all cells (0 where it is a setting). ``seconds``: estimated duration.

    As a request, empty ``documents`` and 0 ``seeds`` mean as many as fit into the minutes, empty ``arms`` mean all.
    """

    documents: tuple[int, ...] = ()
    questions: int = 0
    seeds: int = 0
    seed: int = 0
    arms: tuple[str, ...] = ()
    settings: SerializeAsAny[LabSettings] = LabSettings()
    steps: int = 0
    seconds: float = 0.0

    def document(self, noun: str, one_size: bool) -> dict[str, Any]:
        """The plan in ``--json`` and plan.json: arms under their ``noun``; ``documents`` is a number if there is
        ``one_size``."""
        made = self.model_dump(exclude={"arms", "steps" if one_size else "questions"})
        return {**made, f"{noun}s": self.arms} | ({"documents": self.documents[-1]} if one_size else {})

    @staticmethod
    def read(file: Path, noun: str, settings: type[LabSettings]) -> "ExperimentPlan | None":
        """The plan that an earlier start saved, None if there is none. Raises KlypeError if it is damaged."""
        if not file.is_file():
            return None
        try:
            made = read_saved(file) or {}
            sizes = made.pop("documents")
            about = {"documents": sizes if isinstance(sizes, list) else (sizes,), "arms": made.pop(f"{noun}s")}
            about["seeds"] = made["seeds"]  # required: without it, it would be a request for as many as fit
            return ExperimentPlan(**made | about | {"settings": settings.model_validate(made["settings"])})
        except (KeyError, ValueError):
            raise KlypeError(f"{file} is damaged.", "Choose another --out.") from None


@dataclass(slots=True)
class Cell:
    """One seed at one number of documents, whose arms are trained and measured in a process of its own.

    ``compiled``: folder of compiled code (None: torch computes). ``initial_truth``: returns the truth at the beginning
    of a document, or None where it is not known.
    """

    corpus: Corpus
    test: TestSet
    settings: LabSettings
    documents: int
    seed: int
    folder: Path
    compiled: Path | None = None
    initial_truth: Callable[[], Truth | None] = lambda: None

    @property
    def backend(self) -> Backend:
        """The backend of the training."""
        return compiled_backend(self.compiled) if self.compiled else TORCH

    def run(self, names: Sequence[str]) -> None:
        """Trains and measures these arms. Each result is written as soon as it is known, and not computed again."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class ExperimentProgress(Generic[B]):
    """The state of an experiment. ``found``: the results so far; ``names``: the arms that are reported."""

    experiment: "Experiment[B]"
    plan: ExperimentPlan
    found: Sequence[Result]
    test: TestSet
    vocabulary: Sequence[str] = ()
    done: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.experiment.first, *self.plan.arms)

    def by(self, documents: int) -> Results:
        """Results of measured arms at one number of documents, without models that were trained only as teachers."""
        out: Results = {}
        for one in self.found:
            measured = "values" in one and not one.get("member") and one.get("documents", documents) == documents
            if measured and (name := one[self.experiment.noun]) in self.names:
                out.setdefault(name, {})[one["seed"]] = one
        return out

    def board(self) -> B:
        """The experiment's board, with a row for each arm at each number of documents."""
        experiment, plan, rows = self.experiment, self.plan, list[Row]()
        for documents in plan.documents:
            by = self.by(documents)
            for name in (name for name in self.names if name in by):
                found = {key: measure.figure(key, name, by) for key, measure in experiment.measures.items()}
                figures = {key: facts(figure) for key, figure in found.items() if figure is not None}
                more = experiment.row_facts([*by[name].values()])
                rows.append(experiment.row(arm=name, documents=documents, seeds=len(by[name]), figures=figures, **more))
        return experiment.board(
            source="text" if self.test.truth is None else "world",
            documents=plan.documents,
            seeds=plan.seeds,
            kinds={name: experiment.arms[name].kind if name in experiment.arms else name for name in self.names},
            steps=experiment.steps(plan),
            done=self.done,
            cells_done=sum(row.seeds for row in rows),
            cells=len(self.names) * len(plan.documents) * plan.seeds,
            rows=rows,
            **experiment.board_facts(self, rows),
        )


def facts(figure: Figure) -> FigureFacts:
    """The figure as JSON."""
    return cast(FigureFacts, figure.json())


@dataclass(frozen=True)
class Experiment(Generic[B]):
    """What an experiment consists of.

    ``name``: of its command, words and folders; ``noun``: what it calls an arm; ``unknown``: error message for an arm
    that does not exist. ``choices``: plans, the preferred first. ``cost(plan, seconds, knows, cores)``: steps and
    seconds of a plan, from the seconds per step with one-hot targets and with whole distributions; ``knows``: whether
    the truth is known. ``row_facts``, ``board_facts``: further fields of rows and board. ``first``: what is measured
    before all arms. ``one_size``: there is a single number of documents.
    """

    name: str
    noun: str
    unknown: str
    arms: Mapping[str, Arm]
    control: str
    measures: Mapping[str, BoardMeasure]
    settings: type[LabSettings]
    choices: Sequence[ExperimentPlan]
    cost: Callable[[ExperimentPlan, tuple[float, float], bool, int], tuple[int, float]]
    cell: type[Cell]
    board: type[B]
    row: type[Row] = Row
    row_facts: Callable[[list[Result]], dict[str, Any]] = lambda results: {}
    board_facts: Callable[[ExperimentProgress[B], Sequence[Any]], dict[str, Any]] = lambda stand, rows: {}
    first: tuple[str, ...] = ()
    one_size: bool = False

    def select_arms(self, names: Sequence[str], truth: bool) -> tuple[str, ...]:
        """These arms, or all if none is named, in the table's order and always with the control.

        ``truth``: whether the truth is known. Raises UsageError for an arm that does not exist or needs the truth.
        """
        known = [name for name, arm in self.arms.items() if truth or not arm.needs_truth]
        for name in names:
            if name not in known:
                near = config.nearest(name, known)
                hint = f"Did you mean {near}?" if near else f"There are: {', '.join(known)}."
                raise UsageError(f"{self.unknown} called {name}.", hint)
        return tuple(name for name in known if not names or name in names or name == self.control)

    def steps(self, plan: ExperimentPlan) -> int:
        """The number of steps to report: of all cells, or of each arm where it is a setting."""
        return int(getattr(plan.settings, "steps", plan.steps))

    def plan(
        self, source: Source, out: Path, asked: ExperimentPlan, minutes: float, cores: int, compiled: Path | None = None
    ) -> ExperimentPlan:
        """The plan in the folder ``out``, if an earlier start saved one; else a new one that fits into the minutes,
        which is saved there."""
        file = out / "plan.json"
        if (before := ExperimentPlan.read(file, self.noun, self.settings)) is not None:
            return before
        arms, wanted = self.select_arms(asked.arms, source.knows), asked.documents
        if wanted and (most := source.within(wanted)) != wanted:
            raise UsageError(
                f"--documents: the text has only {most[-1]} pieces to draw from.", f"Ask for {most[-1]} at most."
            )
        a_step = probe(source, asked, compiled)

        def planned(choice: ExperimentPlan) -> ExperimentPlan:
            documents = wanted or source.within(choice.documents)[-len(choice.documents) :]
            fixed = {"documents": documents, "questions": choice.questions, "seeds": asked.seeds or choice.seeds}
            plan = asked.model_copy(update={**fixed, "arms": arms})
            steps, seconds = self.cost(plan, a_step, source.knows, cores)
            return plan.model_copy(update={"steps": steps, "seconds": round(seconds, 1)})

        plan = first_that_fits(map(planned, self.choices), lambda plan: plan.seconds, 60 * minutes)
        durable.write_out(file, json.dumps(plan.document(self.noun, self.one_size), indent=1).encode())
        return plan

    def run(
        self,
        source: Source,
        plan: ExperimentPlan,
        folder: Path,
        tell: Callable[[B], None],
        workers: int = 2,
        compiled: Path | None = None,
    ) -> B:
        """Runs what is not finished of the plan, and returns the final board.

        ``tell``: called about once a second with the board so far, which is also written. ``compiled``: folder of
        compiled code. Raises KlypeError when a process ends unexpectedly.
        """
        left = [
            (count, seed)
            for count in sorted(plan.documents, reverse=True)  # the longest first, so that processes end together
            for seed in range(plan.seed, plan.seed + plan.seeds)
            if not self.is_finished(self._place(folder, count, seed), (*self.first, *plan.arms))
        ]
        seen: list[Result] = []
        last: B | None = None
        with side_by_side(workers) as pool:
            drawing = pool.submit(source.test, *((plan.questions,) if plan.questions else ()))
            seeds = sorted({seed for _, seed in left})
            drawn = {seed: pool.submit(source.corpus, seed, plan.documents[-1], HELD_OUT) for seed in seeds}
            test = drawing.result()

            def look(done: bool = False) -> B:
                nonlocal last, seen
                found = results(folder / "cells")
                if found != seen or done or last is None:
                    seen, last = found, ExperimentProgress(self, plan, found, test, source.vocabulary, done).board()
                last.write(folder)  # in any case: a recent file shows that the experiment is running
                tell(last)
                return last

            follow(drawn.values(), look)
            running = []
            for count, seed in left:
                corpus, place = drawn[seed].result().first(count), self._place(folder, count, seed)
                cell = self.cell(corpus, test, plan.settings, count, seed, place, compiled, source.initial_truth)
                running.append(pool.submit(run_cell, cell, plan.arms))
            follow(running, look)
        return look(done=True)

    def _place(self, folder: Path, documents: int, seed: int) -> Path:
        return folder / "cells" / (f"{seed}" if self.one_size else f"{documents}-{seed}")

    def is_finished(self, place: Path, names: Sequence[str]) -> bool:
        """Whether all of these arms have been measured in the cell's folder ``place``."""
        files = [place / f"{name}{'' if self.one_size else '.0'}.json" for name in names]
        return all("values" in (read_saved(file) or {}) for file in files)


def probe(source: Source, request: ExperimentPlan, compiled: Path | None) -> tuple[float, float]:
    """Seconds per step with one-hot targets and with whole distributions, measured on a few documents."""
    # one epoch of it is PROBED steps
    corpus = source.corpus(request.seed, PROBED * request.settings.rows, 8)
    once = request.settings.model_copy(update={"epochs": 1})
    backend, found = compiled_backend(compiled) if compiled else TORCH, []
    # the first is a warm-up and does not count
    for soft in (None, None, uniform(corpus.size)):
        began = time.perf_counter()
        train_model(TrainingSet(corpus.train, soft), corpus, once, 0, backend)
        found.append((time.perf_counter() - began) / -(-len(corpus.train) // once.rows))
    return found[1], found[2]


def results(folder: Path) -> list[Result]:
    """The results in the cells' files, in the order of their names; damaged files are left out."""
    return [found for file in sorted(folder.glob("*/*.json")) if (found := read_saved(file))]


@contextmanager
def side_by_side(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes for the cells. Raises KlypeError when one of them ends unexpectedly; on any error, cells that
    have not begun are cancelled."""
    # forking a process with threads may deadlock
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=start_process, initargs=(os.getpid(),)) as pool:
        try:
            yield pool
        except BrokenProcessPool:
            raise KlypeError(
                "One of the processes that train ended unasked (out of memory, perhaps).",
                "The same command with --resume goes on; what is finished is kept.",
            ) from None
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def follow(running: Iterable[Future[Any]], look: Callable[[], object]) -> None:
    """Calls ``look`` every second until all have ended; an error in one of them is raised here."""
    left = set(running)
    while left:
        ended, left = wait(left, timeout=1.0)
        for one in ended:
            one.result()
        look()


# in the processes


def start_process(parent: int) -> None:
    """Initialises a cell's process: it ends with its parent, and computes on one core."""
    end_with(parent)
    thread_policy()
    memory_policy()
    # cells run side by side, a core each
    set_threads(1)


def run_cell(cell: Cell, names: Sequence[str]) -> None:
    """Runs a cell, of which only the results are kept."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    cell.run(names)
    for file in cell.folder.rglob("*.safetensors"):  # only needed to resume within the cell
        file.unlink()
