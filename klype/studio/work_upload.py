"""A file from a browser: in slices over the page's own connection, limited here, under a name of our own."""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

from nicegui import ui

from klype.errors import KlypeError, UsageError
from klype.examine.say import visible
from klype.studio.visit import Visit

SLICE = 192 << 10
FILES_MOST = 40
"""Files that wait in a home to be used; older ones make room."""
OLD_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Limits:
    """``suffixes`` are the kinds of file taken; ``most`` bytes of one."""

    most: int
    suffixes: Sequence[str]


@dataclass(frozen=True, slots=True)
class Given:
    """A whole file. ``name`` is what its owner calls it: shown, and never a path."""

    file: Path
    name: str
    size: int


@dataclass
class Receiving:
    given: Given
    number: int
    got: int = 0


class Upload(ui.element, component="work_upload.js"):
    """``on_given`` is called with a whole file, ``on_refused`` with why there is none."""

    def __init__(self, visit: Visit, label: str, limits: Limits, on_given: Callable[[Given], Awaitable[None]]) -> None:
        super().__init__()
        self._visit, self._limits, self._on_given = visit, limits, on_given
        self._folder = visit.studio.home / "uploads"
        self._now: Receiving | None = None
        self._props.update(label=label, slice=SLICE, accept=",".join(limits.suffixes))
        self.on("slice", lambda event: self.take(event.args if isinstance(event.args, dict) else {}))

    async def take(self, sent: Mapping[str, Any]) -> None:
        """One slice; the next one is asked for when it is on the disk."""
        try:
            receiving = await asyncio.to_thread(self._keep, sent)
        except (KlypeError, OSError) as error:
            self._drop()
            self.run_method("refused", self._visit.why(error))
            return
        if receiving is None:
            return
        if receiving.got < receiving.given.size:
            self.run_method("more", receiving.number, receiving.got)
            return
        self._now = None
        self.run_method("done", receiving.number)
        await self._on_given(receiving.given)

    def _keep(self, sent: Mapping[str, Any]) -> Receiving | None:
        number, at, size, data = (sent.get(key) for key in ("number", "at", "size", "data"))
        if type(number) is not int or type(at) is not int or type(size) is not int or not isinstance(data, str):
            raise UsageError("This is no part of a file.")
        if at == 0:
            self._drop()
            self._now = Receiving(self._new(str(sent.get("name", "")), size), number)
        receiving = self._now
        if receiving is None or receiving.number != number or receiving.got != at:
            return None  # of a file that was given up, or sent twice
        if len(data) > SLICE * 4 // 3 + 8:
            raise UsageError("This part of the file is too large.")
        try:
            piece = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise UsageError("This is no part of a file.") from None
        if not piece or receiving.got + len(piece) > receiving.given.size:
            raise UsageError("The file is not as large as it said.")
        with receiving.given.file.open("ab") as file:
            file.write(piece)
        receiving.got += len(piece)
        return receiving

    def _new(self, name: str, size: int) -> Given:
        limits = self._limits
        suffix = next((s for s in limits.suffixes if name.lower().endswith(s)), "")
        if not suffix:
            raise UsageError(f"Such a file is not taken here: {', '.join(limits.suffixes)} are.")
        if not 0 < size <= limits.most:
            raise UsageError(f"A file has from 1 byte to {limits.most >> 20} MiB.")
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = sorted(self._folder.iterdir(), key=lambda file: file.stat().st_mtime)
        for file in kept:
            if len(kept) >= FILES_MOST or file.stat().st_mtime < time.time() - OLD_S:
                file.unlink(missing_ok=True)
                kept = kept[1:]
        return Given(self._folder / f"{token_hex(8)}{suffix}", visible(name)[:120], size)

    def _drop(self) -> None:
        if self._now is not None:
            with suppress(OSError):
                self._now.given.file.unlink(missing_ok=True)
        self._now = None
