"""The files named, in folders or in globs, and their bytes, lines and (of Parquet and Arrow) rows.

What is packed is unpacked on the way: never more at a time, nor in all, than was agreed on. A few hundred bytes of
Parquet can stand for gigabytes of one value, and pyarrow has them all in memory before a row can be looked at: a
process of its own with a limit of memory reads them, and tells one line of JSON a row.
"""

from __future__ import annotations

import glob
import gzip
import io
import json
import os
import re
import signal
import subprocess
import sys
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, Any, AnyStr

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

# rows of Parquet and Arrow converted at a time, and seconds of processor time that they may take
FEW, SECONDS = 64, 5
# bytes counted per row in addition to its content
OVERHEAD = 64

_NO_DATA = re.compile(r"(licen[cs]e|copying|readme)\b|dataset_dict\.json$", re.IGNORECASE)

Paths = str | Path | Sequence[str | Path]


def files_of(paths: Paths, kinds: Collection[str]) -> list[Path]:
    """Files, and those of some kinds in folders and globs; each once, sorted within its folder or glob.

    In a folder, hidden files and those named LICENCE, LICENSE, COPYING or README are left out, what klype's own runs
    wrote below it, and of a data set that ``datasets`` saved there all but its rows.
    """

    @cache
    def is_run(folder: Path) -> bool:
        """Whether klype wrote the folder: its records are no text, and a run must not read what it writes."""
        try:
            return "klype" in parsed((folder / "run.json").read_bytes())["versions"]
        except (OSError, ValueError, TypeError, KeyError):
            return False

    def beside_rows(file: Path) -> bool:
        """Whether ``save_to_disk`` of the package datasets wrote it beside the rows, or it was cached there."""
        saved = all((file.parent / name).is_file() for name in ("state.json", "dataset_info.json"))
        return saved and not (file.suffix == ".arrow" and file.name.startswith("data-"))

    found: dict[Path, None] = {}
    for given in [paths] if isinstance(paths, (str, Path)) else paths:
        path = Path(given).expanduser()
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            inside = {p: p.relative_to(path) for p in path.rglob("*") if kind_of(p) in kinds and p.is_file()}
            matches = sorted(
                p
                for p, below in inside.items()
                if not any(part.startswith(".") for part in below.parts)
                and not _NO_DATA.match(p.name)
                and not beside_rows(p)
                and not any(is_run(path / folder) for folder in below.parents if folder != Path())
            )
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
        return io.BufferedReader(_CountingReader(file, max(unpacked, RATIO * file.stat().st_size)), 2**20)
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


@contextmanager
def _reading(file: Path, encoding: str = "") -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise KlypeError(f"{file} cannot be read: {error}.", "Check the file.") from error
    # of an encoding in which bytes that are no text cannot be kept as halves of characters
    except UnicodeError as error:
        raise KlypeError(f"{file} is not {encoding}: {error}.", "Give its --encoding.") from error


def read(stream: IO[bytes], file: Path, size: int = -1) -> bytes:
    """So many bytes of it."""
    with _reading(file):
        return stream.read(size)


def lines(stream: IO[AnyStr], file: Path, ends: tuple[AnyStr, ...]) -> Iterator[tuple[int, AnyStr | None]]:
    """Each line with its length; None in place of one that is too long."""
    with _reading(file, getattr(stream, "encoding", "")):
        while line := stream.readline(LONGEST):
            length = len(line)
            if length < LONGEST or line.endswith(ends):
                yield length, line
                continue
            while line and not line.endswith(ends):
                line = stream.readline(LONGEST)
                length += len(line)
            yield length, None


class _CountingReader(io.RawIOBase):
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


def rows_of(file: Path, unpacked: int = UNPACKED) -> Iterator[dict[str, Any]]:
    """Raises KlypeError for a file that is damaged, takes more than twice ``unpacked`` bytes of memory at a time, or
    holds more than a packed file may."""
    root, most = str(Path(__file__).resolve().parents[2]), max(unpacked, RATIO * file.stat().st_size)
    start = (
        f"import sys; sys.path.insert(0, {root!r}); "
        f"from klype.child_processes import end_with; end_with({os.getpid()}); "
        "from klype.data.files import tell; tell(*sys.argv[1:])"
    )
    child = subprocess.Popen(
        [sys.executable, "-I", "-c", start, str(file), str(2 * unpacked)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert child.stdout is not None
    left = most
    try:
        for length, line in lines(child.stdout, file, (b"\n",)):
            left -= length + OVERHEAD
            told = parsed(line) if line is not None and line.endswith(b"\n") else None
            if told == "end":
                return
            if isinstance(told, str):
                named = "a Parquet" if kind_of(file) == ".parquet" else "an Arrow"
                raise KlypeError(f"{file} is not {named} file that can be read: {told}.", "Fetch it again.")
            if told is None or left < 0:
                break
            yield told[0]
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    raise KlypeError(
        f"{file} holds more than {most / 1e6:,.0f} MB, or takes more than {2 * unpacked / 1e6:,.0f} MB of memory"
        f" or {SECONDS} seconds for {FEW} rows.",
        "If that is right, raise data.unpacked_megabytes, or write it in smaller pieces.",
    )


def tell(name: str, room: str) -> None:
    """Each row as [row], what is wrong as text, and at last "end"."""
    import pyarrow

    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    pyarrow.set_cpu_count(1)
    pyarrow.set_io_thread_count(1)
    try:  # so much memory beyond what this process has; where the system knows no such limit, there is none
        import resource

        most = int(room) + int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    except (ImportError, OSError, ValueError):
        pass
    out = sys.stdout
    try:
        _wind()
        for batch in _batches(Path(name)):
            for at in range(0, batch.num_rows, FEW):
                _wind()
                for row in batch.slice(at, FEW).to_pylist():
                    out.write(f"{json.dumps([row], default=lambda v: None if isinstance(v, bytes) else str(v))}\n")
        out.write('"end"\n')
    except MemoryError:
        raise  # nothing is said: that tells it
    except (pyarrow.ArrowException, OSError, ValueError, KlypeError) as error:
        out.write(f"{json.dumps(str(error).splitlines()[0][:200] if str(error) else type(error).__name__)}\n")
    out.flush()


def _batches(file: Path) -> Iterator[Any]:
    """Of Parquet, and of both of Arrow's formats: streams (of the package datasets) and files."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    source = pyarrow.BufferReader(read_bytes(file)) if file.suffix in PACKED else pyarrow.OSFile(str(file))
    if kind_of(file) == ".parquet":
        yield from ParquetFile(source, buffer_size=2**20, pre_buffer=False).iter_batches(FEW, use_threads=False)
        return
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    if not is_file:
        yield from pyarrow.ipc.open_stream(source)
        return
    reader = pyarrow.ipc.open_file(source)
    yield from map(reader.get_batch, range(reader.num_record_batches))


def _wind() -> None:
    """From here on, this process has so much time again; then the system ends it."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
