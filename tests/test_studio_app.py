"""The pages without a browser: what they show and do, in both languages; and who is let in."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import pytest
from nicegui import ElementFilter, ui
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from klype.examine.say import visible
from klype.serve.guard import COOKIE, Guard, Rules, Sessions
from klype.studio.app import PAGES, guarded_app
from klype.studio.fields import Check, Select, Slider, TextArea
from klype.studio.tokens import Tokens
from klype.words import LANGUAGES, words
from tests.studio_toys import model, studio, visiting


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One studio for all: NiceGUI has one app a process."""
    made = studio(tmp_path_factory.mktemp("studio"), model("toy/base", 1), model("toy/align", 2))
    with visiting(made) as (run, user):
        yield run, user


def find(user: Any, kind: type) -> list[Any]:
    with user:
        return list(ElementFilter(kind=kind))


def texts(user: Any) -> str:
    return "\n".join(str(element._text) for element in user.client.elements.values() if element._text)


def send(user: Any, element: Any, event: str, args: Any = None) -> None:
    """What a browser would send."""
    with user:
        for listener in list(element._event_listeners.values()):
            if listener.type == event:
                from nicegui.events import GenericEventArguments, handle_event

                handle_event(listener.handler, GenericEventArguments(sender=element, client=user.client, args=args))


def press(user: Any, name: str) -> None:
    (button,) = [e for e in user.client.elements.values() if e.tag == "button" and e._text == name and e.visible]
    send(user, button, "click")


async def sent_to(user: Any, element: Any, event: str, args: Any) -> None:
    send(user, element, event, args)
    await asyncio.sleep(0)


async def pressed(user: Any, name: str) -> None:
    press(user, name)
    await asyncio.sleep(0.1)


async def until(met: Any) -> None:
    for _ in range(600):
        if met():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen")


@pytest.mark.parametrize("lang", ["en", "nb"])
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_page_opens_in_both_languages(place: Any, page: Any, lang: str) -> None:
    run, user = place
    user.http_client.headers["accept-language"] = lang
    run(user.open(page.route))
    w, shown = words(lang, f"studio_{page.name}"), texts(user)
    assert w("heading") in shown
    for text in w.section("explain").values():
        assert text in shown
    assert user.client.title.startswith(w("title"))
    for other in PAGES:
        assert words(lang, f"studio_{other.name}")("title") in shown
    assert [e.tag for e in user.client.elements.values() if e.tag in ("main", "q-page")] == ["main"]
    html = run(user.http_client.get(page.route)).text
    assert f'lang="{"nb-NO" if lang == "nb" else "en-GB"}"' in html


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_page_that_cannot_be_made_says_so_in_the_readers_language(
    place: Any, monkeypatch: pytest.MonkeyPatch, lang: str
) -> None:
    run, user = place

    def fail(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr("klype.studio.elements.card", fail)

    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(user.http_client._transport.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/targets", headers={"accept-language": lang})

    answer = run(get())
    assert answer.status_code == 500
    assert words(lang, "studio_broken")("heading") in answer.text
    assert "secret" not in answer.text


def test_who_watches_the_studio_is_told_of_its_models(place: Any) -> None:
    run, user = place
    assert run(user.http_client.get("/health")).json() == {"status": "ok"}


def test_language_and_theme_are_chosen_and_lead_back(place: Any) -> None:
    run, user = place
    for to, back in (("/paths", "/paths"), ("/?c=1", "/?c=1"), ("https://evil.example", "/"), ("//evil.example", "/"),
                     ("/nowhere", "/")):  # fmt: skip
        answer = run(user.http_client.get("/choose", params={"lang": "nb", "theme": "dark", "to": to}))
        assert (answer.status_code, answer.headers["location"]) == (303, back)
    cookies = answer.headers.get_list("set-cookie")
    assert any("klype_lang=nb" in c and "SameSite=strict" in c for c in cookies)
    assert any("klype_theme=dark" in c for c in cookies)
    odd = run(user.http_client.get("/choose", params={"lang": "<x>", "theme": "x", "to": "/"}))
    assert "set-cookie" not in odd.headers
    user.http_client.cookies.clear()


def test_a_question_is_answered_forked_and_looked_at(place: Any) -> None:
    run, user = place
    user.http_client.headers["accept-language"] = "en"
    run(user.open("/"))
    w = words("en", "studio_answer")
    for check in find(user, Check)[:2]:
        send(user, check.input, "change", True)
    hostile = "<script>alert(1)</script> \u202e hvor gikk hun?"
    area = find(user, TextArea)[0]

    async def ask() -> None:
        send(user, area.input, "keydown", hostile)
        await until(lambda: len(find(user, Tokens)) == 2 and not any(t._props["busy"] for t in find(user, Tokens)))

    run(ask())
    assert area.value == ""
    assert visible(hostile) in texts(user)
    assert "\u202e" not in texts(user)
    tokens = find(user, Tokens)[0]
    assert w("passes", n="").strip() in texts(user)

    async def look() -> None:
        send(user, tokens, "pick", 1)
        await until(lambda: bool(find(user, ui.echart)))

    run(look())
    chart = find(user, ui.echart)[0]
    before = chart.options["series"][1]["data"]
    assert len(chart.options["series"]) == 2
    slider = find(user, Slider)[0]
    send(user, slider.input, "input", "0")
    after = chart.options["series"][1]["data"]
    assert after != before
    assert sorted(after)[-1] == 1.0
    assert sum(after) == 1.0
    *listed, rest = chart.options["series"][0]["data"]
    assert listed == sorted(listed, reverse=True)
    assert sum(listed) + rest == pytest.approx(1)

    async def fork() -> None:
        (fold,) = [e for e in user.client.elements.values() if e.tag == "details" and "k-fold" in e._classes
                   and any(heard.type == "toggle" for heard in e._event_listeners.values())]  # fmt: skip
        assert w("take") not in texts(user)
        send(user, fold, "toggle", True)
        buttons = [e for e in user.client.elements.values() if e.tag == "button" and e._text == w("take")]
        send(user, buttons[0], "click")
        await until(lambda: w("first_way") in texts(user) and not any(t._props["busy"] for t in find(user, Tokens)))

    run(fork())
    ways = [e for e in user.client.elements.values() if e.tag == "button" and "aria-pressed" in e._props]
    assert [e._props["aria-pressed"] for e in ways] == ["false", "true"]
    send(user, ways[0], "click")
    assert w("window", model="toy/base", n="", of="").split()[1] in texts(user)


@pytest.mark.parametrize("sent", [None, "x", "nan", "1e999", [], {"a": 1}, "-5", "99"])
def test_a_browser_may_send_anything(place: Any, sent: Any) -> None:
    run, user = place
    run(user.open("/"))
    for slider in find(user, Slider):
        send(user, slider.input, "input", sent)
        assert slider.low <= slider.value <= slider.high
    for choice in find(user, Select):
        run(sent_to(user, choice.input, "change", sent))
        assert choice.value in choice.options
    for text in find(user, TextArea):
        send(user, text.input, "input", sent)
        assert isinstance(text.value, str)


def test_an_unsaid_question_is_no_question(place: Any) -> None:
    run, user = place
    run(user.open("/"))
    run(pressed(user, words("en", "studio_answer")("send")))
    assert not find(user, Tokens)
    run(user.open("/paths"))
    run(pressed(user, words("en", "studio_paths")("ask")))
    assert not find(user, ui.echart)


def test_a_text_is_cut_into_its_tokens(place: Any) -> None:
    run, user = place
    run(user.open("/"))
    text = find(user, TextArea)[1]
    send(user, text.input, "input", "hvor gikk hun? <b>🙂")
    run(pressed(user, words("en", "studio_answer")("cut")))
    ids = model().opened.encode_text("hvor gikk hun? <b>🙂")
    assert f"{len(ids)} tokens of 19 characters" in texts(user)


def test_paths_are_drawn_and_redrawn_at_another_temperature(place: Any) -> None:
    run, user = place
    run(user.open("/paths"))
    w = words("en", "studio_paths")
    area, sliders = find(user, TextArea)[0], find(user, Slider)
    send(user, sliders[0].input, "input", "16")
    send(user, sliders[2].input, "input", "4")

    async def ask() -> None:
        send(user, area.input, "keydown", "hvor gikk hun?")
        await until(lambda: len(find(user, ui.echart)) == 2)

    run(ask())
    assert "16 answers" in texts(user)
    assert w("meanings") in texts(user)
    flow = find(user, ui.echart)[0].options["series"][0]
    assert flow["data"][0]["value"] == 1.0
    first = find(user, ui.echart)[0]

    async def colder() -> None:
        send(user, sliders[1].input, "change", "0")
        await until(lambda: find(user, ui.echart) and find(user, ui.echart)[0] is not first
                    and w("flow_one", n="16") in texts(user))  # fmt: skip

    run(colder())


def test_the_formula_follows_its_sliders(place: Any) -> None:
    run, user = place
    run(user.open("/divergence"))
    assert "99.900%" not in texts(user)
    chart, (s, n, _, *_) = find(user, ui.echart)[0], find(user, Slider)
    send(user, s.input, "input", "2")
    send(user, n.input, "input", "69")
    assert chart.options["series"][0]["data"][-1] == [69, pytest.approx(0.99**69)]
    assert "50.0%" in texts(user)
    press(user, words("en", "studio_divergence")("formula_example"))
    assert "99.900%" in texts(user)
    assert chart.options["series"][0]["data"][-1][1] == pytest.approx(0.999, abs=1e-3)


@pytest.mark.slow
def test_an_examination_that_fails_says_so(place: Any) -> None:
    run, user = place
    run(user.open("/divergence"))

    async def go() -> None:
        press(user, words("en", "studio_divergence")("go"))
        await until(lambda: "It failed" in texts(user))

    run(go())


async def echo(request: Any) -> PlainTextResponse:
    return PlainTextResponse("in")


def client(rules: Rules) -> httpx.AsyncClient:
    app = guarded_app(Starlette(routes=[Route("/{path:path}", echo)]), rules, wait_s=0.01)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


def test_the_door() -> None:
    async def go() -> None:
        async with client(Rules(key="hemmelig")) as browser:
            page = {"accept": "text/html"}
            led = await browser.get("/", headers=page)
            assert (led.status_code, led.headers["location"]) == (303, "/key")
            assert (await browser.get("/")).status_code == 401
            assert (await browser.post("/", headers=page)).status_code == 401
            for method in ("PUT", "DELETE", "OPTIONS"):  # each would be a page, and kept for a minute
                assert (await browser.request(method, "/key", headers=page)).status_code in (303, 401)
            asked = await browser.get("/key", headers={**page, "accept-language": "nb"})
            assert asked.status_code == 200
            assert asked.headers["referrer-policy"] == "same-origin"  # without any its form would come from nowhere
            assert "Nøkkel" in asked.text
            assert "hemmelig" not in asked.text
            for wrong in ("", "hemmeli", "HEMMELIG", "æ", "x" * 5000):
                refused = await browser.post("/key", data={"key": wrong})
                assert refused.status_code == 401
                assert "set-cookie" not in refused.headers
            welcome = await browser.post("/key", data={"key": " hemmelig "})
            assert (welcome.status_code, welcome.headers["location"]) == (303, "/")
            cookie = welcome.headers["set-cookie"]
            assert cookie.startswith(f"{COOKIE}=")
            assert "Secure" not in cookie
            assert "Max-Age=86400" in cookie
            assert "HttpOnly" in cookie
            assert "SameSite=strict" in cookie
            assert (await browser.get("/", headers=page)).text == "in"
            for foreign in ({"host": "evil.example"}, {"origin": "http://evil.example"}):
                for path in ("/key", "/"):
                    assert (await browser.get(path, headers=foreign)).status_code == 403
            stolen = {"cookie": cookie.partition(";")[0]}
            assert 'name="leave"' in (await browser.get("/key", headers=page)).text
            left = await browser.post("/key", data={"leave": "1"})
            assert (left.status_code, left.headers["location"]) == (303, "/key")
            assert not browser.cookies
            assert (await browser.get("/", headers=stolen)).status_code == 401

    asyncio.run(go())


def test_behind_tls_the_cookie_goes_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy has TLS, and tells; a browser sends the Origin along."""
    rules = replace(Rules(key="hemmelig"), hosts=frozenset({"klype.example"}))
    site = {"host": "klype.example", "origin": "https://klype.example"}

    async def go() -> None:
        for told in ({"x-forwarded-proto": "https"}, {"forwarded": "for=8.8.8.8;proto=https"}):
            async with client(rules) as browser:
                welcome = await browser.post("/key", data={"key": "hemmelig"}, headers={**site, **told})
                assert welcome.status_code == 303
                assert "Secure" in welcome.headers["set-cookie"]
        async with client(rules) as browser:
            assert (await browser.post("/key", data={"key": "hemmelig"}, headers=site)).status_code == 403

    asyncio.run(go())


@pytest.mark.parametrize("body", ["a=1&b=2&c=3&d=4&key=hemmelig", "&".join(["key=hemmelig"] * 9), "%ff=%fe&;=&&&&&&",
                                  "key=" + "hemmelig" * 9000, "leave=", "", "\x00"])  # fmt: skip
def test_any_form_may_be_sent_to_the_door(body: str) -> None:
    async def go() -> None:
        async with client(Rules(key="hemmelig")) as browser:
            answer = await browser.post("/key", content=body)
            assert answer.status_code == (303 if body == "leave=" else 401)
            assert (await browser.get("/")).status_code == 401

    asyncio.run(go())


def test_sessions_end_after_a_day_and_when_there_are_too_many() -> None:
    now = [1e9]
    sessions = Sessions(lambda: now[0])
    first, second = sessions.begin(), sessions.begin()
    assert first != second
    now[0] += 24 * 3600 - 1
    assert sessions.holds(first)
    assert not any(sessions.holds(other) for other in ("", first[:-1], first + "x", "æ\ud800"))
    now[0] += 1
    assert not sessions.holds(first)
    many = [sessions.begin() for _ in range(1500)]
    assert [sessions.holds(one) for one in many] == [False] * 500 + [True] * 1000


def test_a_websocket_ends_with_its_session() -> None:
    """What was open when its owner left the studio hears nothing more."""
    sessions, heard = Sessions(), list[str]()
    value = sessions.begin()

    async def listen(scope: Scope, receive: Receive, send: Send) -> None:
        while (message := await receive())["type"] == "websocket.receive":
            heard.append(message["text"])
            if len(heard) == 3:
                sessions.end(value)

    async def receive() -> Message:
        return {"type": "websocket.receive", "text": "news"}

    async def send(message: Message) -> None:
        pass

    headers = [(b"host", b"localhost"), (b"cookie", f"{COOKIE}={value}".encode())]
    scope = {"type": "websocket", "path": "/ws", "headers": headers, "scheme": "ws", "client": ("127.0.0.1", 5)}
    asyncio.run(Guard(listen, Rules(key="hemmelig"), sessions)(scope, receive, send))
    assert heard == ["news"] * 3


def test_without_a_key_there_is_no_door_and_pages_keep_to_themselves() -> None:
    async def go() -> None:
        async with client(Rules()) as browser:
            answer = await browser.get("/")
            assert answer.text == "in"
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
            assert "default-src 'self'" in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert (await browser.get("/", headers={"host": "evil.example"})).status_code == 403

    asyncio.run(go())


def test_pages_and_their_words_belong_together() -> None:
    assert len({page.route for page in PAGES}) == len({page.name for page in PAGES}) == len(PAGES)
