"""One process at a time in a run's folder: a lock of the system, which goes with the process however it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from klype.errors import UsageError

LOCK = ".lock"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder is this process's within it. UsageError when it is another's; without locks here, it is anybody's."""
    file = folder / LOCK
    handle = _taken(file)
    try:
        yield
    finally:
        if handle is not None:
            with suppress(OSError):
                file.unlink()
            os.close(handle)


def _taken(file: Path) -> int | None:
    """The open, locked file; None where the system or its disk has no locks."""
    if sys.platform == "win32":
        return None
    import fcntl  # which Windows lacks

    while True:
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, handle):
                with suppress(OSError):
                    os.ftruncate(handle, 0)
                    os.write(handle, str(os.getpid()).encode())
                return handle
        except BlockingIOError:
            owner = os.read(handle, 20).decode("ascii", "replace")
            os.close(handle)
            who = f"process {owner}" if owner.isdecimal() else "another process"
            raise UsageError(
                f"{file.parent} is being trained by {who}.", "Wait for it or stop it, or choose another --out."
            ) from None
        except OSError:
            file.unlink(missing_ok=True)
            os.close(handle)
            return None
        os.close(handle)  # whoever held it has taken the file away meanwhile: the next one is looked for


def _is_at(file: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(handle))
    except FileNotFoundError:
        return False
