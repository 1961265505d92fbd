"""Rankings in a JSONL file: a line that was acknowledged is on the disk, whatever happens next."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from klype.errors import KlypeError
from klype.preferences.rows import ranking_from, row_of, trl_rows
from klype.values import Ranking


def append(path: Path, rankings: Sequence[Ranking]) -> None:
    """Adds rankings and returns when the disk has them. What a killed writer left of a line is cut off first.

    When it fails, none of them is there. One writer at a time.
    """
    lines = "".join(json.dumps(row_of(r), ensure_ascii=False) + "\n" for r in rankings).encode()
    try:
        new = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        with os.fdopen(descriptor, "r+b") as file:
            end = _end_of_lines(file)
            try:
                file.seek(end)
                file.truncate()
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise
        if new and os.name != "nt":
            _sync_folder(path.parent)
    except OSError as error:
        raise KlypeError(
            f"{len(rankings)} rankings could not be written to {path}: {error.strerror or error}.",
            "Earlier rankings are safe: make room or make the file writable.",
        ) from error


def read(path: Path, say: Callable[[str], None] = lambda message: None) -> list[Ranking]:
    """All rankings, oldest first. A torn last line is dropped, and that is said; any other bad line is a KlypeError."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise KlypeError(f"{path} cannot be read: {error.strerror or error}.") from error
    end = _whole(content)
    if end < len(content):
        say(f"The last line of {path} was cut short (a writer was killed): it is left out.")
    return [_ranking(path, number, line) for number, line in enumerate(content[:end].split(b"\n")[:-1], 1)]


def export_pairs(path: Path, rankings: Iterable[Ranking]) -> int:
    """Writes TRL's prompt/chosen/rejected rows; how many."""
    rows = [row for ranking in rankings for row in trl_rows(ranking)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    except OSError as error:
        raise KlypeError(f"{path} cannot be written: {error.strerror or error}.") from error
    return len(rows)


def _ranking(path: Path, number: int, line: bytes) -> Ranking:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    found = ranking_from(row, str(number)) if isinstance(row, dict) else "is not a JSON object"
    if isinstance(found, str):
        raise KlypeError(f"{path} line {number} {found}.", "Mend or remove the line.")
    return found


def _whole(content: bytes) -> int:
    """Where the last whole line ends."""
    return content.rfind(b"\n") + 1


def _end_of_lines(file: BinaryIO) -> int:
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return 0
    file.seek(size - 1)
    if file.read(1) == b"\n":
        return size
    file.seek(0)
    return _whole(file.read())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
