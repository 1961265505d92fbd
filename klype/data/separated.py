"""Rows of text separated by commas or tabs: each with the line it begins at, broken ones as what is wrong with them."""

from __future__ import annotations

import csv
import threading
from collections import deque
from collections.abc import Iterator

_LIMIT = threading.Lock()  # csv keeps the longest field it takes in a global of its own
_LONGEST = 2**31 - 1
ROW = 32 * 2**20
"""Characters of a row."""
AGAIN = 64 * 2**20
"""Characters that are read again because a quotation mark before them was never closed."""
LINE = 64
"""Characters whose time and memory a line takes besides its own."""


class EndlessQuotesError(csv.Error):
    """Nothing behind can be told apart."""


def separated(lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Line (from 1) and fields of each row that is not blank; behind a broken row it goes on at the next line.

    ``lines`` may raise csv.Error for a line, and go on after it.
    """
    row: deque[str] = deque()  # lines of the row that is being read
    ahead: deque[str] = deque()  # lines to be read again
    at, again, size = 0, 0, 0

    def feed() -> Iterator[str]:
        nonlocal size
        while True:
            try:
                line = ahead.popleft() if ahead else next(lines)
            except StopIteration:
                return
            except csv.Error:
                row.append("")
                raise
            row.append(line)
            size += len(line) + LINE
            if size > ROW:
                raise csv.Error(f"it has more than {ROW >> 20} million characters")
            yield line

    reader = csv.reader(feed(), delimiter=delimiter, strict=True)
    while True:
        row.clear()
        size = 0
        try:
            fields = _next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            again += size
            if again > AGAIN:
                yield at + 1, EndlessQuotesError("too many quotation marks are never closed")
                return
            yield at + 1, error
            row.popleft()
            ahead.extendleft(reversed(row))
            at += 1
            reader = csv.reader(feed(), delimiter=delimiter, strict=True)
            continue
        if fields:
            yield at + 1, fields
        at += len(row)


def _next(reader: Iterator[list[str]]) -> list[str]:
    """The next row, its fields as long as they are."""
    with _LIMIT:
        before = csv.field_size_limit(_LONGEST)
        try:
            return next(reader)
        finally:
            csv.field_size_limit(before)
