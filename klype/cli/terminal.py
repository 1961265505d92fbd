"""The terminal: answers on stdout, everything else on stderr, progress as a bar or, outside a terminal, as lines."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klype import durable
from klype.environment import language
from klype.errors import UsageError
from klype.words import LANGUAGES, Words, count, number, words
from klype.words.plain import aside, escape, harmless, tell
from klype.words.sentences import Sentences

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Task
    from rich.table import Table

    from klype.api.prompt_context import PromptContext
    from klype.runs.listener import RunListener
    from klype.sources.opening import OpenModel


PLAIN_EVERY_S = 15.0  # so that a log of hours stays short


class Terminal:
    """One command's output. With ``as_json`` stdout holds one JSON document, and messages go to stderr.

    Raises UsageError for a language that klype does not speak.
    """

    def __init__(self, as_json: bool = False, lang: str | None = None) -> None:
        lang = lang or language()
        if lang not in LANGUAGES:
            raise UsageError(f"There is no language '{lang}': use {' or '.join(LANGUAGES)}.")
        self.as_json = as_json
        self.words: Words = words(lang)
        self.lang = lang
        self.console: Console = plain_console(stderr=as_json)

    @property
    def can_redraw(self) -> bool:
        """Whether output goes to a terminal that can redraw lines."""
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def say(self, key: str, **values: object) -> None:
        """Prints a message of the catalogue."""
        self.console.print(self.words(key, **values))

    def lines(self, lines: Iterable[str]) -> None:
        """Prints lines about the answer; nothing with --json, whose document holds them."""
        if not self.as_json:
            for line in lines:
                self.console.print(line)

    def aside(self, text: str, underlined: Sequence[str] = ()) -> None:
        """Prints a dimmed remark; the words ``underlined`` are underlined in it."""
        from rich.text import Text

        shown = Text(text, "dim")
        shown.highlight_words(underlined, "underline")
        self.console.print(shown)

    def answer(self, text: str, end: str = "\n") -> None:
        """Prints the answer, or a piece of it; nothing with --json, whose document holds it."""
        if not self.as_json:
            tell(text, end)

    def document(self, document: dict[str, Any], out: Path | None = None) -> None:
        """Writes the JSON document: to stdout with --json, and to the file ``out``."""
        if out is not None:
            write_json(out, document)
        if self.as_json:
            tell(to_json(document))


def to_json(document: dict[str, Any]) -> str:
    """JSON text that is safe to print: control characters are escaped. Raises ValueError for NaN and infinity."""
    return escape(json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2))


def write_json(file: Path, document: dict[str, Any]) -> None:
    """Writes a document atomically. Raises UsageError where that is not possible."""
    durable.write_out(file, to_json(document) + "\n", UsageError)


def program(environ: Mapping[str, str] = os.environ, python: str = sys.executable) -> str:
    """How the user's shell calls this klype: ``klype`` if it is on PATH, else its path."""
    script = Path(python).with_name("klype.exe" if sys.platform == "win32" else "klype")
    if not script.is_file():
        return f"{shlex.quote(python)} -m klype"
    found = shutil.which("klype", path=environ.get("PATH", ""))
    if found is not None and Path(found).samefile(script):
        return "klype"
    return shlex.quote(str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script))


def any_character() -> None:
    """Makes output UTF-8 on every system; what cannot be encoded (a stray byte of an argument) is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def budget_parts(text: str) -> tuple[str, str]:
    """Splits ``--budget`` into the limit for work on this machine and those for a server: "300,500requests" →
    ("300", "500requests")."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    of_server = [part for part in parts if part.casefold().endswith(("requests", "tokens"))]
    return ",".join(part for part in parts if part not in of_server), ",".join(of_server)


def pass_budget(text: str | None) -> tuple[int | None, str]:
    """Parses ``--budget`` into a number of forward passes (None: not given) and the limits for a server. Raises
    UsageError for anything else."""
    from klype.sources.http_client import Budget

    own, of_server = budget_parts((text or "").replace(" ", ""))
    if own and not re.fullmatch(r"[0-9]*[1-9][0-9]*", own):
        raise UsageError(f"--budget should be a whole number of passes from 1 up (it is {own}).")
    Budget.parse(of_server)
    return int(own) if own else None, of_server


def tell_unread(terminal: Terminal, ask: PromptContext) -> None:
    """Says where the demo world's grammar fails to parse a question, for which no truth is known then."""
    if ask.unread and not terminal.as_json:
        said = Sentences(terminal.lang)
        terminal.aside(harmless(" ".join(map(said, ask.unread.split("\n")))))


def tell_cost(opened: OpenModel) -> None:
    """At a command's end: prints a server's requests and tokens to stderr; nothing for local models."""
    if opened.http is not None:
        from klype.sources.capabilities import cost

        aside(f"{opened.name}: {cost(opened.http.budget)}")


def plain_console(**options: Any) -> Console:
    """rich's console for untrusted text: escape codes of rich itself reach the terminal, those in texts do not."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class PlainConsole(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                # control segments hold rich's own codes
                harm = not segment.control and not segment.text.isprintable()
                yield Segment(harmless(segment.text), segment.style) if harm else segment

    return PlainConsole(highlight=False, markup=False, **options)


@contextmanager
def listener(terminal: Terminal, asks: bool = False) -> Iterator[RunListener]:
    """The listener for this terminal: a bar, which is gone when the block is left, or plain lines.

    ``asks``: the user is asked to type meanwhile; a bar would be drawn over the line being typed.
    """
    if asks or not terminal.can_redraw:
        yield PlainProgress(terminal.console, terminal.lang)
        return
    live = LiveProgress(terminal.console, terminal.lang)
    with live.progress:
        yield live


@contextmanager
def part_progress(terminal: Terminal) -> Iterator[Callable[[str, int, int], None]]:
    """Shows the progress of work in several parts: yields ``progress(part, done, total)``."""
    with listener(terminal) as say:
        part = [""]

        def progress(name: str, done: int, of: int) -> None:
            if name != part[0]:
                part[0] = name
                say.stage_start(name, of)
            say.step({"step": done})

        yield progress
        say.stage_end()


@contextmanager
def patiently(text: str, seconds: float = 1.0) -> Iterator[None]:
    """Prints ``text`` to stderr if the block takes longer than ``seconds``."""
    timer = threading.Timer(seconds, aside, (text,))
    timer.daemon = True  # a process that ends sooner does not wait for it
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def announce_start(terminal: Terminal) -> AbstractContextManager[None]:
    """To be put around a command's imports and the opening of its model: says "Starting …" if they take long."""
    return patiently(terminal.words("model.starting"))


class LiveProgress:
    """A ``RunListener`` that draws a bar for the stage that is running; notes, tables and samples scroll by above it.
    ``options``: of rich's Progress."""

    def __init__(self, console: Console, lang: str, **options: Any) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.console, self.lang = console, lang
        self.said = Sentences(lang, "progress")
        self.task: Task | None = None  # of the stage that is running
        self.progress = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}" + LANGUAGES[lang].percent),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            expand=console.width <= 100,
            **options,
        )

    def note(self, text: str) -> None:
        self.console.print("\n".join(map(self.said, text.split("\n"))), markup=False)

    def sample(self, text: str) -> None:
        from rich.text import Text

        shown = Text(f"  {' '.join(text.split()).join(LANGUAGES[self.lang].quotes)}", style="italic")
        shown.truncate(min(self.console.width, 100), overflow="ellipsis")
        self.console.print(shown)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        name = self.said.name
        print_table(self.console, name(title), [*map(name, columns)], [[*map(name, row)] for row in rows])

    def measures(self, metrics: Mapping[str, float], most: int | None = 1) -> str:
        """ "loss 2.31  12,345 tok/s  kl 0.02": loss and speed, and ``most`` of the other metrics (None: all)."""
        said, lang = self.said, self.lang
        parts = [f"{said('loss')} {number(metrics['loss'], lang, 3)}"] if "loss" in metrics else []
        if "tokens_per_second" in metrics:
            parts.append(f"{count(round(metrics['tokens_per_second']), lang)} tok/s")
        rest = [name for name in metrics if name not in ("step", "loss", "tokens_per_second")]
        return "  ".join([*parts, *(f"{said(name)} {number(metrics[name], lang, 3)}" for name in rest[:most])])

    def stage_start(self, name: str, total_steps: int) -> None:
        self.stage_end()
        self.progress.add_task(self.said(name), total=total_steps or None, numbers="")
        self.task = self.progress.tasks[-1]

    def step(self, metrics: Mapping[str, float]) -> None:
        assert self.task is not None, "a step belongs to a stage"
        self.progress.update(self.task.id, completed=metrics.get("step"), numbers=self.measures(metrics))

    def stage_end(self, summary: str = "") -> None:
        if self.task is not None:
            self.progress.update(self.task.id, completed=self.task.total)
            self.progress.stop_task(self.task.id)
            self.task = None
        if summary:
            self.note(summary)


class PlainProgress(LiveProgress):
    """The same in plain lines: one at the start of a stage, one every ``PLAIN_EVERY_S``, and one at its end."""

    def __init__(self, console: Console, lang: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._now: float = clock()
        self._told, self._stepped = self._now, False
        # disable: no bar is drawn, and rich still estimates the time left, from the steps of this process
        super().__init__(console, lang, disable=True, get_time=lambda: self._now, speed_estimate_period=math.inf)

    def measures(self, metrics: Mapping[str, float], most: int | None = None) -> str:
        return super().measures(metrics, most)

    def stage_start(self, name: str, total_steps: int) -> None:
        super().stage_start(name, total_steps)
        self._told, self._stepped = self._now, False
        steps = f": {count(total_steps, self.lang)} {self.said('steps')}" if total_steps else ""
        self.note(f"{self.said(name)}{steps}")

    def step(self, metrics: Mapping[str, float]) -> None:
        self._now, self._stepped = self._clock(), True
        super().step(metrics)
        task = self.progress.tasks[-1]
        if self._now - self._told < PLAIN_EVERY_S:
            return
        self._told = self._now
        left = "" if task.time_remaining is None else f"{task.time_remaining:.0f} {self.said('s left')}"
        of = "" if task.total is None else f"/{task.total}"
        told = ", ".join(filter(None, (task.fields["numbers"], left)))
        self.note(f"{task.description} {task.completed:.0f}{of}{': ' if told else ''}{told}")

    def stage_end(self, summary: str = "") -> None:
        self._now = self._clock()
        if self.task is not None and self._stepped:
            measured, seconds = self.task.fields["numbers"], number(self.task.elapsed or 0.0, self.lang, 1)
            self.note(f"{self.task.description}: {measured}{' ' if measured else ''}({seconds} s)")
        super().stage_end(summary)


def print_table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    console.print(grid(title, columns, rows))


def grid(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table without rules; columns of numbers are right-aligned."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for i, name in enumerate(columns):
        cells = [row[i] for row in rows if row[i]]
        # a figure with or without its interval, or the dash where there is none
        numeric = i > 0 and bool(cells) and all(cell[0].isdigit() or cell[0] in "\u2212\u2013<" for cell in cells)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])
    return table
