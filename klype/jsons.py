"""Parsing of untrusted or damaged JSON: every failure is a ValueError."""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

DIGITS = 308  # an integer with more digits is larger than any float


def parse(data: str | bytes, **parsers: Any) -> Any:
    """Parses JSON. Raises ValueError for anything invalid, nested too deeply, or with an integer that is too large.
    ``parsers``: further arguments of ``json.loads``."""
    try:
        return json.loads(data, parse_int=_whole, **parsers)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse_finite(data: str | bytes) -> Any:
    """The same for klype's own files, in which every number must be finite."""
    return parse(data, parse_float=_finite, parse_constant=_finite)


def rows(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The objects in the lines of a JSONL file; damaged or truncated lines are skipped."""
    for line in lines:
        try:
            row = parse(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def steps(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The rows of a metrics.jsonl, reduced to their finite numbers; rows without a step are skipped."""
    for row in rows(lines):
        if type(row.get("step")) is int:
            yield {name: n for name, n in row.items() if isinstance(n, int | float) and math.isfinite(n)}


def tail(file: Path, most: int = 1 << 14) -> bytes:
    """The last ``most`` bytes of a file; none if it cannot be read."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - most))
            return opened.read()
    except OSError:
        return b""


def read_saved(file: Path) -> dict[str, Any] | None:
    """The JSON object in one of klype's own files; None if there is none, or it is damaged."""
    try:
        found = parse_finite(file.read_bytes())
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
