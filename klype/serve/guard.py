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
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import chain

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from klype.errors import UsageError
from klype.serve.api_errors import ApiError

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
OPEN = ("/health", "/metrics")  # asked without a key by whoever watches the server from its own machine
COOKIE = "klype_session"
AUTHORITY = re.compile(r"(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
# seconds in which what lies in the socket is read: a machine that stood still finds its limits past before it
GLANCE = 0.1
PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443"}
# headers by which a proxy tells for whom it asks
PROXIES = re.compile(r"forwarded|via|x-(forwarded|real|client|cluster-client|original)-.*|(true|cf|fastly|fly)-.*ip")
DAY_S = 24 * 3600
SESSIONS = 1000  # at once; the oldest ends for one more


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Limits of the API. ``batch`` samples of a model run at once, ``queue`` more may wait; beyond that: 429.

    ``n`` choices a prompt and ``samples`` a request at most. ``chat_top`` and ``completion_top`` are the alternatives
    a token may list (OpenAI's own are 20 and 5).
    """

    batch: int = 64
    queue: int = 256
    n: int = 128
    samples: int = 256
    chat_top: int = 20
    completion_top: int = 5


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
    def of(key: str | None, host: str = "127.0.0.1", names: Iterable[str] = (), origins: Iterable[str] = ()) -> Rules:
        """For a server bound to ``host`` that is also reached under ``names``."""
        hosts = LOOPBACK | {name.lower() for name in (host, *names)}
        return Rules(hosts, not is_loopback(host), key, frozenset(map(origin_of, origins)))


class Guard:
    """Lets through what the rules allow, and answers everything else itself, in OpenAI's shape. ``sessions`` are those
    of browsers that have given the key on the page ``login``, to which they are led for it."""

    def __init__(self, app: ASGIApp, rules: Rules, sessions: Sessions | None = None, login: str = "") -> None:
        self.app, self.rules, self.login = app, rules, login
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
            if scope["type"] == "websocket":  # before it is accepted: the client sees 403
                await send({"type": "websocket.close", "code": 1008, "reason": ""})
            elif error.status == 401 and self.login and _is_person(scope):
                await RedirectResponse(self.login, 303, {"cache-control": "no-store"})(scope, receive, send)
            else:
                await _refuse(send, error)
            return

        async def while_allowed() -> Message:
            """A websocket ends with its session: by the next message, and a browser sends one every few seconds."""
            message = await receive()
            try:
                self._check_key(scope, headers_of(scope))
            except ApiError:
                return {"type": "websocket.disconnect", "code": 1008}
            return message

        self.inside += 1
        try:
            if scope["type"] == "websocket":
                await self.app(scope, while_allowed, send)
            else:
                await self._limited(scope, receive, send)
        finally:
            self.inside -= 1

    def _check(self, scope: Scope) -> None:
        if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > self.rules.header_bytes:
            raise ApiError(f"The headers are larger than {self.rules.header_bytes} bytes.", 431)
        headers = headers_of(scope)
        host = _authority(headers.getlist("host"))
        if host is None or not (host[0] in self.rules.hosts or (self.rules.addresses and _address(host[0]))):
            raise ApiError("This host name is not one of the server's own.", 403)
        origins = headers.getlist("origin")
        if len(origins) != 1 or origins[0] not in self.rules.origins:  # pages of sites that are let in may ask
            _check_origin(scope, headers, host)
        self._check_key(scope, headers)
        if self.inside >= self.rules.concurrent:
            raise ApiError("The server has too many requests at once. Try again later.", 429, retry_after=1)
        lengths = headers.getlist("content-length")
        if any(not re.fullmatch("[0-9]+", one) or int(one[:20]) > self.rules.body_bytes for one in lengths):
            raise self._too_large()

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        if self._key is None or (scope["path"] in OPEN and _is_near(scope, headers)):
            return
        # only what the page of the key answers: all else of that path would be built as any page is
        if self.login and scope["path"] == self.login and scope.get("method") in ("GET", "HEAD", "POST"):
            return
        for value in headers.getlist("authorization"):
            scheme, _, key = value.partition(" ")
            if scheme.lower() == "bearer" and hmac.compare_digest(digest(key.strip().encode("latin-1")), self._key):
                return
        if not self._sessions.holds(HTTPConnection(scope).cookies.get(COOKIE, "")):
            raise ApiError("This server needs its API key: Authorization: Bearer KEY.", 401)

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The body is counted and timed while it comes in; what the app makes of a refused one is not sent."""
        clock = asyncio.get_running_loop().time
        end, glances = clock() + self.rules.seconds, iter([GLANCE])
        received, whole, begun = 0, False, False
        refusal: ApiError | None = None

        async def counted() -> Message:
            nonlocal received, whole, refusal
            if whole:
                return await receive()
            coming = asyncio.ensure_future(receive())
            try:
                for wait_s in chain([end - clock()], glances):
                    if (await asyncio.wait([coming], timeout=wait_s))[0]:
                        break
                else:
                    refusal = ApiError(f"The request took longer than {self.rules.seconds:g} seconds to arrive.", 408)
                    raise refusal
            finally:
                coming.cancel()
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
    address = _address(host.strip("[]"))
    return host.lower() == "localhost" or (address is not None and address.is_loopback)


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def origin_of(text: str) -> str:
    """A site as browsers write it. UsageError for anything else: "*" and "null" would be everybody."""
    scheme, found, rest = text.lower().rstrip("/").partition("://")
    if scheme not in ("http", "https") or not found or AUTHORITY.fullmatch(rest) is None:
        raise UsageError(f"--allow-origin does not understand “{text}”.", "Write a site: https://example.org:8080.")
    return f"{scheme}://{rest.removesuffix(f':{PORTS[scheme]}')}"


def headers_of(scope: Scope) -> Headers:
    return Headers(raw=[(name.lower(), value.strip()) for name, value in scope["headers"]])


def _check_origin(scope: Scope, headers: Headers, host: tuple[str, str]) -> None:
    """What a browser sends says which site it comes from; other clients send nothing of it."""
    own = host[0], host[1] or ("443" if is_encrypted(scope) else "80")
    refused = False
    for origin in headers.getlist("origin"):
        scheme, _, rest = origin.partition("://")
        site, port = _authority([rest]), PORTS.get(scheme.lower())
        refused = refused or site is None or port is None or (site[0], site[1] or port) != own
    if {site.lower() for site in headers.getlist("sec-fetch-site")} & {"cross-site", "same-site"}:
        told = [headers.getlist(f"sec-fetch-{name}") for name in ("mode", "dest")]
        followed_link = scope["type"] == "http" and scope["method"] == "GET" and told == [["navigate"], ["document"]]
        refused = refused or not followed_link
    if refused:
        raise ApiError("Requests from other sites are refused.", 403)


def _authority(values: list[str]) -> tuple[str, str] | None:
    """Host (lower case, without brackets) and port ("" where none is named); None unless there is exactly one."""
    match = AUTHORITY.fullmatch(values[0]) if len(values) == 1 else None
    return None if match is None else (match.group(1).strip("[]").lower(), match.group(2) or "")


def is_encrypted(scope: Scope) -> bool:
    """Whether the browser speaks TLS, to a proxy in front: it says so, and no page can make a browser say it."""
    headers = headers_of(scope)
    told = any(re.match(r"(?i)https\b", value) for value in headers.getlist("x-forwarded-proto"))
    told = told or any(re.match(r'(?i)[^,]*proto="?https\b', value) for value in headers.getlist("forwarded"))
    return told or scope.get("scheme") in ("https", "wss")


def _is_person(scope: Scope) -> bool:
    """Whether somebody waits for a page."""
    return scope["method"] == "GET" and "text/html" in headers_of(scope).get("accept", "")


def _is_near(scope: Scope, headers: Headers) -> bool:
    """Whether the client itself is on this machine, not a proxy for somebody else."""
    client, host = scope.get("client"), _authority(headers.getlist("host"))
    if client is None or host is None or any(map(PROXIES.fullmatch, headers.keys())):
        return False
    return is_loopback(client[0]) and is_loopback(host[0])


def digest(key: bytes) -> bytes:
    """Equally long for every key, so that comparing tells nothing about its length."""
    return hashlib.sha256(key).digest()


async def _refuse(send: Send, error: ApiError) -> None:
    """The connection ends with it: what the client may still be sending is not read."""
    response = error.response()
    response.headers["connection"] = "close"
    await send({"type": "http.response.start", "status": error.status, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body})


class Sessions:
    """Kept as digests, in memory. ``clock`` is in seconds and runs while the machine sleeps."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._ends: dict[bytes, float] = {}  # in the order of their beginnings

    def begin(self) -> str:
        """A cookie's value."""
        now = self._clock()
        self._ends = {one: end for one, end in self._ends.items() if end > now}
        while len(self._ends) >= SESSIONS:
            del self._ends[next(iter(self._ends))]
        value = secrets.token_urlsafe(32)
        self._ends[digest(value.encode())] = now + DAY_S
        return value

    def holds(self, value: str) -> bool:
        return self._ends.get(digest(value.encode("utf-8", "replace")), 0.0) > self._clock()

    def end(self, value: str) -> None:
        self._ends.pop(digest(value.encode("utf-8", "replace")), None)
