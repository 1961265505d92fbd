"""The remote source against klype's own server equals the native one, in process and over a socket."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from klype.answers import distribution_bounds
from klype.answers.tree import TreeSettings
from klype.cli import exits
from klype.cli.main import call
from klype.errors import BudgetSpentError
from klype.examine.caching_source import Recorder
from klype.sources.capabilities import probe
from klype.sources.hf_open import open_hf
from klype.sources.http_client import Budget, HttpClient, ResponseCache, RetryPolicy
from klype.sources.remote import RemoteSource
from klype.sources.source import NativeSource, Source, answers
from klype.studio.answer_paths_search import PathSource
from klype.text.chat import TEMPLATE, Chat
from klype.text.tokenizer import Tokenizer
from klype.values import Request, Sampling
from tests.toy_sources import grow_one
from tests.toys import toy

TEXTS = ["jeg gikk en tur på fjellet", "hun gikk en tur i byen", "hvor gikk hun? hun gikk i byen"]
TOKENIZER = Tokenizer.train(TEXTS, 300, TEMPLATE)
TOP = 20
ASKED = [{"role": "user", "content": "hvor gikk hun?"}]


class InProcess(httpx.BaseTransport):
    """Calls an ASGI app in a loop of its own."""

    def __init__(self, app: Any) -> None:
        self._inner = httpx.ASGITransport(app=app)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def ask() -> httpx.Response:
            body = httpx.Request(request.method, request.url, headers=request.headers, content=request.content)
            response = await self._inner.handle_async_request(body)
            content = await response.aread()
            return httpx.Response(response.status_code, headers=response.headers, content=content)

        request.read()
        return asyncio.run_coroutine_threadsafe(ask(), self._loop).result()


def own() -> NativeSource:
    return NativeSource.of(toy("llama", vocab_size=TOKENIZER.vocab_size), TOKENIZER, Chat(TOKENIZER), "toy")


def served() -> Any:
    from klype.serve.app import app
    from klype.serve.guard import ServeSettings
    from klype.serve.served_model import ServedModel

    return app([ServedModel("toy", own())], ServeSettings(completion_top=TOP))


@pytest.fixture(scope="module")
def app() -> Any:
    pytest.importorskip("fastapi")
    return served()


@pytest.fixture(scope="module")
def remote(app: Any) -> RemoteSource:
    client = httpx.Client(transport=InProcess(app))
    http = HttpClient("http://localhost/v1", retry=RetryPolicy(client=client))
    return RemoteSource(http, probe(http))


def test_what_the_own_server_offers(remote: RemoteSource) -> None:
    offer = remote.caps
    assert (offer.kind, offer.model, offer.window, offer.completion_top, offer.chat_top) == (
        "klype",
        "toy",
        64,
        TOP,
        20,
    )
    assert all((offer.tokenizer, offer.completions, offer.ids, offer.echo, offer.chat, offer.n, offer.seed))
    measures = offer.measures()
    assert (measures["forks"], measures["tree"], measures["next"]) == ("whole", "bounded", "bounded")
    assert remote.codec.stop == (TOKENIZER.end,)


def test_the_codec_is_the_models(remote: RemoteSource) -> None:
    native = own().codec
    assert remote.codec.encode("jeg gikk") == native.encode("jeg gikk")
    assert remote.codec.prompt(ASKED) == native.prompt(ASKED)
    ids = [*TOKENIZER.encode(" hun gikk i byen"), TOKENIZER.end]
    assert remote.codec.decode(ids) == native.decode(ids) == "hun gikk i byen"


def test_remote_equals_native(remote: RemoteSource) -> None:
    native = own()
    prompt, stop = tuple(native.codec.prompt(ASKED)), native.codec.stop
    shaped = Sampling(0.8, top_k=9, top_p=0.9, repetition_penalty=1.2)
    requests = [
        Request(prompt, n=4, limit=9, seed=3, stop=stop),
        Request(prompt, n=2, limit=7, sampling=shaped, seed=4, stop=stop),
        Request(prompt, limit=12, sampling=Sampling(temperature=0), stop=stop, top=-1),
    ]
    for request in requests:  # one alone is streamed, several are not
        for theirs, mine in zip(answers(remote, [request])[0], answers(native, [request])[0], strict=True):
            assert (theirs.tokens, theirs.ended, theirs.sample) == (mine.tokens, mine.ended, mine.sample)
            np.testing.assert_allclose([s.logp for s in theirs.steps], [s.logp for s in mine.steps], atol=1e-5)
    together = answers(remote, requests)
    assert [[t.tokens for t in group] for group in together] == [
        [t.tokens for t in group] for group in answers(native, requests)
    ]
    prefixes = [(*prompt, *t.tokens[:2]) for t in together[0]]
    for q, whole in zip(remote.next(prefixes), native.next(prefixes), strict=True):
        assert q.ids.tolist() == whole.ids[:TOP].tolist()
        np.testing.assert_allclose(q.logp, whole.logp[:TOP], atol=1e-5)
        assert not q.whole
    said = [t.tokens for t in together[0]]
    for a, b in zip(remote.score([prompt] * 4, said, 5), native.score([prompt] * 4, said, 5), strict=True):
        assert a.tokens == b.tokens
        np.testing.assert_allclose([s.logp for s in a.steps], [s.logp for s in b.steps], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.4])
def test_the_truth_lies_within_the_bounds(remote: RemoteSource, temperature: float) -> None:
    native = own()
    prompt = tuple(native.codec.prompt(ASKED))
    drawn = answers(native, [Request(prompt, n=6, limit=6, sampling=Sampling(1.5), stop=native.codec.stop)])[0]
    prefixes = [(*prompt, *t.tokens[:i]) for t in drawn for i in range(len(t.tokens))]
    size = TOKENIZER.vocab_size
    for q, whole in zip(remote.next(prefixes), native.next(prefixes), strict=True):
        p_V = np.exp(whole.logp.astype(np.float64))
        low, high = distribution_bounds.entropy(q, size)
        assert low - 1e-6 <= -(p_V * whole.logp).sum() <= high + 1e-6
        at = distribution_bounds.temperature_bounds(q, temperature, size)
        hot_V = p_V ** (1 / temperature) / (p_V ** (1 / temperature)).sum()
        assert (at.low_K - 1e-6 <= hot_V[:TOP]).all()
        assert (hot_V[:TOP] <= at.high_K + 1e-6).all()
        some = set(whole.ids[2:9].tolist())
        low, high = distribution_bounds.mass_at(q, temperature, size, some)
        assert low - 1e-6 <= hot_V[2:9].sum() <= high + 1e-6
    settings = TreeSettings(Sampling(temperature=temperature), limit=3, budget=60, vocabulary=size)
    whole_tree = grow_one(
        native, prompt, TreeSettings(Sampling(temperature=temperature), limit=3, budget=3000, eps=1e-9)
    )
    part = grow_one(remote, prompt, settings)
    truth = {answer.text: (answer.low, answer.high) for answer in whole_tree.answers}
    assert part.answers
    for answer in part.answers:
        low, high = truth[answer.text.removeprefix(" ")]
        assert answer.low <= high + 1e-5
        assert low <= answer.high + 1e-5


@pytest.mark.parametrize(
    "address", ["there/v1", "http://", "http://:1/v1", "http://127.0.0.1:65536/v1", "http://[::/v1"]
)
def test_what_is_no_address_is_not_asked(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exits.exit_code(call, ["doctor", address, "--json"]) == 2
    assert "is not the address of a server" in json.loads(capsys.readouterr().out)["error"]["message"]


@pytest.mark.slow
def test_the_same_over_a_socket(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fastapi")
    with serving(served()) as address:
        assert exits.exit_code(call, ["doctor", address, "--json"]) == 0
        (endpoint,) = json.loads(capsys.readouterr().out)["endpoints"]
        assert (endpoint["kind"], endpoint["measures"]["tree"]) == ("klype", "bounded")
        for argv in (
            ["ask", address, "hvor gikk hun?", "--seed", "3", "--limit", "5"],
            ["next", address, "jeg gikk", "--raw"],
            ["tree", address, "hvor gikk hun?", "--budget", "5", "--limit", "3"],
            ["forks", address, "hvor?", "-n", "4", "--limit", "3", "--answer", "hun gikk"],
        ):
            assert exits.exit_code(call, [*argv, "--json"]) == 0
            found = json.loads(capsys.readouterr().out)
            if argv[0] == "ask":
                prompt = tuple(own().codec.prompt([{"role": "user", "content": "hvor gikk hun?"}]))
                request = Request(prompt, limit=5, seed=3, sampling=Sampling(0.7), stop=own().codec.stop)
                mine = answers(own(), [request])[0][0]
                assert found["answer"] == own().codec.decode(mine.tokens)


def serving(app: Any) -> Any:
    from contextlib import contextmanager

    uvicorn = pytest.importorskip("uvicorn")

    @contextmanager
    def run() -> Iterator[str]:
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            threading.Event().wait(0.02)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.should_exit = True
            thread.join(10)

    return run()


def test_kept_answers_survive_and_cost_nothing(app: Any, tmp_path: Path) -> None:
    def source(budget: Budget) -> RemoteSource:
        retry = RetryPolicy(client=httpx.Client(transport=InProcess(app)))
        http = HttpClient("http://user:secret@localhost/v1", "", ResponseCache(tmp_path / "kept.sqlite"), budget, retry)
        return RemoteSource(http, offer)

    client = httpx.Client(transport=InProcess(app))
    offer = probe(HttpClient("http://localhost/v1", retry=RetryPolicy(client=client)))
    prompt = tuple(own().codec.prompt(ASKED))
    requests = [Request(prompt, n=2, limit=4, seed=seed) for seed in range(6)]
    first = source(Budget(requests=3))
    with pytest.raises(Exception, match="budget is used up"):
        answers(first, requests)
    again = source(Budget())
    whole = answers(again, requests)
    assert again.http.budget.kept > 0
    assert [[t.tokens for t in g] for g in whole] == [[t.tokens for t in g] for g in answers(own(), requests)]
    third = source(Budget(requests=1))
    assert [[t.tokens for t in g] for g in answers(third, requests)] == [[t.tokens for t in g] for g in whole]
    assert third.http.budget.asked == 0
    assert b"secret" not in (tmp_path / "kept.sqlite").read_bytes()


@pytest.mark.parametrize("requests", [2, 5, 11])
def test_a_spent_budget_shows_the_tree_so_far(app: Any, tmp_path: Path, requests: int) -> None:
    """What was paid for is in it, what was not is open still; the same with more goes on without paying again."""
    client = httpx.Client(transport=InProcess(app))
    kept = ResponseCache(tmp_path / "kept.sqlite")
    offer = probe(HttpClient("http://localhost/v1", retry=RetryPolicy(client=client)))
    prompt = tuple(own().codec.prompt(ASKED))
    settings = TreeSettings(limit=4, budget=40, batch=4, vocabulary=TOKENIZER.vocab_size)

    def grown(budget: Budget) -> Any:
        http = HttpClient("http://localhost/v1", "", kept, budget, RetryPolicy(client=client, concurrency=1))
        return grow_one(RemoteSource(http, offer), prompt, settings)

    part, budget = grown(Budget(requests=requests)), Budget()
    assert (part.stopped, part.expansions) == ("budget", requests)
    assert part.unexplored == pytest.approx(1 - sum(answer.low for answer in part.answers), abs=1e-5)
    whole = grown(budget)
    assert (whole.expansions, budget.asked, budget.kept > 0) == (40, 40 - requests, True)
    assert part.unexplored >= whole.unexplored
    assert part.lost <= whole.lost + 1e-9  # nothing that is open counts as lost
    assert part.entropy[0] <= whole.entropy[1]
    assert whole.entropy[0] <= part.entropy[1]
    spent = HttpClient("http://localhost/v1", "", None, Budget(requests=1, asked=1), RetryPolicy(client=client))
    with pytest.raises(BudgetSpentError, match="budget is used up"):
        grow_one(RemoteSource(spent, offer), prompt, settings)


def test_an_echo_alone_is_whole_however_fast_the_worker_is(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker has taken every text before the answer is begun, or it has taken none: the same is told."""
    from klype.serve.worker import Job, Worker

    submit = Worker.submit

    def slowly(worker: Worker, job: Job) -> None:
        submit(worker, job)
        while job.texts:
            threading.Event().wait(0.001)

    body = {"prompt": ["jeg gikk", "hun gikk en tur"], "model": "toy", "max_tokens": 0, "echo": True, "logprobs": 2}

    def told() -> Any:
        client = httpx.Client(transport=InProcess(app))
        choices = client.post("http://localhost/v1/completions", json=body).json()["choices"]
        assert all(len(one["logprobs"]["tokens"]) > 1 and one["finish_reason"] == "length" for one in choices)
        return [one["logprobs"] for one in choices]

    plain = told()
    monkeypatch.setattr(Worker, "submit", slowly)
    assert told() == plain


KINDS: dict[str, Callable[[RemoteSource, Path], Source]] = {
    "native": lambda remote, folder: own(),
    "transformers": lambda remote, folder: gpt2(folder),
    "remote": lambda remote, folder: remote,
    "recorded": lambda remote, folder: Recorder(own(), "these", folder, lambda: None),
    "remembered": lambda remote, folder: PathSource(own(), lambda: None, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_who_asks_nothing_is_answered_nothing(kind: str, remote: RemoteSource, tmp_path: Path) -> None:
    source = KINDS[kind](remote, tmp_path)
    assert source.next([]) == source.next([], 3) == []
    assert source.score([], []) == []
    assert list(source.generate([])) == answers(source, []) == []


def gpt2(folder: Path) -> Source:
    pytest.importorskip("transformers")
    from tests.test_sources_hf import folder_of

    return open_hf(folder_of("gpt2", folder))
