"""Models of transformers in company: rows that join late, clients that come and go, in engine, server and studio."""

from __future__ import annotations

import inspect
import random
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from klype.cli.ask_methods import make_draft
from klype.engine import hf_runner
from klype.engine.engine import Engine
from klype.engine.hf_runner import HFRunner
from klype.errors import UsageError
from klype.serve.app import app
from klype.serve.guard import ServeSettings
from klype.serve.served_model import ServedModel, open_served
from klype.sources.hf_open import open_hf
from klype.sources.opening import open_model
from klype.sources.source import answers
from klype.values import Request, Sampling, Trace
from tests.serve_toys import post, running
from tests.studio_toys import opened_models
from tests.test_serve_company import CLIENTS, SHORT, come_and_go, visited
from tests.test_serve_socket import start
from tests.test_sources_hf import V, folder_of

transformers = pytest.importorskip("transformers")

CACHES = {"gpt2": (True, True), "bloom": (True, True), "mamba": (False, False), "gemma3_text": (True, True)}
"""Whether keys and values are kept, and whether they may be padded."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    wide = {"gpt2": {"n_positions": 256}}
    return {name: folder_of(name, tmp_path_factory.mktemp(name), **wide.get(name, {})) for name in CACHES}


@pytest.mark.slow
@pytest.mark.parametrize("name", CACHES)
def test_who_comes_and_goes_takes_nothing_from_those_that_stay(name: str, folders: dict[str, Path]) -> None:
    one = open_hf(folders[name]).engine
    assert isinstance(one.runner, HFRunner)
    assert (bool(one.runner.cache), one.runner.pads) == CACHES[name]
    rng = random.Random(3)
    start_of_many = tuple(rng.randrange(V) for _ in range(40))
    requests = [
        Request(
            (*start_of_many[: rng.choice([0, 40])], *(rng.randrange(V) for _ in range(rng.choice([1, 2, 9, 50])))),
            n=rng.choice([1, 3]),
            limit=rng.randrange(1, 18) if number % 3 else 30,
            sampling=rng.choice([Sampling(), Sampling(0.0), Sampling(0.8, top_p=0.9, repetition_penalty=1.1)]),
            seed=number,
            top=rng.choice([0, 3]),
        )
        for number in range(10)
    ]
    one.max_batch = 6
    comes = [rng.randrange(30) for _ in requests]
    goes = [time + rng.randrange(1, 9) if place % 3 == 0 else 10**9 for place, time in enumerate(comes)]
    ids, found = dict[int, int](), dict[int, list[Trace]]({place: [] for place in range(len(requests))})
    now = 0
    while len(ids) < len(requests) or one.busy:
        for place, request in enumerate(requests):
            if comes[place] == now:
                ids[one.add(request)] = place
            if goes[place] == now:
                found[place] += one.cancel(next(number for number, owner in ids.items() if owner == place))
        for event in one.step():
            if event.trace is not None:
                found[ids[event.request]].append(event.trace)
        now += 1
    beside = open_hf(folders[name])
    alone = [answers(beside, [request])[0] for request in requests]
    for place, traces in found.items():
        if goes[place] > now:
            assert sorted(trace.sample for trace in traces) == list(range(requests[place].n))
        for trace in traces:
            whole = alone[place][trace.sample]
            assert trace.tokens == whole.tokens[: len(trace.tokens)]
            assert trace.ended in ("cancelled", whole.ended)
            np.testing.assert_allclose(
                [s.logp for s in trace.steps], [s.logp for s in whole.steps[: len(trace.steps)]], atol=1e-3
            )
    assert any(trace.ended == "cancelled" for traces in found.values() for trace in traces)


@pytest.mark.slow
@pytest.mark.parametrize("name", CACHES)
def test_greedy_in_company_is_what_transformers_generates(name: str, folders: dict[str, Path]) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(folders[name])
    prompts = [(3,), (5, 6, 7, 8), tuple(range(20, 60)), tuple(range(10, 28))]
    got = answers(open_hf(folders[name]), [Request(p, limit=9, sampling=Sampling(0.0)) for p in prompts])
    for prompt, (trace,) in zip(prompts, got, strict=True):
        theirs = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=9, do_sample=False,
            eos_token_id=None,
        )  # fmt: skip
        assert trace.tokens == tuple(theirs[0, len(prompt) :].tolist())


@pytest.mark.slow
def test_a_model_with_more_rows_than_tokens_answers(tmp_path: Path) -> None:
    """Vocabularies are padded; a model that was not trained may say what has no spelling."""
    source = open_hf(folder_of("gpt2", tmp_path, vocab_size=V + 40))
    request = Request((1, 5), n=20, limit=9, sampling=Sampling(3.0), stop_texts=("zzz",))
    tokens = [token for trace in answers(source, [request])[0] for token in trace.tokens]
    assert max(tokens) >= V
    assert isinstance(source.codec.decode(tokens), str)


@pytest.mark.slow
def test_who_stays_is_answered_by_the_server_as_if_alone(folders: dict[str, Path]) -> None:
    def make() -> ServedModel:
        return ServedModel("toy", open_hf(folders["gpt2"]))

    with running(app([make()], ServeSettings(batch=7))) as url:
        stayed, left = come_and_go(url, SHORT // 2, 0, make)
    assert stayed + left == CLIENTS * (SHORT // 2)


@pytest.mark.slow
def test_the_studio_writes_them_in_company(folders: dict[str, Path]) -> None:
    (one,) = opened_models([str(folders["gpt2"])], "float32")
    assert one.worker is not None
    assert not one.speculates
    visited(one, open_hf(folders["gpt2"]), SHORT // 2, 0)


@pytest.mark.slow
def test_klype_serve_answers_several_clients_at_once(tmp_path: Path) -> None:
    folder = folder_of("gpt2", tmp_path / "en modell")
    body = {"model": "en-modell", "prompt": "hun gikk", "max_tokens": 20, "temperature": 0.8}
    alone = open_served(str(folder))
    expected = [post(app([alone]), "/v1/completions", json={**body, "seed": seed}).json() for seed in range(4)]
    process, url = start(folder)
    try:
        got = dict[int, dict[str, object]]()

        def ask(seed: int) -> None:
            got[seed] = httpx.post(f"{url}/completions", json={**body, "seed": seed}, timeout=60).json()

        clients = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
    finally:
        process.terminate()
        process.wait(60)
    for seed, whole in enumerate(expected):
        assert got[seed]["choices"] == whole["choices"]
        assert got[seed]["system_fingerprint"] == whole["system_fingerprint"]


def test_what_only_klypes_own_models_do_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="not computed by klype itself"):
        assert open_hf(folders["gpt2"]).engine.model
    with pytest.raises(UsageError, match="not computed by klype itself"):
        make_draft(open_model(str(folders["gpt2"])), "lookup")


def test_logits_of_a_long_text_are_not_all_held_at_once(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt as long as a wide window, of a vocabulary of 150,000, would have 20 GB of them."""
    text = tuple(5 + i * i % 90 for i in range(100))
    whole, sizes = open_hf(folders["gpt2"]), list[int]()
    expected = whole.next([text])[0], whole.score([text[:30]], [text[30:]])[0]
    monkeypatch.setattr(hf_runner, "ENTRIES", 20 * V)
    one = open_hf(folders["gpt2"])
    one.engine.runner.model.register_forward_hook(lambda module, given, out: sizes.append(out.logits.shape[1]))
    np.testing.assert_allclose(one.next([text])[0].logp, expected[0].logp, atol=1e-4)
    assert sizes == [20] * 5
    scored = open_hf(folders["gpt2"]).score([text[:30]], [text[30:]])[0]
    np.testing.assert_allclose([s.logp for s in scored.steps], [s.logp for s in expected[1].steps], atol=1e-4)


def test_where_nothing_can_be_padded_equal_lengths_share_a_pass(folders: dict[str, Path]) -> None:
    """An architecture that takes neither places nor a mask."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folders["gpt2"])
    whole, sizes = model.forward, list[tuple[int, ...]]()
    name = "cache" if "cache" in inspect.signature(whole).parameters else "past_key_values"

    def forward(input_ids: Any, past_key_values: Any = None, use_cache: bool = False) -> dict[str, Any]:
        sizes.append(tuple(input_ids.shape))
        out = whole(input_ids=input_ids, use_cache=use_cache, **{name: past_key_values})
        return Output(logits=out.logits, past_key_values=out[name] if use_cache else None)

    model.forward = forward
    runner = HFRunner(model)
    assert (runner.cache, runner.pads) == ("past_key_values", False)
    requests = [Request(prompt, limit=4, seed=2) for prompt in ((1, 2, 3), (4, 5), (6, 7, 8), (9,))]
    sizes.clear()
    together = Engine(runner).run(requests)
    assert sizes == [(4, 3), *[(1, 1), (1, 1), (2, 1)] * 3]
    alone = [answers(open_hf(folders["gpt2"]), [request])[0] for request in requests]
    assert [[t.tokens for t in traces] for traces in together] == [[t.tokens for t in traces] for traces in alone]


class Output(dict[str, Any]):
    @property
    def logits(self) -> torch.Tensor:
        return self["logits"]  # type: ignore[no-any-return]
