"""``klype train STAGE``: one stage, from any model that it can start from."""

from __future__ import annotations

from klype.cli.terminal import Terminal
from klype.runs.options import StageOptions


def command(terminal: Terminal, asked: StageOptions) -> None:
    """Train one stage and save it as a checkpoint folder."""
    from klype.cli.team import working
    from klype.runs.opening import checked

    checked(asked)
    with working(asked.stage, asked, terminal) as (placed, say):
        from klype.runs import pipeline

        document = pipeline.train_stage(placed, say)
    if document:
        terminal.document(document)
