"""Runs an app with uvicorn: slow clients are disconnected, and running requests are finished at shutdown."""

import asyncio
import errno
import gc
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from klype.errors import KlypeError, UsageError
from klype.serve.guard import Rules

GRACE = 60  # seconds for running requests at shutdown
# The interpreter's switch interval. With the default of 5 ms, of which a request waits several, short requests would be
# slow while long texts are being processed.
TURN_S = 5e-4
# Thresholds of the garbage collector. A JSON body can have 300,000 objects, which the default (700, 10, 10) would
# traverse again and again.
YOUNG = (10_000, 1, 200)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any free one. Raises KlypeError if the address cannot be used."""
    if not 0 <= port <= 65535:
        raise UsageError(f"--port should be from 0 to 65535 (it is {port}).")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address, family=family, backlog=512)
    except (OSError, UnicodeError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise KlypeError(
                f"Port {port} is in use already, by another klype or another program.",
                "Choose another one, or any that is free: --port 0.",
            ) from None
        why = (getattr(error, "strerror", None) or str(error)).partition(" (while")[0]  # Python's own addition
        raise KlypeError(f"{host} port {port} cannot be listened at: {why}.", "Choose another --port.") from None


def server(app: ASGIApp, rules: Rules, grace: int = GRACE) -> uvicorn.Server:
    """A server to be run with ``run(sockets=[listen(…)])``. It trusts no proxy headers and sends no Server header."""
    config = uvicorn.Config(
        app,
        http=protocol(rules),
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=grace,
        ws_max_size=rules.body_bytes,
    )
    return Server(config)


class Server(uvicorn.Server):
    """A server that a second Ctrl-C ends at once."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if self.force_exit:
            os._exit(130)  # no tracebacks of interrupted requests, and no aborts of threads that compute


@contextmanager
def attentive() -> Iterator[None]:
    """Keeps pauses short: the garbage collector skips what was loaded before (300,000 objects: 0.2 s) and bodies while
    they are parsed, and threads that compute switch more often."""
    turn, young = sys.getswitchinterval(), gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*YOUNG)
    sys.setswitchinterval(TURN_S)
    try:
        yield
    finally:
        sys.setswitchinterval(turn)
        gc.set_threshold(*young)
        gc.unfreeze()


def protocol(rules: Rules) -> type[HttpToolsProtocol]:
    """uvicorn's HTTP protocol with time-outs for headers and for clients that do not read."""

    class Impatient(HttpToolsProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            self._awaited: dict[str, asyncio.TimerHandle] = {}
            self._head = 0  # bytes of headers received
            super().connection_made(transport)
            self._await("head")

        def data_received(self, data: bytes) -> None:
            if "head" not in self._awaited and (self.cycle is None or self.cycle.response_complete):
                self._head = 0
                self._await("head")
            self._head += len(data)
            super().data_received(data)
            if "head" in self._awaited and self._head > 2 * rules.header_bytes:
                self.transport.abort()

        def on_headers_complete(self) -> None:
            self._has_come("head")
            super().on_headers_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._await("reader")

        def resume_writing(self) -> None:
            super().resume_writing()
            self._has_come("reader")

        def connection_lost(self, exc: Exception | None) -> None:
            self._has_come("head")
            self._has_come("reader")
            super().connection_lost(exc)

        def _await(self, what: str) -> None:
            self._awaited[what] = self.loop.call_later(rules.seconds, self.transport.abort)

        def _has_come(self, what: str) -> None:
            if (timer := self._awaited.pop(what, None)) is not None:
                timer.cancel()

    return Impatient
