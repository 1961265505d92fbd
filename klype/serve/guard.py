"""The outermost layer of everything that klype serves: who may speak to it, how much and how long.

An ASGI middleware for HTTP and websockets. A web page that a user happens to visit must not reach a server on the
user's own machine: neither by its own name made to point here (DNS rebinding: the Host header tells) nor across
sites (Origin and Sec-Fetch-Site tell).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from klype.errors import UsageError
from klype.serve.errors import ApiError, error_body

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
OPEN = frozenset({"/health", "/metrics"})
"""Asked without a key by whoever watches the server from its own machine."""
COOKIE = "klype_session"
AUTHORITY = re.compile(r"(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
GLANCE = 0.1
"""Seconds in which what lies in the socket is read: a machine that stood still finds its limits past before it."""
PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443"}
PROXIES = re.compile(
    rb"(?i)forwarded|via|x-(forwarded|real|client|cluster-client|original)-.*|(true|cf|fastly|fly)-.*ip"
)
"""Headers by which a proxy tells for whom it asks."""


@dataclass(frozen=True, slots=True)
class Rules:
    """``hosts`` are the names that the server answers to; ``addresses``: also to any IP address (which no foreign
    name can be made to be). ``key`` None: no key is needed (on loopback only). ``origins``: other sites whose pages may
    ask, as browsers write them (https://site:port). ``seconds`` a body may take.
    """

    hosts: frozenset[str] = LOOPBACK
    addresses: bool = False
    key: str | None = None
    origins: frozenset[str] = frozenset()
    body_bytes: int = 1 << 20
    header_bytes: int = 16 << 10
    seconds: float = 8.0
    concurrent: int = 512

    @staticmethod
    def of(
        settings: ServeSettings,
        key: str | None = None,
        host: str = "127.0.0.1",
        names: Iterable[str] = (),
        origins: Iterable[str] = (),
    ) -> Rules:
        """For a server bound to ``host`` that is also reached under ``names``."""
        hosts = LOOPBACK | {name.lower() for name in (host, *names)}
        limits = (settings.body_bytes, settings.header_bytes, settings.seconds, settings.concurrent)
        return Rules(hosts, not is_loopback(host), key, frozenset(map(checked_origin, origins)), *limits)


class Guard:
    """Lets through what the rules allow, and answers everything else itself, in OpenAI's shape. ``sessions`` are those
    of browsers that have given the key."""

    def __init__(self, app: ASGIApp, rules: Rules, sessions: Sessions | None = None) -> None:
        self.app, self.rules = app, rules
        self.inside = 0  # requests that are being answered
        self._key = None if rules.key is None else digest(rules.key.encode())
        self._sessions = sessions or Sessions()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        try:
            self._check(scope)
        except ApiError as error:
            await (_close(send) if scope["type"] == "websocket" else _refuse(send, error))
            return
        self.inside += 1
        try:
            if scope["type"] == "websocket":
                await self.app(scope, self._while_allowed(scope, receive), send)
            else:
                await self._limited(scope, receive, send)
        finally:
            self.inside -= 1

    def _check(self, scope: Scope) -> None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if sum(len(name) + len(value) + 4 for name, value in headers) > self.rules.header_bytes:
            raise ApiError(f"The headers are larger than {self.rules.header_bytes} bytes.", 431)
        self._check_host(headers)
        if not self._is_allowed(headers):
            _check_origin(scope, headers)
        self._check_key(scope, headers)
        if self.inside >= self.rules.concurrent:
            raise _busy()
        lengths = _values(headers, b"content-length")
        if any(not value.isdigit() or int(value[:20]) > self.rules.body_bytes for value in lengths):
            raise self._too_large()

    def _check_host(self, headers: list[tuple[bytes, bytes]]) -> None:
        host = _authority(_values(headers, b"host"))
        if host is None or not (host[0] in self.rules.hosts or (self.rules.addresses and _is_address(host[0]))):
            raise ApiError("This host name is not one of the server's own.", 403)

    def _is_allowed(self, headers: list[tuple[bytes, bytes]]) -> bool:
        """Whether a page of a site that is let in asks."""
        origins = _values(headers, b"origin")
        return len(origins) == 1 and origins[0].decode("latin-1") in self.rules.origins

    def _while_allowed(self, scope: Scope, receive: Receive) -> Receive:
        """A websocket ends with its session: by the next message, and a browser sends one every few seconds."""

        async def heard() -> Message:
            message = await receive()
            try:
                self._check_key(scope, scope["headers"])
            except ApiError:
                return {"type": "websocket.disconnect", "code": 1008}
            return message

        return heard

    def _check_key(self, scope: Scope, headers: list[tuple[bytes, bytes]]) -> None:
        if self._key is None or (scope["path"] in OPEN and _is_near(scope, headers)):
            return
        for value in _values(headers, b"authorization"):
            scheme, _, key = value.partition(b" ")
            if scheme.lower() == b"bearer" and hmac.compare_digest(digest(key.strip()), self._key):
                return
        if any(self._sessions.holds(_cookie(value)) for value in _values(headers, b"cookie")):
            return
        raise ApiError("This server needs its API key: Authorization: Bearer KEY.", 401)

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The body is counted and timed while it comes in; what the app makes of a refused one is not sent."""
        clock = asyncio.get_running_loop().time
        end = clock() + self.rules.seconds
        received, whole, begun, glanced = 0, False, False, False
        refusal: ApiError | None = None

        async def counted() -> Message:
            nonlocal received, whole, refusal, glanced
            if whole:
                return await receive()
            coming = asyncio.ensure_future(receive())
            try:
                done, _ = await asyncio.wait([coming], timeout=end - clock())
                if not done and not glanced:
                    glanced = True
                    done, _ = await asyncio.wait([coming], timeout=GLANCE)
            finally:
                coming.cancel()
            if not done:
                refusal = ApiError(f"The request took longer than {self.rules.seconds:g} seconds to arrive.", 408)
                raise refusal
            message = coming.result()
            received += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if received > self.rules.body_bytes:
                refusal = self._too_large()
                raise refusal
            return message

        async def watched(message: Message) -> None:
            nonlocal begun
            if refusal is None or begun:
                begun = True
                await send(message)

        try:
            await self.app(scope, counted, watched)
        except Exception:
            if refusal is None or begun:
                raise
        if refusal is not None and not begun:
            await _refuse(send, refusal)

    def _too_large(self) -> ApiError:
        return ApiError(f"The body is larger than {self.rules.body_bytes} bytes.", 413)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to ``host``."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def checked_origin(text: str) -> str:
    """A site as browsers write it. UsageError for anything else: "*" and "null" would be everybody."""
    scheme, found, rest = text.lower().rstrip("/").partition("://")
    if scheme not in ("http", "https") or not found or AUTHORITY.fullmatch(rest) is None:
        raise UsageError(f"--allow-origin does not understand “{text}”.", "Write a site: https://example.org:8080.")
    return f"{scheme}://{rest.removesuffix(f':{PORTS[scheme]}')}"


def _check_origin(scope: Scope, headers: list[tuple[bytes, bytes]]) -> None:
    """What a browser sends says which site it comes from; other clients send nothing of it."""
    for origin in _values(headers, b"origin"):
        scheme, found, rest = origin.partition(b"://")
        site, host = _authority([rest]) if found else None, _authority(_values(headers, b"host"))
        known = PORTS.get(scheme.decode("latin-1").lower())
        same = site and host and known and (site[0], site[1] or known) == (host[0], host[1] or _port(scope))
        if not same:
            raise ApiError("Requests from other sites are refused.", 403)
    if any(value.lower() in (b"cross-site", b"same-site") for value in _values(headers, b"sec-fetch-site")):
        followed_link = (
            scope["type"] == "http"
            and scope["method"] == "GET"
            and _values(headers, b"sec-fetch-mode") == [b"navigate"]
            and _values(headers, b"sec-fetch-dest") == [b"document"]
        )
        if not followed_link:
            raise ApiError("Requests from other sites are refused.", 403)


def _authority(values: list[bytes]) -> tuple[str, str] | None:
    """Host (lower case, without brackets) and port ("" where none is named); None unless there is exactly one."""
    match = AUTHORITY.fullmatch(values[0].decode("latin-1")) if len(values) == 1 else None
    return None if match is None else (match.group(1).strip("[]").lower(), match.group(2) or "")


def _port(scope: Scope) -> str:
    return "443" if is_encrypted(scope) else "80"


def is_encrypted(scope: Scope) -> bool:
    """Whether the browser speaks TLS, to a proxy in front: it says so, and no page can make a browser say it."""
    proto, forwarded = (_values(scope["headers"], name) for name in (b"x-forwarded-proto", b"forwarded"))
    told = any(re.match(rb"(?i)https\b", value) for value in proto)
    told = told or any(re.match(rb'(?i)[^,]*proto="?https\b', value) for value in forwarded)
    return told or scope.get("scheme") in ("https", "wss")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_near(scope: Scope, headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether the client itself is on this machine, not a proxy for somebody else."""
    client, host = scope.get("client"), _authority(_values(headers, b"host"))
    if client is None or host is None or any(PROXIES.fullmatch(name) for name, _ in headers):
        return False
    return is_loopback(client[0]) and is_loopback(host[0])


def _values(headers: list[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value.strip() for key, value in headers if key.lower() == name]


def _cookie(header: bytes) -> str:
    try:
        found = SimpleCookie(header.decode("latin-1")).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def digest(key: bytes) -> bytes:
    """Equally long for every key, so that comparing tells nothing about its length."""
    return hashlib.sha256(key).digest()


def _busy() -> ApiError:
    error = ApiError("The server has too many requests at once. Try again later.", 429)
    error.headers = {"Retry-After": "1"}
    return error


async def _refuse(send: Send, error: ApiError) -> None:
    """The connection ends with it: what the client may still be sending is not read."""
    body = error_body(error.message, error.status, error.param, error.code)
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    raw = [(name.lower().encode(), value.encode()) for name, value in {**headers, **error.headers}.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


async def _close(send: Send) -> None:
    """Before it is accepted: the client sees 403."""
    await send({"type": "websocket.close", "code": 1008, "reason": ""})


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Limits of the API. ``batch`` samples of a model run at once, ``queue`` more may wait; beyond that: 429.

    ``n`` choices a prompt and ``samples`` a request at most. ``chat_top`` and ``completion_top`` are the alternatives
    a token may list (OpenAI's own are 20 and 5). ``seconds`` a client may take to send a request's body.
    """

    batch: int = 64
    queue: int = 256
    n: int = 128
    samples: int = 256
    chat_top: int = 20
    completion_top: int = 5
    body_bytes: int = 1 << 20
    header_bytes: int = 16 << 10
    seconds: float = 8.0
    concurrent: int = 512


DAY_S = 24 * 3600
MOST = 1000
"""At once; the oldest ends for one more."""


class Sessions:
    """Kept as digests, in memory. ``clock`` is in seconds and runs while the machine sleeps."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._ends: dict[bytes, float] = {}  # in the order of their beginnings

    def begin(self) -> str:
        """A cookie's value."""
        now = self._clock()
        self._ends = {one: end for one, end in self._ends.items() if end > now}
        while len(self._ends) >= MOST:
            del self._ends[next(iter(self._ends))]
        value = secrets.token_urlsafe(32)
        self._ends[digest(value.encode("utf-8", "replace"))] = now + DAY_S
        return value

    def holds(self, value: str) -> bool:
        return self._ends.get(digest(value.encode("utf-8", "replace")), 0.0) > self._clock()

    def end(self, value: str) -> None:
        self._ends.pop(digest(value.encode("utf-8", "replace")), None)
