"""What one client after the other may send a server to keep it busy, and how long /health takes meanwhile."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from itertools import repeat
from typing import Any

CLIENTS = 4
EVERY_S = 0.02
PATIENCE_S = 120
LONG = ("hei du der " * 82_000)[:900_000]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SAID = {"model": "m", "messages": [{"role": "user", "content": "hun gikk"}]}


def body(path: str, **sent: Any) -> tuple[str, bytes]:
    return path, json.dumps({"model": "m", **sent}).encode()


def many(path: str, name: str, items: str) -> tuple[str, bytes]:
    return path, f'{json.dumps({**SAID, "max_tokens": 1})[:-1]}, "{name}": {items}}}'.encode()


def bodies(name: str) -> Iterator[tuple[str, bytes]]:
    """The path and the body of one request after the other."""
    if name == "fuzz":
        from tests.test_serve_fuzz import PATHS, hand_made

        rng = random.Random(5)
        while True:
            yield from ((rng.choice(PATHS), sent) for sent in hand_made(rng))
    yield from repeat(ATTACKS[name]())


ATTACKS: dict[str, Callable[[], tuple[str, bytes]]] = {
    "/tokenize 900 KB": lambda: body("/tokenize", prompt=LONG),
    "/tokenize a chat of 900 KB": lambda: body("/tokenize", messages=[{"role": "user", "content": LONG}]),
    "/detokenize 200,000 ids": lambda: body("/detokenize", tokens=[9] * 200_000),
    "chat of 900 KB": lambda: body(CHAT, messages=[{"role": "user", "content": LONG}]),
    "completion of 900 KB": lambda: body(TEXT, prompt=LONG),
    "340,000 empty lists": lambda: (TEXT, b'{"model": "m", "prompt": [' + b"[]," * 340_000 + b"[]]}"),
    "340,000 empty lists, ignored": lambda: many(CHAT, "metadata", "[" + "[]," * 340_000 + "[]]"),
    "120,000 objects": lambda: many(CHAT, "metadata", '[' + '{"a":1},' * 120_000 + '[]]'),
    "75,000 members": lambda: (CHAT, json.dumps({str(i): 1 for i in range(75_000)}).encode()),
    "75,000 biases": lambda: many(CHAT, "logit_bias", json.dumps({str(i): 1 for i in range(75_000)})),
    "2,048 prompts of ids": lambda: body(TEXT, prompt=[[9] * 120] * 2048, n=1),
    "16,000 parts of messages": lambda: body(
        "/tokenize", messages=[{"role": "user", "content": [{"type": "text", "text": "a"}] * 16}] * 1000
    ),
    "8,000 ids with 5 alternatives each": lambda: body(
        TEXT, prompt=[9] * 8000, echo=True, logprobs=5, max_tokens=0
    ),
    "64 choices with 20 alternatives": lambda: (
        CHAT, json.dumps({**SAID, "n": 64, "logprobs": True, "top_logprobs": 20, "max_tokens": 64}).encode()
    ),
    "64 streams with 20 alternatives": lambda: (
        CHAT,
        json.dumps({**SAID, "n": 64, "logprobs": True, "top_logprobs": 20, "max_tokens": 64, "stream": True}).encode(),
    ),
    "a template without end": lambda: (CHAT, json.dumps({**SAID, "model": "endless"}).encode()),
    "bodies of 2 MB": lambda: body("/tokenize", prompt=LONG + LONG),
    "/metrics": lambda: ("/metrics", b""),
}  # fmt: skip


def attack(host: str, port: int, name: str, seconds: float) -> None:
    end = time.monotonic() + seconds

    def go() -> None:
        for path, sent in bodies(name):
            if time.monotonic() > end:
                return
            with suppress(OSError, HTTPException):
                connection = HTTPConnection(host, port, timeout=PATIENCE_S)
                connection.request("POST" if sent else "GET", path, sent, {"Content-Type": "application/json"})
                connection.getresponse().read()
                connection.close()

    threads = [threading.Thread(target=go) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def polled(host: str, port: int, name: str, seconds: float) -> list[float]:
    """Milliseconds that each /health took, asked on a connection of its own, while the attack goes on ("": none)."""
    words = [sys.executable, "-m", "tests.health", host, str(port), name, str(seconds + 2)]
    attacker = subprocess.Popen(words) if name else None
    try:
        time.sleep(1.5)
        took, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            begun = time.perf_counter()
            connection = HTTPConnection(host, port, timeout=PATIENCE_S)
            connection.request("GET", "/health")
            assert connection.getresponse().read() == b'{"status":"ok"}'
            connection.close()
            took.append((time.perf_counter() - begun) * 1e3)
            time.sleep(EVERY_S)
        return sorted(took)
    finally:
        if attacker is not None:
            attacker.wait()


if __name__ == "__main__":
    attack(sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4]))
