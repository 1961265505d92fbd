"""JSON that somebody else wrote, or that a disk may have damaged: what it says, or one kind of error."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

# A whole number of more is larger than any float.
DIGITS = 308


def parsed(data: str | bytes, **parsers: Any) -> Any:
    """What JSON says. ValueError for whatever is none, also for what is nested too deeply to be read, or too large.
    ``parsers``: further ones of ``json.loads``."""
    try:
        return json.loads(data, parse_int=_whole, **parsers)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def finite(data: str | bytes) -> Any:
    """The same of klype's own files, in which every number is finite."""
    return parsed(data, parse_float=_finite, parse_constant=_finite)


def rows(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The objects of a file's lines; a line that is damaged, or was cut off, is left out."""
    for line in lines:
        try:
            row = parsed(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def steps(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The rows of a metrics.jsonl, finite numbers by their names; whatever is none is left out."""
    for row in rows(lines):
        if type(row.get("step")) is int:
            yield {name: n for name, n in row.items() if isinstance(n, int | float) and math.isfinite(n)}


def tail(file: Path, most: int = 1 << 14) -> bytes:
    """The last bytes of a file of lines that may be growing; none where there is no file."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - most))
            return opened.read()
    except OSError:
        return b""


def saved(file: Path) -> dict[str, Any] | None:
    """The object in a file of klype's own; None where there is none, or it is damaged."""
    try:
        found = finite(file.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _finite(text: str) -> float:
    number = float(text.replace("Infinity", "inf"))
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not finite")
    return number
