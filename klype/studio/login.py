"""Where a key is asked for: a page with one field, which gives the browser the cookie that the guard knows.

The guard stands outside for Host, Origin, sizes and time, and once more inside for the key, so that this page itself
can be reached without one by whoever may reach the server at all.
"""

from __future__ import annotations

import asyncio
import hmac
import html
from dataclasses import replace
from urllib.parse import parse_qs

from fastapi import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from klype.serve.guard import COOKIE, DAY_S, Guard, Rules, Sessions, digest, is_encrypted
from klype.studio.frame import KEY_PAGE, language_of, text_file, theme
from klype.words import Words, words

WAIT_S = 0.7
"""Every wrong key costs this, one after the other."""


class Login:
    """``inside`` checks the key or the session that was begun here. A wrong key costs so many seconds."""

    def __init__(self, inside: ASGIApp, key: str, sessions: Sessions, wait_s: float = WAIT_S) -> None:
        self.inside, self.sessions, self.wait_s = inside, sessions, wait_s
        self._key = digest(key.encode())
        self._turn = asyncio.Lock()

    @staticmethod
    def around(app: ASGIApp, rules: Rules, wait_s: float = WAIT_S) -> ASGIApp:
        """The guarded app, with a page for the key where there is one."""
        if rules.key is None:
            return Guard(app, rules)
        sessions = Sessions()
        return Guard(Login(Guard(app, rules, sessions), rules.key, sessions, wait_s), replace(rules, key=None))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == KEY_PAGE:
            response = await self._answer(Request(scope, receive))
            await response(scope, receive, send)
            return
        await self.inside(scope, receive, self._led(scope, send) if scope["type"] == "http" else send)

    async def _answer(self, request: Request) -> Response:
        w, known = words(language_of(request), "studio_frame"), request.cookies.get(COOKIE, "")
        if request.method != "POST":
            return _page(w, inside=self.sessions.holds(known))
        given = _fields(await request.body())
        if "leave" in given:
            self.sessions.end(known)
            answer = RedirectResponse(KEY_PAGE, 303)
            answer.delete_cookie(COOKIE)
            return answer
        if not hmac.compare_digest(digest(given.get("key", "").strip().encode()), self._key):
            async with self._turn:
                await asyncio.sleep(self.wait_s)
            return _page(w, wrong=True)
        self.sessions.end(known)
        answer = RedirectResponse("/", 303)
        key, secure = self.sessions.begin(), is_encrypted(request.scope)
        answer.set_cookie(COOKIE, key, max_age=DAY_S, samesite="strict", httponly=True, secure=secure)
        return answer

    def _led(self, scope: Scope, send: Send) -> Send:
        """A person without a key is led to the page, a program is refused."""
        accepts = b" ".join(value for name, value in scope["headers"] if name.lower() == b"accept")
        if scope["method"] != "GET" or b"text/html" not in accepts:
            return send
        headers = [(b"location", KEY_PAGE.encode()), (b"content-length", b"0"), (b"cache-control", b"no-store")]
        refused = False

        async def leading(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] == 401:
                refused = True
                message = {"type": "http.response.start", "status": 303, "headers": headers}
            elif refused and message["type"] == "http.response.body":
                message = {"type": "http.response.body", "body": b"", "more_body": message.get("more_body", False)}
            await send(message)

        return leading


def _page(w: Words, wrong: bool = False, inside: bool = False) -> HTMLResponse:
    """Our own words only, escaped all the same; who is inside can leave."""

    def say(key: str) -> str:
        return html.escape(w(key))

    told = f'<p role="alert">{say("wrong_key")}</p>' if wrong else ""
    if inside:
        form = f'<h1>{say("key_title")}</h1><button name="leave" value="1">{say("leave")}</button>'
    else:
        form = (
            f'<h1>{say("key_title")}</h1>{told}<label>{say("key")}<input name="key" type="password" '
            f'autocomplete="current-password" required autofocus></label><button>{say("enter")}</button>'
        )
    text = (
        f'<!doctype html><html lang="{w.lang}"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><title>klype</title><style>{theme()}{text_file("login.css")}'
        f'</style></head><body><main><form method="post" action="{KEY_PAGE}">{form}</form></main></body></html>'
    )
    return HTMLResponse(text, 401 if wrong else 200, {"cache-control": "no-store", "x-frame-options": "DENY"})


def _fields(body: bytes) -> dict[str, str]:
    """Of a form that was sent; none where there are more than any form here has."""
    try:
        given = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=4)
    except ValueError:
        return {}
    return {name: values[0] for name, values in given.items()}
