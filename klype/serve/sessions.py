"""What the cookies of browsers stand for: each ends after a day, when it is ended, and with the process."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable

DAY_S = 24 * 3600
MOST = 1000
"""At once; the oldest ends for one more."""


class Sessions:
    """Kept as digests, in memory. ``clock`` is in seconds and runs while the machine sleeps."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._ends: dict[bytes, float] = {}  # in the order of their beginnings

    def begin(self) -> str:
        """A cookie's value."""
        now = self._clock()
        self._ends = {one: end for one, end in self._ends.items() if end > now}
        while len(self._ends) >= MOST:
            del self._ends[next(iter(self._ends))]
        value = secrets.token_urlsafe(32)
        self._ends[_digest(value)] = now + DAY_S
        return value

    def holds(self, value: str) -> bool:
        return self._ends.get(_digest(value), 0.0) > self._clock()

    def end(self, value: str) -> None:
        self._ends.pop(_digest(value), None)


def _digest(value: str) -> bytes:
    return hashlib.sha256(value.encode("utf-8", "replace")).digest()
