"""The board on which answers are put in order: cards, keys and dragging in the browser, one message for the result."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from nicegui import ui

from klype.examine.say import visible
from klype.studio.ranking_desk import Turn

Act = Callable[[Mapping[str, Any]], Awaitable[None]]


class Board(ui.element, component="ranking_board.js"):
    """``labels`` are the words on it. It says ``arrive`` once (who sat here last, and the tab's own mark), and ``act``
    for whatever is done: ``{"do": "order" | "none" | "skip" | "undo" | "write" | "leave", "turn", "groups", "text"}``.
    A half-made order stays in the browser under the turn's name until it is kept."""

    def __init__(self, labels: Mapping[str, str], store: str, on_act: Act, on_arrive: Act) -> None:
        super().__init__()
        self._props.update(
            labels=dict(labels), store=store, turn=0, draft="", question="", cards=[], said="", open=False
        )
        self.on("act", lambda event: on_act(event.args if isinstance(event.args, dict) else {}))
        self.on("arrive", lambda event: on_arrive(event.args if isinstance(event.args, dict) else {}))

    def lay(self, turn: Turn | None, said: str = "") -> None:
        """Shows a turn (None: nothing is left), and what is to be said about the last one."""
        self._props["said"] = said
        self._props["open"] = turn is not None
        if turn is not None:
            cards = [[candidate.id, visible(candidate.text)] for candidate in turn.asked.candidates]
            question = visible(turn.asked.question.transcript)
            self._props.update(turn=turn.number, draft=turn.draft, question=question, cards=cards)
        else:
            self._props.update(turn=0, draft="", question="", cards=[])
        self.update()

    def say(self, text: str) -> None:
        """Something was refused: the order stays as it is."""
        self.run_method("refused", text)
