"""HTTP requests to untrusted servers, with limits on the size of a response and on the time it takes.

Bytes are counted after decompression, so that a small response cannot become a large one. Lines and the whole body have
a maximum size. Connecting, headers and body share one deadline: httpx's time-outs are per read, and a server could send
every byte just before one.
"""

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

# bytes of a response: of any; of one without generated tokens; more for each token requested and each alternative of it
LARGEST, BASE, TOKEN, ALTERNATIVE = 64 << 20, 4 << 20, 1 << 10, 256
LINE = 1 << 20  # bytes of a line of a stream
REFUSAL = 1 << 18  # bytes that are read of an error
REDIRECTS = 3
PACKED = 1 << 10  # bytes that are decompressed at a time: deflate expands them at most a thousandfold
UNUSED = "Nothing of it is used."


class Limits:
    """Limits on a response of the server ``where``: ``most`` bytes, and ``seconds`` from the first try to the last
    byte, back-off excluded; ``until``: the deadline on the monotonic clock."""

    def __init__(self, where: str, body: Mapping[str, Any], seconds: float, per_token: float) -> None:
        """Limits for the request ``body``, by the number of tokens requested, echoed and listed beside each."""
        tokens = (body.get("max_tokens") or body.get("max_completion_tokens") or 0) * body.get("n", 1)
        echoed = len(body["prompt"]) if body.get("echo") else 0
        listed = int(body.get("top_logprobs") or body.get("logprobs") or 0)
        self.where = where
        self.seconds: float = seconds + per_token * tokens
        self.most: int = min(LARGEST, BASE + (tokens + echoed) * (TOKEN + ALTERNATIVE * listed))
        self.until: float = time.monotonic() + self.seconds

    def left(self) -> float:
        """Seconds until the deadline. Raises KlypeError if it has passed."""
        if (left := self.until - time.monotonic()) <= 0:
            raise self.too_late()
        return left

    def too_late(self) -> KlypeError:
        return KlypeError(
            f"{self.where} did not answer within {self.seconds:.0f} seconds.", "Ask for less, or try again later."
        )


class ResponseReader:
    """Reads the body of a response. ``whole`` and ``lines`` raise KlypeError at a limit, httpx.HTTPError where the
    connection breaks."""

    def __init__(self, response: httpx.Response, limits: Limits) -> None:
        self.response, self.limits = response, limits

    def whole(self) -> bytes:
        """The whole body; of an error status only its beginning."""
        found = bytearray()
        for chunk in self._chunks():
            found += chunk
            if self.response.status_code != 200 and len(found) > REFUSAL:
                break
        self.response.close()
        return bytes(found)

    def lines(self) -> Iterator[str]:
        """The body's lines; what follows the last line feed is ignored."""
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
        """The decompressed body up to its limit. At the deadline the socket is shut down, which ends a pending read."""
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
            for chunk in self._unpack():
                size += len(chunk)
                if size > most:
                    raise KlypeError(f"{where} answers with more than {most >> 20} MiB: that is not an answer.", UNUSED)
                self.limits.left()
                yield chunk
        finally:
            timer.cancel()
        self.limits.left()  # the body may have ended because the socket was shut down

    def _unpack(self) -> Iterator[bytes]:
        kind = self.response.headers.get("content-encoding", "identity").strip().lower()
        if kind not in ("identity", "gzip", "deflate"):
            raise KlypeError(f"{self.limits.where} packs its answer in a way that it was not asked for.", UNUSED)
        if kind == "identity":
            yield from self.response.iter_bytes()
            return
        unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip's header or zlib's
        for raw in self.response.iter_raw():
            for start in range(0, len(raw), PACKED):
                if unpack.eof:  # trailing data is ignored
                    return
                try:
                    yield unpack.decompress(raw[start : start + PACKED])
                except zlib.error:
                    raise KlypeError(f"{self.limits.where} sends what cannot be unpacked.", UNUSED) from None
        yield unpack.flush()


def begin(send: Callable[[httpx.Request], httpx.Response], request: httpx.Request, limits: Limits) -> ResponseReader:
    """Sends a request and returns its response once the headers are here. Raises KlypeError at the deadline and for a
    redirect to another origin."""
    for _ in range(REDIRECTS + 1):
        response = _receive(send, request, limits)
        again = response.next_request
        if again is None:
            return ResponseReader(response, limits)
        response.close()
        origin, other = ((one.method, one.url.scheme, one.url.netloc) for one in (request, again))
        if other != origin:
            raise KlypeError(f"{limits.where} sends its clients elsewhere.", "Give the address that it means.")
        request = again
    raise KlypeError(f"{limits.where} sends its clients in a circle.", "Is it the address of an API?")


def _receive(send: Callable[[httpx.Request], httpx.Response], request: httpx.Request, limits: Limits) -> httpx.Response:
    """The response with its headers, sent in a separate thread: a header can take thousands of reads, and httpx has a
    time-out for each, not for all."""
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
        raise limits.too_late() from None
