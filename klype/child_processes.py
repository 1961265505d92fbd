"""Child processes that end when their parent ends, even when it is killed.

A thread of the child looks, in the same way on every system. (Linux could be asked for a signal, but sends it when the
*thread* ends that began the child.)
"""

from __future__ import annotations

import os
import runpy
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType

EVERY_S = 0.5


def end_with(parent: int) -> None:
    """From here on this process ends when its parent does. A child calls it first."""
    threading.Thread(target=_watch, args=(parent,), name="klype parent", daemon=True).start()


@contextmanager
def alone() -> Iterator[None]:
    """Processes that are spawned within do not run the calling program's script again, which may be what spawns them:
    a script that trains needs no ``if __name__ == "__main__"``."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def bound(command: Sequence[str]) -> list[str]:
    """``python -m MODULE …`` so that it ends with this process; any other command as it is."""
    if list(command[:2]) != [sys.executable, "-m"]:
        return list(command)
    return [sys.executable, "-m", "klype.child_processes", str(os.getpid()), *command[2:]]


def main() -> None:
    """``python -m klype.child_processes PARENT MODULE …``"""
    end_with(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _watch(parent: int) -> None:
    while _lives(parent):
        time.sleep(EVERY_S)
    os._exit(1)


def _lives(parent: int) -> bool:
    if os.name == "posix":  # an orphan gets another parent at once
        return os.getppid() == parent
    import psutil

    return psutil.pid_exists(parent)


if __name__ == "__main__":
    main()
