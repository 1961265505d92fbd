"""Rows of tables: Parquet and Arrow, read by a process of its own that has a limit of memory, and separated text.

A few hundred bytes of Parquet can stand for gigabytes of one value, and pyarrow has them all in memory before a row can
be looked at: what comes back from the process is one line of JSON a row. Of text separated by commas or tabs, each row
comes with the line it begins at, broken ones as what is wrong with them.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from klype.data.files import PACKED, UNPACKED, kind_of, lines, most_unpacked, read_bytes
from klype.errors import KlypeError
from klype.jsons import parsed

# rows converted at a time
FEW = 64
# processor time that FEW rows may take
SECONDS = 5
# bytes counted per row in addition to its content
OVERHEAD = 64
_LIMIT = threading.Lock()  # csv keeps the longest field it takes in a global of its own
_LONGEST = 2**31 - 1
# most characters of a row
ROW = 32 * 2**20
# most characters read again because a quotation mark before them was never closed
AGAIN = 64 * 2**20
# a line costs as much time and memory as this many characters, in addition to its own
LINE = 64


def rows_of(file: Path, unpacked: int = UNPACKED) -> Iterator[dict[str, Any]]:
    """Raises KlypeError for a file that is damaged, takes more than twice ``unpacked`` bytes of memory at a time, or
    holds more than a packed file may."""
    root, most = str(Path(__file__).resolve().parents[2]), most_unpacked(file, unpacked)
    start = (
        f"import sys; sys.path.insert(0, {root!r}); "
        f"from klype.child_processes import end_with; end_with({os.getpid()}); "
        "from klype.data.table_rows import tell; tell(*sys.argv[1:])"
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
        for length, line in lines(child.stdout, file):
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
    _bound(int(room))
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


def _bound(room: int) -> None:
    """So much memory beyond what this process has; where the system knows no such limit, there is none."""
    try:
        import resource

        has = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (has + room, has + room))
    except (ImportError, OSError, ValueError):
        return


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
