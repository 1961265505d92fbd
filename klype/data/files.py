"""The files named, in folders or in globs, and their bytes and lines.

What is packed is unpacked on the way: never more at a time, nor in all, than was agreed on.
"""

from __future__ import annotations

import csv
import glob
import gzip
import io
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from klype.errors import KlypeError, UsageError
from klype.jsons import parsed

PLAIN = (".txt", ".md", ".text", ".markdown")
PACKED = (".gz", ".zst")

# most bytes of a line, or characters of a row: parsed, it may take thirty times as much memory
LONGEST = 32 * 2**20
# most bytes of a packed file that has to be read as a whole
WHOLE = 64 * 2**20
# default limit on the bytes that a packed file holds, however small it is
UNPACKED = 256_000_000
# a packed file may always hold this many times its size: texts compress to a fifth, tables to a twentieth
RATIO = 50
_FAULTS = (OSError, EOFError, zlib.error)

_NO_DATA = re.compile(r"(licen[cs]e|copying|readme)\b|dataset_dict\.json$", re.IGNORECASE)

Paths = str | Path | Sequence[str | Path]


def files_of(paths: Paths, kinds: Collection[str]) -> list[Path]:
    """Files, and those of some kinds in folders and globs; each once, sorted within its folder or glob.

    In a folder, hidden files and those named LICENCE, LICENSE, COPYING or README are left out, what klype's own runs
    wrote below it, and of a data set that ``datasets`` saved there all but its rows.
    """
    found: dict[Path, None] = {}
    runs = _Runs()
    for given in [paths] if isinstance(paths, (str, Path)) else paths:
        path = Path(given).expanduser()
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            inside = (p for p in path.rglob("*") if kind_of(p) in kinds and p.is_file())
            shown = (p for p in inside if not any(part.startswith(".") for part in p.relative_to(path).parts))
            data = (p for p in shown if not _NO_DATA.match(p.name) and not _beside_rows(p))
            matches = sorted(p for p in data if not runs.wrote(p, path))
        else:
            matches = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
        if not matches:
            what = f"The folder {path} holds no file of a kind that can be read." if path.is_dir() else ""
            raise UsageError(what or f"There is no file {path}.", readable(kinds))
        found.update(dict.fromkeys(matches))
    return list(found)


def kind_of(file: Path) -> str:
    """A file's kind by its ending, .gz or .zst apart: ".jsonl"."""
    return (Path(file.stem) if file.suffix in PACKED else file).suffix.lower()


def _beside_rows(file: Path) -> bool:
    """Whether ``save_to_disk`` of the package datasets wrote it beside the rows, or it was cached there."""
    saved = all((file.parent / name).is_file() for name in ("state.json", "dataset_info.json"))
    return saved and not (file.suffix == ".arrow" and file.name.startswith("data-"))


class _Runs:
    """The folders of klype's own runs. Their records are no text, and a run must not read what it writes."""

    def __init__(self) -> None:
        self._known: dict[Path, bool] = {}

    def wrote(self, file: Path, folder: Path) -> bool:
        """Whether the file lies in such a folder, which lies in this one."""
        below = file.relative_to(folder).parents
        return any(self._is_run(folder / part) for part in below if part != Path())

    def _is_run(self, folder: Path) -> bool:
        if folder not in self._known:
            try:
                about = parsed((folder / "run.json").read_bytes())
                self._known[folder] = "klype" in about["versions"]
            except (OSError, ValueError, TypeError, KeyError):
                self._known[folder] = False
        return self._known[folder]


def readable(kinds: Collection[str]) -> str:
    """The kinds in words."""
    return f"Readable are {', '.join(kinds)}, also with {' or '.join(PACKED)}."


def names(paths: Paths) -> str:
    """The paths in words."""
    return ", ".join(map(str, [paths] if isinstance(paths, (str, Path)) else paths))


def open_stream(file: Path, unpacked: int = UNPACKED) -> IO[bytes]:
    """What the file holds. Reading raises KlypeError when a packed one holds more than ``unpacked`` bytes."""
    try:
        if file.suffix not in PACKED:
            return open(file, "rb")
        return io.BufferedReader(_Unpacked(file, most_unpacked(file, unpacked)), 2**20)
    except FileNotFoundError as error:
        raise UsageError(f"There is no file {file}.", "Check its name.") from error
    except OSError as error:
        raise KlypeError(f"{file} cannot be read: {error.strerror}.", "Check its permissions.") from error


def read_bytes(file: Path) -> bytes:
    """All that a file holds; of a packed one, no more than fits into memory whatever it is."""
    with open_stream(file) as stream:
        content = read(stream, file, WHOLE + 1 if file.suffix in PACKED else -1)
    if file.suffix in PACKED and len(content) > WHOLE:
        raise KlypeError(f"{file} holds more than {WHOLE >> 20} MiB and is read as a whole.", "Unpack it first.")
    return content


def most_unpacked(file: Path, unpacked: int) -> int:
    """Bytes that a packed file may hold."""
    return max(unpacked, RATIO * file.stat().st_size)


def read(stream: IO[bytes], file: Path, size: int = -1) -> bytes:
    """So many bytes of it."""
    try:
        return stream.read(size)
    except _FAULTS as error:
        raise KlypeError(f"{file} cannot be read: {error}.", "Check the file.") from error


def lines(stream: IO[bytes], file: Path) -> Iterator[tuple[int, bytes | None]]:
    """Each line with its length in bytes; None in place of one that is too long."""
    try:
        while line := stream.readline(LONGEST):
            length = len(line)
            if length < LONGEST or line.endswith(b"\n"):
                yield length, line
                continue
            while line and not line.endswith(b"\n"):
                line = stream.readline(LONGEST)
                length += len(line)
            yield length, None
    except _FAULTS as error:
        raise KlypeError(f"{file} cannot be read: {error}.", "Check the file.") from error


class TextLines:
    """Lines of text as csv wants them: with their own ends, bytes that are no text as halves of characters. One that
    is too long is a csv.Error, and the next one comes after it."""

    def __init__(self, stream: IO[bytes], file: Path, encoding: str) -> None:
        self._file, self._encoding = file, encoding
        self._text = io.TextIOWrapper(stream, encoding, "surrogateescape", newline="")
        self._first = True

    def __iter__(self) -> TextLines:
        return self

    def __next__(self) -> str:
        line = self._line()
        if not line:
            raise StopIteration
        if self._first:
            line, self._first = line.removeprefix("\ufeff"), False
        if len(line) < LONGEST or line.endswith(("\n", "\r")):
            return line
        while line and not line.endswith(("\n", "\r")):
            line = self._line()
        raise csv.Error(f"it has more than {LONGEST >> 20} million characters")

    def _line(self) -> str:
        try:
            return self._text.readline(LONGEST)
        except _FAULTS as error:
            raise KlypeError(f"{self._file} cannot be read: {error}.", "Check the file.") from error
        except UnicodeError as error:  # an encoding without such halves
            raise KlypeError(f"{self._file} is not {self._encoding}: {error}.", "Give its --encoding.") from error


class _Unpacked(io.RawIOBase):
    """What a packed file holds, counted."""

    def __init__(self, file: Path, most: int) -> None:
        self._file, self._most, self._count = file, most, 0
        self._inner: Any
        if file.suffix == ".gz":
            self._inner = gzip.GzipFile(file)
        else:  # pyarrow notices when the end is missing; the package zstandard takes what is there for the whole
            import pyarrow

            self._inner = pyarrow.input_stream(str(file), compression="zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._inner.read(len(buffer))
        self._count += len(piece)
        if self._count > self._most:
            raise KlypeError(
                f"{self._file} is packed and holds more than {self._most / 1e6:,.0f} MB.",
                "If that is right, raise data.unpacked_megabytes, or unpack it first.",
            )
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
        super().close()
