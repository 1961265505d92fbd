"""``klype run``, ``klype train STAGE`` and ``klype align``: all stages, one stage, and alignment with rankings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from klype.cli import environment
from klype.cli import options as o
from klype.cli.progress import listener, starting
from klype.cli.terminal import Terminal
from klype.environment import cache_folder
from klype.option import Option
from klype.runs.options import RunOptions, StageOptions, WorkOptions

if TYPE_CHECKING:
    from klype.runs.say import RunListener


def run_command(terminal: Terminal, asked: RunOptions, reward: o.Reward = ()) -> None:
    """Train a model through all stages, question it, and write a report.

    Without --text: the demo world, a small language in Norwegian and English whose truth is known.
    """
    from klype.runs.checks import checked

    checked(asked)
    from klype.train.rewards import as_settings, typed

    asked = replace(asked, overrides=(*as_settings(typed(reward)), *asked.overrides))
    with working(asked.recipe_name, asked, terminal) as (placed, say):
        from klype.runs import pipeline

        document = pipeline.run(placed, say)
    if document:
        terminal.document(document)


def train_command(terminal: Terminal, asked: StageOptions) -> None:
    """Train one stage and save it as a checkpoint folder."""
    from klype.runs.checks import checked

    checked(asked)
    with working(asked.stage, asked, terminal) as (placed, say):
        from klype.runs import pipeline

        document = pipeline.train_stage(placed, say)
    if document:
        terminal.document(document)


@dataclass(frozen=True, kw_only=True)
class AlignOptions(WorkOptions):
    """An alignment, in as many rounds as are asked for."""

    model: o.Model
    method: Annotated[str, Option("grpo, rloo, ppo, expert, dpo, ipo or kto.", shown="grpo")] = ""
    reward: o.Reward = ()
    rounds: Annotated[int, Option("How many rounds of ranking and training.")] = 1
    target_kl: Annotated[
        float | None, Option("How far the answers may go, in nats per answer; the KL penalty adapts to it.")
    ] = None
    beta: Annotated[float | None, Option("A fixed KL penalty: what each nat costs.")] = None
    taste: Annotated[str, Option("Rank again with another taste: word=-0.1 likes long answers.")] = ""
    steps: Annotated[int | None, Option("Steps per round.")] = None
    minutes: Annotated[float | None, Option("Minutes per round, instead of --steps.")] = None


def align_command(terminal: Terminal, asked: AlignOptions) -> None:
    """Align a run's fine-tuned model with its rankings, and say what came of it."""
    with starting(terminal):
        from klype.config import make
        from klype.runs import folder
        from klype.runs.checks import checked
        from klype.runs.rounds import align_rounds, overrides
        from klype.train.rewards import typed

    how = (*overrides(asked.method, typed(asked.reward), asked.beta, asked.target_kl), *asked.overrides)
    common = {field.name: getattr(asked, field.name) for field in fields(WorkOptions)}
    common |= {"from_": asked.model, "steps": asked.steps, "minutes": asked.minutes, "overrides": how}
    stage = make(StageOptions, {**common, "stage": "align", "lang": terminal.lang})
    checked(stage)
    with folder.chosen("align", asked.out, asked.resume, date.today()) as place, listener(terminal, asked.human) as say:
        document = align_rounds(replace(stage, out=place), asked.rounds, asked.taste, say)
    terminal.document(document)


Asked = TypeVar("Asked", "RunOptions", "StageOptions")


@contextmanager
def working(recipe: str, asked: Asked, terminal: Terminal) -> Iterator[tuple[Asked, RunListener]]:
    """Within it this process does its part: what is asked, with its folder, and the listener.

    Of several processes the first chooses the folder and is the one to be heard. Started again after one of them died,
    they go on from the last state.
    """
    asked = replace(asked, lang=terminal.lang, cache=cache_folder(), program=environment.program())
    team = environment.team()
    if team is None:
        with _folder(recipe, asked) as placed, listener(terminal, asked.human) as say:
            yield placed, say
        return
    from klype.errors import Interrupted
    from klype.runs.say import Silent
    from klype.train import parallel

    asked = replace(asked, processes=team.local, resume=asked.resume or team.restarts > 0)
    with parallel.joined(team):
        if parallel.is_first():
            with _folder(recipe, asked) as placed, listener(terminal, asked.human) as say:
                parallel.from_first(str(placed.out))
                yield placed, say
            return
        try:
            yield replace(asked, out=Path(parallel.from_first(None))), Silent()
        except Interrupted:  # the first one tells
            raise typer.Exit(1) from None


@contextmanager
def _folder(recipe: str, asked: Asked) -> Iterator[Asked]:
    from klype.runs import folder

    with folder.chosen(recipe, asked.out, asked.resume, date.today()) as place:
        yield replace(asked, out=place)
