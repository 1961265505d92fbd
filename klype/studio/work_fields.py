"""Fields of one line, beside those that all pages share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from nicegui import ui
from nicegui.events import GenericEventArguments

from klype.studio.fields import AT_FIRST, fill
from klype.studio.visit import text_of


class Line(ui.element):
    """A text of one line; Enter sends."""

    def __init__(
        self, name: str, most: int, on_send: Callable[[], object], kind: Literal["text", "password"] = "text"
    ) -> None:  # fmt: skip
        super().__init__("label")
        self.classes("k-field")
        self.value, self._most = "", most
        with self:
            text_of("span", name)
            self.input = ui.element("input")
            self.input.props.update({"type": kind, "maxlength": most, "autocomplete": "off", "spellcheck": "false"})
            self.input.on("input", self._take, js_handler="(e) => emit(e.target.value)")
            self.input.on(
                "keydown",
                lambda event: self._send(event, on_send),
                js_handler="(e) => { if (e.key === 'Enter' && !e.isComposing) emit(e.target.value) }",
            )

    def set(self, value: str) -> None:
        self.value = value[: self._most]
        fill(self.input, self.value)

    def _take(self, event: GenericEventArguments) -> None:
        self.value = str(event.args or "")[: self._most]

    def _send(self, event: GenericEventArguments, on_send: Callable[[], object]) -> object:
        self._take(event)
        return on_send()


class Whole(ui.element):
    """A whole number from ``low`` to ``high``; what is none leaves the last one."""

    def __init__(self, name: str, low: int, high: int, value: int) -> None:
        super().__init__("label")
        self.classes("k-field")
        self.low, self.high, self.value = low, high, value
        with self:
            text_of("span", name)
            self.input = ui.element("input")
            self.input.props.update({"type": "number", "min": low, "max": high, "step": 1, AT_FIRST: value})
            self.input.on("input", self._take, js_handler="(e) => emit(e.target.value)")

    def _take(self, event: GenericEventArguments) -> None:
        text = str(event.args).strip()
        if text.isascii() and text.isdecimal() and len(text) < 20:
            self.value = min(self.high, max(self.low, int(text)))
