"""Answers by a JSON schema: they fit it, alone and in company, and probabilities are those over what it allows."""

from __future__ import annotations

import asyncio
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import pytest
from starlette.types import ASGIApp

from klype.engine.engine import Engine
from klype.serve.api_errors import ApiError
from klype.serve.app import app
from klype.serve.json_schema import JsonAnswers
from klype.serve.served_model import ServedModel, open_served
from klype.values import Request
from tests.serve_toys import post, running, served
from tests.test_serve_answers import CHAT, alone, chat_prompt, events

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")
CAT: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"enum": ["Mons", "æ"]}, "age": {"type": "integer", "minimum": 0, "maximum": 30}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMAS: list[dict[str, Any]] = [
    CAT,
    {"enum": ["ja", "nei", 1, None]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    {"type": "string", "pattern": "^[a-c]{2,4}$"},
    {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/x"}], "$defs": {"x": {"const": {"å": [1, "ø"]}}}},
]


def by(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "strict": True, "schema": schema}}


@pytest.fixture(scope="module")
def toy() -> ASGIApp:
    return app([served()])


def asked(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**CHAT, "response_format": by(schema), "max_tokens": 40, **more}


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: next(iter(schema)))
@pytest.mark.parametrize("how", [{"temperature": 0}, {}, {"temperature": 2, "top_p": 0.9, "presence_penalty": 1}])
def test_what_is_answered_fits_the_schema(toy: ASGIApp, schema: dict[str, Any], how: dict[str, Any]) -> None:
    got = post(toy, "/v1/chat/completions", json=asked(schema, n=8, seed=3, **how)).json()
    for choice in got["choices"]:
        assert choice["finish_reason"] == "stop"
        jsonschema.validate(json.loads(choice["message"]["content"]), schema)


def test_any_object_where_no_schema_is_given(toy: ASGIApp) -> None:
    """A random model may fill a string without end; what it has said by then begins an object."""
    body = {**CHAT, "response_format": {"type": "json_object"}, "max_tokens": 30, "n": 16, "seed": 1}
    choices = post(toy, "/v1/chat/completions", json=body).json()["choices"]
    assert {choice["finish_reason"] for choice in choices} <= {"stop", "length"}
    for choice in choices:
        assert choice["message"]["content"].startswith("{")
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(choice["message"]["content"]), dict)
    (cut,) = post(toy, "/v1/chat/completions", json={**body, "n": 1, "max_tokens": 1}).json()["choices"]
    assert cut["finish_reason"] == "length"


def test_probabilities_are_those_over_what_is_allowed(toy: ASGIApp) -> None:
    """Against the engine's own: of all tokens those that go on towards one of the answers, renormalised."""
    answers = [b'"aa"', b'"ab"', b'"hun"']
    one = served()
    body = asked({"enum": ["aa", "ab", "hun"]}, n=6, seed=5, logprobs=True, top_logprobs=20)
    choices = post(toy, "/v1/chat/completions", json={**body, "return_tokens_as_token_ids": True}).json()["choices"]
    engine = Engine(served().source.engine.model)
    for choice in choices:
        assert choice["logprobs"]["constraint"] == "json_schema"
        ids, said = list(chat_prompt()), b""
        for entry in choice["logprobs"]["content"]:
            q = engine.next([ids])[0]
            going_on = [
                (int(token), float(logp))
                for token, logp in zip(q.ids, q.logp, strict=True)
                if (data := one.spellings[int(token)]) and any(a.startswith(said + data) for a in answers)
            ]
            total = math.log(sum(math.exp(logp) for _, logp in going_on))
            wanted = {f"token_id:{token}": logp - total for token, logp in going_on}
            assert {top["token"]: top["logprob"] for top in entry["top_logprobs"]} == pytest.approx(wanted, abs=1e-4)
            assert entry["logprob"] == pytest.approx(wanted[entry["token"]], abs=1e-4)
            ids.append(int(entry["token"].removeprefix("token_id:")))
            said += one.spellings[ids[-1]]
        assert said in answers
    plain = post(toy, "/v1/chat/completions", json={**CHAT, "logprobs": True}).json()
    assert "constraint" not in plain["choices"][0]["logprobs"]


@pytest.mark.parametrize("more", [{}, {"stop": ["æ", "1"]}, {"max_tokens": 9}, {"logit_bias": {"70": 5}}])
def test_streamed_is_whole(toy: ASGIApp, more: dict[str, Any]) -> None:
    body = asked(CAT, n=4, seed=2, logprobs=True, top_logprobs=3) | more
    whole = post(toy, "/v1/chat/completions", json=body).json()
    chunks = events(post(toy, "/v1/chat/completions", json={**body, "stream": True}))
    for choice in whole["choices"]:
        mine = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        assert "".join(part["delta"].get("content", "") for part in mine) == choice["message"]["content"]
        logged = [part["logprobs"] for part in mine if part["logprobs"]]
        assert [entry for part in logged for entry in part["content"]] == choice["logprobs"]["content"]
        assert {part["constraint"] for part in logged} == {"json_schema"}
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
    if "max_tokens" in more:
        assert {choice["finish_reason"] for choice in whole["choices"]} == {"length"}


def test_in_company_each_gets_what_it_gets_alone(toy: ASGIApp) -> None:
    bodies: list[dict[str, Any]] = [asked(schema, n=3, seed=i) for i, schema in enumerate(SCHEMAS)]
    bodies += [{**CHAT, "seed": 9, "n": 2}, {**CHAT, "seed": 4, "temperature": 0.5}, {**asked({"type": 1}), "seed": 1}]

    async def crowd() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(toy), base_url="http://localhost") as client:
            return list(await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for body in bodies)))

    for body, got in zip(bodies, asyncio.run(crowd()), strict=True):
        own = post(toy, "/v1/chat/completions", json=body)
        assert got.status_code == own.status_code
        assert got.json().get("choices") == own.json().get("choices")


@pytest.mark.parametrize(
    ("asked_for", "told"),
    [
        (by({"type": "strin"}), "The JSON schema cannot be followed: "),
        (by({"type": "string", "format": "bogus"}), "bogus"),
        (by({"$ref": "http://127.0.0.1:1/x"}), "The JSON schema cannot be followed: "),
        (by({"type": "string", "minLength": 3, "maxLength": 2}), "The JSON schema cannot be followed: "),
        (by({"type": "string", "pattern": "("}), "The JSON schema cannot be followed: "),
        (by({"allOf": [{"$ref": "#"}]}), "The JSON schema cannot be followed: "),
        ({"type": "json_schema"}, "needs json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "not a name", "schema": {}}}, "name"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": []}}, "schema"),
        ({"type": "xml"}, "json_schema"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused(toy: ASGIApp, asked_for: dict[str, Any], told: str) -> None:
    got = post(toy, "/v1/chat/completions", json={**CHAT, "response_format": asked_for})
    error = got.json()["error"]
    assert (got.status_code, error["type"]) == (400, "invalid_request_error"), error
    assert error["param"].startswith("response_format")
    assert told in error["message"]
    assert error["message"].endswith(".")
    assert "\n" not in error["message"]


def test_a_vocabulary_that_cannot_write_json_says_so() -> None:
    words = [b"yes", b"no", b"", *(bytes([byte]) for byte in range(0x20, 0x7F) if byte != ord("{"))]
    with pytest.raises(ApiError, match=r"cannot write JSON: it has no token b'\{'"):
        JsonAnswers(words, [2], list).constraint_factory({"type": "object"})
    with pytest.raises(ApiError, match="cannot write JSON"):
        JsonAnswers([*words, b"{"], [2], list).constraint_factory({"const": "æ"})


def test_a_model_without_an_end_token_ends_where_the_json_does() -> None:
    start = JsonAnswers([bytes([byte]) for byte in range(256)], [], lambda text: [*text.encode()]).constraint_factory(
        {"enum": ["a", "b"]}
    )
    one = start()
    assert [one.accept(byte) for byte in b'"a"'] == [False, False, True]


def test_an_answer_that_cannot_be_gone_on_with_ends_alone() -> None:
    """What the schema asks for without showing it is found out on the way; others notice nothing."""
    one = served()
    spelled = [data if "æ".encode()[:1] not in data else b"" for data in one.spellings]
    stuck = JsonAnswers(spelled, one.source.codec.stop, one.tokenizer.encode).constraint_factory(
        {"type": "string", "pattern": "^[ab]\\u00e6$"}
    )
    other = Request(chat_prompt(), 2, 8, seed=3)
    cut, found = Engine(one.source.engine.model).run([Request(chat_prompt(), 2, 8, constraint=stuck), other])
    assert {trace.ended for trace in cut} == {"cancelled"}
    assert [trace.tokens for trace in found] == [trace.tokens for trace in alone(other)]
    blind = ServedModel(one.name, one.source)
    blind.json = JsonAnswers(spelled, (), one.tokenizer.encode)
    got = post(app([blind]), "/v1/chat/completions", json=asked({"type": "string", "pattern": "^[ab]\\u00e6$"}))
    assert got.status_code == 400
    assert "could not be gone on with" in got.json()["error"]["message"]


def test_the_official_client_parses_it() -> None:
    openai = pytest.importorskip("openai")
    from pydantic import BaseModel

    class Cat(BaseModel):
        name: Literal["Mons", "Pus"]
        tame: bool

    with running() as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="any")
        said: Any = {"model": "toy", "messages": CHAT["messages"], "max_tokens": 50, "seed": 3}
        done = client.chat.completions.parse(**said, response_format=Cat)
        assert isinstance(done.choices[0].message.parsed, Cat)
        with client.chat.completions.stream(**said, response_format=Cat) as stream:
            last = stream.get_final_completion()
        assert last.choices[0].message.parsed == done.choices[0].message.parsed


@pytest.mark.slow
def test_the_demo_model_and_a_real_one(smollm: Path) -> None:
    guarded = app([open_served("demo"), open_served(f"smollm2={smollm}")])
    schema = {"type": "object", "properties": {"capital": {"enum": ["Paris", "Oslo", "Rome"]}}, "required": ["capital"]}
    question = [{"role": "user", "content": "What is the capital of Norway? Answer as JSON."}]
    for model in ("demo", "smollm2"):
        body = {**asked({**schema, "additionalProperties": False}), "messages": question, "model": model}
        choice = post(guarded, "/v1/chat/completions", json={**body, "temperature": 0}).json()["choices"][0]
        answer = json.loads(choice["message"]["content"])
        assert choice["finish_reason"] == "stop"
    assert answer == {"capital": "Oslo"}


def test_masks_follow_the_vocabulary() -> None:
    """Ids beyond the tokenizer (padding of the vocabulary) and control tokens are never allowed before the end."""
    one = served()
    tokens = one.spellings
    state = JsonAnswers([*tokens, b"", b""], one.source.codec.stop, one.tokenizer.encode).constraint_factory(
        {"type": "string"}
    )()
    for before, after in pairwise(b'"x"'):
        mask = state.allowed()
        assert mask is not None
        assert len(mask) == one.vocab_size + 2
        assert all(data for data, fine in zip([*tokens, b"", b""], mask, strict=True) if fine)
        assert state.accept(next(i for i, data in enumerate(tokens) if data == bytes([before]))) is False
        assert after
    assert np.flatnonzero(state.allowed()).size > 0
