"""``klype bias``: the hard-target experiment, live in the terminal, with a report and targets.json for a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from klype.cli import options as o
from klype.cli.experimenting import Given, conduct
from klype.cli.terminal import Terminal
from klype.errors import UsageError


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
    given = Given(
        minutes, parse_counts(documents), seeds, targets, text or [], encoding, setting or [], out, resume, seed
    )
    from klype.experiments.bias.report import REPORT

    conduct(REPORT, given, terminal)


def parse_counts(text: str) -> tuple[int, ...]:
    """Numbers of documents, rising; UsageError for what is none."""
    try:
        return tuple(sorted({int(part) for part in text.split(",") if part.strip()}))
    except ValueError:
        raise UsageError(f"--documents does not understand “{text}”.", "Write numbers: 300,600,1200.") from None
