"""The studio as an app: NiceGUI's pages on our own FastAPI, behind the guard that also stands before the API."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, get_args

import nicegui
from fastapi import FastAPI, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import RedirectResponse
from nicegui import Client, ui
from nicegui.language import Language
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from klype.examine.charts import page_file
from klype.serve.guard import Rules
from klype.serve.metrics import health
from klype.studio import answer, divergence, paths, ranking, runs, targets
from klype.studio.frame import LANGUAGE_COOKIE, THEME_COOKIE, THEMES, Page, Visit, framed, text_file, theme
from klype.studio.login import Login
from klype.studio.opening import way_back
from klype.studio.studio import Studio
from klype.words import LANGUAGES

WORKING = ("look.css", "ranking.css", "work.css")
"""Styles of the pages with long work on them."""
PAGES = (
    Page("answer", "/", "forum", answer.build, skips=True),
    Page("paths", "/paths", "account_tree", paths.build, skips=True),
    Page("divergence", "/divergence", "timeline", divergence.build),
    Page("targets", "/targets", "ads_click", targets.build, WORKING),
    Page("ranking", "/ranking", "format_list_numbered", ranking.build, WORKING),
    Page("runs", "/runs", "show_chart", runs.build, WORKING),
)
"""In the order of the menu. A new page is a file, a catalogue in each language, and a row."""
MISSING = Page("missing", "", "", way_back)
"""What stands at any other address."""
BROKEN = Page("broken", "", "", way_back)
"""What stands where a page could not be made."""
PATIENCE_S = 60.0
"""What a page may take to be made: a busy machine is slow, not broken."""
YEAR_S = 365 * 24 * 3600
FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" fill="#0b5e6b"/>'
    '<path d="M10 7v18M10 18l11-9M14 15l8 10" fill="none" stroke="#faf8f3" stroke-width="3.4" '
    'stroke-linecap="round"/></svg>'
)
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
"""A page may load nothing from elsewhere, and stand in no other page. (Vue compiles templates: unsafe-eval.)"""


def app(studio: Studio, rules: Rules | None = None) -> ASGIApp:
    """The guarded app. NiceGUI has one app a process: make one studio only."""
    return Login.around(SecurityHeaders(pages(studio)), rules or Rules())


def pages(studio: Studio) -> FastAPI:
    """All pages, without a guard."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        studio.stop()

    fast = FastAPI(title="klype studio", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @fast.get("/choose")
    async def choose(request: Request, to: str = "/", lang: str = "", theme: str = "") -> Response:
        """Language and theme, kept in the browser, and back to where one was."""
        known = {page.route for page in PAGES}
        response = RedirectResponse(to if to.partition("?")[0] in known else "/", 303)
        if lang in LANGUAGES:
            response.set_cookie(LANGUAGE_COOKIE, lang, max_age=YEAR_S, samesite="strict", httponly=True)
        if theme in THEMES:
            response.set_cookie(THEME_COOKIE, theme, max_age=YEAR_S, samesite="strict", httponly=True)
        return response

    @fast.get("/health")
    async def healthy() -> Response:
        """For who watches the studio: whether its models answer."""
        return health({model.name: model.worker for model in studio.models if model.worker is not None})

    for page in PAGES:
        ui.page(page.route, language="en-US", response_timeout=PATIENCE_S)(_builder(studio, page))

    @nicegui.app.exception_handler(404)
    async def missing(request: Request, error: HTTPException) -> Response:
        """A person is led back, a program is told."""
        if "text/html" not in request.headers.get("accept", ""):
            return await http_exception_handler(request, error)
        return await instead(request, MISSING, 404)

    @nicegui.app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        """As NiceGUI has it, in the reader's language; uvicorn tells the traceback."""
        if not request.scope.get("nicegui_page_path"):
            raise error
        return await instead(request, BROKEN, 500)

    async def instead(request: Request, page: Page, status: int) -> Response:
        with Client(ui.page(""), request=request) as client:
            await _builder(studio, page)(request, client)
        return client.build_response(request, status)

    ui.run_with(
        fast,
        title="klype",
        favicon=FAVICON,
        dark=None,
        tailwind=False,
        reconnect_timeout=30.0,
        show_welcome_message=False,
        binding_refresh_interval=None,
    )
    return fast


def tag_of(lang: str) -> Any:
    """The page's language as NiceGUI has it; English where it has none for this one."""
    tag = LANGUAGES[lang].tag
    return tag if tag in get_args(Language) else "en-GB"


def _builder(studio: Studio, page: Page) -> Callable[[Request, Client], Awaitable[None]]:
    async def build(request: Request, client: Client) -> None:
        visit = Visit.of(studio, page, request)
        client.page = copy.copy(client.page)  # shared by all visitors otherwise
        client.page.language = tag_of(visit.lang)
        client.page.dark = {"auto": None, "light": False, "dark": True}[visit.theme]
        client.title = f"{visit.words('title')} · klype"
        ui.add_head_html(f"<script>{page_file('formats.js')}</script>")
        ui.add_head_html(f"<style>{theme()}\n{text_file(*page.styles)}</style>")
        client.page_container.default_slot.children[0].tag = "div"  # Quasar's page is a second <main> around ours
        with framed(visit, PAGES):
            made = page.build(visit)
            if made is not None:
                await made

    return build


class SecurityHeaders:
    """Adds to every answer what a browser is to hold it to."""

    HEADERS = ((b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff"),
               (b"referrer-policy", b"no-referrer"), (b"cross-origin-opener-policy", b"same-origin"))  # fmt: skip

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def more(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *self.HEADERS]}
            await send(message)

        await self.app(scope, receive, more if scope["type"] == "http" else send)
