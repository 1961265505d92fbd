"""Where words and documents go: the answer on stdout, everything else on stderr; plain when nobody looks."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from klype import durable
from klype.environment import language
from klype.errors import UsageError
from klype.words import LANGUAGES, Words, words
from klype.words.plain import escaped, harmless, tell

if TYPE_CHECKING:
    from rich.console import Console

    from klype.api.asking import Asking
    from klype.sources.opening import Opened


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

    def say(self, key: str, **values: object) -> None:
        """A message of the catalogue, as plain text."""
        self.console.print(self.words(key, **values), markup=False)

    def aside(self, text: str, underlined: Sequence[str] = ()) -> None:
        """How it goes, for whoever waits; some of its words may be underlined."""
        from rich.text import Text

        shown = Text(text, "dim")
        shown.highlight_words(underlined, "underline")
        self.console.print(shown)

    def document(self, document: dict[str, Any], out: Path | None = None) -> None:
        """The result for programs: on stdout with --json, and in a file when one is named."""
        text = to_json(document)
        if out is not None:
            write(out, text + "\n")
        if self.as_json:
            tell(text)


def to_json(document: dict[str, Any]) -> str:
    """JSON without NaN or infinities: those are a programmer's error here. It says all, and is harmless to print."""
    return escaped(json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2))


def write(file: Path, text: str) -> None:
    """Whole or not at all (durable.py)."""
    try:
        durable.write(file, text)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}.", "Choose another --out.") from None


def any_character() -> None:
    """Output is UTF-8 on every system; what cannot be written (a broken byte of an argument) is spelled out."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def silence_stdout() -> None:
    """The reader of stdout has gone: let the interpreter's last flush go nowhere instead of failing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def split_budget(text: str | None) -> tuple[int | None, str]:
    """``--budget``: forward passes of a plain number (None: not said), and what a server may be asked for.

    "300" → (300, ""); "500requests,20000tokens" → (None, the same); "300,500requests" both.
    """
    from klype.errors import UsageError
    from klype.sources.http_client import Budget

    passes, asked = None, []
    for part in (text or "").replace(" ", "").split(","):
        if re.fullmatch(r"[0-9]*[1-9][0-9]*", part):
            passes = int(part)
        elif part and not part.casefold().endswith(("requests", "tokens")):
            raise UsageError(f"--budget should be a whole number of passes from 1 up (it is {part}).")
        elif part:
            asked.append(part)
    Budget.parse(",".join(asked))
    return passes, ",".join(asked)


def tell_unread(terminal: Terminal, ask: Asking) -> None:
    """Where the demo world's grammar stops reading a question, of which nobody knows the truth then."""
    if ask.unread and not terminal.as_json:
        from klype.words.sentences import Sentences

        said = Sentences(terminal.lang)
        terminal.aside(harmless(" ".join(map(said, ask.unread.split("\n")))))


def tell_cost(opened: Opened) -> None:
    """At a command's end: what a server was asked for, on stderr; nothing for models that are here."""
    if opened.http is not None:
        from klype.sources.capabilities import cost
        from klype.words.plain import aside

        aside(f"{opened.name}: {cost(opened.http.budget)}")


def plain_console(**options: Any) -> Console:
    """rich's console for text of strangers: its own escape codes go to the terminal, none that came in a text."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class PlainConsole(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                harm = not segment.control and not segment.text.isprintable()
                yield Segment(harmless(segment.text), segment.style) if harm else segment

    return PlainConsole(highlight=False, markup=False, **options)
