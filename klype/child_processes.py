"""Child processes that end when their parent does, even if it is killed.

A thread of the child polls for the parent, on every system. (Linux can send a signal instead, but does so when the
*thread* ends that started the child.)
"""

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
    """Makes this process end when the process ``parent`` does. A child calls it first."""

    def watch() -> None:
        while _lives(parent):
            time.sleep(EVERY_S)
        os._exit(1)

    threading.Thread(target=watch, name="klype parent", daemon=True).start()


@contextmanager
def without_main_script() -> Iterator[None]:
    """Processes spawned in this block do not import the main script, so that a script that trains needs no
    ``if __name__ == "__main__"``."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def bind_to_parent(command: Sequence[str]) -> list[str]:
    """The command ``python -m MODULE …`` changed to end with this process; any other command unchanged."""
    if list(command[:2]) != [sys.executable, "-m"]:
        return list(command)
    return [sys.executable, "-m", "klype.child_processes", str(os.getpid()), *command[2:]]


def main() -> None:
    """``python -m klype.child_processes PARENT MODULE …``"""
    end_with(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _lives(parent: int) -> bool:
    if os.name == "posix":  # an orphan is given another parent at once
        return os.getppid() == parent
    import psutil

    return psutil.pid_exists(parent)


if __name__ == "__main__":
    main()
