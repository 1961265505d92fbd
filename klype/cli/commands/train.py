"""``klype train STAGE``: one stage, from any model that it can start from."""

from __future__ import annotations

from typing import Annotated

import typer

from klype.cli import options as o
from klype.cli.terminal import Terminal


def command(
    stage: Annotated[str, typer.Argument(help="pretrain, finetune, rank, reward or align.")],
    from_: o.From = "",
    lora: o.Lora = None,
    text: o.TextFiles = None,
    instructions: o.Instructions = None,
    preferences: o.Preferences = None,
    data: o.Data = None,
    steps: Annotated[int | None, typer.Option("--steps", help="How many steps.")] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", help="How long, instead of --steps.")] = None,
    size: o.Size = None,
    out: o.Out = None,
    resume: o.Resume = False,
    device: o.Device = "auto",
    seed: o.Seed = 0,
    setting: o.Set = None,
    encoding: o.Encoding = "utf-8",
    text_field: o.TextField = "",
    skip_bad: o.SkipBad = False,
    force: o.Force = False,
    human: o.Human = False,
    lang: o.Lang = None,
    as_json: o.Json = False,
) -> None:
    """Train one stage and save it as a checkpoint folder."""
    values: dict[str, object] = {
        "stage": stage,
        "from_": from_,
        "lora": lora,
        "text": text or (),
        "instructions": instructions,
        "preferences": preferences,
        "data": data,
        "steps": steps,
        "minutes": minutes,
        "size": size,
        "out": out,
        "device": device,
        "resume": resume,
        "seed": seed,
        "overrides": setting or (),
        "encoding": encoding,
        "text_field": text_field,
        "skip_bad": skip_bad,
        "force": force,
        "human": human,
    }
    train(values, Terminal(as_json, lang))


def train(values: dict[str, object], terminal: Terminal) -> None:
    """Checks what was asked, chooses the run's folder, and trains the stage there."""
    from klype.cli.team import working
    from klype.config import make
    from klype.runs.inputs import checked
    from klype.runs.options import StageOptions, as_option

    asked = make(StageOptions, {**values, "lang": terminal.lang}, spell=as_option)
    checked(asked)
    with working(asked.stage, asked, terminal, asked.human) as (placed, say):
        from klype.runs import pipeline

        document = pipeline.train_stage(placed, say)
    if document:
        terminal.document(document)
