"""The studio as an ASGI app: NiceGUI's pages on a FastAPI app, behind the guard that also protects the API, and the
page that asks for the key."""

import asyncio
import copy
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, get_args
from urllib.parse import parse_qs, quote

import nicegui
from fastapi import FastAPI, Request, Response
from fastapi.exception_handlers import http_exception_handler
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Template
from nicegui import Client, ui
from nicegui.language import Language
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from klype.examine.charts import page_file
from klype.serve.guard import COOKIE, DAY_S, Guard, Rules, Sessions, digest, is_encrypted
from klype.serve.metrics import health
from klype.studio import answer, answer_paths, divergence, ranking, runs, targets
from klype.studio import elements as el
from klype.studio.studio import Studio
from klype.words import LANGUAGES, words


def way_back(visit: el.Visit) -> None:
    """The content of the error pages."""
    el.text_of("a", visit.words("back"), "k-button strong", href="/")


STYLES = ("look.css", "ranking.css", "work.css")
# The pages in the order of the menu. A new one is a file, a catalogue in each language, and a row here.
PAGES = (
    el.Page("answer", "/", "forum", answer.build, skips=True),
    el.Page("paths", "/paths", "account_tree", answer_paths.build, skips=True),
    el.Page("divergence", "/divergence", "timeline", divergence.build),
    el.Page("targets", "/targets", "ads_click", targets.build),
    el.Page("ranking", "/ranking", "format_list_numbered", ranking.build),
    el.Page("runs", "/runs", "show_chart", runs.build),
)
MISSING, BROKEN = el.Page("missing", "", "", way_back), el.Page("broken", "", "", way_back)
PATIENCE_S = 60.0  # how long a page may take to build on a busy machine
YEAR_S = 365 * 24 * 3600  # how long a browser remembers language and theme
KEY_PAGE = "/key"
WAIT_S = 0.7  # delay of every wrong key, one after the other
# A page may load nothing from other sites, and no site may frame it. (Vue compiles templates: unsafe-eval.)
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
# headers of every response (without a referrer, a browser would not tell from which site a form was sent)
HEADERS = ((b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff"),
           (b"referrer-policy", b"same-origin"), (b"cross-origin-opener-policy", b"same-origin"))  # fmt: skip


def app(studio: Studio, rules: Rules | None = None) -> ASGIApp:
    """The guarded app. NiceGUI has one app per process: make one studio only."""
    return guarded_app(pages(studio), rules or Rules())


def guarded_app(inside: Starlette, rules: Rules, wait_s: float = WAIT_S) -> ASGIApp:
    """An app behind a guard. If the rules have a key, it gets a page that asks for it and sets the session cookie that
    the guard accepts; ``wait_s``: the delay of a wrong key."""
    sessions, turn, right = Sessions(), asyncio.Lock(), digest((rules.key or "").encode())

    async def key(request: Request) -> Response:
        known = request.cookies.get(COOKIE, "")
        if request.method != "POST":
            return key_page(request, inside=sessions.holds(known))
        try:  # no form here has more fields
            form = parse_qs((await request.body()).decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=4)
        except ValueError:
            form = {}
        given, leaves = form.get("key", [""])[0].strip(), "leave" in form
        if not leaves and not hmac.compare_digest(digest(given.encode()), right):
            async with turn:
                await asyncio.sleep(wait_s)
            return key_page(request, wrong=True)
        sessions.end(known)
        answer = RedirectResponse(KEY_PAGE if leaves else "/", 303)
        if leaves:
            answer.delete_cookie(COOKIE)
        else:
            begun, secure = sessions.begin(), is_encrypted(request.scope)
            answer.set_cookie(COOKIE, begun, max_age=DAY_S, samesite="strict", httponly=True, secure=secure)
        return answer

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def more(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        await inside(scope, receive, more if scope["type"] == "http" else send)

    if rules.key is not None:
        inside.routes.insert(0, Route(KEY_PAGE, key, methods=["GET", "POST"]))
    return Guard(app, rules, sessions, login=KEY_PAGE)


def pages(studio: Studio) -> FastAPI:
    """All pages, without a guard."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        studio.stop()

    fast = FastAPI(title="klype studio", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @fast.get("/choose")
    async def choose(request: Request, to: str = "/", lang: str = "", theme: str = "") -> Response:
        """Stores language and theme in cookies, and leads back to the page ``to``."""
        known = {page.route for page in PAGES}
        response = RedirectResponse(to if to.partition("?")[0] in known else "/", 303)
        for cookie, chosen, valid in ((el.LANGUAGE_COOKIE, lang, LANGUAGES), (el.THEME_COOKIE, theme, el.THEMES)):
            if chosen in valid:
                response.set_cookie(cookie, chosen, max_age=YEAR_S, samesite="strict", httponly=True)
        return response

    @fast.get("/health")
    async def healthy() -> Response:
        """For monitoring: whether the models answer."""
        return health({model.name: model.worker for model in studio.models if model.worker is not None})

    for page in PAGES:
        ui.page(page.route, language="en-US", response_timeout=PATIENCE_S)(_builder(studio, page))

    @nicegui.app.exception_handler(404)
    async def missing(request: Request, error: HTTPException) -> Response:
        """A page for browsers, JSON for programs."""
        if "text/html" not in request.headers.get("accept", ""):
            return await http_exception_handler(request, error)
        return await instead(request, MISSING, 404)

    @nicegui.app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        """NiceGUI's error page in the visitor's language; uvicorn logs the traceback."""
        if not request.scope.get("nicegui_page_path"):
            raise error
        return await instead(request, BROKEN, 500)

    async def instead(request: Request, page: el.Page, status: int) -> Response:
        with Client(ui.page(""), request=request) as client:
            await _builder(studio, page)(request, client)
        return client.build_response(request, status)

    ui.run_with(
        fast,
        title="klype",
        favicon=el.text_file("favicon.svg"),
        dark=None,  # per visitor, see _builder
        tailwind=False,
        reconnect_timeout=30.0,  # how long a page is kept for a browser that lost its connection
        show_welcome_message=False,
        binding_refresh_interval=None,  # nothing is bound: NiceGUI need not look ten times a second
    )
    return fast


def _builder(studio: Studio, page: el.Page) -> Callable[[Request, Client], Awaitable[None]]:
    async def build(request: Request, client: Client) -> None:
        visit = el.Visit(studio, page, request)
        tag: Any = LANGUAGES[visit.lang].tag
        client.page = copy.copy(client.page)  # otherwise shared by all visitors
        client.page.language = tag if tag in get_args(Language) else "en-GB"  # NiceGUI does not have every language
        client.page.dark = {"auto": None, "light": False, "dark": True}[visit.theme]
        client.title = f"{visit.words('title')} · klype"
        ui.add_head_html(f"<script>{page_file('formats.js')}</script>")
        ui.add_head_html(f"<style>{el.theme()}\n{el.text_file(*STYLES)}</style>")
        client.page_container.default_slot.children[0].tag = "div"  # Quasar's page would be a second <main>
        with page_frame(visit):
            made = page.build(visit)
            if made is not None:
                await made

    return build


@contextmanager
def page_frame(visit: el.Visit) -> Iterator[None]:
    """Adds header, menu and title; the page's content goes inside."""
    w, frame, here = visit.words, visit.frame, visit.page
    skips = here.skips and visit.studio.models
    el.text_of(
        "a", frame("skip_message" if skips else "skip"), "k-skip", href=f"#{el.PAGE_BEGINS if skips else 'main'}"
    )
    with el.box("k-head", "header"), el.box("k-bar"):
        el.text_of("a", "klype", "k-brand", href="/")
        stop = here if here in PAGES else PAGES[0]
        nav, bar = el.box(tag="nav", aria_label=frame("pages")), {"aria_label": frame("pages_by_arrows")}
        with nav, el.box("k-nav", role="toolbar", **bar).on("keydown", js_handler=el.text_file("arrows.js")):
            for page in PAGES:
                current = {"aria-current": "page"} if page is here else {}
                with el.box(tag="a", href=page.route, tabindex=0 if page is stop else -1, **current):
                    ui.icon(page.icon)
                    el.text_of("span", words(visit.lang, f"studio_{page.name}")("title"))
        url = visit.request.url
        back = quote(str(url.path) + (f"?{url.query}" if url.query else ""))
        with el.box("k-switches"):
            for other, row in LANGUAGES.items():
                if other != visit.lang:
                    el.text_of("a", row.name, href=f"/choose?lang={other}&to={back}", lang=other, hreflang=other)
            if COOKIE in visit.request.cookies:
                el.text_of("a", frame("leave"), href=KEY_PAGE)
            (following, icon), said = el.THEMES[visit.theme], frame(f"theme_{visit.theme}")
            with el.box(tag="a", href=f"/choose?theme={following}&to={back}", aria_label=said, title=said):
                ui.icon(icon)
    with el.box("k-main", "main", id="main", tabindex="-1"):
        el.text_of("h1", w("heading"))
        el.text_of("p", w("lead"), "k-lead")
        if explained := w.section("explain"):
            with el.box("k-how", "details"):
                el.text_of("summary", frame("how"))
                for key, text in explained.items():
                    el.text_of("p", text, "k-formula" if key.startswith("formula") else "")
        yield


def key_page(request: Request, wrong: bool = False, inside: bool = False) -> HTMLResponse:
    """The page that asks for the key, again after a ``wrong`` one; a visitor who is ``inside`` can sign out."""
    page = Template(el.text_file("login.html.jinja"), autoescape=True)
    w, style = words(el.language_of(request), "studio_frame"), f"{el.theme()}{el.text_file('login.css')}"
    text = page.render(w=w, style=style, action=KEY_PAGE, wrong=wrong, inside=inside)
    return HTMLResponse(text, 401 if wrong else 200, {"cache-control": "no-store"})
