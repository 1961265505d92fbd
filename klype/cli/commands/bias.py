"""``klype bias``: the hard-target experiment, live in the terminal, with a report and targets.json for a page."""

from __future__ import annotations

from klype.cli.experimenting import conduct
from klype.cli.terminal import Terminal
from klype.experiments.options import BiasOptions


def command(terminal: Terminal, asked: BiasOptions) -> None:
    """What is lost by training towards one right word at a time, and how much of it each cure wins back.

    Without --text: in the demo world, whose true probabilities are known.
    """
    from klype.experiments.bias.report import REPORT

    conduct(REPORT, asked, terminal)
