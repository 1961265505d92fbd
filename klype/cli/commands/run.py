"""``klype run``: the whole life-cycle of a language model."""

from __future__ import annotations

from dataclasses import replace

from klype.cli import options as o
from klype.cli.terminal import Terminal
from klype.runs.options import RunOptions


def command(terminal: Terminal, asked: RunOptions, reward: o.Reward = ()) -> None:
    """Train a model through all stages, question it, and write a report.

    Without --text: the demo world, a small language in Norwegian and English whose truth is known.
    """
    from klype.cli.team import working
    from klype.runs.opening import checked
    from klype.train.rewards import as_settings, typed

    checked(asked)
    asked = replace(asked, overrides=(*as_settings(typed(reward)), *asked.overrides))
    with working(asked.recipe_name, asked, terminal) as (placed, say):
        from klype.runs import pipeline

        document = pipeline.run(placed, say)
    if document:
        terminal.document(document)
