"""A run by one process, or by those that a launcher such as torchrun started: who chooses its folder, who speaks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from klype.cli import environment
from klype.cli.progress import listener
from klype.environment import cache_folder
from klype.runs import folder

if TYPE_CHECKING:
    from klype.cli.terminal import Terminal
    from klype.runs.options import RunOptions, StageOptions
    from klype.runs.say import Say

Asked = TypeVar("Asked", "RunOptions", "StageOptions")


@contextmanager
def working(recipe: str, asked: Asked, terminal: Terminal) -> Iterator[tuple[Asked, Say]]:
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
    with folder.chosen(recipe, asked.out, asked.resume, date.today()) as place:
        yield replace(asked, out=place)
