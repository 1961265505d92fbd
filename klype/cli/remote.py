"""MODELs behind a server: http://host:port/v1#model, with a key from the environment and answers kept on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from klype.cli.environment import server_key, state_folder

if TYPE_CHECKING:
    from klype.cli.model import Opened
    from klype.sources.offer import Offer
    from klype.sources.wire import Budget, Wire

UNKNOWN_WINDOW = 1 << 20


def wire_of(address: str, budget: Budget | None = None) -> tuple[Wire, str]:
    """The wire to an address, and the model that it names after a #."""
    import httpx

    from klype.errors import UsageError
    from klype.sources.kept import Kept
    from klype.sources.wire import Wire

    base, _, model = address.partition("#")
    try:
        host = httpx.URL(base).host
    except httpx.InvalidURL:
        raise UsageError(f"{base} is no address of a server.", "Write http://host:port/v1#model.") from None
    kept = Kept(state_folder() / "answers.sqlite")
    return Wire(base, server_key(host), kept, budget), model


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
    from klype.cli.model import Opened
    from klype.runs.find import Found
    from klype.sources.remote import RemoteSource
    from klype.sources.wire import Budget

    wire, model = wire_of(address, Budget.parse(budget))
    source = RemoteSource(wire, offer_of(wire, model))
    return Opened(
        source.name,
        Found(Path(source.name)),
        source,
        source.offer.window or UNKNOWN_WINDOW,
        0,
        source.codec.spell,
        lambda token: "<end>" if token in source.codec.stop else None,
        source.codec.say,
        source.offer.chat,
        exact=False,
    )
