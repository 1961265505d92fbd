"""Makes untrusted text safe to print: everything that goes to a terminal or a log passes through ``harmless``.

Names of models, replies of servers, errors of libraries, tokens and files may contain escape sequences, which could
fill the clipboard, rewrite the screen or reverse a line.
"""

import logging
import sys
import unicodedata
from collections.abc import Callable
from types import TracebackType
from typing import Any, TextIO

# harmless, although str.isprintable rejects them: line breaks, tabs, and the joiner of emojis
KEPT = frozenset("\n\t\u200d")


def harmless(text: str) -> str:
    """The text with U+FFFD instead of control characters, bidirectional controls and lone surrogates."""
    return _replace(text.replace("\r\n", "\n"), lambda character: "\ufffd")


def escape(text: str) -> str:
    r"""JSON text with ``\uXXXX`` instead of the same characters, which leaves its meaning unchanged."""

    def code(character: str) -> str:
        data = character.encode("utf-16-be", "surrogatepass").hex()
        return "".join(f"\\u{data[i : i + 4]}" for i in range(0, len(data), 4))

    return _replace(text, code)


def tell(text: str, end: str = "\n", file: TextIO | None = None) -> None:
    """Prints and flushes. ``file``: by default standard output."""
    print(harmless(text), end=end, file=file or sys.stdout, flush=True)


def aside(text: str) -> None:
    """Prints to standard error."""
    tell(text, file=sys.stderr)


class HarmlessRecord(logging.LogRecord):
    """A log record whose message, arguments and traceback are harmless, whatever formats it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if isinstance(self.args, tuple):  # uvicorn's access log formats them itself
            self.args = tuple(harmless(arg) if isinstance(arg, str) else arg for arg in self.args)
        if isinstance(self.exc_info, tuple) and isinstance(self.exc_info[2], TracebackType):
            self.exc_text = harmless(logging.Formatter().formatException(self.exc_info))

    def getMessage(self) -> str:  # noqa: N802 (logging's own name)
        return harmless(super().getMessage())


def harmless_log() -> None:
    """Makes all further logging of this process, klype's and libraries', harmless."""
    logging.setLogRecordFactory(HarmlessRecord)


def _replace(text: str, new: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in KEPT or unicodedata.category(c) == "Zs" else new(c) for c in text)
