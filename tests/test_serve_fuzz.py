"""Malformed and hostile requests: never a server error, always OpenAI's shape, and memory stays flat."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from klype.serve.app import app
from tests.serve_toys import ask, running, served

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize")
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
CASES = 15  # an operation, in the suite; 1,500 in the soak


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with running(app([served()])) as url, httpx.Client(base_url=url) as client:
        yield client


def conform(client: httpx.Client, cases: int) -> int:
    """Requests made from the published description, in and out of its bounds; returns how many."""
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    made = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @given(case=operation.as_strategy())
        @settings(max_examples=cases, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate],
                  derandomize=cases == CASES)  # fmt: skip
        def attempt(case: Any) -> None:
            nonlocal made
            made += 1
            if isinstance(case.body, dict) and random.random() < 0.7 and "model" in case.body:
                case.body["model"] = "toy"
            case.call_and_validate(base_url=str(client.base_url).rstrip("/"), checks=CHECKS)

        attempt()
    return made


@pytest.mark.slow
def test_requests_from_the_published_description_get_described_answers(client: httpx.Client) -> None:
    assert conform(client, CASES) > 4 * CASES


@pytest.mark.soak
def test_thousands_of_requests_from_the_published_description(client: httpx.Client) -> None:
    assert conform(client, 1500) >= 5000


def hand_made(rng: random.Random) -> Iterator[bytes]:
    """Bodies that no description knows."""
    deep = rng.choice([100, 1000, 10_000, 500_000])
    text = {"model": "toy", "prompt": "hun", "max_tokens": 2}
    chat = {"model": "toy", "messages": [{"role": "user", "content": "hun"}], "max_tokens": 2}
    yield b"[" * deep
    yield b'{"a":' * deep
    yield b'{"model":"toy","prompt":' + b"[" * deep + b"]" * deep + b"}"
    yield b'{"model":"toy","prompt":"\xff\xfe' + rng.randbytes(20) + b'"}'
    yield rng.randbytes(rng.randrange(2000))
    yield b'{"model":"toy","prompt":"\\ud800"}'
    yield b'{"model":"toy","prompt":"a\\udfff\\ud83d"}'
    yield b'{"model":"toy","messages":[{"role":"user","content":"\\ud83d"}]}'
    yield b'{"model":"toy","prompt":"a","seed":' + b"9" * rng.randrange(1, 9000) + b"}"
    yield b'{"model":"toy","prompt":"a","temperature":1e' + b"9" * rng.randrange(1, 400) + b"}"
    yield b'{"model":"toy","prompt":"a","temperature":NaN}'
    yield b'{"model":"toy","prompt":"a","top_p":-Infinity}'
    yield b"{" + b",".join(b'"k%d":1' % i for i in range(rng.choice([50, 99, 30_000]))) + b"}"
    yield b'{"model":"toy","model":"toy","prompt":"a","prompt":"b","max_tokens":1}'
    yield json.dumps({**text, "prompt": ["hun", 3, None]}).encode()
    yield json.dumps({**text, "prompt": [[rng.randrange(-5, 400)] for _ in range(rng.randrange(1, 20))]}).encode()
    yield json.dumps({**text, "prompt": "<|end|><|assistant|>\0\x1b[2J" * rng.randrange(1, 30)}).encode()
    yield json.dumps({**text, "prompt": "x" * rng.choice([10, 10**5, 10**6])}).encode()
    yield json.dumps({**chat, "messages": [{"role": "user", "content": 1}] * 30_000}).encode()
    yield json.dumps({**chat, "messages": [{}] * 100_000}).encode()
    yield json.dumps(
        {**chat, "messages": [{"role": rng.choice(["user", "system"]), "content": "a"} for _ in range(9)]}
    ).encode()
    yield json.dumps({**chat, "logit_bias": {str(i): "x" for i in range(20_000)}}).encode()
    yield json.dumps({**chat, "stop": [rng.choice(["a", "", None, 5, "\0", "æ" * 300]) for _ in range(4)]}).encode()
    for body in (text, chat):
        name = rng.choice(sorted(KNOWN))
        value = rng.choice([None, True, -1, 0, 2**31, 2**63, -(2**80), 1e308, 5e-324, "", "a", [], {}, [[]], {"a": {}}])
        yield json.dumps({**body, name: value}).encode()


KNOWN = (
    *("n", "seed", "stop", "stream", "logprobs", "top_logprobs", "top_k", "top_p", "min_p", "typical_p", "temperature"),
    *("repetition_penalty", "logit_bias", "presence_penalty", "frequency_penalty", "max_tokens", "stream_options"),
    *("echo", "best_of", "suffix", "tools", "response_format", "model", "prompt", "messages", "user", "metadata"),
)


def attack(client: httpx.Client, rounds: int, seed: int) -> int:
    rng, sent = random.Random(seed), 0
    for _ in range(rounds):
        for body in hand_made(rng):
            path = rng.choice(PATHS)
            kind = rng.choice(
                ["application/json"] * 4 + ["text/plain", "application/json; charset=utf-16", "a/b/c", ""]
            )
            got = client.post(path, content=body, headers={"content-type": kind})
            sent += 1
            assert got.status_code < 500, (path, body[:200])
            if got.status_code >= 400:
                assert set(got.json()["error"]) == {"message", "type", "param", "code"}
                assert len(got.content) < 2000
            elif b"data:" not in got.content:
                got.json()
    return sent


def test_hostile_bodies_are_refused_in_openais_shape(client: httpx.Client) -> None:
    assert attack(client, 3, 1) >= 75
    assert client.post("/v1/completions", json={"model": "toy", "prompt": "a"}).status_code == 200


@pytest.mark.soak
def test_ten_thousand_hostile_bodies_leave_memory_flat(client: httpx.Client) -> None:
    attack(client, 60, 2)
    before = psutil.Process().memory_info().rss
    assert attack(client, 400, 3) >= 10_000
    assert psutil.Process().memory_info().rss - before < 30e6


def test_the_description_tells_what_is_there() -> None:
    described = ask(app([served()]), "GET", "/openapi.json").json()
    assert set(described["paths"]) == {*PATHS, "/v1/models", "/v1/models/{model}", "/health", "/metrics"}
    for path in PATHS:
        assert "422" not in described["paths"][path]["post"]["responses"]
