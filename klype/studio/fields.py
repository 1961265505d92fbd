"""What a visitor fills in: the browser's own controls, each with its label."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import partial

from nicegui import ui
from nicegui.events import GenericEventArguments

from klype.studio.visit import text_of

Number = Callable[[float], str]
AT_FIRST = "^value"
"""An input's value as an attribute: as a property, Vue would set it again whenever anything on the page changes, and
take back what was typed or moved since."""


def fill(field: ui.element, value: float | str) -> None:
    """Puts a value into an input, in place of what was typed or moved."""
    field.props[AT_FIRST] = value
    field.client.run_javascript(f"document.getElementById('{field.html_id}').value = {json.dumps(value)}")


class Slider(ui.element):
    """A range with its value beside its name. Sent as it moves, ten times a second at most; ``released``: let go."""

    def __init__(self, name: str, ends: tuple[float, float, float], value: float, shown: Number) -> None:
        """``ends``: least, most and step."""
        super().__init__("label")
        self.classes("k-field")
        self.low, self.high, step = ends
        self.value = value
        self._shown = shown
        self._moved: list[Callable[[], object]] = []
        self._released: list[Callable[[], object]] = []
        with self:
            text_of("span", name)
            self._output = text_of("output", shown(value))
            self._input = ui.element("input")
            self._input.props.update({"type": "range", "min": self.low, "max": self.high, "step": step})
            self._input.props[AT_FIRST] = value
            self._input.on("input", self._moves, throttle=0.1, js_handler="(e) => emit(e.target.value)")
            self._input.on("change", self._lets_go, js_handler="(e) => emit(e.target.value)")

    def moved(self, act: Callable[[], object]) -> Slider:
        self._moved.append(act)
        return self

    def released(self, act: Callable[[], object]) -> Slider:
        self._released.append(act)
        return self

    def set(self, value: float) -> None:
        self._take(value)
        fill(self._input, self.value)

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
            self._output._text = self._shown(self.value)
            self._output.update()


class Choice(ui.element):
    """One of several, by key."""

    def __init__(self, name: str, options: Mapping[str, str], value: str, on_change: Callable[[], object]) -> None:
        super().__init__("label")
        self.classes("k-field")
        self.options, self.value = dict(options), value
        with self:
            text_of("span", name)
            self._select = ui.element("select")
            self._select.on(
                "change", lambda event: self._take(event, on_change), js_handler="(e) => emit(e.target.value)"
            )
            with self._select:
                for key, text in options.items():
                    option = text_of("option", text)
                    option.props["value"] = key
                    if key == value:
                        option.props["selected"] = True

    def _take(self, event: GenericEventArguments, on_change: Callable[[], object]) -> object:
        if str(event.args) not in self.options:
            return None
        self.value = str(event.args)
        return on_change()


class Check(ui.element):
    """On or off."""

    def __init__(self, name: str, value: bool, on_change: Callable[[], object] = lambda: None) -> None:
        super().__init__("label")
        self.classes("k-check")
        self.value = value
        with self:
            self._input = ui.element("input")
            self._input.props.update({"type": "checkbox", "checked": value})
            self._input.on(
                "change", lambda event: self._take(event, on_change), js_handler="(e) => emit(e.target.checked)"
            )
            text_of("span", name)

    def _take(self, event: GenericEventArguments, on_change: Callable[[], object]) -> None:
        self.value = event.args is True
        on_change()


class Text(ui.element):
    """A text of one or more lines. Enter sends, Shift + Enter begins a line; ``draft`` names it in the browser, which
    keeps what was not sent through reloads and the server's restarts."""

    def __init__(self, name: str, rows: int, most: int, on_send: Callable[[], object] | None = None, draft: str = ""):
        super().__init__("label")
        self.classes("k-field k-grow")
        self.value, self._most, self._draft = "", most, draft
        keep = f"sessionStorage.setItem('klype-{draft}', e.target.value); " if draft else ""
        with self:
            text_of("span", name)
            self._area = ui.element("textarea")
            self._area.props.update({"rows": rows, "maxlength": most})
            self._area.on("input", self._take, js_handler=f"(e) => {{ {keep}emit(e.target.value) }}")
            if on_send is not None:
                self._area.on(
                    "keydown",
                    partial(self._send, on_send),
                    js_handler="(e) => { if (e.key === 'Enter' && !e.shiftKey && !e.isComposing) "
                    "{ e.preventDefault(); emit(e.target.value) } }",
                )

    def _send(self, on_send: Callable[[], object], event: GenericEventArguments) -> object:
        self._take(event)
        return on_send()

    def restore(self) -> None:
        """What the browser still has of it is typed in again."""
        if self._draft:
            ui.run_javascript(
                f"const a = document.getElementById('{self._area.html_id}');"
                f" const d = sessionStorage.getItem('klype-{self._draft}');"
                " if (a && d && !a.value) { a.value = d; a.dispatchEvent(new Event('input')); }"
            )

    def set(self, text: str) -> None:
        self.value = text
        forget = f"sessionStorage.removeItem('klype-{self._draft}');" if self._draft and not text else ""
        ui.run_javascript(f"document.getElementById('{self._area.html_id}').value = {json.dumps(text)}; {forget}")

    def _take(self, event: GenericEventArguments) -> None:
        self.value = str(event.args or "")[: self._most]
