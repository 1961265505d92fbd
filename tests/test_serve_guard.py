"""Who is let in: by Host, Origin and key; how much and how long; over HTTP and websockets."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import Message
from starlette.websockets import WebSocket

from klype.errors import UsageError
from klype.serve.app import app as serving
from klype.serve.guard import COOKIE, Guard, Rules, Sessions, is_loopback
from tests.serve_toys import ask, post, served

OWN = "localhost:8000"
HOSTILE: list[dict[str, str]] = [
    {"host": "evil.example"},
    {"host": "evil.example:8000"},
    {"host": "localhost.evil.example:8000"},
    {"host": "127.0.0.1.nip.io:8000"},
    {"host": ""},
    {"host": "localhost:8000@evil.example"},
    {"host": OWN, "origin": "http://evil.example"},
    {"host": OWN, "origin": "null"},
    {"host": OWN, "origin": "http://localhost:9000"},
    {"host": OWN, "origin": "https://localhost:8000.evil.example"},
    {"host": OWN, "origin": "file://"},
    {"host": OWN, "sec-fetch-site": "cross-site"},
    {"host": OWN, "sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"},
    {"host": "192.168.1.7:8000"},
]
FRIENDLY: list[dict[str, str]] = [
    {"host": OWN},
    {"host": "127.0.0.1:8000"},
    {"host": "[::1]:8000"},
    {"host": "LOCALHOST:1"},
    {"host": OWN, "origin": "http://localhost:8000", "sec-fetch-site": "same-origin"},
    {"host": "localhost", "origin": "http://localhost:80"},
    {"host": OWN, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"},
]


async def echo(request: Any) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


async def talk(socket: WebSocket) -> None:
    await socket.accept()
    await socket.close()


def guarded(rules: Rules | None = None, sessions: Sessions | None = None) -> Guard:
    routes = [Route("/{path:path}", echo, methods=["GET", "POST"]), WebSocketRoute("/ws", talk)]
    return Guard(Starlette(routes=routes), rules or Rules(), sessions)


async def call(app: Guard, headers: dict[str, str], kind: str = "http", path: str = "/") -> list[Message]:
    """What the app sends to one request without a body, or to one websocket's handshake."""
    sent: list[Message] = []
    coming = [{"type": "websocket.connect"} if kind == "websocket" else {"type": "http.request", "body": b""}]

    async def receive() -> Message:
        return coming.pop(0) if coming else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": kind, "method": "GET", "path": path, "headers": raw, "query_string": b"", "scheme": "http",
             "client": ("127.0.0.1", 5), "subprotocols": [], "http_version": "1.1"}  # fmt: skip
    await app(scope, receive, send)
    return sent


def status(headers: dict[str, str], rules: Rules | None = None, path: str = "/") -> int:
    return int(asyncio.run(call(guarded(rules), headers, path=path))[0]["status"])


@pytest.mark.parametrize("headers", HOSTILE, ids=str)
def test_other_sites_and_rebound_names_are_shut_out(headers: dict[str, str]) -> None:
    assert status(headers) == 403
    assert asyncio.run(call(guarded(), headers, "websocket", "/ws"))[0]["type"] == "websocket.close"


def test_two_hosts_or_none_are_shut_out() -> None:
    assert status({}) == 403
    sent = asyncio.run(call(guarded(), {"host": OWN, "Host": "evil.example"}))
    assert sent[0]["status"] == 403


@pytest.mark.parametrize("headers", FRIENDLY, ids=str)
def test_its_own_pages_and_plain_clients_come_in(headers: dict[str, str]) -> None:
    assert status(headers) == 200
    if headers.get("sec-fetch-mode") != "navigate":
        assert asyncio.run(call(guarded(), headers, "websocket", "/ws"))[0]["type"] == "websocket.accept"


def test_beyond_loopback_addresses_and_given_names_are_its_own() -> None:
    rules = Rules.of("key", "0.0.0.0", ["klype.example"])
    bearer = {"authorization": "Bearer key"}
    assert status({"host": "192.168.1.7:8000", **bearer}, rules) == 200
    assert status({"host": "klype.example", **bearer}, rules) == 200
    assert status({"host": "evil.example", **bearer}, rules) == 403
    assert status({"host": "klype.example"}, rules) == 401


def test_pages_of_sites_that_are_let_in_may_ask() -> None:
    rules = Rules.of("key", origins=["https://Notes.example", "http://localhost:9000/"])
    guarded_app = serving([served()], rules=rules)
    body = {"model": "toy", "prompt": "hvor", "max_tokens": 1, "user": "Kari"}
    key = {"authorization": "Bearer key", "sec-fetch-site": "cross-site"}
    for origin in ("https://notes.example", "http://localhost:9000"):
        sent = {"origin": origin, **key}
        wanted = {"origin": origin, "access-control-request-method": "POST",
                  "access-control-request-headers": "authorization,content-type"}  # fmt: skip
        before = ask(guarded_app, "OPTIONS", "/v1/completions", headers=wanted)  # browsers send no key with it
        assert before.status_code == 200
        assert before.headers["access-control-allow-origin"] == origin
        for stream in (False, True):
            said = post(guarded_app, "/v1/completions", json={**body, "stream": stream}, headers=sent)
            assert (said.status_code, said.headers["access-control-allow-origin"]) == (200, origin)
            assert said.headers["warning"] == '299 klype "not used: user"'
        refused = post(guarded_app, "/v1/completions", json=body, headers={"origin": origin})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, origin)  # readable there
    for headers in HOSTILE:
        if headers.get("origin") != "http://localhost:9000":
            said = post(guarded_app, "/v1/completions", json=body, headers={**headers, **key})
            assert said.status_code == 403
            assert "access-control-allow-origin" not in said.headers
    other = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    assert ask(guarded_app, "OPTIONS", "/v1/completions", headers=other).status_code == 400
    for everybody in ("*", "null", "notes.example", "https://*"):
        with pytest.raises(UsageError, match="allow_origin does not understand"):
            Rules.of(None, origins=[everybody])


def test_keys() -> None:
    rules = Rules(key="hemmelig")
    assert status({"host": OWN}, rules) == 401
    for wrong in ("", "Bearer", "Bearer ", "Bearer hemmeli", "Bearer hemmeligg", "Basic hemmelig", "hemmelig",
                  "Bearer HEMMELIG", "Bearer " + "æ" * 3000):  # fmt: skip
        assert status({"host": OWN, "authorization": wrong}, rules) == 401, wrong
    assert status({"host": OWN, "authorization": "Bearer hemmelig"}, rules) == 200
    assert status({"host": OWN, "authorization": "bearer  hemmelig "}, rules) == 200
    sessions = Sessions()
    value = sessions.begin()
    cookie = {"host": OWN, "cookie": f"a=b; {COOKIE}={value}"}
    assert asyncio.run(call(guarded(rules, sessions), cookie))[0]["status"] == 200
    assert status(cookie, rules) == 401
    for wrong in ("hemmelig", "", value[:-1], '"', "\xe6"):
        sent = asyncio.run(call(guarded(rules, sessions), {"host": OWN, "cookie": f"{COOKIE}={wrong}"}))
        assert sent[0]["status"] == 401, wrong
    assert asyncio.run(call(guarded(rules), {"host": OWN}, "websocket", "/ws"))[0]["type"] == "websocket.close"


def test_health_and_metrics_need_no_key_on_this_machine() -> None:
    rules = Rules(key="hemmelig")
    for path in ("/health", "/metrics"):
        assert status({"host": OWN}, rules, path) == 200
        for proxy in ("X-Forwarded-For", "x-forwarded-host", "x-forwarded-proto", "forwarded", "via", "x-real-ip",
                      "x-client-ip", "true-client-ip", "cf-connecting-ip", "x-original-forwarded-for"):  # fmt: skip
            assert status({"host": OWN, proxy: "8.8.8.8"}, rules, path) == 401, proxy
        public = Rules(key="hemmelig", hosts=rules.hosts | {"klype.example"})
        assert status({"host": "klype.example"}, public, path) == 401
        assert status({"host": "evil.example"}, rules, path) == 403
    for path in ("/health/", "/Health", "/health/../v1/models", "//health"):
        assert status({"host": OWN}, rules, path) == 401


def test_headers_and_bodies_have_an_end() -> None:
    rules = Rules(body_bytes=1000, header_bytes=500, seconds=0.2)
    assert status({"host": OWN, "x": "y" * 500}, rules) == 431

    async def send(body: Any) -> httpx.Response:
        transport = httpx.ASGITransport(guarded(rules))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post("/", content=body)

    async def endless() -> Any:
        for _ in range(10**6):
            yield b"x" * 100

    async def slow() -> Any:
        for _ in range(50):
            yield b"x"
            await asyncio.sleep(0.05)

    assert asyncio.run(send(b"x" * 1000)).text == "1000"
    assert asyncio.run(send(b"x" * 1001)).status_code == 413
    assert asyncio.run(send(endless())).status_code == 413
    late = asyncio.run(send(slow()))
    assert (late.status_code, late.json()["error"]["code"]) == (408, "timeout")
    assert late.headers["connection"] == "close"


@pytest.mark.parametrize("length", ["1e9", "-1", "9" * 5000, "0x10", "2000000"])
def test_a_length_that_is_no_length_is_refused_unread(length: str) -> None:
    assert status({"host": OWN, "content-length": length[:400]}) == 413


def test_too_many_at_once_are_sent_away_and_places_come_back() -> None:
    app, rules = guarded(Rules(concurrent=1)), {"host": OWN}
    app.inside = 1
    sent = asyncio.run(call(app, rules))
    assert (sent[0]["status"], dict(sent[0]["headers"])[b"retry-after"]) == (429, b"1")
    app.inside = 0
    for _ in range(3):
        assert asyncio.run(call(app, rules))[0]["status"] == 200
    assert app.inside == 0


@pytest.mark.parametrize(
    ("host", "near"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.8.8.8", True), ("0.0.0.0", False), ("::", False),
     ("192.168.0.1", False), ("example.org", False), ("", False)],
)  # fmt: skip
def test_what_only_this_machine_can_reach(host: str, near: bool) -> None:
    assert is_loopback(host) is near
