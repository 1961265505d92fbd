"""Clients that come and go in company: who stays gets what it would get alone, whoever leaves beside it."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from klype.answers.tree import TreeSettings
from klype.engine.engine import Engine, Event
from klype.model import checkpoint
from klype.serve.api_errors import ApiError
from klype.serve.app import app
from klype.serve.guard import ServeSettings
from klype.serve.metrics import health
from klype.serve.served_model import ServedModel
from klype.serve.worker import Job, Worker
from klype.sources.source import Source, answers
from klype.studio.answer_paths_search import CancelledError
from klype.studio.studio import AnswerBranch, Branches, Conversation, SharedModel
from klype.values import Request, Sampling
from tests.serve_toys import post, running, served
from tests.studio_toys import model
from tests.test_serve_answers import events
from tests.test_serve_socket import gauge, start
from tests.toy_sources import grow_one

CLIENTS = 8
SHORT, LONG = 8, 63
"""Visits a client."""
HANGS_S = 600
GROWN = 30e6
"""Bytes that a process may grow while as many come and go as have before."""
KINDS = 24
WORDS = ["hun gikk", "hvor gikk hun?", "jeg gikk en tur på fjellet " * 3, "blåbær 🫐", "en tur i byen " * 8]


def asked(kind: int) -> tuple[str, dict[str, Any]]:
    """One of ``KINDS`` requests: chats and texts, one answer or three, short and long, some with scored prompts."""
    rng = random.Random(kind)
    body: dict[str, Any] = {"model": "toy", "seed": kind, "n": rng.choice([1, 1, 3]), "ignore_eos": kind % 3 == 0}
    body |= {"max_tokens": rng.choice([1, 9, 40, 80]), "temperature": rng.choice([0, 0.7, 1]), "stop": ["zzz"]}
    if kind % 2:
        return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": rng.choice(WORDS)}]}
    scored = {"echo": True, "logprobs": 2} if kind % 4 else {}
    return "/v1/completions", {**body, **scored, "prompt": rng.sample(WORDS, 1 + kind % 3)}


def said(answer: httpx.Response, stream: bool) -> list[tuple[str, str]]:
    """Text and reason of every choice."""
    assert answer.status_code == 200, answer.text
    texts: dict[int, list[str]] = {}
    for document in events(answer) if stream else [answer.json()]:
        for choice in document["choices"]:
            text, reason = texts.setdefault(choice["index"], ["", ""])
            part = next(choice[name] for name in ("text", "delta", "message") if name in choice)
            more = part if isinstance(part, str) else part.get("content", "")
            texts[choice["index"]] = [text + more, reason or choice["finish_reason"] or ""]
    return [(text, reason) for _, (text, reason) in sorted(texts.items())]


def come_and_go(
    url: str, visits: int, seed: int, make: Callable[[], ServedModel] = lambda: served(window=256)
) -> tuple[int, int]:
    """How many stayed and how many left; every one that stayed was answered as if alone."""
    guarded = app([make()])
    alone = [said(post(guarded, path, json=body), False) for path, body in map(asked, range(KINDS))]
    return asyncio.run(_together(url, visits, seed, alone))


async def _together(url: str, visits: int, seed: int, alone: list[Any]) -> tuple[int, int]:
    stayed = left = 0
    name = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]

    async def client(http: httpx.AsyncClient, rng: random.Random) -> None:
        nonlocal stayed, left
        for _ in range(visits):
            kind, stream = rng.randrange(KINDS), rng.random() < 0.5
            path, body = asked(kind)
            body |= {"stream": stream, "model": name}
            if rng.random() < 0.4:
                assert said(await http.post(path, json=body), stream) == alone[kind], (kind, stream)
                stayed += 1
                continue
            left += 1
            with suppress(TimeoutError):
                async with asyncio.timeout(rng.random() * 0.1), http.stream("POST", path, json=body) as answer:
                    waits = rng.randrange(1, 12)  # pieces, for a stream that comes in any before the time is over
                    async for _ in answer.aiter_bytes():
                        if (waits := waits - 1) == 0:
                            break

    async with httpx.AsyncClient(base_url=url, timeout=HANGS_S) as http, asyncio.timeout(HANGS_S):
        await asyncio.gather(*(client(http, random.Random(seed + number)) for number in range(CLIENTS)))
        while gauge(url, "running_samples") + gauge(url, "waiting_samples"):  # the last that left
            await asyncio.sleep(0.01)
        assert (await http.get("/health")).json() == {"status": "ok"}
    assert gauge(url, "cancelled_requests_total") > 0
    return stayed, left


@pytest.mark.slow
def test_who_stays_is_answered_as_if_alone() -> None:
    with running(app([served(window=256)], ServeSettings(batch=7))) as url:
        stayed, left = come_and_go(url, SHORT, 0)
    assert stayed + left == CLIENTS * SHORT


@pytest.mark.soak
def test_five_hundred_come_and_go_and_leave_nothing(tmp_path: Path) -> None:
    one = served(window=256)
    checkpoint.save(tmp_path / "en modell", one.source.engine.model, one.tokenizer, {})
    process, url = start(tmp_path / "en modell", "--batch", "7")
    url = url.removesuffix("/v1")
    try:
        come_and_go(url, LONG, 1000)
        before = psutil.Process(process.pid).memory_info().rss
        stayed, left = come_and_go(url, LONG, 2000)
        assert stayed + left == CLIENTS * LONG >= 500
        assert psutil.Process(process.pid).memory_info().rss - before < GROWN
    finally:
        process.terminate()
        process.wait(60)


def drawn(one: SharedModel, kind: int) -> tuple[AnswerBranch, int]:
    """One of ``KINDS`` answers that are to be written, with its limit."""
    rng = random.Random(kind)
    prompt = one.prompt_after(Conversation("k"), rng.choice(WORDS))
    return Branches("x").begin(prompt, Sampling(rng.choice([0.0, 0.7, 1.0])), kind), rng.choice([1, 9, 40, 80])


async def visit_and_go(one: SharedModel, visits: int, seed: int, own: Source) -> tuple[int, int]:
    """As ``come_and_go``, for the studio's visitors; some draw whole trees beside, and lose patience."""
    with_stop = [(answer, one.rest_of(answer, limit)) for answer, limit in
                 (drawn(one, kind) for kind in range(KINDS))]  # fmt: skip
    alone = [answers(own, [request])[0][0].tokens for _, request in with_stop]
    stayed = left = 0

    def tree(impatient: bool) -> Any:
        def look(expansions: int, unexplored: float) -> None:
            if impatient and expansions > 3:
                raise CancelledError

        def work(source: Source) -> float:
            for event in source.generate([with_stop[0][1], with_stop[1][1], with_stop[2][1]]):
                if impatient and len(event.step.distribution.ids) > 0:  # type: ignore[union-attr]
                    raise CancelledError
            settings = TreeSettings(Sampling(), 4, 8, "mass", 0.001, batch=4, vocabulary=one.vocabulary)
            grown = grow_one(source, with_stop[0][1].prompt, settings, one.opened.token_bytes, lambda text: text, look)
            return grown.unexplored

        return work

    async def visitor(rng: random.Random) -> None:
        nonlocal stayed, left
        for _ in range(visits):
            kind, way = rng.randrange(KINDS), rng.random()
            answer, limit = drawn(one, kind)
            if way < 0.1:
                impatient = rng.random() < 0.5
                with suppress(CancelledError):
                    assert await one.beside(tree(impatient)) < 1
                    assert not impatient
                stayed += 1
                continue
            if way < 0.5:
                await one.extend(answer, limit)
                assert answer.tokens == alone[kind], kind
                stayed += 1
                continue
            left += 1
            writing = asyncio.ensure_future(one.extend(answer, limit))
            await asyncio.sleep(rng.random() * 0.05)
            answer.running = False  # the button
            if way < 0.75:
                writing.cancel()  # the page
            with suppress(asyncio.CancelledError):
                await writing
            assert answer.tokens == alone[kind][: len(answer.steps)]

    async with asyncio.timeout(HANGS_S):
        await asyncio.gather(*(visitor(random.Random(seed + number)) for number in range(CLIENTS)))
        while one.worker is not None and one.worker.load:
            await asyncio.sleep(0.01)
    return stayed, left


def visited(one: SharedModel, own: Source, visits: int, seed: int) -> None:
    """``own``: the same model, for each answer alone."""
    stayed, left = asyncio.run(visit_and_go(one, visits, seed, own))
    one.stop()
    assert stayed + left == CLIENTS * visits


@pytest.mark.slow
@pytest.mark.parametrize("own", [True, False], ids=["engine", "source"])
def test_who_stays_in_the_studio_is_answered_as_if_alone(own: bool) -> None:
    visited(model(own=own, batch=5, window=256), model(window=256).source, SHORT, 0)


@pytest.mark.soak
@pytest.mark.parametrize("own", [True, False], ids=["engine", "source"])
def test_five_hundred_come_and_go_in_the_studio(own: bool) -> None:
    alone = model(window=256).source
    visited(model(own=own, batch=5, window=256), alone, LONG, 1000)
    before = psutil.Process().memory_info().rss
    visited(model(own=own, batch=5, window=256), alone, LONG, 2000)
    assert psutil.Process().memory_info().rss - before < GROWN


class Frail(Engine):
    """Fails where an engine is not expected to: when a request is taken back; ``ruined``, even when it begins anew."""

    frail = ruined = False
    gate: threading.Event | None = None
    """Before each step."""

    def step(self) -> list[Event]:
        if self.gate is not None:
            self.gate.wait(HANGS_S)
        return super().step()

    def cancel(self, request_id: int) -> list[Any]:
        if self.frail:
            raise RuntimeError("a request could not be taken back")
        return super().cancel(request_id)

    def abandon(self) -> None:
        if self.ruined:
            raise RuntimeError("the engine is beyond help")
        super().abandon()


def frail() -> tuple[ServedModel, Frail]:
    one = served("toy", window=4096)
    engine = Frail(one.source.engine.model, decode_bytes=one.tokenizer.token_bytes, name="toy")
    one.source.engine = engine
    return one, engine


ENDLESS = {"model": "toy", "prompt": "hun", "max_tokens": 4000, "stream": True, "ignore_eos": True}
BRIEF = {"model": "toy", "prompt": "hun gikk", "max_tokens": 5, "seed": 3}


def test_a_failure_is_told_and_the_next_is_answered() -> None:
    """One leaves, and that fails: who is being answered meanwhile is told, and nobody waits for ever."""
    one, engine = frail()
    with running(app([one])) as url, httpx.Client(base_url=url, timeout=60) as client:
        alone = client.post("/v1/completions", json=BRIEF).json()["choices"]
        engine.frail = True
        with client.stream("POST", "/v1/completions", json=ENDLESS) as stays:
            lines = stays.iter_lines()
            next(lines)
            with client.stream("POST", "/v1/completions", json=ENDLESS) as leaves:
                next(leaves.iter_bytes())
            told = [line for line in lines if line][-1]
        assert json.loads(told.removeprefix("data: "))["error"]["type"] == "server_error"
        engine.frail = False
        assert client.post("/v1/completions", json=BRIEF).json()["choices"] == alone
        assert client.get("/health").status_code == 200
        assert gauge(url, "running_samples") == gauge(url, "waiting_samples") == 0


def test_a_failure_leaves_alone_what_only_waits_to_be_scored() -> None:
    engine = frail()[1]
    worker = Worker(engine, 4, 50)
    texts = [[1, 2, 3, token] for token in range(4, 9)]
    alone = [trace.logp for trace in engine.score([text[:1] for text in texts], [text[1:] for text in texts])]

    async def go() -> list[Any]:
        stays, given = Job([Request((1, 2), limit=4000)]), Job([], texts)
        worker.submit(stays)
        updates = stays.updates()
        await anext(updates)
        engine.gate = threading.Event()
        worker.submit(given)
        worker.cancel(stays)
        engine.frail = True
        engine.gate.set()
        found = [update async for news in given.updates() for update in news]
        assert worker.load == 0
        return found

    try:
        found = asyncio.run(asyncio.wait_for(go(), HANGS_S))
    finally:
        worker.stop()
    assert [update.value.logp for update in found] == alone


def test_an_engine_beyond_help_is_reported() -> None:
    one, engine = frail()
    with running(app([one, served("other")])) as url, httpx.Client(base_url=url, timeout=60) as client:
        engine.frail = engine.ruined = True
        with client.stream("POST", "/v1/completions", json=ENDLESS) as stays:
            lines = stays.iter_lines()
            next(lines)
            with client.stream("POST", "/v1/completions", json=ENDLESS) as leaves:
                next(leaves.iter_bytes())
            assert "error" in [line for line in lines if line][-1]
        for answer in (client.get("/health"), client.post("/v1/completions", json=BRIEF)):
            assert answer.status_code == 503
            assert "answers no more" in answer.json()["error"]["message"]
        assert client.post("/v1/completions", json={**BRIEF, "model": "other"}).status_code == 200


def test_the_studio_says_that_an_engine_is_beyond_help() -> None:
    engine = frail()[1]
    one = model(window=4096, engine=engine)
    assert one.worker is not None

    async def go() -> None:
        engine.frail = engine.ruined = True
        stays, leaves = one.events(Request((1, 2), limit=4000)), one.events(Request((1, 2), limit=4000))
        await anext(stays)
        await anext(leaves)
        await leaves.aclose()  # type: ignore[attr-defined]
        with pytest.raises(ApiError, match="Its log says why"):
            async for _ in stays:
                pass
        with pytest.raises(ApiError, match="answers no more"):
            await one.extend(Branches("x").begin([1, 2], Sampling(), 0), 5)

    asyncio.run(asyncio.wait_for(go(), HANGS_S))
    assert health({"toy": one.worker}).status_code == 503


def test_what_waits_when_the_worker_is_stopped_is_told() -> None:
    """Some of it had not even been taken up."""
    toy = served(window=4096).source.engine
    worker = Worker(toy, 2, 50)

    async def go() -> None:
        waiting = [Job([Request((token,), n=2, limit=4000)]) for token in range(9)]
        for job in waiting[:5]:
            worker.submit(job)
        await anext(waiting[0].updates())
        for job in waiting[5:]:
            worker.submit(job)
        await asyncio.to_thread(worker.stop)
        for job in waiting:
            with pytest.raises(ApiError, match="shutting down"):
                async for _ in job.updates():
                    pass
        assert worker.load == 0

    before = threading.active_count()
    asyncio.run(asyncio.wait_for(go(), HANGS_S))
    assert threading.active_count() <= before


def test_a_thread_that_cannot_be_had_is_no_thread() -> None:
    worker = Worker(served().source.engine, 2, 50)

    async def go() -> list[Event]:
        job = Job([Request((1,), limit=3)])
        before = threading.stack_size(1 << 48)  # more than there are addresses for
        try:
            with pytest.raises(RuntimeError, match="can't start new thread"):
                worker.submit(job)
        finally:
            threading.stack_size(before)
        assert worker.load == 0
        worker.submit(job)
        return [event async for news in job.updates() for event in news if isinstance(event, Event)]

    assert asyncio.run(asyncio.wait_for(go(), HANGS_S))[-1].trace is not None
    worker.stop()
