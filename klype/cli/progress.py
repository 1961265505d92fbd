"""Progress on a terminal: a live bar where somebody looks, plain lines now and then where nobody does."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING

from klype.words import LANGUAGES, count, number
from klype.words.plain import aside
from klype.words.sentences import Sentences

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from klype.cli.terminal import Terminal
    from klype.runs.say import RunListener

PLAIN_EVERY_S = 15.0
CURVE = 24  # columns of the loss curve


@contextmanager
def listener(terminal: Terminal, asks: bool = False) -> Iterator[RunListener]:
    """The listener that suits this terminal; the bars are gone when the block is left, however it is left.

    ``asks``: somebody is asked to type meanwhile, over whose line a bar would be drawn.
    """
    if not asks and terminal.console.is_terminal and not terminal.console.is_dumb_terminal:
        live = Live(terminal.console, terminal.lang)
        with live.progress:
            yield live
    else:
        yield Plain(terminal.console, terminal.lang, time.monotonic)


@contextmanager
def patiently(text: str, seconds: float = 1.0) -> Iterator[None]:
    """What is being done within is told on stderr once it has taken longer than a moment."""
    timer = threading.Timer(seconds, aside, (text,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def starting(terminal: Terminal) -> AbstractContextManager[None]:
    """Around what a command imports and opens before its first word."""
    return patiently(terminal.words("model.starting"))


class _Printer:
    """What the live and the plain listener have in common: notes and tables."""

    def __init__(self, console: Console, lang: str) -> None:
        self.console = console
        self.lang = lang
        self.said = Sentences(lang, "progress")

    def note(self, text: str) -> None:
        self.console.print("\n".join(map(self.said, text.split("\n"))), markup=False)

    def sample(self, text: str) -> None:
        from rich.text import Text

        shown = Text(f"  {_quoted(text, self.lang)}", style="italic")
        shown.truncate(min(self.console.width, 100), overflow="ellipsis")
        self.console.print(shown)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        name = self.said.name
        print_table(self.console, name(title), [*map(name, columns)], [[*map(name, row)] for row in rows])

    def measures(self, metrics: Mapping[str, float], fewest: bool = False) -> str:
        """ "loss 2.31  12,345 tok/s  kl 0.02": the loss and the speed by their own units, the rest by name."""
        said, lang = self.said, self.lang
        parts = [f"{said('loss')} {number(metrics['loss'], lang, 3)}"] if "loss" in metrics else []
        if "tokens_per_second" in metrics:
            parts.append(f"{count(round(metrics['tokens_per_second']), lang)} tok/s")
        rest = [name for name in metrics if name not in ("step", "loss", "tokens_per_second")]
        parts += [f"{said(name)} {number(metrics[name], lang, 3)}" for name in (rest[:1] if fewest else rest)]
        return "  ".join(parts)


class Live(_Printer):
    """A bar for the stage that is running, with what it measures; what the model says scrolls by above."""

    def __init__(self, console: Console, lang: str) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        super().__init__(console, lang)
        self._task: TaskID | None = None
        self._total: int | None = None
        self._curve = LossCurve()
        self.progress: Progress = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}" + LANGUAGES[lang].percent),
            TextColumn("{task.fields[numbers]}"),
            TextColumn("{task.fields[curve]}", style="cyan"),
            TimeRemainingColumn(compact=True),
            console=console,
            expand=console.width <= 100,
        )

    def stage_start(self, name: str, total_steps: int) -> None:
        self.stage_end()
        self._total = total_steps or None
        self._task = self.progress.add_task(self.said(name), total=self._total, numbers="", curve="")
        self._curve = LossCurve()

    def step(self, metrics: Mapping[str, float]) -> None:
        if self._task is None:
            self.stage_start("", 0)
        if self._task is not None:
            if "loss" in metrics:
                self._curve.add(metrics["loss"])
            numbers, curve = self.measures(metrics, fewest=True), self._curve.drawn(self._room())
            self.progress.update(self._task, completed=metrics.get("step"), numbers=numbers, curve=curve)

    def _room(self) -> int:
        """Columns for the curve: none on a narrow terminal, or one that has no such characters."""
        if not self.console.encoding.lower().startswith("utf"):
            return 0
        return min(CURVE, max(0, self.console.width - 80))

    def stage_end(self, summary: str = "") -> None:
        if self._task is not None:
            self.progress.update(self._task, completed=self._total)
            self.progress.stop_task(self._task)
            self._task = None
        if summary:
            self.note(summary)


class Plain(_Printer):
    """A line at the start of a stage, one every quarter of a minute, and one at its end."""

    def __init__(self, console: Console, lang: str, clock: Callable[[], float]) -> None:
        super().__init__(console, lang)
        self._clock = clock
        self._name = ""
        self._total = 0
        self._began = self._told = clock()
        self._first = (0.0, self._began)  # the step that this start was at when it was first heard of, and when
        self._last: Mapping[str, float] = {}

    def stage_start(self, name: str, total_steps: int) -> None:
        self.stage_end()
        self._name, self._total = self.said(name), total_steps
        self._began = self._told = self._clock()
        self._last = {}
        self.note(f"{self._name}: {count(total_steps, self.lang)} {self.said('steps')}" if total_steps else self._name)

    def step(self, metrics: Mapping[str, float]) -> None:
        now, done = self._clock(), metrics.get("step", 0.0)
        if not self._last:
            self._first = (done, now)
        self._last = metrics
        if now - self._told < PLAIN_EVERY_S:
            return
        self._told = now
        gone = done - self._first[0]
        left = (now - self._first[1]) * (self._total - done) / gone if gone and self._total else None
        eta = f", {left:.0f} {self.said('s left')}" if left is not None else ""
        of = f"/{self._total}" if self._total else ""
        self.note(f"{self._name} {done:.0f}{of}: {self.measures(metrics)}{eta}")

    def stage_end(self, summary: str = "") -> None:
        if self._name and self._last:
            seconds = number(self._clock() - self._began, self.lang, 1)
            measured = self.measures(self._last)
            self.note(f"{self._name}: {measured}{' ' if measured else ''}({seconds} s)")
        self._name, self._last = "", {}
        if summary:
            self.note(summary)


class LossCurve:
    """The losses so far as a handful of means of equally many steps, however many steps there are."""

    def __init__(self) -> None:
        self._means: list[float] = []
        self._each = 1  # steps of a mean
        self._sum, self._count = 0.0, 0

    def add(self, loss: float) -> None:
        """What is no number is left out."""
        if not math.isfinite(loss):
            return
        self._sum, self._count = self._sum + loss, self._count + 1
        if self._count == self._each:
            self._means.append(self._sum / self._count)
            self._sum, self._count = 0.0, 0
        if len(self._means) == 2 * CURVE:
            self._means = [(x + y) / 2 for x, y in zip(self._means[::2], self._means[1::2], strict=True)]
            self._each *= 2

    def drawn(self, columns: int) -> str:
        """Blocks from ▁ (the least) to █, in at most so many columns."""
        columns = min(columns, len(self._means))
        if columns < 2:
            return ""
        edges = [len(self._means) * i // columns for i in range(columns + 1)]
        means = [sum(self._means[a:b]) / (b - a) for a, b in pairwise(edges)]
        low, high = min(means), max(means)
        scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
        return "".join(BLOCKS[round((mean - low) * scale)] for mean in means)


BLOCKS = "▁▂▃▄▅▆▇█"


def print_table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table without vertical rules; numbers stand to the right."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, name in enumerate(columns):
        cells = [row[i] for row in rows if row[i]]
        numeric = i > 0 and bool(cells) and all(cell[0].isdigit() or cell[0] in "\u2212\u2013" for cell in cells)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])
    console.print(table)


def _quoted(text: str, lang: str) -> str:
    flat = " ".join(text.split())
    return flat.join(LANGUAGES[lang].quotes)
