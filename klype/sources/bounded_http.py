"""One HTTP exchange with a server that nobody vouches for: what it may send, and how long it may take.

Bytes are counted as they come and after decompression, so that a small answer cannot become a large one; lines and the
whole have a length; connecting, headers and body have one deadline, also where every byte comes just before a time-out.
"""

from __future__ import annotations

import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx

from klype.errors import KlypeError

LARGEST = 64 << 20  # bytes of any answer
BASE = 4 << 20  # … of one that holds no tokens: a list of models, a text's tokens
TOKEN, ALTERNATIVE = 1 << 10, 256  # … more for each token that was asked for, and for each that is listed beside it
LINE = 1 << 20  # bytes of a line of a stream
REFUSAL = 1 << 18  # bytes of an error
REDIRECTS = 3
UNUSED = "Nothing of it is used."


@dataclass(slots=True)
class Limits:
    """Of an answer of the server ``where``: ``most`` bytes, and ``seconds`` from the first try to the last byte, waits
    apart; they end at ``until``."""

    where: str
    most: int
    seconds: float
    until: float

    @staticmethod
    def of(where: str, body: Mapping[str, Any], seconds: float, per_token: float) -> Limits:
        """By what was asked: tokens of all answers, those of the prompt where it is echoed, alternatives of each."""
        tokens = (body.get("max_tokens") or body.get("max_completion_tokens") or 0) * body.get("n", 1)
        echoed = len(body["prompt"]) if body.get("echo") else 0
        listed = int(body.get("top_logprobs") or body.get("logprobs") or 0)
        most = BASE + (tokens + echoed) * (TOKEN + ALTERNATIVE * listed)
        seconds += per_token * tokens
        return Limits(where, min(LARGEST, most), seconds, time.monotonic() + seconds)

    @property
    def left(self) -> float:
        return max(0.0, self.until - time.monotonic())

    def check(self) -> None:
        """Raises KlypeError when the deadline has passed."""
        if time.monotonic() > self.until:
            raise self.exceeded()

    def exceeded(self) -> KlypeError:
        return KlypeError(
            f"{self.where} did not answer within {self.seconds:.0f} seconds.", "Ask for less, or try again later."
        )


class ResponseReader:
    """An answer that has begun. ``whole`` and ``lines`` raise KlypeError at a limit, httpx.HTTPError when it breaks."""

    def __init__(self, response: httpx.Response, limits: Limits) -> None:
        self.response, self.limits = response, limits

    def whole(self) -> bytes:
        """All of it; of an error no more than its beginning."""
        with self._watched():
            found = bytearray()
            for chunk in self._chunks():
                found += chunk
                if self.response.status_code != 200 and len(found) > REFUSAL:
                    break
        self.response.close()
        return bytes(found)

    def lines(self) -> Iterator[str]:
        """Of a stream of events: what ends in a line feed."""
        with self._watched():
            held = bytearray()
            for chunk in self._chunks():
                at = len(held)
                held += chunk
                while (end := held.find(b"\n", at)) >= 0:
                    yield held[:end].removesuffix(b"\r").decode(errors="replace")
                    del held[: end + 1]
                    at = 0
                if len(held) > LINE:
                    raise KlypeError(f"{self.limits.where} streams a line of more than {LINE >> 20} MiB.", UNUSED)

    def _chunks(self) -> Iterator[bytes]:
        size, most = 0, self.limits.most
        for chunk in self._decoded():
            size += len(chunk)
            if size > most:
                where = self.limits.where
                raise KlypeError(f"{where} answers with more than {most >> 20} MiB: that is not an answer.", UNUSED)
            self.limits.check()
            yield chunk
        self.limits.check()  # the end may be one that the deadline made

    def _decoded(self) -> Iterator[bytes]:
        """A little at a time, however much a few bytes become."""
        if self.response.is_stream_consumed:  # a transport that reads all at once, as those of tests
            yield self.response.content
            return
        kind = self.response.headers.get("content-encoding", "identity").strip().lower()
        if kind not in ("identity", "gzip", "deflate"):
            raise KlypeError(f"{self.limits.where} packs its answer in a way that it was not asked for.", UNUSED)
        if kind == "identity":
            yield from self.response.iter_raw()
            return
        unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either head
        for raw in self.response.iter_raw():
            while raw and not unpack.eof:
                try:
                    yield unpack.decompress(raw, LINE)
                except zlib.error:
                    raise KlypeError(f"{self.limits.where} sends what cannot be unpacked.", UNUSED) from None
                raw = unpack.unconsumed_tail
        yield unpack.flush()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Ends the connection at the deadline: a read that waits returns at once."""
        stream = self.response.extensions.get("network_stream")
        connection: socket.socket | None = stream.get_extra_info("socket") if stream is not None else None

        def end() -> None:
            if connection is not None:
                with suppress(OSError):  # it may be closed
                    connection.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(self.limits.left, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def begin(send: Callable[[httpx.Request], httpx.Response], request: httpx.Request, limits: Limits) -> ResponseReader:
    """The answer's head. Raises KlypeError at the deadline, and for a redirection to another origin."""
    for _ in range(REDIRECTS + 1):
        response = _headed(send, request, limits)
        again = response.next_request
        if again is None:
            return ResponseReader(response, limits)
        response.close()
        if _origin(again.url) != _origin(request.url) or again.method != request.method:
            raise KlypeError(f"{limits.where} sends its clients elsewhere.", "Give the address that it means.")
        request = again
    raise KlypeError(f"{limits.where} sends its clients in a circle.", "Is it the address of an API?")


def _headed(send: Callable[[httpx.Request], httpx.Response], request: httpx.Request, limits: Limits) -> httpx.Response:
    """In a thread of its own: a time-out of httpx is that of one read, and a head can come in a thousand."""
    found: Future[httpx.Response] = Future()

    def work() -> None:
        response, problem = None, None
        try:
            response = send(request)
        except BaseException as error:
            problem = error
        if found.set_running_or_notify_cancel():
            found.set_exception(problem) if response is None else found.set_result(response)
        elif response is not None:
            response.close()

    threading.Thread(target=work, daemon=True).start()
    try:
        return found.result(limits.left)
    except TimeoutError:
        found.cancel()
        raise limits.exceeded() from None


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)
