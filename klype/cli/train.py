"""``klype run``, ``train STAGE``, ``align``: all stages, one, alignment; ``bias`` and ``mistakes``: experiments."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from annotated_types import Gt

from klype.cli import options as o
from klype.cli.terminal import PLAIN_EVERY_S, Terminal, announce_start, grid, listener, program, write_json
from klype.durable import write_out
from klype.environment import cache_folder
from klype.errors import UsageError
from klype.option import Option, Options
from klype.runs.run_options import RunOptions, StageOptions, WorkOptions
from klype.words import count, number, words

MINUTES = "Minutes that it may take: documents and seeds are planned to fit."
MIN_DOCUMENTS = 8  # in an experiment: fewer teach nothing

if TYPE_CHECKING:
    from rich.table import Table

    from klype.experiments.experiment_report import Report
    from klype.experiments.framework import B
    from klype.runs.listener import RunListener
    from klype.train.parallel import ProcessRank


def run_command(terminal: Terminal, asked: RunOptions, reward: o.Reward = ()) -> None:
    """Train a model through all stages, question it, and write a report.

    Without --text: the demo world, a small language in Norwegian and English whose truth is known.
    """
    asked.check()
    from klype.runs import pipeline
    from klype.train.rewards import as_settings, typed_rewards

    asked = replace(asked, overrides=(*as_settings(typed_rewards(reward)), *asked.overrides))
    run_work(asked.recipe_name, asked, terminal, pipeline.run)


def train_command(terminal: Terminal, asked: StageOptions) -> None:
    """Train one stage and save it as a checkpoint folder."""
    asked.check()
    from klype.runs import pipeline

    run_work(asked.stage, asked, terminal, pipeline.train_stage)


@dataclass(frozen=True, kw_only=True)
class AlignmentOptions(WorkOptions):
    """``klype align``: an alignment in one or more rounds."""

    model: o.ModelName
    method: Annotated[str, Option("grpo, rloo, ppo, expert, dpo, ipo or kto.", shown="grpo")] = ""
    reward: o.Reward = ()
    rounds: Annotated[int, Option("How many rounds of ranking and training.")] = 1
    target_kl: Annotated[
        float | None, Option("How far the answers may go, in nats per answer; the KL penalty adapts to it.")
    ] = None
    beta: Annotated[float | None, Option("A fixed KL penalty: what each nat costs.")] = None
    taste: Annotated[str, Option("Rank again with another taste: word=-0.1 likes long answers.")] = ""
    steps: Annotated[int | None, Option("Steps per round.")] = None
    minutes: Annotated[float | None, Option("Minutes per round, instead of --steps.")] = None


def align_command(terminal: Terminal, asked: AlignmentOptions) -> None:
    """Align a run's fine-tuned model with its rankings, and say what came of it."""
    with announce_start(terminal):
        from klype.config import make
        from klype.runs.pipeline import align_rounds, overrides
        from klype.train.rewards import typed_rewards

    how = (*overrides(asked.method, typed_rewards(asked.reward), asked.beta, asked.target_kl), *asked.overrides)
    common = {field.name: getattr(asked, field.name) for field in fields(WorkOptions)}
    common |= {"from_": asked.model, "steps": asked.steps, "minutes": asked.minutes, "overrides": how}
    stage = make(StageOptions, {**common, "stage": "align"})
    stage.check()
    run_work("align", stage, terminal, lambda stage, say: align_rounds(stage, asked.rounds, asked.taste, say))


Asked = TypeVar("Asked", "RunOptions", "StageOptions")


def run_work(
    recipe: str, asked: Asked, terminal: Terminal, work: Callable[[Asked, RunListener], dict[str, Any]]
) -> None:
    """Runs ``work`` in a run folder and prints its document, in this process or as one of several.

    Of several processes, the first chooses the folder and is the only one to print. When torchrun restarts them, they
    resume from the last saved state.
    """
    from klype.errors import TrainingInterrupted
    from klype.runs import folder
    from klype.runs.listener import SilentListener
    from klype.train import parallel

    asked, together = replace(asked, lang=terminal.lang, cache=cache_folder(), program=program()), process_rank()
    if together is not None:
        asked = replace(asked, processes=together.local, resume=asked.resume or together.restarts > 0)
    with parallel.process_group(together):
        if parallel.is_first():
            chosen = folder.claim(recipe, asked.out, asked.resume, date.today())
            with chosen as place, listener(terminal, asked.human) as say:
                parallel.broadcast(str(place))
                document = work(replace(asked, out=place), say)
            if document:
                terminal.document(document)
            return
        try:
            work(replace(asked, out=Path(parallel.broadcast(None))), SilentListener())
        except TrainingInterrupted:  # the first process prints it
            raise typer.Exit(1) from None


def process_rank(environ: Mapping[str, str] = os.environ) -> ProcessRank | None:
    """This process's rank among those that torchrun, or a launcher with the same variables, started; None: alone."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= environ.keys() or environ["WORLD_SIZE"] == "1":
        return None
    from klype.train.parallel import ProcessRank

    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    defaults = {"LOCAL_RANK": environ["RANK"], "LOCAL_WORLD_SIZE": environ["WORLD_SIZE"]}
    try:
        return ProcessRank(*(int(environ.get(name, defaults.get(name, "0"))) for name in names))
    except ValueError:
        told = " ".join(f"{name}={environ[name]}" for name in names if name in environ)
        raise UsageError(f"The launcher's variables should be numbers ({told}).", "Start with torchrun.") from None


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions(Options):
    """Options of all experiments."""

    seeds: Annotated[int, Option("Number of seeds (0: as many as --minutes allow).", least=0)] = 0
    text: Annotated[tuple[str, ...], Option("Files, folders or globs of text. May be repeated.")] = ()
    encoding: Annotated[str, Option("The encoding of the text files.")] = "utf-8"
    resume: Annotated[bool, Option("Resume where it stopped (or start, if nothing is there).")] = False
    device: Annotated[str, Option("auto or cpu: models are trained side by side, a core each.")] = "auto"
    seed: Annotated[int, Option("Same seed, same result.")] = 0

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu"):
            raise UsageError(
                f"--device {self.device}: this experiment trains its models side by side, "
                "a core of the processor each.",
                "Leave out --device.",
            )


@dataclass(frozen=True, kw_only=True)
class BiasOptions(ExperimentOptions):
    """Options of ``klype bias``."""

    minutes: Annotated[float, Option(MINUTES), Gt(0)] = 10.0
    documents: Annotated[tuple[int, ...], Option("Numbers of documents: 300,600 (or by --minutes).", commas=True)] = ()
    targets: Annotated[tuple[str, ...], Option("Only these, with one-hot: ensemble,oracle.", commas=True)] = ()
    overrides: Annotated[
        tuple[str, ...], Option("A setting of the training: width=64, epochs=16. May be repeated.", "--set")
    ] = ()
    out: Annotated[Path | None, Option("Folder.", shown="runs/bias-DATE-N")] = None


@dataclass(frozen=True, kw_only=True)
class MistakesOptions(ExperimentOptions):
    """Options of ``klype mistakes``."""

    minutes: Annotated[float, Option(MINUTES), Gt(0)] = 20.0
    documents: Annotated[int, Option("Number of documents (0: as many as --minutes allow).", least=0)] = 0
    methods: Annotated[tuple[str, ...], Option("Only these, with the control: own-truth,backspace.", commas=True)] = ()
    overrides: Annotated[
        tuple[str, ...], Option("A setting of the training: steps=300, rounds=8. May be repeated.", "--set")
    ] = ()
    out: Annotated[Path | None, Option("Folder.", shown="runs/mistakes-DATE-N")] = None


def bias_command(terminal: Terminal, asked: BiasOptions) -> None:
    """What is lost by training towards one right word at a time, and how much of it each remedy wins back.

    Without --text: in the demo world, whose true probabilities are known.
    """
    from klype.experiments.bias import REPORT

    conduct(REPORT, asked, asked.documents, asked.targets, terminal)


def mistakes_command(terminal: Terminal, asked: MistakesOptions) -> None:
    """Does a mistake make the next one more likely, and how much of that does each way of training remove?

    Without --text: in the demo world, whose true probabilities are known, also after mistakes.
    """
    from klype.experiments.mistakes import REPORT

    conduct(REPORT, asked, (asked.documents,) if asked.documents else (), asked.methods, terminal)


def conduct(
    report: Report[B],
    asked: BiasOptions | MistakesOptions,
    documents: Sequence[int],
    names: Sequence[str],
    terminal: Terminal,
) -> None:
    """Plans an experiment, trains the models that are not finished, writes the report and prints the result.

    ``documents``: the numbers of documents to train on (empty: those that fit into the time); ``names``: the arms
    (empty: all).
    """
    from klype.config import load
    from klype.data.readers import ReadOptions, read_texts
    from klype.device import set_threads, usable_cores
    from klype.examine.say import Say
    from klype.experiments.corpus import TextSource, WorldSource
    from klype.experiments.framework import ExperimentPlan
    from klype.runs import folder

    experiment, lang = report.experiment, terminal.lang
    own, say = words(lang, experiment.name), Say(lang)
    sizes = tuple(sorted(set(documents)))
    if sizes and sizes[0] < MIN_DOCUMENTS:
        raise UsageError(f"--documents: {sizes[0]} documents teach nothing; give at least {MIN_DOCUMENTS}.")
    arms = experiment.select_arms(names, truth=not asked.text)
    settings = load(experiment.settings, overrides=asked.overrides)
    request = ExperimentPlan(documents=sizes, seeds=asked.seeds, seed=asked.seed, arms=arms, settings=settings)
    texts = read_texts(asked.text, ReadOptions(encoding=asked.encoding)) if asked.text else []
    source = TextSource(texts) if asked.text else WorldSource()
    cores = usable_cores()
    set_threads(1)  # models are trained side by side, a core each

    def table(board: B) -> Table:
        """The figures at the largest number of documents that has any."""
        documents = max((row.documents for row in board.rows), default=board.documents[0])
        return grid(
            own("table", documents=say.count(documents)), *report.table(board, documents, say, own, report.narrow)
        )

    def progress(board: B) -> str:
        """How many models have been measured, and which are being trained."""
        done = own("progress", done=board.cells_done, all=board.cells)
        return "\n".join([done, *report.running(board, own)])

    with folder.claim(experiment.name, asked.out, asked.resume, date.today()) as place:
        plan = experiment.plan(source, place, request, asked.minutes, cores, cache_folder())
        several = " / ".join(count(n, lang) for n in plan.documents)
        numbers = {"seeds": plan.seeds, f"{experiment.noun}s": len(plan.arms), "cores": cores}
        steps, minutes = count(experiment.steps(plan), lang), number(plan.seconds / 60, lang, 1)
        terminal.console.print(own("plan", documents=several, steps=steps, minutes=minutes, **numbers))
        with live_board(terminal, table, progress) as tell:
            board = experiment.run(source, plan, place, tell, cores, cache_folder())
        page = str(write_out(place / "report.html", report.render(board, lang)))
        made = {**board.document(), "report": page, "plan": plan.document(experiment.noun, experiment.one_size)}
        write_json(place / f"{experiment.name}.json", made)
    if not terminal.as_json:
        terminal.console.print(table(board))
    terminal.lines((*report.verdict(board, say, own), own(report.notes[0]), page))
    terminal.document(made)


@contextmanager
def live_board(
    terminal: Terminal, table: Callable[[B], Table], progress: Callable[[B], str]
) -> Iterator[Callable[[B], None]]:
    """Shows a growing table on a terminal, else a line now and then; yields the function to call with each board."""
    if not terminal.can_redraw:
        told = [time.monotonic()]

        def plain(board: B) -> None:
            if time.monotonic() - told[0] >= PLAIN_EVERY_S:
                told[0] = time.monotonic()
                terminal.console.print(progress(board))

        yield plain
        return
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    with Live(console=terminal.console, refresh_per_second=4, transient=True) as live:
        yield lambda board: live.update(Group(table(board), Text(progress(board))))
