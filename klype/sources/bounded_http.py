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
from contextlib import suppress
from typing import Any

import httpx

from klype.errors import KlypeError

LARGEST = 64 << 20  # bytes of any answer
BASE = 4 << 20  # … of one that holds no tokens: a list of models, a text's tokens
TOKEN, ALTERNATIVE = 1 << 10, 256  # … more for each token that was asked for, and for each that is listed beside it
LINE = 1 << 20  # bytes of a line of a stream
REFUSAL = 1 << 18  # bytes of an error
REDIRECTS = 3
PACKED = 1 << 10  # bytes that are unpacked at a time: deflate makes a thousand times as many of them at most
UNUSED = "Nothing of it is used."


class Limits:
    """Of an answer of the server ``where``: ``most`` bytes, and ``seconds`` from the first try to the last byte, waits
    apart; they end at ``until``."""

    def __init__(self, where: str, body: Mapping[str, Any], seconds: float, per_token: float) -> None:
        """By what was asked: tokens of all answers, those of the prompt where it is echoed, alternatives of each."""
        tokens = (body.get("max_tokens") or body.get("max_completion_tokens") or 0) * body.get("n", 1)
        echoed = len(body["prompt"]) if body.get("echo") else 0
        listed = int(body.get("top_logprobs") or body.get("logprobs") or 0)
        self.where = where
        self.seconds: float = seconds + per_token * tokens
        self.most: int = min(LARGEST, BASE + (tokens + echoed) * (TOKEN + ALTERNATIVE * listed))
        self.until: float = time.monotonic() + self.seconds

    def left(self) -> float:
        """Seconds to the deadline. Raises KlypeError when it has passed."""
        if (left := self.until - time.monotonic()) <= 0:
            raise self.exceeded()
        return left

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
        found = bytearray()
        for chunk in self._chunks():
            found += chunk
            if self.response.status_code != 200 and len(found) > REFUSAL:
                break
        self.response.close()
        return bytes(found)

    def lines(self) -> Iterator[str]:
        """Of a stream of events: what ends in a line feed."""
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
        """A little at a time, unpacked, up to a limit. The connection ends at the deadline: a read that waits returns
        at once."""
        where, most, size = self.limits.where, self.limits.most, 0
        stream = self.response.extensions.get("network_stream")
        connection: socket.socket | None = stream.get_extra_info("socket") if stream is not None else None

        def end() -> None:
            if connection is not None:
                with suppress(OSError):  # it may be closed
                    connection.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(self.limits.left(), end)
        timer.daemon = True
        timer.start()
        try:
            for chunk in self._unpacked():
                size += len(chunk)
                if size > most:
                    raise KlypeError(f"{where} answers with more than {most >> 20} MiB: that is not an answer.", UNUSED)
                self.limits.left()
                yield chunk
        finally:
            timer.cancel()
        self.limits.left()  # the end may be one that the deadline made

    def _unpacked(self) -> Iterator[bytes]:
        kind = self.response.headers.get("content-encoding", "identity").strip().lower()
        if kind not in ("identity", "gzip", "deflate"):
            raise KlypeError(f"{self.limits.where} packs its answer in a way that it was not asked for.", UNUSED)
        if kind == "identity":
            yield from self.response.iter_bytes()
            return
        unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either head
        for raw in self.response.iter_raw():
            for start in range(0, len(raw), PACKED):
                if unpack.eof:  # whatever comes behind it
                    return
                try:
                    yield unpack.decompress(raw[start : start + PACKED])
                except zlib.error:
                    raise KlypeError(f"{self.limits.where} sends what cannot be unpacked.", UNUSED) from None
        yield unpack.flush()


def begin(send: Callable[[httpx.Request], httpx.Response], request: httpx.Request, limits: Limits) -> ResponseReader:
    """The answer's head. Raises KlypeError at the deadline, and for a redirection to another origin."""
    for _ in range(REDIRECTS + 1):
        response = _headed(send, request, limits)
        again = response.next_request
        if again is None:
            return ResponseReader(response, limits)
        response.close()
        origin, other = ((one.method, one.url.scheme, one.url.netloc) for one in (request, again))
        if other != origin:
            raise KlypeError(f"{limits.where} sends its clients elsewhere.", "Give the address that it means.")
        request = again
    raise KlypeError(f"{limits.where} sends its clients in a circle.", "Is it the address of an API?")


def _headed(send: Callable[[httpx.Request], httpx.Response], request: httpx.Request, limits: Limits) -> httpx.Response:
    """In a thread of its own: a time-out of httpx is that of one read, and a head can come in a thousand."""
    found: Future[httpx.Response] = Future()

    def work() -> None:
        try:
            found.set_result(send(request))
        except BaseException as error:
            found.set_exception(error)

    def drop(late: Future[httpx.Response]) -> None:
        if late.exception() is None:
            late.result().close()

    threading.Thread(target=work, daemon=True).start()
    try:
        return found.result(limits.left())
    except TimeoutError:
        found.add_done_callback(drop)
        raise limits.exceeded() from None
