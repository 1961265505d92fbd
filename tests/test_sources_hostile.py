"""A hostile server neither exhausts memory nor keeps a client for ever, over a real socket; an honest one beside it
is heard."""

from __future__ import annotations

import gzip
import json
import threading
import time
import tracemalloc
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from klype.cli import exits
from klype.cli.main import call
from klype.errors import KlypeError
from klype.sources.capabilities import Capabilities
from klype.sources.http_client import HttpClient, RetryPolicy
from klype.sources.remote import RemoteSource
from klype.sources.source import answers
from klype.values import Request
from tests.foreign_server import Handle, begin, foreign, say, send

SECONDS = 0.5
"""The deadline of an answer in these tests; how long it then takes is bounded by MOST, with room for a busy machine."""
MOST = 30.0
OFFER = Capabilities("other", "m", ("m",), chat=True)
DELTA = {"choices": [{"index": 0, "delta": {"content": "so "}, "logprobs": None, "finish_reason": None}]}
FINE = {"choices": [{"index": 0, "message": {"content": "Oslo"}, "finish_reason": "stop"}]}


def http(address: str, seconds: float = SECONDS) -> HttpClient:
    return HttpClient(address, "secret", retry=RetryPolicy(tries=2, first=0.01, seconds=seconds, per_token=0.0))


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """A hundred kilobytes that become a hundred million bytes."""
    return gzip.compress(b'{"data": [' + b"[]," * (32 << 20), 6)


def asked(address: str, seconds: float = SECONDS) -> str:
    source = RemoteSource(http(address, seconds), OFFER)
    prompt = tuple(source.codec.prompt([{"role": "user", "content": "Hi"}]))
    return source.codec.decode(answers(source, [Request(prompt, limit=8)])[0][0].tokens)


def forever(request: BaseHTTPRequestHandler, data: bytes, pause: float = 0.0, kind: str = "text/event-stream") -> None:
    begin(request, kind)
    while True:
        request.wfile.write(data)
        if pause:
            time.sleep(pause)


def head_in_drops(request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True
    request.wfile.write(b"HTTP/1.1 200 OK\r\nx: ")
    while True:
        request.wfile.write(b"x")
        time.sleep(0.01)


def chunk_in_drops(request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True
    request.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n5;x=")
    while True:
        request.wfile.write(b"x")
        time.sleep(0.01)


def endless_head(request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True
    request.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        request.wfile.write(b"x: " + b"x" * 60_000 + b"\r\n")


EVENT = f"data: {json.dumps(DELTA)}\n\n".encode()
STREAMS: dict[str, tuple[Callable[[BaseHTTPRequestHandler], None], str]] = {
    "a line without end": (lambda r: forever(r, b"data: " + b"x" * 65536), "a line of more than"),
    "comments without end": (lambda r: forever(r, b": " + b"x" * 65536 + b"\n\n"), "more than 4 MiB"),
    "comments in drops": (lambda r: forever(r, b": x\n\n", 0.01), "did not answer within"),
    "silence": (lambda r: (begin(r), time.sleep(MOST))[0], "did not answer within"),
    "text without end": (lambda r: forever(r, EVENT), "more than the 8 tokens"),
    "a head in drops": (head_in_drops, "did not answer within"),
    "a head without end": (endless_head, "did not answer in 2 tries"),
    "a chunk in drops": (chunk_in_drops, "did not answer within"),
    "no head": (lambda r: time.sleep(MOST), "did not answer within"),
    "another type": (lambda r: forever(r, b"x" * 65536, kind="text/html"), "answers with text/html"),
    "choices that are none": (lambda r: forever(r, b'data: {"choices": 5}\n\n', 0.01), "cannot be read"),
    "what is packed wrong": (lambda r: send(r, b"x" * 99, content_encoding="gzip", content_type="text/event-stream"),
                             "cannot be unpacked"),
    "what is packed in another way": (lambda r: send(r, b"x", content_encoding="br", content_type="text/event-stream"),
                                      "packs its answer"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", STREAMS)
def test_an_answer_ends_whatever_is_sent(name: str) -> None:
    attack, message = STREAMS[name]
    with foreign(lambda request, path, body: attack(request)) as address:
        began = time.monotonic()
        tracemalloc.start()
        try:
            with pytest.raises(KlypeError, match=message):
                asked(address, MOST if "drops" not in message and "within" not in message else SECONDS)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 64 << 20
        assert time.monotonic() - began < MOST


@pytest.mark.slow
@pytest.mark.parametrize("status", [200, 400, 503])
def test_a_small_answer_cannot_become_a_large_one(status: int, bomb: bytes) -> None:
    def handle(request: BaseHTTPRequestHandler, path: str, body: dict[str, Any]) -> None:
        send(request, bomb, status, content_type="application/json", content_encoding="gzip")

    with foreign(handle) as address:
        tracemalloc.start()
        try:
            with pytest.raises(KlypeError, match=r"more than 4 MiB|refused: status 400|in 2 tries"):
                http(address, MOST).probe("models")
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 32 << 20


def test_an_honest_packed_answer_is_read() -> None:
    packed = gzip.compress(json.dumps(FINE | {"long": "Å" * 500_000}).encode())
    kind = {"content_type": "application/json", "content_encoding": "gzip"}
    with foreign(lambda request, path, body: send(request, packed, **kind)) as address:
        assert http(address, MOST).probe("chat/completions", {})["choices"] == FINE["choices"]


def test_as_many_tries_are_told_as_were_made() -> None:
    """Waits that come to more than the longest end it before the last try."""
    waited: list[float] = []
    retry = RetryPolicy(tries=9, first=10.0, most=30.0, longest=35.0, sleep=waited.append)
    with (
        foreign(lambda request, path, body: say(request, {}, 503)) as address,
        pytest.raises(KlypeError, match=r"in 3 tries \(status 503\)"),
    ):
        HttpClient(address, retry=retry).probe("chat/completions", {})
    assert waited == [10.0, 20.0]


def test_redirections_stay_where_they_are() -> None:
    seen: list[str] = []

    def other(request: BaseHTTPRequestHandler, path: str, body: dict[str, Any]) -> None:
        seen.append(path)
        say(request, FINE)

    with foreign(other) as elsewhere:
        places = {
            "/v1/near": "/v1/chat/completions",
            "/v1/far": f"{elsewhere}/chat/completions",
            "/v1/circle": "/v1/circle",
            "/v1/scheme": "file:///etc/passwd",
        }

        def handle(request: BaseHTTPRequestHandler, path: str, body: dict[str, Any]) -> None:
            if path in places:
                send(request, b"", 307, location=places[path])
            else:
                assert (request.headers["authorization"], body) == ("Bearer secret", {"a": 1})
                say(request, FINE)

        with foreign(handle) as address:
            assert http(address, MOST).probe("near", {"a": 1}) == FINE
            for path, message in (("far", "elsewhere"), ("circle", "in a circle"), ("scheme", "elsewhere|in 2 tries")):
                with pytest.raises(KlypeError, match=message):
                    http(address, MOST).probe(path, {"a": 1})
    assert seen == []


@pytest.mark.slow
def test_others_are_heard_meanwhile() -> None:
    """Clients of an honest server, and of the honest answers of a hostile one, while seven others are attacked."""

    def handle(request: BaseHTTPRequestHandler, path: str, body: dict[str, Any]) -> None:
        if body.get("max_tokens") == 8:
            head_in_drops(request)
        say(request, FINE)

    with foreign(handle) as address:
        ends: list[str] = []

        def attacked() -> None:
            try:
                asked(address)
            except KlypeError as error:
                ends.append(error.message)

        clients = [threading.Thread(target=attacked) for _ in range(7)]
        for client in clients:
            client.start()
        for number in range(20):
            assert http(address, MOST).probe("chat/completions", {"a": number}) == FINE
        for client in clients:
            client.join(MOST)
        assert len(ends) == 7
        assert all("did not answer within" in end for end in ends)


@pytest.mark.slow
def test_the_command_ends(capsys: pytest.CaptureFixture[str]) -> None:
    """``klype ask`` as it is typed: comments without end once hung it."""

    def handle(request: BaseHTTPRequestHandler, path: str, body: dict[str, Any]) -> None:
        if path == "/v1/models":
            say(request, {"data": [{"id": "m"}]})
        elif body.get("stream"):
            forever(request, b": " + b"x" * 1000 + b"\n\n")
        elif path == "/v1/chat/completions":
            say(request, FINE)
        else:
            say(request, {"error": "no"}, 404)

    handling: Handle = handle
    with foreign(handling) as address:
        assert exits.exit_code(call, ["ask", address, "Hi", "--limit", "8"]) == 1
    told = capsys.readouterr().err
    assert "more than 4 MiB" in told
    assert told.count("\n") == 1
