"""One HTTP exchange with a server that nobody vouches for: what it may send, and how long it may take.

Bytes are counted as they come and after decompression, so that a small answer cannot become a large one; lines and the
whole have a length; connecting, headers and body have one deadline, also where every byte comes just before a time-out.
"""

from __future__ import annotations

import socket
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
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


@dataclass(frozen=True, slots=True)
class Limits:
    """``most``: bytes; ``seconds`` from the first try to the last byte."""

    most: int
    seconds: float

    @staticmethod
    def of(body: Mapping[str, Any] | None, seconds: float, per_token: float) -> Limits:
        """By what was asked: tokens of all answers, those of the prompt where it is echoed, alternatives of each."""
        body = body or {}
        tokens = (body.get("max_tokens") or body.get("max_completion_tokens") or 0) * body.get("n", 1)
        echoed = len(body["prompt"]) if body.get("echo") else 0
        listed = int(body.get("top_logprobs") or body.get("logprobs") or 0)
        most = BASE + (tokens + echoed) * (TOKEN + ALTERNATIVE * listed)
        return Limits(min(LARGEST, most), seconds + per_token * tokens)


class ResponseReader:
    """An answer that has begun. ``whole`` and ``lines`` raise KlypeError at a limit, httpx.HTTPError when it breaks."""

    def __init__(self, response: httpx.Response, limits: Limits, until: float, where: str) -> None:
        self.response, self.where = response, where
        self._limits, self._until = limits, until

    def whole(self) -> bytes:
        """All of it; of an error no more than its beginning."""
        with self._watched():
            parts, size = [], 0
            for chunk in self._chunks():
                parts.append(chunk)
                size += len(chunk)
                if self.response.status_code != 200 and size > REFUSAL:
                    break
        self.close()
        return b"".join(parts)

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
                    raise KlypeError(f"{self.where} streams a line of more than {LINE >> 20} MiB.", _UNUSED)

    def check_time(self) -> None:
        """Raises KlypeError when the deadline has passed."""
        if time.monotonic() > self._until:
            raise too_slow(self.where, self._limits)

    def close(self) -> None:
        self.response.close()

    def _chunks(self) -> Iterator[bytes]:
        size, most = 0, self._limits.most
        for chunk in self._decoded():
            size += len(chunk)
            if size > most:
                raise KlypeError(
                    f"{self.where} answers with more than {most >> 20} MiB: that is not an answer.", _UNUSED
                )
            self.check_time()
            yield chunk
        self.check_time()  # the end may be one that the deadline made

    def _decoded(self) -> Iterator[bytes]:
        """A little at a time, however much a few bytes become."""
        if self.response.is_stream_consumed:  # a transport that reads all at once, as those of tests
            yield self.response.content
            return
        kind = self.response.headers.get("content-encoding", "identity").strip().lower()
        if kind not in ("identity", "gzip", "deflate"):
            raise KlypeError(f"{self.where} packs its answer in a way that it was not asked for.", _UNUSED)
        if kind == "identity":
            yield from self.response.iter_raw()
            return
        unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either head
        for raw in self.response.iter_raw():
            while raw and not unpack.eof:
                try:
                    yield unpack.decompress(raw, LINE)
                except zlib.error:
                    raise KlypeError(f"{self.where} sends what cannot be unpacked.", _UNUSED) from None
                raw = unpack.unconsumed_tail
        yield unpack.flush()

    def _watched(self) -> _Watch:
        stream = self.response.extensions.get("network_stream")
        return _Watch(stream.get_extra_info("socket") if stream is not None else None, self._until)


class _Watch:
    """Ends a connection at the deadline: a read that waits returns at once."""

    def __init__(self, connection: socket.socket | None, until: float) -> None:
        self._timer = threading.Timer(max(0.0, until - time.monotonic()), self._end)
        self._timer.daemon = True
        self._connection = connection

    def __enter__(self) -> None:
        if self._connection is not None:
            self._timer.start()

    def __exit__(self, *failed: object) -> None:
        self._timer.cancel()

    def _end(self) -> None:
        assert self._connection is not None
        with suppress(OSError):  # it may be closed
            self._connection.shutdown(socket.SHUT_RDWR)


@dataclass(frozen=True, slots=True)
class Exchange:
    """``client`` with what goes into every request. ``where`` is how the server is called in errors."""

    client: httpx.Client
    headers: Mapping[str, str]
    auth: tuple[str, str] | None
    where: str

    def begin(
        self, method: str, url: str, body: Mapping[str, Any] | None, limits: Limits, until: float
    ) -> ResponseReader:
        """The answer's head. Raises KlypeError at the deadline, and for a redirection to another origin."""
        asked = {"Accept-Encoding": "gzip, identity", **self.headers}
        request = self.client.build_request(method, url, json=body, headers=asked)
        for _ in range(REDIRECTS + 1):
            response = self._headed(request, limits, until)
            again = response.next_request
            if again is None:
                return ResponseReader(response, limits, until, self.where)
            response.close()
            if _origin(again.url) != _origin(request.url) or again.method != request.method:
                raise KlypeError(f"{self.where} sends its clients elsewhere.", "Give the address that it means.")
            request = again
        raise KlypeError(f"{self.where} sends its clients in a circle.", "Is it the address of an API?")

    def _headed(self, request: httpx.Request, limits: Limits, until: float) -> httpx.Response:
        """In a thread of its own: a time-out of httpx is that of one read, and a head can come in a thousand."""
        found: Future[httpx.Response] = Future()

        def send() -> None:
            response, problem = None, None
            try:
                response = self.client.send(request, stream=True, auth=self.auth, follow_redirects=False)
            except BaseException as error:
                problem = error
            if found.set_running_or_notify_cancel():
                found.set_exception(problem) if response is None else found.set_result(response)
            elif response is not None:
                response.close()

        threading.Thread(target=send, daemon=True).start()
        try:
            return found.result(max(0.0, until - time.monotonic()))
        except TimeoutError:
            found.cancel()
            raise too_slow(self.where, limits) from None


def too_slow(where: str, limits: Limits) -> KlypeError:
    return KlypeError(
        f"{where} did not answer within {limits.seconds:.0f} seconds.", "Ask for less, or try again later."
    )


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)


_UNUSED = "Nothing of it is used."
