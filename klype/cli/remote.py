"""What a server may be asked for, as it is typed, and what it was asked for, as it is told."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from klype.sources.opening import Opened


def split_budget(text: str | None) -> tuple[int | None, str]:
    """``--budget``: forward passes of a plain number (None: not said), and what a server may be asked for.

    "300" → (300, ""); "500requests,20000tokens" → (None, the same); "300,500requests" both.
    """
    from klype.errors import UsageError
    from klype.sources.http_client import Budget

    passes, asked = None, []
    for part in (text or "").replace(" ", "").split(","):
        if re.fullmatch(r"[0-9]*[1-9][0-9]*", part):
            passes = int(part)
        elif re.fullmatch(r"[-+]?[0-9.]+", part):
            raise UsageError(f"--budget should be a whole number of passes from 1 up (it is {part}).")
        elif part:
            asked.append(part)
    Budget.parse(",".join(asked))
    return passes, ",".join(asked)


def tell_cost(opened: Opened) -> None:
    """At a command's end: what a server was asked for, on stderr; nothing for models that are here."""
    if opened.http is not None:
        from klype.sources.capabilities import cost
        from klype.words.plain import aside

        aside(f"{opened.name}: {cost(opened.http.budget)}")
