"""``klype mistakes``: what training can do against errors that feed on themselves, with a report and figures.json."""

from __future__ import annotations

from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from klype.cli import options as o
from klype.cli.experimenting import check_few, check_minutes, grid, listed, open_source, watching
from klype.cli.terminal import Terminal
from klype.environment import cache_folder

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
    device: o.Cores = "auto",
    seed: o.Seed = 0,
    lang: o.Lang = None,
    as_json: o.Json = False,
) -> None:
    """Whether a mistake makes the next one likelier, and how much of that each way of training takes away.

    Without --text: in the demo world, whose true probabilities are known, also after mistakes.
    """
    terminal = Terminal(as_json, lang)
    check_minutes(minutes)
    check_few(documents)
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
    names = listed(methods)
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
        with watching(terminal, partial(table, say=say, own=own), partial(progress, own=own)) as tell:
            found = run(source, plan, place, tell, cores, cache_folder())
        made = {**found, "report": str(report.write(place, found, terminal.lang)), "plan": plan.model_dump()}
    if not as_json:
        terminal.console.print(table(found, say, own))
        for sentence in (*report.verdict(found, say, own), own("notes"), made["report"]):
            terminal.console.print(sentence, markup=False)
    terminal.document(made)


def progress(found: dict[str, Any], own: Words) -> str:
    return own("progress", done=found["finished"], all=found["all"])


SHOWN = ("ratio", "after_wrong", "after_right", "kl_change", "bits_per_byte", "teacher_kl_own")
"""Columns that a terminal has room for; the report has all."""


def table(found: dict[str, Any], say: Say, own: Words) -> Table:
    from klype.experiments.mistakes import report

    columns, rows = report.table(found, say, own)
    kept = [0, *(i for i, name in enumerate(columns) if name in {own(f"column.{key}") for key in SHOWN})]
    title = own("table", documents=say.count(found["documents"]))
    return grid(title, [columns[i] for i in kept], [[row[i] for i in kept] for row in rows])
