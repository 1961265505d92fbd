"""``klype bias``: the hard-target experiment, live in the terminal, with a report and targets.json for a page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from klype.cli import options as o
from klype.cli.environment import cache_folder
from klype.cli.terminal import Terminal, to_json, write
from klype.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from klype.examine.say import Say
    from klype.experiments.bias.board import Board
    from klype.experiments.bias.corpus import Source
    from klype.experiments.bias.plan import Plan
    from klype.words import Words

PLAIN_EVERY_S = 15.0


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
    seed: o.Seed = 0,
    lang: o.Lang = None,
    as_json: o.Json = False,
) -> None:
    """What is lost by training towards one right word at a time, and how much of it each cure wins back.

    Without --text: in the demo world, whose true probabilities are known.
    """
    terminal = Terminal(as_json, lang)
    if not minutes > 0:
        raise UsageError(f"--minutes should be above 0 (it is {minutes:g}).")
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
    names = tuple(part.strip() for part in targets.split(",") if part.strip())
    checked(names, truth=not text)
    asked = Asked(minutes, counts, seeds, seed, names, load(LabSettings, overrides=setting or ()))
    source = open_source(text or [], encoding)
    cores = usable_cores()
    set_threads(1)
    with folder.chosen("bias", out, resume, date.today()) as place:
        plan = make(source, place, asked, cores, cache_folder())
        tell_plan(terminal, own, plan, cores)
        with listener(terminal, own) as tell:
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
    if found and found[0] < 8:
        raise UsageError(f"--documents: {found[0]} documents teach nothing; give at least 8.")
    return found


def open_source(text: list[str], encoding: str) -> Source:
    """The demo world, or the user's own text."""
    from klype.data.readers import TextOptions, read_texts
    from klype.experiments.bias.corpus import TextSource, WorldSource

    return TextSource(read_texts(text, TextOptions(encoding=encoding))) if text else WorldSource()


def tell_plan(terminal: Terminal, own: Words, plan: Plan, cores: int) -> None:
    from klype.words import count, number

    shown = {
        "documents": " / ".join(count(n, terminal.lang) for n in plan.documents),
        "steps": count(plan.steps, terminal.lang),
        "minutes": number(plan.seconds / 60, terminal.lang, 1),
    }
    said = own("plan", seeds=plan.seeds, targets=len(plan.targets), cores=cores, **shown)
    terminal.console.print(said, markup=False)


@contextmanager
def listener(terminal: Terminal, own: Words) -> Iterator[Callable[[Board], None]]:
    """Where somebody looks, a table that fills; elsewhere a line now and then. targets.json is kept up to date."""
    from klype.examine.say import Say

    say = Say(terminal.lang)
    if not terminal.console.is_terminal or terminal.console.is_dumb_terminal:
        told = [time.monotonic()]

        def plain(board: Board) -> None:
            if time.monotonic() - told[0] >= PLAIN_EVERY_S:
                told[0] = time.monotonic()
                terminal.console.print(progress(board, own), markup=False)

        yield plain
        return
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    with Live(console=terminal.console, refresh_per_second=4, transient=True) as live:
        yield lambda board: live.update(Group(table(board, say, own), Text(progress(board, own))))


def progress(board: Board, own: Words) -> str:
    """How many models are measured, and which are being trained."""
    from klype.experiments.bias.report import running

    return "\n".join([own("progress", done=board.cells_done, all=board.cells), *running(board, own)])


def table(board: Board, say: Say, own: Words) -> Table:
    """The figures at the most documents of which there are any."""
    from rich.table import Table

    from klype.experiments.bias import report

    count = max((row.documents for row in board.rows), default=board.documents[0])
    columns, rows = report.table(board, count, say, own)
    found = Table(title=own("table", documents=say.count(count)), title_justify="left", box=None, padding=(0, 2, 0, 0))
    for i, name in enumerate(columns):
        found.add_column(name, justify="right" if i else "left")
    for row in rows:
        found.add_row(*row)
    return found


def show(terminal: Terminal, board: Board, say: Say, own: Words) -> None:
    """The table and what it says, in words."""
    from klype.experiments.bias import report

    terminal.console.print(table(board, say, own))
    for sentence in (*report.verdict(board, say, own), own("interval")):
        terminal.console.print(sentence, markup=False)
