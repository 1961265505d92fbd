"""How the commands of experiments go: planned, watched while they train, told in words, a report and JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from typing import TYPE_CHECKING

from klype.cli.terminal import Terminal, to_json, write
from klype.environment import cache_folder

if TYPE_CHECKING:
    from rich.table import Table

    from klype.experiments.corpus import Source
    from klype.experiments.experiment_options import BiasOptions, MistakesOptions
    from klype.experiments.experiment_report import Report
    from klype.experiments.framework import B

PLAIN_EVERY_S = 15.0


def conduct(report: Report[B], asked: BiasOptions | MistakesOptions, terminal: Terminal) -> None:
    """Plans the experiment, runs what of it is not finished, and shows what came of it."""
    from klype.config import load
    from klype.device import set_threads, usable_cores
    from klype.examine.say import Say
    from klype.experiments.planning import PlanRequest
    from klype.runs import folder
    from klype.words import count, number, words

    experiment, lang = report.experiment, terminal.lang
    own, say = words(lang, experiment.name), Say(lang)
    arms = experiment.called(asked.arms, truth=not asked.text)
    settings = load(experiment.settings, overrides=asked.overrides)
    request = PlanRequest(asked.minutes, asked.sizes, asked.seeds, asked.seed, arms, settings)
    source = open_source(asked.text, asked.encoding)
    cores = usable_cores()
    set_threads(1)

    def table(board: B) -> Table:
        """The figures at the most documents of which there are any."""
        documents = max((row.documents for row in board.rows), default=board.documents[0])
        columns, rows = report.table(board, documents, say, own, report.narrow)
        return grid(own("table", documents=say.count(documents)), columns, rows)

    def progress(board: B) -> str:
        """How many models are measured, and which are being trained."""
        done = own("progress", done=board.cells_done, all=board.cells)
        return "\n".join([done, *report.running(board, own)])

    with folder.chosen(experiment.name, asked.out, asked.resume, date.today()) as place:
        plan = experiment.plan(source, place, request, cores, cache_folder())
        sizes = " / ".join(count(n, lang) for n in plan.documents)
        numbers = {"seeds": plan.seeds, f"{experiment.noun}s": len(plan.arms), "cores": cores}
        steps, minutes = count(experiment.steps(plan), lang), number(plan.seconds / 60, lang, 1)
        terminal.console.print(own("plan", documents=sizes, steps=steps, minutes=minutes, **numbers), markup=False)
        with watching(terminal, table, progress) as tell:
            board = experiment.run(source, plan, place, tell, cores, cache_folder())
        page = str(report.write(place, board, lang))
        made = {**board.document(), "report": page, "plan": plan.document(experiment.noun, experiment.one_size)}
        write(place / f"{experiment.name}.json", to_json(made) + "\n")
    if not terminal.as_json:
        terminal.console.print(table(board))
        for sentence in (*report.verdict(board, say, own), own(report.notes[0]), page):
            terminal.console.print(sentence, markup=False)
    terminal.document(made)


def open_source(text: Sequence[str], encoding: str) -> Source:
    """The demo world, or the user's own text."""
    from klype.data.readers import TextOptions, read_texts
    from klype.experiments.corpus import TextSource, WorldSource

    return TextSource(read_texts(text, TextOptions(encoding=encoding))) if text else WorldSource()


@contextmanager
def watching(
    terminal: Terminal, table: Callable[[B], Table], progress: Callable[[B], str]
) -> Iterator[Callable[[B], None]]:
    """Where somebody looks, a table that fills; elsewhere a line now and then."""
    if not terminal.console.is_terminal or terminal.console.is_dumb_terminal:
        told = [time.monotonic()]

        def plain(board: B) -> None:
            if time.monotonic() - told[0] >= PLAIN_EVERY_S:
                told[0] = time.monotonic()
                terminal.console.print(progress(board), markup=False)

        yield plain
        return
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    with Live(console=terminal.console, refresh_per_second=4, transient=True) as live:
        yield lambda board: live.update(Group(table(board), Text(progress(board))))


def grid(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table without rules; all but the first column stand to the right."""
    from rich.table import Table

    found = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for i, name in enumerate(columns):
        found.add_column(name, justify="right" if i else "left")
    for row in rows:
        found.add_row(*row)
    return found
