"""An answer's text as its tokens arrive: whole characters only, and nothing of a stop text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Spoken:
    """Bytes in, text out, up to the stop text that is whole first. What may turn out to be the beginning of one waits
    until it is known.

    ``lead``: the one space that leads a chat answer is left out. Bytes that cannot become UTF-8 are U+FFFD; the first
    bytes of a character that never came whole are left out.
    """

    def __init__(self, stops: Sequence[str] = (), lead: bool = False) -> None:
        self._stops = [stop.encode() for stop in stops]
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = b""
        self._strip = lead
        self._cut = False

    def add(self, data: bytes, last: bool = False) -> str:
        """The text that is certain now; ``last`` when nothing follows."""
        if self._cut:
            return ""
        data = self._held + data
        found = [at for stop in self._stops if (at := data.find(stop)) >= 0]
        if found:
            self._cut, self._held = True, b""
            return self._decode(data[: min(found)])
        keep = 0 if last else max((_overlap(data, stop) for stop in self._stops), default=0)
        self._held = data[len(data) - keep :]
        return self._decode(data[: len(data) - keep])

    def _decode(self, data: bytes) -> str:
        text = self._decoder.decode(data)
        if text and self._strip:
            self._strip = False
            text = text.removeprefix(" ")
        return text


def _overlap(data: bytes, stop: bytes) -> int:
    """How many bytes at the end of ``data`` begin ``stop``."""
    longest = min(len(data), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if data.endswith(stop[:n])), 0)
