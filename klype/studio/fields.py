"""What a visitor fills in: the browser's own controls, each with its label, and files that are uploaded."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any, Literal

from nicegui import ui
from nicegui.events import GenericEventArguments

from klype.errors import KlypeError, UsageError
from klype.examine.say import visible
from klype.studio.frame import Visit, box, retext, text_of

AT_FIRST = "^value"
"""An input's value as an attribute: as a property, Vue would set it again whenever anything on the page changes, and
take back what was typed or moved since."""
SEND_VALUE = "(e) => emit(e.target.value)"
SLICE = 192 << 10
"""Bytes of a file that come at once."""
FILES_MOST = 40
"""Files that wait in a home to be used; older ones make room."""
OLD_S = 24 * 3600.0


def nothing() -> None:
    """What is done where nothing is to be done."""


class Field(ui.element):
    """A control with its label, and what is in it."""

    def __init__(self, name: str, tag: str = "input", classes: str = "k-field", **props: Any) -> None:
        super().__init__("label")
        self.classes(classes)
        with self:
            self.title = text_of("span", name)
            self.input = box("", tag)
            if "value" in props:
                props[AT_FIRST] = props.pop("value")
            self.input.props.update(props)

    def fill(self, value: float | str) -> None:
        """Puts a value into the input, in place of what was typed or moved."""
        self.input.props[AT_FIRST] = value
        self.client.run_javascript(f"document.getElementById('{self.input.html_id}').value = {json.dumps(value)}")


class Slider(Field):
    """A range with its value beside its name. Sent as it moves, ten times a second at most; ``released``: let go."""

    def __init__(
        self, name: str, ends: tuple[float, float, float], value: float, shown: Callable[[float], str]
    ) -> None:
        """``ends``: least, most and step."""
        self.low, self.high, step = ends
        super().__init__(name, type="range", min=self.low, max=self.high, step=step, value=value)
        self.value, self._shown = value, shown
        self._moved: list[Callable[[], object]] = []
        self._released: list[Callable[[], object]] = []
        with self:
            self._output = text_of("output", shown(value))
            self._output.move(target_index=1)
        self.input.on("input", self._moves, throttle=0.1, js_handler=SEND_VALUE)
        self.input.on("change", self._lets_go, js_handler=SEND_VALUE)

    def moved(self, act: Callable[[], object]) -> Slider:
        self._moved.append(act)
        return self

    def released(self, act: Callable[[], object]) -> Slider:
        self._released.append(act)
        return self

    def set(self, value: float) -> None:
        self._take(value)
        self.fill(self.value)

    def _moves(self, event: GenericEventArguments) -> None:
        self._take(event.args)
        for act in self._moved:
            act()

    def _lets_go(self, event: GenericEventArguments) -> None:
        self._moves(event)
        for act in self._released:
            act()

    def _take(self, given: object) -> None:
        """A browser may send anything."""
        try:
            value = float(str(given))
        except ValueError:
            return
        if math.isfinite(value):
            self.value = min(self.high, max(self.low, value))
            retext(self._output, self._shown(self.value))


class Minutes(Slider):
    """How long something may take."""

    def __init__(self, visit: Visit, ends: tuple[float, float, float], value: float) -> None:
        super().__init__(visit.words("minutes"), ends, value, lambda v: f"{visit.say.plain(v)}{chr(0xA0)}min")


class Counts(Slider):
    """A whole number, written as the language does."""

    def __init__(self, visit: Visit, key: str, ends: tuple[float, float, float], value: float) -> None:
        super().__init__(visit.words(key), ends, value, lambda v: visit.say.count(round(v)))


class Select(Field):
    """One of several, by key."""

    def __init__(
        self, name: str, options: Mapping[str, str], value: str, on_change: Callable[[], object] = nothing
    ) -> None:
        super().__init__(name, "select")
        self.options, self.value, self._on_change = dict(options), value, on_change
        self.input.on("change", self._take, js_handler=SEND_VALUE)
        with self.input:
            for key, text in options.items():
                text_of("option", text, value=key, selected=key == value)

    def _take(self, event: GenericEventArguments) -> object:
        if str(event.args) not in self.options:
            return None
        self.value = str(event.args)
        return self._on_change()


class Check(Field):
    """On or off."""

    def __init__(self, name: str, value: bool) -> None:
        super().__init__(name, classes="k-check", type="checkbox", checked=value)
        self.value = value
        self.title.move(target_index=1)
        self.input.on("change", self._take, js_handler="(e) => emit(e.target.checked)")

    def _take(self, event: GenericEventArguments) -> None:
        self.value = event.args is True


class Typed(Field):
    """A text that is typed in; ``_listen``: how much of it is taken, and what Enter does."""

    value = ""

    def _listen(self, most: int, on_send: Callable[[], object], keep: str = "", held: str = "") -> None:
        """``keep`` is done in the browser with every key; ``held`` is what else Enter waits for there."""
        self._most, self._on_send = most, on_send
        self.input.on("input", self._take, js_handler=f"(e) => {{ {keep}emit(e.target.value) }}")
        sends = f"if (e.key === 'Enter' && !e.isComposing{held}) {{ e.preventDefault(); emit(e.target.value) }}"
        self.input.on("keydown", self._send, js_handler=f"(e) => {{ {sends} }}")

    def _take(self, event: GenericEventArguments) -> None:
        self.value = str(event.args or "")[: self._most]

    def _send(self, event: GenericEventArguments) -> object:
        self._take(event)
        return self._on_send()


class TextLine(Typed):
    """A text of one line; Enter sends."""

    def __init__(
        self, name: str, most: int, on_send: Callable[[], object], kind: Literal["text", "password"] = "text"
    ) -> None:
        super().__init__(name, type=kind, maxlength=most, autocomplete="off", spellcheck="false")
        self._listen(most, on_send)

    def set(self, value: str) -> None:
        self.value = value[: self._most]
        self.fill(self.value)


class Text(Typed):
    """A text of one or more lines. Enter sends, Shift + Enter begins a line; ``draft`` names it in the browser, which
    keeps what was not sent through reloads and the server's restarts."""

    def __init__(self, name: str, rows: int, most: int, on_send: Callable[[], object], draft: str = "") -> None:
        super().__init__(name, "textarea", "k-field k-grow", rows=rows, maxlength=most)
        self._draft = draft
        keep = f"sessionStorage.setItem('klype-{draft}', e.target.value); " if draft else ""
        self._listen(most, on_send, keep, " && !e.shiftKey")

    def restore(self) -> None:
        """What the browser still has of it is typed in again."""
        ui.run_javascript(
            f"const a = document.getElementById('{self.input.html_id}');"
            f" const d = sessionStorage.getItem('klype-{self._draft}');"
            " if (a && d && !a.value) { a.value = d; a.dispatchEvent(new Event('input')); }"
        )

    def set(self, text: str) -> None:
        self.value = text
        forget = f"sessionStorage.removeItem('klype-{self._draft}');" if self._draft and not text else ""
        ui.run_javascript(f"document.getElementById('{self.input.html_id}').value = {json.dumps(text)}; {forget}")


class WholeNumber(Field):
    """A whole number from ``low`` to ``high``; ``value`` raises UsageError for what is none, in the page's language."""

    def __init__(self, visit: Visit, key: str, low: int, high: int, value: int) -> None:
        self._name = visit.words(key)
        super().__init__(self._name, type="number", min=low, max=high, step=1, value=value)
        self._visit, self._low, self._high, self._given = visit, low, high, str(value)
        self.input.on("input", self._take, js_handler=SEND_VALUE)

    @property
    def value(self) -> int:
        text = self._given
        if text.isascii() and text.isdecimal() and len(text) < 20 and self._low <= int(text) <= self._high:
            return int(text)
        about = {"name": self._name, "low": str(self._low), "high": str(self._high), "given": visible(text)}
        raise UsageError(self._visit.frame("whole_number", **about))

    def _take(self, event: GenericEventArguments) -> None:
        self._given = str(event.args if event.args is not None else "").strip()[:40]


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """``suffixes`` are the kinds of file taken; ``most`` bytes of one."""

    most: int
    suffixes: Sequence[str]


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """A whole file. ``name`` is what its owner calls it: shown, and never a path."""

    file: Path
    name: str
    size: int


@dataclass
class Receiving:
    """A file of which ``got`` bytes have come; ``number`` is the browser's for it."""

    given: UploadedFile
    number: int
    got: int = 0


class Upload(ui.element, component="upload.js"):
    """A file from a browser: in slices over the page's own connection, limited here, under a name of our own.
    ``on_given`` is called with it when it is whole."""

    def __init__(
        self, visit: Visit, label: str, limits: UploadLimits, on_given: Callable[[UploadedFile], Awaitable[None]]
    ) -> None:
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
            raise UsageError("This is not part of a file.")
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
            raise UsageError("This is not part of a file.") from None
        if not piece or receiving.got + len(piece) > receiving.given.size:
            raise UsageError("The file is not as large as it said.")
        with receiving.given.file.open("ab") as file:
            file.write(piece)
        receiving.got += len(piece)
        return receiving

    def _new(self, name: str, size: int) -> UploadedFile:
        limits = self._limits
        suffix = next((s for s in limits.suffixes if name.lower().endswith(s)), "")
        if not suffix:
            raise UsageError(f"Such a file is not taken here: {', '.join(limits.suffixes)} are.")
        if not 0 < size <= limits.most:
            raise UsageError(f"A file has from 1 byte to {limits.most >> 20} MiB.")
        self._folder.mkdir(parents=True, exist_ok=True)
        kept = sorted(self._folder.iterdir(), key=lambda file: file.stat().st_mtime)
        for place, file in enumerate(kept):
            if len(kept) - place >= FILES_MOST or file.stat().st_mtime < time.time() - OLD_S:
                file.unlink(missing_ok=True)
        return UploadedFile(self._folder / f"{token_hex(8)}{suffix}", visible(name)[:120], size)

    def _drop(self) -> None:
        if self._now is not None:
            with suppress(OSError):
                self._now.given.file.unlink(missing_ok=True)
        self._now = None
