"""``klype mistakes``: what training can do against errors that feed on themselves, with a report and figures.json."""

from __future__ import annotations

from klype.cli.experimenting import conduct
from klype.cli.terminal import Terminal
from klype.experiments.options import MistakesOptions


def command(terminal: Terminal, asked: MistakesOptions) -> None:
    """Whether a mistake makes the next one likelier, and how much of that each way of training takes away.

    Without --text: in the demo world, whose true probabilities are known, also after mistakes.
    """
    from klype.experiments.mistakes.report import REPORT

    conduct(REPORT, asked, terminal)
