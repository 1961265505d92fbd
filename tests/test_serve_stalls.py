"""Nothing that one client sends keeps the others waiting: what takes long goes on beside the event loop."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from klype.serve.app import app
from klype.serve.served_model import ServedModel
from klype.sources.source import NativeSource
from klype.text.chat import Chat
from tests.serve_toys import running, served

ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{{ messages[0].content }}"
OFTEN = 5
"""Times that somebody else is answered meanwhile; where a loop stands still it is one or two."""
LONG = "hun gikk en tur på fjellet " * 34_000
WIDE = 1 << 16
"""A window for which this text is not refused unread."""


def templated(name: str, template: str) -> ServedModel:
    one = served(name)
    codec = one.source.codec
    return ServedModel(name, NativeSource.of(one.source.engine.model, codec.tokenizer, Chat(codec.tokenizer, template)))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(app([served(window=WIDE), templated("endless", ENDLESS)])) as base:
        yield base


def meanwhile(url: str, works: list[Callable[[], httpx.Response]]) -> tuple[list[httpx.Response], int]:
    """What the works are answered, and how often /health and a short text were answered before the first of them."""
    often = 0
    with httpx.Client(base_url=url, timeout=600) as client, ThreadPoolExecutor(len(works)) as pool:
        brief = {"model": "toy", "prompt": "hun", "max_tokens": 1}
        assert client.post("/v1/completions", json=brief).status_code == 200
        going: list[Future[httpx.Response]] = [pool.submit(work) for work in works]
        while not any(one.done() for one in going):
            assert client.get("/health").status_code == 200
            assert client.post("/v1/completions", json=brief).status_code == 200
            often += not any(one.done() for one in going)
        return [one.result() for one in going], often


@pytest.mark.slow
def test_a_template_without_end_keeps_nobody_waiting(url: str) -> None:
    """Four ask at once; one process is started for all, which is ended; later ones are refused from memory."""
    body = {"model": "endless", "messages": [{"role": "user", "content": "hun"}], "max_tokens": 1}
    ask = lambda path: lambda: httpx.post(f"{url}{path}", json=body, timeout=600)
    before = os.times().children_user
    found, often = meanwhile(url, [ask("/v1/chat/completions")] * 4)
    once = os.times().children_user - before
    assert {answer.status_code for answer in found} == {400}
    assert len({answer.text for answer in found}) == 1
    assert "too much time or memory" in found[0].text
    assert often >= OFTEN
    assert 1 < once < 4  # seconds: a process is given two
    tokenized = {"model": "endless", "messages": body["messages"]}
    for _ in range(20):
        assert ask("/v1/chat/completions")().text == found[0].text
        assert httpx.post(f"{url}/tokenize", json=tokenized).text == found[0].text
    assert os.times().children_user - before == once


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/tokenize", {"prompt": LONG}),
        ("/tokenize", {"messages": [{"role": "user", "content": LONG}]}),
        ("/v1/completions", {"prompt": LONG}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": LONG}]}),
    ],
    ids=["text", "message", "completion", "chat"],
)
def test_a_long_text_keeps_nobody_waiting(url: str, path: str, sent: dict[str, Any]) -> None:
    content = json.dumps({"model": "toy", **sent}, ensure_ascii=False).encode()
    assert len(content) > 900_000
    send = lambda: httpx.post(
        f"{url}{path}", content=content, headers={"content-type": "application/json"}, timeout=600
    )
    (found,), often = meanwhile(url, [send])
    assert found.status_code == (200 if path == "/tokenize" else 400), found.text
    assert often >= OFTEN


def test_long_lists_and_bodies_are_answered_as_short_ones(url: str) -> None:
    """Beside the loop or on it: the same."""
    ids = httpx.post(f"{url}/tokenize", json={"model": "toy", "prompt": "hun gikk", "add_special_tokens": False}).json()
    long = httpx.post(f"{url}/detokenize", json={"model": "toy", "tokens": ids["tokens"] * 30_000}, timeout=600)
    assert long.json() == {"prompt": "hun gikk" * 30_000}
    for tokens in ([10**6], [10**6] * 30_000):
        refused = httpx.post(f"{url}/detokenize", json={"model": "toy", "tokens": tokens})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tokens")
    broken = b'{"model": "toy", "prompt": "' + b"x" * 100_000
    for content in (broken, broken[:50]):
        refused = httpx.post(f"{url}/tokenize", content=content, headers={"content-type": "application/json"})
        assert refused.status_code == 400
        assert "no valid JSON" in refused.json()["error"]["message"]


def test_a_message_of_many_parts_is_refused_at_its_first(url: str) -> None:
    """A body's mistakes cost no more than its parsing; sixteen parts are one text."""
    part = {"type": "text", "text": "a"}

    def ask(parts: int, messages: int) -> httpx.Response:
        said = [{"role": "user", "content": [part] * parts}] * messages
        return httpx.post(f"{url}/tokenize", json={"model": "toy", "messages": said}, timeout=600)

    whole = httpx.post(f"{url}/tokenize", json={"model": "toy", "messages": [{"role": "user", "content": "a" * 16}]})
    assert ask(16, 1).json() == whole.json()
    assert ask(17, 1).status_code == ask(256, 130).status_code == 400
