"""MODELs behind a server: http://host:port/v1#model, with a key from the environment and answers kept on disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from klype.environment import language, server_key, state_folder
from klype.words.plain import aside

if TYPE_CHECKING:
    from klype.sources.offer import Offer
    from klype.sources.opening import Opened
    from klype.sources.wire import Budget, Wire

UNKNOWN_WINDOW = 1 << 20
EVERY_S = 5.0


def wire_of(address: str, budget: Budget | None = None) -> tuple[Wire, str]:
    """The wire to an address, and the model that it names after a #."""
    import httpx

    from klype.errors import UsageError
    from klype.sources.kept import Kept
    from klype.sources.wire import Wire

    base, _, model = address.partition("#")
    try:
        url = httpx.URL(base)
    except httpx.InvalidURL:
        url = httpx.URL()
    if not url.host or not 0 < (url.port or 80) < 1 << 16:
        raise UsageError(f"{base} is no address of a server.", "Write http://host:port/v1#model.")
    kept = Kept(state_folder() / "answers.sqlite")
    return Wire(base, server_key(url.host), kept, budget), model


def offer_of(wire: Wire, model: str, again: bool = False) -> Offer:
    """What the server offers: probed once, then remembered; ``again`` asks anew."""
    from klype.sources.offer import Offer, probe

    address = f"{wire.base}#{model}"
    known = None if again else wire.kept.offer(address)
    if known is not None:
        return Offer.of(known)
    found = probe(wire, model)
    wire.kept.keep_offer(address, found.json())
    return found


def open_remote(address: str, budget: str = "") -> Opened:
    """Errors: no server, no such model, a wrong key."""
    from klype.sources.find import Found
    from klype.sources.opening import Opened
    from klype.sources.remote import RemoteSource
    from klype.sources.wire import Budget

    wire, model = wire_of(address, Budget.parse(budget))
    source = RemoteSource(wire, offer_of(wire, model))
    wire.budget.say = meter(time.monotonic)
    return Opened(
        source.name,
        Found(Path(source.name)),
        source,
        source.offer.window or UNKNOWN_WINDOW,
        source.offer.vocabulary,
        source.codec.spell,
        lambda token: "<end>" if token in source.codec.stop else None,
        source.codec.say,
        source.offer.chat,
        exact=False,
        wire=wire,
        spelling=source.codec.spelling if source.offer.kind == "klype" else None,
    )


def meter(clock: Callable[[], float]) -> Callable[[Budget], None]:
    """What has been asked for so far, told on stderr every few seconds."""
    told = clock()

    def say(budget: Budget) -> None:
        nonlocal told
        if clock() - told >= EVERY_S:
            told = clock()
            aside(f"  {cost(budget)} …")

    return say


def cost(budget: Budget) -> str:
    from klype.words import count, words

    lang = language()
    return words(lang)(
        "remote.cost",
        requests=count(budget.asked, lang),
        tokens=count(budget.spent, lang),
        prompt=count(budget.prompt_tokens, lang),
        answer=count(budget.answer_tokens, lang),
        kept=count(budget.kept, lang),
    )
