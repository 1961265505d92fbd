"""``klype rank``: candidates put in order, by you or by the simulated annotator."""

from __future__ import annotations

from typing import Annotated

import typer

from klype.cli import options as o
from klype.cli.commands.train import train
from klype.cli.terminal import Terminal


def command(
    model: o.Model,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="The simulated annotator ranks, instead of you.")
    ] = False,
    steps: Annotated[int | None, typer.Option("--steps", help="How many questions.")] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", help="How long, instead of --steps.")] = None,
    out: o.Out = None,
    resume: o.Resume = False,
    seed: o.Seed = 0,
    lang: o.Lang = None,
    as_json: o.Json = False,
) -> None:
    """Let MODEL answer questions, and rank its answers."""
    values: dict[str, object] = {
        "stage": "rank",
        "from_": model,
        "steps": steps,
        "minutes": minutes,
        "out": out,
        "resume": resume,
        "seed": seed,
        "human": not simulate,
    }
    train(values, Terminal(as_json, lang))
