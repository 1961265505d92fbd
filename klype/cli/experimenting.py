"""What the commands of experiments have in common: where documents come from, and how an experiment is watched."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from klype.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from klype.cli.terminal import Terminal
    from klype.experiments.bias.corpus import Source

PLAIN_EVERY_S = 15.0
FEWEST = 8
Stand = TypeVar("Stand")
"""How an experiment stands."""


def check_minutes(minutes: float) -> None:
    if not minutes > 0:
        raise UsageError(f"--minutes should be above 0 (it is {minutes:g}).")


def check_few(documents: int) -> None:
    """UsageError for so few documents that they teach nothing; 0: none were asked for."""
    if 0 < documents < FEWEST:
        raise UsageError(f"--documents: {documents} documents teach nothing; give at least {FEWEST}.")


def listed(text: str) -> tuple[str, ...]:
    """Names with commas between."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def open_source(text: list[str], encoding: str) -> Source:
    """The demo world, or the user's own text."""
    from klype.data.readers import TextOptions, read_texts
    from klype.experiments.bias.corpus import TextSource, WorldSource

    return TextSource(read_texts(text, TextOptions(encoding=encoding))) if text else WorldSource()


@contextmanager
def watching(
    terminal: Terminal, table: Callable[[Stand], Table], progress: Callable[[Stand], str]
) -> Iterator[Callable[[Stand], None]]:
    """Where somebody looks, a table that fills; elsewhere a line now and then."""
    if not terminal.console.is_terminal or terminal.console.is_dumb_terminal:
        told = [time.monotonic()]

        def plain(stand: Stand) -> None:
            if time.monotonic() - told[0] >= PLAIN_EVERY_S:
                told[0] = time.monotonic()
                terminal.console.print(progress(stand), markup=False)

        yield plain
        return
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    with Live(console=terminal.console, refresh_per_second=4, transient=True) as live:
        yield lambda stand: live.update(Group(table(stand), Text(progress(stand))))


def grid(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table without rules; all but the first column stand to the right."""
    from rich.table import Table

    found = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for i, name in enumerate(columns):
        found.add_column(name, justify="right" if i else "left")
    for row in rows:
        found.add_row(*row)
    return found
