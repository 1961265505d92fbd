"""The server on a real socket: the official client, clients that leave or dawdle, an orderly end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from starlette.types import Receive, Scope, Send
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from klype.cli.main import call
from klype.cli.serve import bind
from klype.errors import KlypeError, UsageError
from klype.model import checkpoint
from klype.serve.app import app
from klype.serve.guard import Rules
from klype.serve.served_model import ServedModel
from klype.serve.server import listen
from tests.serve_toys import running, running_at, served

CHAT: Any = [{"role": "user", "content": "hvor gikk hun?"}]
ENDLESS = {"model": "long", "prompt": "hun", "max_tokens": 4000, "stream": True, "ignore_eos": True}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(app([served(), served("long", window=4096)])) as base:
        yield base


def gauge(url: str, name: str) -> float:
    text = httpx.get(f"{url}/metrics").text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"klype_{name}{{"))


def within(seconds: float, condition: Any) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_the_official_client_works_unchanged(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="any")
    assert [model.id for model in client.models.list()] == ["toy", "long"]
    assert client.models.retrieve("toy").id == "toy"
    settings: dict[str, Any] = {"model": "toy", "messages": CHAT, "seed": 5, "n": 2, "max_completion_tokens": 10}
    whole = client.chat.completions.create(**settings, logprobs=True, top_logprobs=4, stop=["zz"], user="me")
    assert len(whole.choices) == 2
    assert whole.choices[0].logprobs is not None
    for entry in whole.choices[0].logprobs.content or []:
        assert len(entry.top_logprobs) == 4
        assert entry.bytes is None or entry.token.startswith("\\x") or bytes(entry.bytes).decode() == entry.token
    texts = {0: "", 1: ""}
    usage = None
    for chunk in client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for part in chunk.choices:
            texts[part.index] += part.delta.content or ""
    assert [texts[0], texts[1]] == [choice.message.content for choice in whole.choices]
    assert usage == whole.usage
    completion = client.completions.create(model="toy", prompt="hun", max_tokens=4, logprobs=2, echo=True)
    assert completion.choices[0].text.startswith("hun")
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="other", messages=CHAT)
    with pytest.raises(openai.BadRequestError, match="n"):
        client.chat.completions.create(model="toy", messages=CHAT, n=10**6)


def leave(url: str, times: int) -> None:
    before = gauge(url, "cancelled_requests_total")
    for _ in range(times):
        with httpx.stream("POST", f"{url}/v1/completions", json=ENDLESS) as response:
            next(response.iter_bytes())
    assert within(5, lambda: gauge(url, "cancelled_requests_total") == before + times)
    assert within(2, lambda: gauge(url, "running_samples") == 0)
    assert gauge(url, "waiting_samples") == 0


@pytest.mark.slow
def test_a_client_that_leaves_takes_its_work_along(url: str) -> None:
    leave(url, 20)


@pytest.mark.soak
def test_a_hundred_that_leave_leave_nothing(url: str) -> None:
    leave(url, 20)
    before = memory(url)
    leave(url, 100)
    assert memory(url) - before < 20e6


def memory(url: str) -> float:
    line = next(li for li in httpx.get(f"{url}/metrics").text.splitlines() if li.startswith("process_resident"))
    return float(line.split()[1])


def test_one_that_leaves_without_a_stream_is_noticed_too(url: str) -> None:
    before = gauge(url, "cancelled_requests_total")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/completions", json={**ENDLESS, "stream": False}, timeout=0.3)
    assert within(5, lambda: gauge(url, "cancelled_requests_total") == before + 1)
    assert within(2, lambda: gauge(url, "running_samples") == 0)


def test_bombs_are_refused_at_once(url: str) -> None:
    with httpx.Client() as client:
        client.get(f"{url}/health")
        bombs: list[dict[str, Any]] = [{"n": 10**9}, {"n": 2**63}, {"max_tokens": 10**9}, {"best_of": 10**9}]
        bombs += [{"prompt": ["a"] * 2000}, {"prompt": ["hun"] * 200, "n": 100}, {"prompt": "hun gikk " * 100_000}]
        for change in bombs:
            body = json.dumps({**ENDLESS, **change})
            worked = time.process_time()  # of client and server together, whatever else the machine does
            got = client.post(f"{url}/v1/completions", content=body, headers={"content-type": "application/json"})
            assert got.status_code == 400
            assert time.process_time() - worked < 0.05


def test_websockets_are_shut_to_other_sites(url: str) -> None:
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}):
        with (
            pytest.raises(InvalidStatus) as refused,
            connect(f"{url.replace('http', 'ws')}/ws", additional_headers=headers),
        ):
            pass
        assert refused.value.response.status_code == 403


def test_paths_lead_nowhere(url: str) -> None:
    port = int(url.rsplit(":", 1)[1])
    for path in ("/../../etc/passwd", "/..%2f..%2fetc%2fpasswd", "/%2e%2e/etc/passwd", "/..\\..\\etc\\passwd",
                 "/v1/models/..%2f..%2fetc%2fpasswd", "/v1/models/%00", "/v1/models/%ff", "//etc/passwd"):  # fmt: skip
        answer = raw(port, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        assert answer.split(b" ")[1] in (b"404", b"400"), path
        assert b"root:" not in answer


def raw(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        client.sendall(data)
        answer = b""
        while part := client.recv(65536):
            answer += part
    return answer


def dawdle(port: int, data: bytes, seconds: float) -> bool:
    """Sends byte by byte; whether the server has closed the connection in time."""
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        client.settimeout(0.05)
        end, rest = time.monotonic() + seconds, iter(data)
        while time.monotonic() < end:
            try:
                if (byte := next(rest, None)) is not None:
                    client.sendall(bytes([byte]))
                if not client.recv(65536):
                    return True
            except TimeoutError:
                continue
            except OSError:
                return True
    return False


@pytest.mark.slow
def test_slow_clients_are_closed() -> None:
    rules = Rules(seconds=1.0)
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    dawdlers = [
        b"",
        b"\r\n" * 200,
        head + b"X-Slow: " + b"a" * 500,
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + head + b"X: " + b"b" * 500,
    ]
    with running(rules=rules) as url:
        port = int(url.rsplit(":", 1)[1])
        closed: list[bool] = []
        threads = [
            threading.Thread(target=lambda data=data: closed.append(dawdle(port, data, 10))) for data in dawdlers * 12
        ]
        for thread in threads:
            thread.start()
        body = head + b"Content-Length: 1000\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), 5) as client:
            client.sendall(body + b"{")
            assert client.recv(65536).startswith(b"HTTP/1.1 408")
        for thread in threads:
            thread.join()
        assert closed == [True] * len(threads)
        assert httpx.get(f"{url}/health").status_code == 200


@pytest.mark.slow
def test_who_sent_in_time_is_heard_though_the_machine_stood_still() -> None:
    rules, inner = Rules(seconds=0.5), app([served()], rules=Rules(seconds=0.5))
    still = threading.Event()

    async def standing(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/still":
            still.set()
            time.sleep(1.0)  # on the loop's own thread: meanwhile nothing is read, and every limit passes
        await inner(scope, receive, send)

    body = json.dumps({"model": "toy", "prompt": "hun", "max_tokens": 1}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    whole = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    with running(standing, rules) as url, contextlib.ExitStack() as stack:
        port = int(url.rsplit(":", 1)[1])
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(3)]
        begun = (0, 20, len(whole) - 5)  # nothing, a part of the headers, a part of the body
        for client, sent in zip(clients, begun, strict=True):
            client.sendall(whole[:sent])
        time.sleep(0.1)
        stopper = stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
        stopper.sendall(b"GET /still HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert still.wait(10)
        for client, sent in zip(clients, begun, strict=True):
            client.sendall(whole[sent:])
        assert [client.recv(65536)[:12] for client in clients] == [b"HTTP/1.1 200"] * 3


@pytest.mark.slow
def test_one_that_does_not_read_is_cut_off() -> None:
    rules = Rules(seconds=0.5)
    body = json.dumps({**ENDLESS, "n": 64, "logprobs": 5}).encode()
    with running(app([served("long", window=4096)], rules=rules), rules) as url:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", int(url.rsplit(":", 1)[1])))
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            head += f"Content-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            assert within(10, lambda: gauge(url, "cancelled_requests_total") == 1)
        assert within(2, lambda: gauge(url, "running_samples") == 0)


def test_headers_without_end_are_cut_off(url: str) -> None:
    port = int(url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        with pytest.raises(ConnectionError):
            client.sendall((b"X-More: " + b"y" * 1000 + b"\r\n") * 5000)


def test_large_bodies_are_refused_unread(url: str) -> None:
    before = memory(url)
    for content in (b"x" * (3 << 20), (b"y" * (1 << 16) for _ in range(64))):
        with contextlib.suppress(httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):  # cut off while sending
            assert httpx.post(f"{url}/v1/completions", content=content).status_code == 413
    assert memory(url) - before < 20e6
    assert httpx.get(f"{url}/health").status_code == 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "en modell"
    one = served(window=2048)
    checkpoint.save(folder, one.source.engine.model, one.tokenizer, {})
    return folder


def start(folder: Path, *options: str, **environ: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "klype", "serve", str(folder), "--port", "0", "--json", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )
    assert process.stdout is not None
    lines = ""
    for line in process.stdout:
        lines += line
        if line == "}\n":
            break
    document = json.loads(lines)
    assert document["models"] == ["en-modell"]
    return process, document["url"]


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_what_runs_is_finished_when_it_is_told_to_end(folder: Path, ending: signal.Signals) -> None:
    process, url = start(folder, KLYPE_API_KEY="hemmelig")
    client = openai.OpenAI(base_url=url, api_key="hemmelig", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=url, api_key="feil", max_retries=0).models.list()
    stream = client.completions.create(
        model="en-modell", prompt="hun", max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    first = next(iter(stream))
    process.send_signal(ending)
    parts = [first, *stream]
    assert parts[-1].choices[0].finish_reason == "length"
    assert process.wait(20) == 0
    assert process.stderr is not None
    said = process.stderr.read()
    assert "Traceback" not in said
    with pytest.raises(openai.APIConnectionError):
        client.models.list()


@pytest.mark.slow
def test_who_asks_twice_does_not_wait_and_reads_no_traceback(folder: Path) -> None:
    process, url = start(folder, KLYPE_API_KEY="hemmelig")
    stream = openai.OpenAI(base_url=url, api_key="hemmelig", max_retries=0).completions.create(
        model="en-modell", prompt="hun", n=32, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(ConnectionError):  # refused: the first one was heard
        while True:
            socket.create_connection(("127.0.0.1", httpx.URL(url).port or 0), 1).close()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


def test_beyond_loopback_a_key_is_needed(folder: Path, tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(UsageError, match="no API key"):
            call(["serve", str(folder), "--host", host, "--port", "0"])
    empty = tmp_path / "key"
    empty.write_text("\n")
    for file in (empty, tmp_path / "none", tmp_path):
        with pytest.raises(UsageError):
            call(["serve", str(folder), "--key-file", str(file)])


def test_a_port_that_is_taken_is_said(folder: Path) -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(KlypeError, match="is in use already"):
        call(["serve", str(folder), "--port", str(taken.getsockname()[1])])
    with pytest.raises(UsageError, match="no model"):
        call(["serve", str(folder / "none"), "--port", "0"])
    with pytest.raises(UsageError, match="port"):
        listen("127.0.0.1", 70000)


def test_addresses_are_bound_however_they_are_written() -> None:
    """As they stand in a URL too."""
    try:
        listen("::1", 0).close()
    except KlypeError:
        pytest.skip("this machine has no IPv6")
    for host in ("[::1]", "::1", "127.0.0.1", "localhost"):
        entrance = bind(host, 0, None, "key")
        with entrance.socket, running_at(entrance.socket) as port:
            assert entrance.url == f"http://{'[::1]' if '::' in host else host}:{port}/"
            assert httpx.get(f"{entrance.url}health").json() == {"status": "ok"}
    with pytest.raises(UsageError, match="can be reached from other machines"):
        bind("[::]", 0, None, "key")


@pytest.mark.slow
def test_a_killed_server_loses_nothing_for_it_keeps_nothing(folder: Path) -> None:
    """What was acknowledged is an answer: the next server gives it again under its seed, at once."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    body = {"model": "en-modell", "prompt": "hun gikk", "max_tokens": 20, "seed": 4, "logprobs": 2}

    def answer(url: str) -> Any:
        got = httpx.post(f"{url}/completions", json=body, timeout=30).json()
        return got["system_fingerprint"], got["choices"], got["usage"]

    process, url = start(folder)
    port = url.rsplit(":", 1)[1].removesuffix("/v1")
    acknowledged = answer(url)
    with httpx.stream(
        "POST", f"{url}/completions", json={**ENDLESS, "model": "en-modell", "max_tokens": 2000}
    ) as stream:
        next(stream.iter_bytes())
        process.kill()
        process.wait(10)
    again, url = start(folder, "--port", port)
    try:
        assert url.rsplit(":", 1)[1].removesuffix("/v1") == port
        assert answer(url) == acknowledged
    finally:
        again.kill()
        again.wait(10)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def of_letters() -> ServedModel:
    """A model that says nothing but æ, ø, å and 🙂, byte by byte: each byte is followed by what may follow it."""
    one = served("letters", window=512)
    model = one.source.engine.model
    follows = {0xC3: (0xA6, 0xB8, 0xA5), 0xF0: (0x9F,), 0x9F: (0x99,), 0x99: (0x82,)}
    follows |= dict.fromkeys((0xA6, 0xB8, 0xA5, 0x82), (0xC3, 0xF0))
    spelt = {one.spellings[token]: token for token in range(one.tokenizer.vocab_size)}
    with torch.no_grad():
        model.head.weight.zero_()
        for layer in model.layers:
            layer.out.weight.zero_()  # type: ignore[operator, union-attr]
            layer.down.weight.zero_()  # type: ignore[operator, union-attr]
        for place, (byte, nexts) in enumerate(follows.items()):
            model.embed.weight[spelt[bytes([byte])]] = torch.eye(model.config.width)[place]
            for after in nexts:
                model.head.weight[spelt[bytes([after])], place] = 10.0
    return ServedModel("letters", one.source)


def speak(streams: int) -> int:
    """Streams that were read; each is whole characters only."""
    one, said = of_letters(), ""
    start_token = next(token for token in range(one.tokenizer.vocab_size) if one.spellings[token] == b"\x82")
    with running(app([one])) as url, httpx.Client(base_url=url, timeout=600) as client:  # a busy machine is no fault
        for seed in range(streams):
            body = {"model": "letters", "prompt": [start_token], "max_tokens": 20 + seed % 9, "stream": True}
            with client.stream("POST", "/v1/completions", json={**body, "seed": seed}) as response:
                lines = [line[6:] for line in response.iter_lines() if line.startswith("data: {")]
            text = "".join(choice["text"] for line in lines for choice in json.loads(line)["choices"])
            assert text
            assert not set(text) - set("æøå🙂"), text
            said += text
    assert set(said) == set("æøå🙂")
    return streams


@pytest.mark.slow
def test_streams_hold_whole_characters_only() -> None:
    speak(30)


@pytest.mark.soak
def test_a_thousand_streams_hold_whole_characters_only() -> None:
    assert speak(1000) == 1000
