"""The outermost ASGI middleware of server and studio: access control, and limits on size and time.

A web page that a user visits must not reach a server on the user's own machine: neither by a host name of its own that
resolves to this machine (DNS rebinding, seen by the Host header) nor across sites (Origin and Sec-Fetch-Site).
"""

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
OPEN = ("/health", "/metrics")  # need no key when they are requested from this machine
COOKIE = "klype_session"
AUTHORITY = re.compile(r"(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
# seconds after the deadline for what is already in the socket: a process that was suspended has not read it yet
GLANCE = 0.1
PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443"}
# headers in which a proxy names its client
PROXIES = re.compile(r"forwarded|via|x-(forwarded|real|client|cluster-client|original)-.*|(true|cf|fastly|fly)-.*ip")
DAY_S = 24 * 3600
SESSIONS = 1000  # at once; one more ends the oldest


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Limits of the API. ``batch``: samples of a model that run at once; ``queue``: that wait, more get status 429.

    ``n``: choices per prompt; ``samples``: choices per request; ``chat_top``, ``completion_top``: alternatives per
    token (as in OpenAI's API)."""

    batch: int = 64
    queue: int = 256
    n: int = 128
    samples: int = 256
    chat_top: int = 20
    completion_top: int = 5


@dataclass(frozen=True, slots=True)
class Rules:
    """Who may send requests, and how large and slow they may be.

    ``hosts``: accepted Host names; ``addresses``: any IP address is accepted as well (it cannot be rebound). ``key``
    None: no key is needed (on loopback only). ``origins``: other sites whose pages may send requests, as browsers write
    them (https://site:port). ``seconds``: the time that a body may take. ``concurrent``: requests at once.
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
    def of(key: str | None, host: str = "127.0.0.1", names: Iterable[str] = (), origins: Iterable[str] = ()) -> "Rules":
        """The rules of a server bound to ``host`` that is also reached as ``names``."""
        hosts = LOOPBACK | {name.lower() for name in (host, *names)}
        return Rules(hosts, not is_loopback(host), key, frozenset(map(origin_of, origins)))


class Guard:
    """Middleware that passes on what the rules allow and refuses the rest with OpenAI's errors. ``login``: the page to
    which browsers without a key are redirected; ``sessions``: those of browsers that have given the key there."""

    def __init__(self, app: ASGIApp, rules: Rules, sessions: "Sessions | None" = None, login: str = "") -> None:
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
            if scope["type"] == "websocket":  # closed before it is accepted: the client sees 403
                await send({"type": "websocket.close", "code": 1008, "reason": ""})
            elif error.status == 401 and self.login and _is_person(scope):
                await RedirectResponse(self.login, 303, {"cache-control": "no-store"})(scope, receive, send)
            else:
                await _refuse(send, error)
            return

        async def while_allowed() -> Message:
            """Closes a websocket whose session has ended at its next message; browsers send one every few seconds."""
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
                await self._with_limits(scope, receive, send)
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
        if len(origins) != 1 or origins[0] not in self.rules.origins:
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
        # only the methods of the login page: the app would answer others at this path as it does any page
        if self.login and scope["path"] == self.login and scope.get("method") in ("GET", "HEAD", "POST"):
            return
        for value in headers.getlist("authorization"):
            scheme, _, key = value.partition(" ")
            if scheme.lower() == "bearer" and hmac.compare_digest(digest(key.strip().encode("latin-1")), self._key):
                return
        if not self._sessions.holds(HTTPConnection(scope).cookies.get(COOKIE, "")):
            raise ApiError("This server needs its API key: Authorization: Bearer KEY.", 401)

    async def _with_limits(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the app with limits on the body's size and time; the app's response to a refused body is not sent."""
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
    """A site as browsers write it in Origin. Raises UsageError for anything else, such as "*" and "null"."""
    scheme, found, rest = text.lower().rstrip("/").partition("://")
    if scheme not in ("http", "https") or not found or AUTHORITY.fullmatch(rest) is None:
        raise UsageError(f"--allow-origin does not understand “{text}”.", "Write a site: https://example.org:8080.")
    return f"{scheme}://{rest.removesuffix(f':{PORTS[scheme]}')}"


def headers_of(scope: Scope) -> Headers:
    return Headers(raw=[(name.lower(), value.strip()) for name, value in scope["headers"]])


def _check_origin(scope: Scope, headers: Headers, host: tuple[str, str]) -> None:
    """Raises ApiError for a request that a browser sends on behalf of another site; other clients name no site."""
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
    """Host (lower case, without brackets) and port ("" if there is none); None unless there is exactly one value."""
    match = AUTHORITY.fullmatch(values[0]) if len(values) == 1 else None
    return None if match is None else (match.group(1).strip("[]").lower(), match.group(2) or "")


def is_encrypted(scope: Scope) -> bool:
    """Whether the client uses TLS, also to a proxy that says so; no web page can make a browser send these headers."""
    headers = headers_of(scope)
    told = any(re.match(r"(?i)https\b", value) for value in headers.getlist("x-forwarded-proto"))
    told = told or any(re.match(r'(?i)[^,]*proto="?https\b', value) for value in headers.getlist("forwarded"))
    return told or scope.get("scheme") in ("https", "wss")


def _is_person(scope: Scope) -> bool:
    """Whether a browser requests a page."""
    return scope["method"] == "GET" and "text/html" in headers_of(scope).get("accept", "")


def _is_near(scope: Scope, headers: Headers) -> bool:
    """Whether the client is on this machine and is no proxy."""
    client, host = scope.get("client"), _authority(headers.getlist("host"))
    if client is None or host is None or any(map(PROXIES.fullmatch, headers.keys())):
        return False
    return is_loopback(client[0]) and is_loopback(host[0])


def digest(key: bytes) -> bytes:
    """A hash of a key: comparing hashes reveals nothing about the key's length."""
    return hashlib.sha256(key).digest()


async def _refuse(send: Send, error: ApiError) -> None:
    """Sends an error and closes the connection, so that the rest of the body is not read."""
    response = error.response()
    response.headers["connection"] = "close"
    await send({"type": "http.response.start", "status": error.status, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body})


class Sessions:
    """Browser sessions, in memory, by the hash of their cookie. ``clock``: in seconds, also counting suspended time."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._ends: dict[bytes, float] = {}  # oldest first

    def begin(self) -> str:
        """Begins a session and returns its cookie."""
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
