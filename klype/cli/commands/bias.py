"""``klype bias``: the hard-target experiment, live in the terminal, with a report and targets.json for a page."""

from __future__ import annotations

from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from klype.cli import options as o
from klype.cli.experimenting import check_few, check_minutes, grid, listed, open_source, watching
from klype.cli.terminal import Terminal, to_json, write
from klype.environment import cache_folder
from klype.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from klype.examine.say import Say
    from klype.experiments.bias.board import Board
    from klype.experiments.bias.plan import Plan
    from klype.words import Words


def command(
    minutes: Annotated[float, typer.Option("--minutes", help="Plans the documents and seeds that fit.")] = 10.0,
    documents: Annotated[str, typer.Option("--documents", help="Instead: numbers of documents, 300,600,1200.")] = "",
    seeds: Annotated[int, typer.Option("--seeds", min=0, help="Instead: how many seeds (0: what fits).")] = 0,
    targets: Annotated[str, typer.Option("--targets", help="Only these, with one-hot: ensemble,oracle.")] = "",
    text: o.TextFiles = None,
    encoding: o.Encoding = "utf-8",
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Of the training: width=64, epochs=16. May be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder.", show_default="runs/bias-DATE-N")] = None,
    resume: o.Resume = False,
    device: o.Cores = "auto",
    seed: o.Seed = 0,
    lang: o.Lang = None,
    as_json: o.Json = False,
) -> None:
    """What is lost by training towards one right word at a time, and how much of it each cure wins back.

    Without --text: in the demo world, whose true probabilities are known.
    """
    terminal = Terminal(as_json, lang)
    check_minutes(minutes)
    counts = parse_counts(documents)
    from klype.config import load
    from klype.device import set_threads, usable_cores
    from klype.examine.say import Say
    from klype.experiments.bias import report
    from klype.experiments.bias.board import document
    from klype.experiments.bias.lab import LabSettings
    from klype.experiments.bias.plan import Asked, checked, make
    from klype.experiments.bias.study import run
    from klype.runs import folder
    from klype.words import words

    own, say = words(terminal.lang, "bias"), Say(terminal.lang)
    names = listed(targets)
    checked(names, truth=not text)
    asked = Asked(minutes, counts, seeds, seed, names, load(LabSettings, overrides=setting or ()))
    source = open_source(text or [], encoding)
    cores = usable_cores()
    set_threads(1)
    with folder.chosen("bias", out, resume, date.today()) as place:
        plan = make(source, place, asked, cores, cache_folder())
        tell_plan(terminal, own, plan, cores)
        with watching(terminal, partial(table, say=say, own=own), partial(progress, own=own)) as tell:
            board = run(source, plan, place, tell, cores, cache_folder())
        made = {**document(board), "report": str(report.write(place, board, terminal.lang)), "plan": plan.model_dump()}
        write(place / "bias.json", to_json(made) + "\n")
    if not as_json:
        show(terminal, board, say, own)
        terminal.console.print(made["report"], markup=False)
    terminal.document(made)


def parse_counts(text: str) -> tuple[int, ...]:
    """Numbers of documents, rising; UsageError for what is none."""
    try:
        found = tuple(sorted({int(part) for part in text.split(",") if part.strip()}))
    except ValueError:
        raise UsageError(f"--documents does not understand “{text}”.", "Write numbers: 300,600,1200.") from None
    if found:
        check_few(found[0])
    return found


def tell_plan(terminal: Terminal, own: Words, plan: Plan, cores: int) -> None:
    from klype.words import count, number

    shown = {
        "documents": " / ".join(count(n, terminal.lang) for n in plan.documents),
        "steps": count(plan.steps, terminal.lang),
        "minutes": number(plan.seconds / 60, terminal.lang, 1),
    }
    said = own("plan", seeds=plan.seeds, targets=len(plan.targets), cores=cores, **shown)
    terminal.console.print(said, markup=False)


def progress(board: Board, own: Words) -> str:
    """How many models are measured, and which are being trained."""
    from klype.experiments.bias.report import running

    return "\n".join([own("progress", done=board.cells_done, all=board.cells), *running(board, own)])


def table(board: Board, say: Say, own: Words) -> Table:
    """The figures at the most documents of which there are any."""
    from klype.experiments.bias import report

    count = max((row.documents for row in board.rows), default=board.documents[0])
    columns, rows = report.table(board, count, say, own)
    return grid(own("table", documents=say.count(count)), columns, rows)


def show(terminal: Terminal, board: Board, say: Say, own: Words) -> None:
    """The table and what it says, in words."""
    from klype.experiments.bias import report

    terminal.console.print(table(board, say, own))
    for sentence in (*report.verdict(board, say, own), own("interval")):
        terminal.console.print(sentence, markup=False)
