"""Vectors of texts: the mean of the states that transformers has of them, one at a time, in batches and in company."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import torch
from starlette.types import ASGIApp

from klype.model.checkpoint import save
from klype.serve.app import app
from klype.serve.served_model import ServedModel, open_served
from klype.text.tokenizer import Tokenizer
from tests.serve_toys import TEXTS, ask, post, running, served
from tests.toys import toy

PATH = "/v1/embeddings"
MANY = [*TEXTS, "hun", "på " * 15, *(f"{text} {text}" for text in TEXTS[1:3])]


@pytest.fixture(scope="module")
def guarded() -> ASGIApp:
    return app([served()])


def vectors(guarded: ASGIApp, given: Any, **more: Any) -> npt.NDArray[np.float64]:
    got = post(guarded, PATH, json={"model": "toy", "input": given, **more})
    assert got.status_code == 200, got.text
    return np.array([row["embedding"] for row in got.json()["data"]])


def theirs(folder: Path, one: ServedModel, texts: list[str]) -> npt.NDArray[np.float64]:
    """transformers' states of each text alone, averaged; of length 1."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        states = [model(torch.tensor([one.source.codec.encode(text)])).last_hidden_state[0] for text in texts]
    means = np.array([own_TD.double().mean(0).numpy() for own_TD in states])
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True))


@pytest.mark.parametrize("name", ["native", "gpt2", "mamba", "gemma3_text"])
def test_it_is_the_mean_of_the_last_states(name: str, tmp_path: Path) -> None:
    """Of models that klype computes, and of those that transformers does; in one batch as one at a time."""
    pytest.importorskip("transformers")
    from tests.test_sources_hf import folder_of

    if name == "native":
        tokenizer = Tokenizer.train(TEXTS, 300)
        folder = tmp_path / "model"
        save(folder, toy("llama", vocab_size=tokenizer.vocab_size), tokenizer, {})
    else:
        folder = folder_of(name, tmp_path / "model")
    one = open_served(f"toy={folder}")
    found = vectors(app([one]), MANY)
    assert np.abs(found - theirs(folder, one, MANY)).max() < 1e-5
    assert np.abs(found - np.concatenate([vectors(app([one]), text) for text in MANY])).max() < 1e-5


def test_what_may_be_given_and_what_comes_back(guarded: ASGIApp) -> None:
    one = served()
    ids = [one.source.codec.encode(text) for text in TEXTS]
    got = post(guarded, PATH, json={"model": "toy", "input": TEXTS, "user": "x"})
    body = got.json()
    assert (body["object"], body["model"]) == ("list", "toy")
    assert body["pooling"] == "mean of the last layer's hidden states over the input's tokens, scaled to length 1"
    assert [(row["index"], row["object"]) for row in body["data"]] == [(i, "embedding") for i in range(len(TEXTS))]
    assert body["usage"] == {"prompt_tokens": sum(map(len, ids)), "total_tokens": sum(map(len, ids))}
    assert "user" in got.headers["warning"]
    whole = vectors(guarded, TEXTS)
    assert np.abs(np.linalg.norm(whole, axis=1) - 1).max() < 1e-6
    assert (vectors(guarded, ids) == whole).all()
    assert np.abs(vectors(guarded, ids[1]) - whole[1]).max() < 1e-5
    packed = post(guarded, PATH, json={"model": "toy", "input": TEXTS, "encoding_format": "base64"}).json()["data"]
    assert (np.array([np.frombuffer(base64.b64decode(row["embedding"]), "<f4") for row in packed]) == whole).all()
    counted = ask(guarded, "GET", "/metrics").text
    assert 'klype_requests_total{endpoint="/v1/embeddings",status="200"}' in counted


def test_in_company_each_gets_what_it_gets_alone(guarded: ASGIApp) -> None:
    """Beside answers that are being written, and texts that are scored."""
    answer = {"model": "toy", "prompt": "hun gikk", "max_tokens": 30, "seed": 3, "n": 4}
    echo = {"model": "toy", "prompt": TEXTS, "max_tokens": 0, "echo": True, "logprobs": 2}
    asked = [("/v1/completions", answer), ("/v1/completions", echo)] * 2
    asked += [(PATH, {"model": "toy", "input": given}) for given in (MANY, MANY[:2], MANY[3])]

    async def crowd() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guarded), base_url="http://localhost") as client:
            return list(await asyncio.gather(*(client.post(path, json=body) for path, body in asked)))

    for (path, body), got in zip(asked, asyncio.run(crowd()), strict=True):
        own = post(guarded, path, json=body).json()
        if path == PATH:
            pairs = zip(got.json()["data"], own["data"], strict=True)
            assert all(np.abs(np.subtract(a["embedding"], b["embedding"])).max() < 1e-5 for a, b in pairs)
        else:
            texts = [choice["text"] for choice in got.json()["choices"]]
            assert texts == [choice["text"] for choice in own["choices"]]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        *(({"input": wrong}, "input") for wrong in ("", ["hei", ""], [], [[]], [999_999], "x" * 9000, "hei " * 60)),
        ({"dimensions": 8}, "dimensions"), ({"encoding_format": "int8"}, "encoding_format"), ({"n": 1}, "n"),
        ({"model": "other"}, "model"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(guarded: ASGIApp, change: dict[str, Any], param: str) -> None:
    got = post(guarded, PATH, json={"model": "toy", "input": "hei", **change})
    error = got.json()["error"]
    assert got.status_code == (404 if param == "model" else 400)
    assert error["param"].startswith(param)
    assert error["message"].endswith(".")


def test_the_official_client_reads_them(guarded: ASGIApp) -> None:
    openai = pytest.importorskip("openai")
    with running(guarded) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="any")
        made = client.embeddings.create(model="toy", input=TEXTS)  # asks for base64
        plain = client.embeddings.create(model="toy", input=TEXTS, encoding_format="float")
    assert [row.embedding for row in made.data] == [row.embedding for row in plain.data]
