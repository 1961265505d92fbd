"""``klype mistakes``: what training can do against errors that feed on themselves, with a report and figures.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from klype.cli import options as o
from klype.cli.experimenting import Given, conduct
from klype.cli.terminal import Terminal


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
    sizes = (documents,) if documents else ()
    given = Given(minutes, sizes, seeds, methods, text or [], encoding, setting or [], out, resume, seed)
    from klype.experiments.mistakes.report import REPORT

    conduct(REPORT, given, terminal)
