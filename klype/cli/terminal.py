"""The terminal: the answer on stdout, everything else on stderr, progress live or plain when nobody looks."""

from __future__ import annotations

import io
import json
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
    from rich.progress import Progress, TaskID
    from rich.table import Table

    from klype.api.prompt_context import PromptContext
    from klype.runs.listener import RunListener
    from klype.sources.opening import OpenModel


PLAIN_EVERY_S = 15.0  # so that a log of hours stays short


class Terminal:
    """One command's output. With ``as_json`` stdout holds one JSON document, and words go to stderr."""

    def __init__(self, as_json: bool = False, lang: str | None = None) -> None:
        lang = lang or language()
        if lang not in LANGUAGES:
            raise UsageError(f"There is no language '{lang}': use {' or '.join(LANGUAGES)}.")
        self.as_json = as_json
        self.words: Words = words(lang)
        self.lang = lang
        self.console: Console = plain_console(stderr=as_json)

    @property
    def watched(self) -> bool:
        """Whether somebody looks, on a terminal that can redraw."""
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def say(self, key: str, **values: object) -> None:
        """A message of the catalogue, as plain text."""
        self.console.print(self.words(key, **values))

    def lines(self, lines: Iterable[str]) -> None:
        """What is told of the answer, a line each; with --json it is in the document."""
        if not self.as_json:
            for line in lines:
                self.console.print(line)

    def aside(self, text: str, underlined: Sequence[str] = ()) -> None:
        """How it goes, for whoever waits; some of its words may be underlined."""
        from rich.text import Text

        shown = Text(text, "dim")
        shown.highlight_words(underlined, "underline")
        self.console.print(shown)

    def answer(self, text: str, end: str = "\n") -> None:
        """What was asked for, on stdout; with --json it is in the document."""
        if not self.as_json:
            tell(text, end)

    def document(self, document: dict[str, Any], out: Path | None = None) -> None:
        """The result for programs: on stdout with --json, and in a file when one is named."""
        if out is not None:
            write_json(out, document)
        if self.as_json:
            tell(to_json(document))


def to_json(document: dict[str, Any]) -> str:
    """JSON without NaN or infinities: those are a programmer's error here. It says all, and is harmless to print."""
    return escape(json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2))


def write_json(file: Path, document: dict[str, Any]) -> None:
    write(file, to_json(document) + "\n")


def write(file: Path, text: str) -> None:
    """Whole or not at all (durable.py)."""
    try:
        durable.write(file, text)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}.", "Choose another --out.") from None


def program(environ: Mapping[str, str] = os.environ, python: str = sys.executable) -> str:
    """How this klype is called from the user's shell: ``klype`` where the shell finds it, else by its path."""
    script = Path(python).with_name("klype.exe" if sys.platform == "win32" else "klype")
    if not script.is_file():
        return f"{shlex.quote(python)} -m klype"
    found = shutil.which("klype", path=environ.get("PATH", ""))
    if found is not None and Path(found).samefile(script):
        return "klype"
    return shlex.quote(str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script))


def any_character() -> None:
    """Output is UTF-8 on every system; what cannot be written (a broken byte of an argument) is spelled out."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def budget_parts(text: str) -> tuple[str, str]:
    """``--budget``: what it says of the work here, and what a server may be asked for: "300,500requests" → ("300",
    "500requests")."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    of_server = [part for part in parts if part.casefold().endswith(("requests", "tokens"))]
    return ",".join(part for part in parts if part not in of_server), ",".join(of_server)


def pass_budget(text: str | None) -> tuple[int | None, str]:
    """``--budget`` as forward passes of a plain number (None: not said), and what a server may be asked for."""
    from klype.sources.http_client import Budget

    own, of_server = budget_parts((text or "").replace(" ", ""))
    if own and not re.fullmatch(r"[0-9]*[1-9][0-9]*", own):  # 0 is no budget
        raise UsageError(f"--budget should be a whole number of passes from 1 up (it is {own}).")
    Budget.parse(of_server)
    return int(own) if own else None, of_server


def tell_unread(terminal: Terminal, ask: PromptContext) -> None:
    """Where the demo world's grammar stops reading a question, of which nobody knows the truth then."""
    if ask.unread and not terminal.as_json:
        said = Sentences(terminal.lang)
        terminal.aside(harmless(" ".join(map(said, ask.unread.split("\n")))))


def tell_cost(opened: OpenModel) -> None:
    """At a command's end: what a server was asked for, on stderr; nothing for models that are here."""
    if opened.http is not None:
        from klype.sources.capabilities import cost

        aside(f"{opened.name}: {cost(opened.http.budget)}")


def plain_console(**options: Any) -> Console:
    """rich's console for text of strangers: its own escape codes go to the terminal, none that came in a text."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class PlainConsole(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                # rich's own control codes are no text
                harm = not segment.control and not segment.text.isprintable()
                yield Segment(harmless(segment.text), segment.style) if harm else segment

    return PlainConsole(highlight=False, markup=False, **options)


@contextmanager
def listener(terminal: Terminal, asks: bool = False) -> Iterator[RunListener]:
    """The listener that suits this terminal; the bars are gone when the block is left, however it is left.

    ``asks``: somebody is asked to type meanwhile, over whose line a bar would be drawn.
    """
    if not asks and terminal.watched:
        live = LiveProgress(terminal.console, terminal.lang)
        with live.progress:
            yield live
    else:
        yield PlainProgress(terminal.console, terminal.lang, time.monotonic)


@contextmanager
def part_progress(terminal: Terminal) -> Iterator[Callable[[str, int, int], None]]:
    """Tells how work of several parts goes: called with a part's name, how much of it is done, and of how much."""
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
    """What is being done within is told on stderr once it has taken longer than a moment."""
    timer = threading.Timer(seconds, aside, (text,))
    timer.daemon = True  # what ends sooner does not wait for it
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def starting(terminal: Terminal) -> AbstractContextManager[None]:
    """Around what a command imports and opens before its first word."""
    return patiently(terminal.words("model.starting"))


class ProgressPrinter:
    """What the live and the plain listener have in common: notes and tables."""

    def __init__(self, console: Console, lang: str) -> None:
        self.console = console
        self.lang = lang
        self.said = Sentences(lang, "progress")

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

    def measures(self, metrics: Mapping[str, float], fewest: bool = False) -> str:
        """ "loss 2.31  12,345 tok/s  kl 0.02": the loss and the speed by their own units, the rest by name."""
        said, lang = self.said, self.lang
        parts = [f"{said('loss')} {number(metrics['loss'], lang, 3)}"] if "loss" in metrics else []
        if "tokens_per_second" in metrics:
            parts.append(f"{count(round(metrics['tokens_per_second']), lang)} tok/s")
        rest = [name for name in metrics if name not in ("step", "loss", "tokens_per_second")]
        parts += [f"{said(name)} {number(metrics[name], lang, 3)}" for name in (rest[:1] if fewest else rest)]
        return "  ".join(parts)


class LiveProgress(ProgressPrinter):
    """A bar for the stage that is running, with what it measures; what the model says scrolls by above."""

    def __init__(self, console: Console, lang: str) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        super().__init__(console, lang)
        self._task: TaskID | None = None
        self._total: int | None = None
        self.progress: Progress = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}" + LANGUAGES[lang].percent),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            expand=console.width <= 100,
        )

    def stage_start(self, name: str, total_steps: int) -> None:
        self.stage_end()
        self._total = total_steps or None
        self._task = self.progress.add_task(self.said(name), total=self._total, numbers="")

    def step(self, metrics: Mapping[str, float]) -> None:
        if self._task is None:
            self.stage_start("", 0)
        assert self._task is not None
        self.progress.update(self._task, completed=metrics.get("step"), numbers=self.measures(metrics, fewest=True))

    def stage_end(self, summary: str = "") -> None:
        if self._task is not None:
            self.progress.update(self._task, completed=self._total)
            self.progress.stop_task(self._task)
            self._task = None
        if summary:
            self.note(summary)


class PlainProgress(ProgressPrinter):
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
        eta = f"{left:.0f} {self.said('s left')}" if left is not None else ""
        of = f"/{self._total}" if self._total else ""
        told = ", ".join(filter(None, (self.measures(metrics), eta)))
        self.note(f"{self._name} {done:.0f}{of}{': ' if told else ''}{told}")

    def stage_end(self, summary: str = "") -> None:
        if self._name and self._last:
            seconds = number(self._clock() - self._began, self.lang, 1)
            measured = self.measures(self._last)
            self.note(f"{self._name}: {measured}{' ' if measured else ''}({seconds} s)")
        self._name, self._last = "", {}
        if summary:
            self.note(summary)


def print_table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    console.print(grid(title, columns, rows))


def grid(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table without rules; numbers stand to the right."""
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
