"""Ctrl-C and SIGTERM ask for a stop between two steps; a second Ctrl-C does not wait."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Within it, and afterwards, the yielded function tells whether a signal asked to stop.

    Signals belong to the main thread; elsewhere there are none. Former handlers are put back.
    """
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    former: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        former = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
