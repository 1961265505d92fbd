"""``klype bias`` and ``klype mistakes``: the experiments, live in the terminal, with a report and a file for a page."""

from __future__ import annotations

from klype.cli.experimenting import conduct
from klype.cli.terminal import Terminal
from klype.experiments.experiment_options import BiasOptions, MistakesOptions


def bias_command(terminal: Terminal, asked: BiasOptions) -> None:
    """What is lost by training towards one right word at a time, and how much of it each remedy wins back.

    Without --text: in the demo world, whose true probabilities are known.
    """
    from klype.experiments.bias.report import REPORT

    conduct(REPORT, asked, terminal)


def mistakes_command(terminal: Terminal, asked: MistakesOptions) -> None:
    """Does a mistake make the next one more likely, and how much of that does each way of training remove?

    Without --text: in the demo world, whose true probabilities are known, also after mistakes.
    """
    from klype.experiments.mistakes.report import REPORT

    conduct(REPORT, asked, terminal)
