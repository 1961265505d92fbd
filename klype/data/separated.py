"""Rows of text separated by commas or tabs: each with the line it begins at, broken ones as what is wrong with them."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Iterator

_LIMIT = threading.Lock()  # csv keeps the longest field it takes in a global of its own
_LONGEST = 2**31 - 1


def separated(text: str, delimiter: str) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """Line (from 1) and fields of each row that is not blank; behind a broken row it goes on at the next line."""
    lines = list(io.StringIO(text, newline=""))
    at = 0
    while at < len(lines):
        reader = csv.reader(map(lines.__getitem__, range(at, len(lines))), delimiter=delimiter, strict=True)
        first = at
        try:
            while at < len(lines):
                fields = _next(reader)
                if fields:
                    yield at + 1, fields
                at = first + reader.line_num
        except csv.Error as error:
            yield at + 1, error
            at += 1


def _next(reader: Iterator[list[str]]) -> list[str]:
    """The next row, its fields as long as they are."""
    with _LIMIT:
        before = csv.field_size_limit(_LONGEST)
        try:
            return next(reader)
        finally:
            csv.field_size_limit(before)
