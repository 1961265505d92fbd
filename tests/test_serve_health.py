"""/health is answered at once whatever others send: the laws that make it so, and, as a soak, how long it takes."""

from __future__ import annotations

import gc
import json
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klype.cli.serve import Endpoint
from klype.model import checkpoint
from klype.serve.app import LARGE, app
from klype.serve.guard import Rules
from klype.serve.responses import _in_turns
from klype.serve.server import listen, server
from klype.serve.worker import AT_ONCE
from tests.health import ATTACKS, TEXT, polled
from tests.serve_toys import running, served
from tests.test_serve_stalls import ENDLESS

MAX_MS = 100
SECONDS = 8.0


def sent(url: str, name: str) -> httpx.Response:
    path, content = ATTACKS[name]()
    assert LARGE <= len(content) <= 1 << 20
    return httpx.post(f"{url}{path}", content=content, headers={"content-type": "application/json"}, timeout=600)


def test_while_it_serves_the_collector_leaves_alone_what_was_loaded_and_what_is_read() -> None:
    """Else one look through all of it takes .2 s, in which nobody is answered; a body of lists made it look often."""
    socket, before = listen("127.0.0.1", 0), (gc.get_threshold(), sys.getswitchinterval(), gc.get_freeze_count())
    address = Endpoint("127.0.0.1", None, socket)
    ours, loaded = server(app([served("m")]), Rules()), len(gc.get_objects())
    found: dict[str, int] = {}

    def visit() -> None:
        try:
            with httpx.Client(base_url=address.url, timeout=600) as client:
                client.get("/health")
                found["tracked"], old = len(gc.get_objects()), gc.get_stats()[2]["collections"]
                assert sent(address.url.rstrip("/"), "340,000 empty lists").status_code == 400
                found["old"] = gc.get_stats()[2]["collections"] - old
        finally:
            ours.should_exit = True

    ending = signal.getsignal(signal.SIGTERM)
    visitor = threading.Thread(target=visit)
    visitor.start()
    try:
        address.run(ours, lambda: found.update(interrupted=1))
    finally:
        signal.signal(signal.SIGTERM, ending)
        socket.close()  # else the visitor of a server that did not start would wait for its answer
        visitor.join()
    assert "interrupted" not in found
    assert found["tracked"] < loaded / 5
    assert found["old"] == 0
    assert (gc.get_threshold(), sys.getswitchinterval(), gc.get_freeze_count()) == before


@pytest.fixture
def watched() -> Iterator[tuple[str, Counter[str]]]:
    """A server's URL, and how often its threads have called a function of Python, by the function's name."""
    calls = Counter[str]()

    def called(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            calls[frame.f_code.co_name] += 1
            if frame.f_code.co_name == "_read":
                calls[threading.current_thread().name.rpartition("_")[0]] += 1

    threading.setprofile(called)
    try:
        with running(app([served("m", window=8192)])) as url:
            yield url, calls
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["/tokenize 900 KB", "/detokenize 200,000 ids", "2,048 prompts of ids"])
def test_no_function_is_called_for_every_token(watched: tuple[str, Counter[str]], name: str) -> None:
    """And a large body is read beside the event loop, by the one thread that reads them."""
    url, calls = watched
    sent(url, name)
    assert calls.total() < 10_000, calls.most_common(3)
    assert calls["klype bodies"] == calls["_read"] == 1


def test_a_prompt_s_probabilities_come_in_pieces_that_make_up_the_whole() -> None:
    body = {"model": "toy", "prompt": [9] * 300, "echo": True, "logprobs": 5, "max_tokens": 0, "n": 2}
    with running(app([served(window=512)])) as url:
        whole = httpx.post(f"{url}{TEXT}", json=body, timeout=600).json()["choices"]
        streamed = httpx.post(f"{url}{TEXT}", json={**body, "stream": True}, timeout=600).text
    pieces = [json.loads(line[6:])["choices"][0] for line in streamed.splitlines() if line.startswith("data: {")]
    sizes = [sum(map(len, piece["logprobs"]["top_logprobs"][1:])) for piece in pieces if piece["logprobs"]]
    assert max(sizes) <= AT_ONCE
    for choice in whole:
        own = [piece for piece in pieces if piece["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in own) == choice["text"]
        for name, values in choice["logprobs"].items():
            assert [value for piece in own if piece["logprobs"] for value in piece["logprobs"][name]] == values


def test_many_tokens_that_come_at_once_are_written_by_turns() -> None:
    """With all alternatives an event holds no more numbers than one without."""
    said = {"messages": [{"role": "user", "content": "hun"}], "max_tokens": 40, "n": 8, "stream": True}
    body = {"model": "toy", **said, "logprobs": True, "top_logprobs": 20}
    with running() as url:
        streamed = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=600).text
    choices = [json.loads(line[6:])["choices"][0] for line in streamed.splitlines() if line.startswith("data: {")]
    entries = [choice["logprobs"]["content"] for choice in choices if choice["logprobs"]]
    assert max(sum(1 + len(entry["top_logprobs"]) for entry in some) for some in entries) <= AT_ONCE


lists = st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.none() | st.text(max_size=3), max_size=5)


@given(st.dictionaries(st.text(max_size=4), lists | st.builds(dict, a=lists), max_size=4), st.integers(0, 300))
def test_json_in_turns_is_json(document: dict[str, Any], times: int) -> None:
    document = {**document, "long": {"list": [document] * times}}
    assert _in_turns(document) == json.dumps(document, ensure_ascii=False)


@pytest.mark.soak
def test_health_is_answered_at_once_whatever_others_send(tmp_path: Path) -> None:
    """Server, four attacking clients and the one who asks on this machine's cores: it wants them to itself."""
    one = served(window=8192)
    for name in ("m", "endless"):
        checkpoint.save(tmp_path / name, one.source.engine.model, one.tokenizer, {})
    (tmp_path / "endless" / "chat_template.jinja").write_text(ENDLESS)
    for file in ("manifest.json", "run.json"):  # a stranger's folder has neither
        (tmp_path / "endless" / file).unlink()
    words = [sys.executable, "-m", "klype", "serve", f"m={tmp_path / 'm'}", f"endless={tmp_path / 'endless'}"]
    process = subprocess.Popen([*words, "--port", "0", "--json"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        document = "".join(iter(process.stdout.readline, "}\n")) + "}"
        place = urlsplit(json.loads(document)["url"])
        assert place.hostname is not None
        assert place.port is not None
        print(f"\n{'ms':<40}{'asked':>7}{'median':>9}{'95 %':>9}{'most':>9}")
        late = {}
        for name in ("", *ATTACKS, "fuzz"):
            took = polled(place.hostname, place.port, name, SECONDS)
            figures = statistics.median(took), took[int(0.95 * len(took))], took[-1]
            print(f"{name or 'idle':<40}{len(took):>7}" + "".join(f"{figure:>9.1f}" for figure in figures), flush=True)
            late |= {name: took[-1]} if took[-1] > MAX_MS else {}
            time.sleep(1)
        assert not late
    finally:
        process.terminate()
        process.wait(60)
