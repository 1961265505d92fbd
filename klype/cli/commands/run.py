"""``klype run``: the whole life-cycle of a language model."""

from __future__ import annotations

from typing import Annotated

import typer

from klype.cli import options as o
from klype.cli.terminal import Terminal


def command(
    minutes: Annotated[float, typer.Option("--minutes", help="How long it may take, all in all.")] = 5.0,
    recipe: Annotated[
        str, typer.Option("--recipe", help="A recipe's name or TOML file.", show_default="world, or text")
    ] = "",
    from_: o.From = "",
    lora: o.Lora = None,
    size: o.Size = None,
    text: o.TextFiles = None,
    instructions: o.Instructions = None,
    preferences: o.Preferences = None,
    data: o.Data = None,
    out: o.Out = None,
    resume: o.Resume = False,
    device: o.Device = "auto",
    seed: o.Seed = 0,
    reward: o.Reward = None,
    setting: o.Set = None,
    encoding: o.Encoding = "utf-8",
    text_field: o.TextField = "",
    skip_bad: o.SkipBad = False,
    force: o.Force = False,
    human: o.Human = False,
    lang: o.Lang = None,
    as_json: o.Json = False,
) -> None:
    """Train a model through all stages, question it, and write a report.

    Without --text: the demo world, a small language in Norwegian and English whose truth is known.
    """
    terminal = Terminal(as_json, lang)
    from klype.cli.team import working
    from klype.config import make
    from klype.runs.inputs import checked
    from klype.runs.options import RunOptions, as_option
    from klype.train.reward_functions import as_settings, typed

    asked = make(
        RunOptions,
        {
            "minutes": minutes,
            "recipe": recipe,
            "from_": from_,
            "lora": lora,
            "size": size,
            "text": text or (),
            "instructions": instructions,
            "preferences": preferences,
            "data": data,
            "device": device,
            "resume": resume,
            "seed": seed,
            "overrides": (*as_settings(typed(reward or ())), *(setting or ())),
            "encoding": encoding,
            "text_field": text_field,
            "skip_bad": skip_bad,
            "force": force,
            "human": human,
            "out": out,
            "lang": terminal.lang,
        },
        spell=as_option,
    )
    checked(asked)
    with working(asked.recipe_name, asked, terminal, human) as (placed, say):
        from klype.runs import pipeline

        document = pipeline.run(placed, say)
    if document:
        terminal.document(document)
