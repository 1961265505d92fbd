"""``klype align``: a run's answers are aligned with its rankings, watched, compared and judged in words."""

from __future__ import annotations

from datetime import date
from typing import Annotated

import typer

from klype.cli import options as o
from klype.cli.terminal import Terminal
from klype.errors import UsageError


def command(
    model: o.Model,
    method: Annotated[
        str, typer.Option("--method", help="grpo, rloo, ppo, expert, dpo, ipo or kto.", show_default="grpo")
    ] = "",
    reward: o.Reward = None,
    rounds: Annotated[int, typer.Option("--rounds", help="How often to rank, train and rank again.")] = 1,
    target_kl: Annotated[
        float | None,
        typer.Option("--target-kl", help="How far the answers may go, in nats an answer: the leash adapts to it."),
    ] = None,
    beta: Annotated[float | None, typer.Option("--beta", help="A fixed leash: what each nat costs.")] = None,
    taste: Annotated[str, typer.Option("--taste", help="Rank anew with another taste: word=-0.1 loves length.")] = "",
    leash: Annotated[
        bool, typer.Option("--leash-demo", help="Twice from one flawed reward: without a leash, and with one.")
    ] = False,
    steps: Annotated[int | None, typer.Option("--steps", help="How many steps a round.")] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", help="How long a round, instead of --steps.")] = None,
    out: o.Out = None,
    resume: o.Resume = False,
    device: o.Device = "auto",
    seed: o.Seed = 0,
    setting: o.Set = None,
    force: o.Force = False,
    human: o.Human = False,
    lang: o.Lang = None,
    as_json: o.Json = False,
) -> None:
    """Align a run's fine-tuned model with its rankings, and say what came of it."""
    terminal = Terminal(as_json, lang)
    from klype.cli.progress import listener
    from klype.config import make
    from klype.runs import folder
    from klype.runs.options import StageOptions, as_option
    from klype.runs.rounds import align_rounds, overrides
    from klype.sources.find import find_model
    from klype.train.reward_functions import typed

    if leash and (rounds > 1 or human or reward or beta is not None):
        raise UsageError("--leash-demo chooses for itself: leave out --rounds, --human, --reward and --beta.")
    values = {
        "stage": "align",
        "from_": model,
        "steps": steps,
        "minutes": minutes,
        "seed": seed,
        "overrides": (*overrides(method, typed(reward or ()), beta, target_kl), *(setting or ())),
        "force": force,
        "human": human,
        "device": device,
        "resume": resume,
        "lang": terminal.lang,
    }
    asked = make(StageOptions, values, spell=as_option)
    find_model(model)
    with folder.chosen("align", out, resume, date.today()) as place, listener(terminal, human) as say:
        from klype.runs.leash import leash_demo

        asked = asked.model_copy(update={"out": place})
        document = leash_demo(asked, taste, say) if leash else align_rounds(asked, rounds, taste, say)
    terminal.document(document)
