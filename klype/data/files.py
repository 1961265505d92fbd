"""Input files by name, folder or glob, and their bytes, lines and (of Parquet and Arrow) rows.

Packed files (.gz, .zst) are unpacked while they are read, up to a limit. A few hundred bytes of Parquet can stand for
gigabytes of one value, which pyarrow loads into memory before a row can be looked at; so a process of its own with a
memory limit reads them and writes each row as a line of JSON.
"""

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
from klype.jsons import parse

PLAIN = (".txt", ".md", ".text", ".markdown")
PACKED = (".gz", ".zst")

# the most bytes of a line, or characters of a row: parsed, it may take thirty times as much memory
LONGEST = 32 * 2**20
# the most bytes of a packed file that has to be read as a whole
WHOLE = 64 * 2**20
# default limit on the unpacked bytes of a file, however small it is
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
    """The named files, the files of ``kinds`` in folders, and those that globs match; each once, sorted per folder or
    glob. UsageError for a path without files.

    In a folder, hidden files, those named LICENCE, LICENSE, COPYING or README, those that klype's own runs wrote, and
    what the package ``datasets`` saved beside its rows are left out.
    """

    @cache
    def is_run(folder: Path) -> bool:
        """Whether a klype run wrote the folder: its records are not text, and a run must not read its own output."""
        try:
            return "klype" in parse((folder / "run.json").read_bytes())["versions"]
        except (OSError, ValueError, TypeError, KeyError):
            return False

    def beside_rows(file: Path) -> bool:
        """Whether ``save_to_disk`` of the package datasets wrote the file beside the rows, or cached it there."""
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
    """A file's suffix without .gz or .zst, in lower case: ".jsonl"."""
    return (Path(file.stem) if file.suffix in PACKED else file).suffix.lower()


def readable(kinds: Collection[str]) -> str:
    """A sentence that names the kinds of files that can be read."""
    return f"Readable are {', '.join(kinds)}, also with {' or '.join(PACKED)}."


def names(paths: Paths) -> str:
    """The paths, separated by commas."""
    return ", ".join(map(str, [paths] if isinstance(paths, (str, Path)) else paths))


def open_stream(file: Path, unpacked: int = UNPACKED) -> IO[bytes]:
    """A stream of the file's unpacked bytes; reading more than ``unpacked`` of them from a packed file raises
    KlypeError."""
    try:
        if file.suffix not in PACKED:
            return open(file, "rb")
        return io.BufferedReader(_CountingReader(file, max(unpacked, RATIO * file.stat().st_size)), 2**20)
    except FileNotFoundError as error:
        raise UsageError(f"There is no file {file}.", "Check its name.") from error
    except OSError as error:
        raise KlypeError(f"{file} cannot be read: {error.strerror}.", "Check its permissions.") from error


def read_bytes(file: Path) -> bytes:
    """All bytes of a file. KlypeError when it is packed and holds more than ``WHOLE``."""
    with open_stream(file) as stream:
        content = read(stream, file, WHOLE + 1 if file.suffix in PACKED else -1)
    if file.suffix in PACKED and len(content) > WHOLE:
        raise KlypeError(f"{file} holds more than {WHOLE >> 20} MiB and is read as a whole.", "Unpack it first.")
    return content


@contextmanager
def _read_errors(file: Path, encoding: str = "") -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise KlypeError(f"{file} cannot be read: {error}.", "Check the file.") from error
    # of an encoding to which surrogateescape does not apply
    except UnicodeError as error:
        raise KlypeError(f"{file} is not {encoding}: {error}.", "Give its --encoding.") from error


def read(stream: IO[bytes], file: Path, size: int = -1) -> bytes:
    """``stream.read(size)``, with a KlypeError that names the file when that fails."""
    with _read_errors(file):
        return stream.read(size)


def lines(stream: IO[AnyStr], file: Path, ends: tuple[AnyStr, ...]) -> Iterator[tuple[int, AnyStr | None]]:
    """The length of each line and the line, or None when it is longer than ``LONGEST``."""
    with _read_errors(file, getattr(stream, "encoding", "")):
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
    """The unpacked bytes of a file; KlypeError after ``most`` of them."""

    def __init__(self, file: Path, most: int) -> None:
        self._file, self._most, self._count = file, most, 0
        self._inner: Any
        if file.suffix == ".gz":
            self._inner = gzip.GzipFile(file)
        else:  # pyarrow notices a truncated file; the package zstandard does not
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
    """The rows of a Parquet or Arrow file, read by another process. KlypeError for a file that is damaged, takes more
    than twice ``unpacked`` bytes of memory at a time, or holds more than a packed file may."""
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
            told = parse(line) if line is not None and line.endswith(b"\n") else None
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
    """Writes JSON lines: each row as [row], then "end", or an error as text. Runs in the process of ``rows_of``."""
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
        raise  # without "end" the parent knows that a limit was exceeded
    except (pyarrow.ArrowException, OSError, ValueError, KlypeError) as error:
        out.write(f"{json.dumps(str(error).splitlines()[0][:200] if str(error) else type(error).__name__)}\n")
    out.flush()


def _batches(file: Path) -> Iterator[Any]:
    """Record batches of a Parquet file, or of an Arrow stream (as the package datasets writes) or file."""
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
    """Gives this process ``SECONDS`` of processor time from now on, after which the system ends it."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
