"""Form fields: the browser's own controls with their labels, file uploads, and the form that opens a MODEL by name."""

import asyncio
import base64
import json
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any, Literal

from nicegui import ui

from klype.errors import KlypeError, UsageError
from klype.examine.say import visible
from klype.studio import elements as el

# The attribute of an input's first value. As a property, Vue would set it again whenever anything on the page changes,
# and undo what was typed or moved since.
AT_FIRST = "^value"
SEND_VALUE = "(e) => emit(e.target.value)"
# bytes of a file in one message: as base64 well below the megabyte that a message may have
SLICE = 192 << 10
MAX_FILES, OLD_S = 40, 24 * 3600.0  # how many unused uploads are kept, and for how long
LONGEST_MODEL = 1000  # characters of a MODEL's name
MAX_SEED = 2**32 - 1


def do_nothing() -> None:
    """The callback that does nothing."""


class Field(ui.element):
    """A control with its label."""

    def __init__(self, name: str, tag: str = "input", classes: str = "k-field", **props: Any) -> None:
        super().__init__("label")
        self.classes(classes)
        with self:
            self.title = el.text_of("span", name)
            self.input = el.box("", tag)
            if "value" in props:
                props[AT_FIRST] = props.pop("value")
            self.input.props.update(props)

    def fill(self, value: float | str) -> None:
        """Sets the input's value in the browser."""
        self.input.props[AT_FIRST] = value
        self.client.run_javascript(f"document.getElementById('{self.input.html_id}').value = {json.dumps(value)}")

    def hears(self, event: str, take: Callable[[Any], object], script: str = SEND_VALUE, **more: Any) -> None:
        """Calls ``take`` with what the browser's ``script`` sends at an event, which may be anything."""
        self.input.on(event, lambda sent: take(sent.args), js_handler=script, **more)


class Slider(Field):
    """A range with its value beside its name. ``moved`` is called while it moves, at most ten times a second, and
    ``released`` when it is let go."""

    def __init__(
        self, name: str, ends: tuple[float, float, float], value: float, shown: Callable[[float], str]
    ) -> None:
        """``ends``: least, most and step; ``shown(value)``: the text of a value."""
        self.low, self.high, step = ends
        super().__init__(name, type="range", min=self.low, max=self.high, step=step, value=value)
        self.value, self._shown = value, shown
        self.moved: Callable[[], object] = do_nothing
        self.released: Callable[[], object] = do_nothing
        with self:
            self._output = el.text_of("output", shown(value))
            self._output.move(target_index=1)
        self.hears("input", lambda sent: self._take(sent, self.moved), throttle=0.1)
        self.hears("change", lambda sent: self._take(sent, self.moved, self.released))

    def set(self, value: float) -> None:
        self._take(value)
        self.fill(self.value)

    def _take(self, given: object, *acts: Callable[[], object]) -> None:
        with suppress(ValueError):  # a browser may send anything
            value = float(str(given))
            if math.isfinite(value):
                self.value = min(self.high, max(self.low, value))
                el.retext(self._output, self._shown(self.value))
        for act in acts:
            act()


class Minutes(Slider):
    """A slider for minutes."""

    def __init__(self, visit: el.Visit, ends: tuple[float, float, float], value: float) -> None:
        super().__init__(visit.words("minutes"), ends, value, lambda v: f"{visit.say.plain(v)}{chr(0xA0)}min")


class Counts(Slider):
    """A slider for a whole number; ``key``: its name in the page's catalogue."""

    def __init__(self, visit: el.Visit, key: str, ends: tuple[float, float, float], value: float) -> None:
        super().__init__(visit.words(key), ends, value, lambda v: visit.say.count(round(v)))


class Select(Field):
    """A menu; ``options``: key → text, ``value``: the chosen key."""

    def __init__(
        self, name: str, options: Mapping[str, str], value: str, on_change: Callable[[], object] = do_nothing
    ) -> None:
        super().__init__(name, "select")
        self.options, self.value, self._on_change = dict(options), value, on_change
        self.hears("change", self._take)
        with self.input:
            for key, text in options.items():
                el.text_of("option", text, value=key, selected=key == value)

    def _take(self, sent: object) -> object:
        if str(sent) not in self.options:
            return None
        self.value = str(sent)
        return self._on_change()


class PageSelect(Select):
    """A menu that leads to pages: to the address ``to`` followed by the chosen key."""

    def __init__(self, name: str, options: Mapping[str, str], value: str, to: str) -> None:
        super().__init__(name, options, value, lambda: ui.navigate.to(to + self.value))


class Check(Field):
    """A checkbox."""

    def __init__(self, name: str, value: bool) -> None:
        super().__init__(name, classes="k-check", type="checkbox", checked=value)
        self.value = value
        self.title.move(target_index=1)
        self.hears("change", self._take, "(e) => emit(e.target.checked)")

    def _take(self, sent: object) -> None:
        self.value = sent is True


class TextField(Field):
    """A field for text."""

    value = ""

    def set(self, value: str) -> None:
        self.value = value
        self.fill(value)

    def _listen(self, most: int, on_send: Callable[[], object], keep: str = "", held: str = "") -> None:
        """Takes at most ``most`` characters; Enter calls ``on_send``. ``keep``: JavaScript to run at every input;
        ``held``: a further condition on Enter."""

        def take(sent: object) -> None:
            self.value = str(sent or "")[:most]

        def send(sent: object) -> object:
            take(sent)
            return on_send()

        sends = f"if (e.key === 'Enter' && !e.isComposing{held}) {{ e.preventDefault(); emit(e.target.value) }}"
        self.hears("input", take, f"(e) => {{ {keep}emit(e.target.value) }}")
        self.hears("keydown", send, f"(e) => {{ {sends} }}")


class TextLine(TextField):
    """A field for one line; Enter sends it."""

    def __init__(
        self, name: str, most: int, on_send: Callable[[], object], kind: Literal["text", "password"] = "text"
    ) -> None:
        super().__init__(name, type=kind, maxlength=most, autocomplete="off", spellcheck="false")
        self._listen(most, on_send)


class TextArea(TextField):
    """A field for several lines: Enter sends, Shift + Enter begins a line. ``draft``: the key under which the browser
    keeps what was not sent, through reloads and restarts of the server."""

    def __init__(self, name: str, most: int, on_send: Callable[[], object], draft: str = "") -> None:
        super().__init__(name, "textarea", "k-field k-grow", rows=2, maxlength=most)
        self._draft, self._send = draft, on_send
        keep = f"sessionStorage.setItem('klype-{draft}', e.target.value); " if draft else ""
        self._listen(most, on_send, keep, " && !e.shiftKey")

    def examples(self, title: str, texts: Sequence[str]) -> None:
        """Adds a button for each text, which sends it."""

        def send(text: str) -> object:
            self.set(text)
            return self._send()

        if texts:
            with el.box("k-chips"):
                el.text_of("span", title, "k-small")
                for text in texts:
                    el.button(text, partial(send, text), "tiny")

    def restore(self) -> None:
        """Fills in the draft that the browser has kept."""
        ui.run_javascript(
            f"const a = document.getElementById('{self.input.html_id}');"
            f" const d = sessionStorage.getItem('klype-{self._draft}');"
            " if (a && d && !a.value) { a.value = d; a.dispatchEvent(new Event('input')); }"
        )

    def set(self, value: str) -> None:
        super().set(value)
        if self._draft and not value:
            self.client.run_javascript(f"sessionStorage.removeItem('klype-{self._draft}')")


class SeedField(Field):
    """A field for a run's seed. ``value`` raises UsageError, in the page's language, for what is no whole number."""

    def __init__(self, visit: el.Visit) -> None:
        self._visit, self._name, self._given = visit, visit.words("seed"), "0"
        super().__init__(self._name, type="number", min=0, max=MAX_SEED, step=1, value=0)
        self.hears("input", self._take)

    @property
    def value(self) -> int:
        if re.fullmatch("[0-9]{1,19}", self._given) and int(self._given) <= MAX_SEED:
            return int(self._given)
        about = {"name": self._name, "low": "0", "high": str(MAX_SEED), "given": visible(self._given)}
        raise UsageError(self._visit.frame("whole_number", **about))

    def _take(self, sent: object) -> None:
        self._given = str(sent if sent is not None else "").strip()[:40]


@dataclass
class UploadedFile:
    """An upload. ``file``: where it is kept, under a name of our own; ``name``: the visitor's name for it, only shown;
    ``number``: the browser's number for it. It is complete when ``got`` is ``size`` bytes."""

    file: Path
    name: str
    size: int
    number: int = 0
    got: int = 0


OnFile = Callable[[UploadedFile], Awaitable[None]]


class Upload(ui.element, component="upload.js"):
    """A button that uploads a file of one of these ``kinds``, of at most ``most`` bytes, in slices over the page's
    websocket. ``on_given`` is called with it when it is complete."""

    def __init__(self, visit: el.Visit, label: str, most: int, kinds: Sequence[str], on_given: OnFile) -> None:
        super().__init__()
        self._visit, self._most, self._kinds, self._on_given = visit, most, kinds, on_given
        self._now: UploadedFile | None = None
        self._props.update(label=label, slice=SLICE, accept=",".join(kinds))
        self.on("slice", lambda event: self.take(event.args if isinstance(event.args, dict) else {}))

    async def take(self, sent: Mapping[str, Any]) -> None:
        """Stores a slice, then asks for the next one."""
        try:
            given = await asyncio.to_thread(self._keep, sent)
        except (KlypeError, OSError) as error:
            self._drop()
            self.run_method("refused", self._visit.why(error))
            return
        if given is not None and given.got < given.size:
            self.run_method("more", given.number, given.got)
        elif given is not None:
            self._now = None
            self.run_method("done", given.number)
            await self._on_given(given)

    def _keep(self, sent: Mapping[str, Any]) -> UploadedFile | None:
        number, at, size, data = (sent.get(key) for key in ("number", "at", "size", "data"))
        if type(number) is not int or type(at) is not int or type(size) is not int or not isinstance(data, str):
            raise UsageError("This is not part of a file.")
        if at == 0:
            self._drop()
            name, folder = str(sent.get("name", "")), self._visit.studio.home / "uploads"
            suffix = next((s for s in self._kinds if name.lower().endswith(s)), "")
            if not suffix:
                raise UsageError(f"Such a file is not taken here: {', '.join(self._kinds)} are.")
            if not 0 < size <= self._most:
                raise UsageError(f"A file has from 1 byte to {self._most >> 20} MiB.")
            folder.mkdir(parents=True, exist_ok=True)
            kept = sorted(folder.iterdir(), key=lambda file: file.stat().st_mtime)
            for place, file in enumerate(kept):
                if len(kept) - place >= MAX_FILES or file.stat().st_mtime < time.time() - OLD_S:
                    file.unlink(missing_ok=True)
            # of the visitor's name only the ending is used
            self._now = UploadedFile(folder / f"{token_hex(8)}{suffix}", visible(name)[:120], size, number)
        given = self._now
        if given is None or given.number != number or given.got != at:
            return None  # a slice of an upload that was given up, or one sent twice
        try:
            piece = base64.b64decode(data, validate=True)
        except ValueError:
            raise UsageError("This is not part of a file.") from None
        if not piece or given.got + len(piece) > given.size:
            raise UsageError("The file is not as large as it said.")
        with given.file.open("ab") as opened:
            opened.write(piece)
        given.got += len(piece)
        return given

    def _drop(self) -> None:
        given, self._now = self._now, None
        if given is not None:
            with suppress(OSError):
                given.file.unlink(missing_ok=True)


async def open_model(visit: el.Visit, model: str, note: ui.element, to: str) -> None:
    """Opens a MODEL, shows in ``note`` for how long it has been opening, and goes to the page ``to``; shows the error
    if it cannot be opened."""
    note.classes(remove="k-warn")
    began, work = time.monotonic(), asyncio.ensure_future(asyncio.to_thread(visit.studio.open, model))
    while not (await asyncio.wait([work], timeout=1))[0]:
        if not note.is_deleted:
            said = visit.say.seconds(float(round(time.monotonic() - began)))
            el.retext(note, visit.frame("opening", model=visit.say.text(model), time=said))
    if note.is_deleted:
        return
    if (error := work.exception()) is None:
        ui.navigate.to(to)
    else:
        note.classes("k-warn")
        el.retext(note, visit.why(error))


def open_form(visit: el.Visit) -> None:
    """A form for the name of a MODEL of any kind."""

    async def opened() -> None:
        if not visit.studio.opens:  # the form is not shown then, but a browser may send anything
            visit.tell(UsageError("Models are opened from the machine that the studio runs on only."))
        elif text := field.value.strip():
            go.props("disabled")
            await open_model(visit, text, note, visit.page.route)
            go.props(remove="disabled")

    with el.box("k-row"):
        field = TextLine(visit.frame("open_what"), LONGEST_MODEL, opened)
        field.classes("k-grow")
        go = el.button(visit.frame("open"), opened, "strong")
    note = el.status()
    with el.box("k-small k-kinds", "ul"):
        for kind in ("demo", "folder", "hub", "gguf", "server"):
            with el.box(tag="li"):
                el.text_of("span", visit.frame(f"open_{kind}"))


def open_fold(visit: el.Visit) -> None:
    """The same, folded, on a page that has models already."""
    if visit.studio.opens:
        with el.fold(visit.frame("open_another"), "k-card"):
            open_form(visit)


def first_steps(visit: el.Visit, why: str) -> None:
    """What a page without a model offers: to train one, or to open one. ``why``: the title."""
    with el.card(why):
        el.text_of("a", visit.frame("train_one"), "k-button strong", href="/runs#start")
        el.small(visit.frame("train_how"))
    if visit.studio.opens:
        with el.card(visit.frame("open_one")):
            open_form(visit)
