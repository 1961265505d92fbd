"""``klype mistakes``: what training can do against errors that feed on themselves, with a report and figures.json."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from klype.cli import options as o
from klype.cli.commands.bias import PLAIN_EVERY_S, open_source
from klype.cli.environment import cache_folder
from klype.cli.terminal import Terminal
from klype.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from klype.examine.say import Say
    from klype.words import Words


def command(
    minutes: Annotated[float, typer.Option("--minutes", help="Plans the documents and seeds that fit.")] = 20.0,
    documents: Annotated[int, typer.Option("--documents", min=0, help="Instead: how many documents.")] = 0,
    seeds: Annotated[int, typer.Option("--seeds", min=0, help="Instead: how many seeds (0: what fits).")] = 0,
    methods: Annotated[str, typer.Option("--methods", help="Only these, with the control: own-truth,backspace.")] = "",
    text: o.TextFiles = None,
    encoding: o.Encoding = "utf-8",
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Of the training: steps=300, rounds=8. May be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder.", show_default="runs/mistakes-DATE-N")] = None,
    resume: o.Resume = False,
    seed: o.Seed = 0,
    lang: o.Lang = None,
    as_json: o.Json = False,
) -> None:
    """Whether a mistake makes the next one likelier, and how much of that each way of training takes away.

    Without --text: in the demo world, whose true probabilities are known, also after mistakes.
    """
    terminal = Terminal(as_json, lang)
    if not minutes > 0:
        raise UsageError(f"--minutes should be above 0 (it is {minutes:g}).")
    if 0 < documents < 8:
        raise UsageError(f"--documents: {documents} documents teach nothing; give at least 8.")
    from klype.config import load
    from klype.device import set_threads, usable_cores
    from klype.examine.say import Say
    from klype.experiments.mistakes import report
    from klype.experiments.mistakes.course import CourseSettings
    from klype.experiments.mistakes.plan import Asked, checked, make
    from klype.experiments.mistakes.study import run
    from klype.runs import folder
    from klype.words import count, number, words

    own, say = words(terminal.lang, "mistakes"), Say(terminal.lang)
    names = tuple(part.strip() for part in methods.split(",") if part.strip())
    checked(names, truth=not text)
    asked = Asked(minutes, documents, seeds, seed, names, load(CourseSettings, overrides=setting or ()))
    source = open_source(text or [], encoding)
    cores = usable_cores()
    set_threads(1)
    with folder.chosen("mistakes", out, resume, date.today()) as place:
        plan = make(source, place, asked, cores, cache_folder())
        planned = own("plan", documents=count(plan.documents, terminal.lang), seeds=plan.seeds, cores=cores,
                      methods=len(plan.methods), steps=count(plan.settings.steps, terminal.lang),
                      minutes=number(plan.seconds / 60, terminal.lang, 1))  # fmt: skip
        terminal.console.print(planned, markup=False)
        with listener(terminal, own) as tell:
            found = run(source, plan, place, tell, cores, cache_folder())
        made = {**found, "report": str(report.write(place, found, terminal.lang)), "plan": plan.model_dump()}
    if not as_json:
        terminal.console.print(table(found, say, own))
        for sentence in (*report.verdict(found, say, own), own("notes"), made["report"]):
            terminal.console.print(sentence, markup=False)
    terminal.document(made)


@contextmanager
def listener(terminal: Terminal, own: Words) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Where somebody looks, a table that fills; elsewhere a line now and then. figures.json is kept up to date."""
    from klype.examine.say import Say

    say = Say(terminal.lang)

    def progress(found: dict[str, Any]) -> str:
        return own("progress", done=found["finished"], all=found["all"])

    if not terminal.console.is_terminal or terminal.console.is_dumb_terminal:
        told = [time.monotonic()]

        def plain(found: dict[str, Any]) -> None:
            if time.monotonic() - told[0] >= PLAIN_EVERY_S:
                told[0] = time.monotonic()
                terminal.console.print(progress(found), markup=False)

        yield plain
        return
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    with Live(console=terminal.console, refresh_per_second=4, transient=True) as live:
        yield lambda found: live.update(Group(table(found, say, own), Text(progress(found))))


SHOWN = ("ratio", "after_wrong", "after_right", "kl_change", "bits_per_byte", "teacher_kl_own")
"""Columns that a terminal has room for; the report has all."""


def table(found: dict[str, Any], say: Say, own: Words) -> Table:
    from rich.table import Table

    from klype.experiments.mistakes import report

    columns, rows = report.table(found, say, own)
    kept = [0, *(i for i, name in enumerate(columns) if name in {own(f"column.{key}") for key in SHOWN})]
    title = own("table", documents=say.count(found["documents"]))
    shown = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for i in kept:
        shown.add_column(columns[i], justify="right" if i else "left")
    for row in rows:
        shown.add_row(*(row[i] for i in kept))
    return shown
