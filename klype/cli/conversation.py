"""A conversation that fits into a model's window: when it is full, the oldest exchanges leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from klype.text.chat import Message


def fit(
    messages: Sequence[Message], prompt: Callable[[Sequence[Message]], list[int]], window: int, reserve: int
) -> tuple[list[Message], list[int]] | None:
    """The newest messages whose prompt leaves ``reserve`` tokens of the window, with that prompt.

    A system message at the start stays; what remains begins with a user's message. None: the last message alone
    does not fit.
    """
    head = list(messages[:1]) if messages and messages[0]["role"] == "system" else []
    tail = list(messages[len(head) :])
    while tail:
        ids = prompt([*head, *tail])
        if len(ids) + reserve <= window:
            return [*head, *tail], ids
        tail = tail[1:]
        while tail and tail[0]["role"] != "user":
            tail = tail[1:]
    return None
