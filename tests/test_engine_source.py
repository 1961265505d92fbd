"""The native source: the engine, and the words it speaks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from klype.engine.engine import Engine
from klype.errors import KlypeError, UsageError
from klype.sources.source import NativeCodec, NativeSource, Source, answers
from klype.text.chat import TEMPLATE, Chat
from klype.text.tokenizer import Tokenizer
from klype.values import Request
from tests.toys import toy

TEXTS = ["jeg gikk en tur på fjellet", "hun gikk en tur i byen", "hvor gikk hun?"]


def source() -> NativeSource:
    torch.set_num_threads(1)
    tokenizer = Tokenizer.train(TEXTS, 300, TEMPLATE)
    return NativeSource.of(toy("conv", vocab_size=tokenizer.vocab_size), tokenizer, Chat(tokenizer), "toy")


def test_generation_equals_the_engines() -> None:
    asked: Source = source()
    requests = [Request(tuple(asked.codec.encode(text)), n=3, limit=8, stop=asked.codec.stop) for text in TEXTS]
    plain = Engine(source().engine.model).run(requests)
    got = answers(asked, requests)
    assert [[t.tokens for t in traces] for traces in got] == [[t.tokens for t in traces] for traces in plain]
    assert {trace.model for traces in got for trace in traces} == {"toy"} == {asked.name}


def test_events_name_the_request_by_its_place_and_end_with_the_trace() -> None:
    asked = source()
    requests = [Request((1, 7), limit=3, seed=1), Request((1, 8), n=2, limit=5, seed=2)]
    events = list(asked.generate(requests))
    for place, request in enumerate(requests):
        for sample in range(request.n):
            mine = [event for event in events if (event.request, event.sample) == (place, sample)]
            assert mine[-1].trace is not None
            assert tuple(event.step for event in mine) == mine[-1].trace.steps
            assert all(event.trace is None for event in mine[:-1])


def test_closing_the_stream_ends_the_work() -> None:
    asked = source()
    stream = asked.generate([Request((1,), n=5, limit=50)])
    next(stream)
    assert asked.engine.busy
    stream.close()  # type: ignore[attr-defined]
    assert not asked.engine.busy


def test_threads_and_open_streams_ask_side_by_side() -> None:
    asked = source()
    requests = [Request((1, 7 + i), n=2, limit=12, seed=i) for i in range(6)]
    alone = [[trace.tokens for trace in answers(asked, [request])[0]] for request in requests]
    reading = asked.generate(requests[:1])
    seen = [next(reading)]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            scored = threads.map(lambda request: asked.score([request.prompt], [(5, 6, 7)])[0].logp, requests)
            together = threads.map(lambda request: answers(asked, [request])[0], requests)
            assert [[trace.tokens for trace in traces] for traces in together] == alone
            assert len(list(scored)) == len(requests)
    ended = sorted((e.sample, e.trace.tokens) for e in [*seen, *reading] if e.trace is not None)
    assert [tokens for _, tokens in ended] == alone[0]
    assert not asked.engine.busy


def test_who_asks_beside_a_failure_is_told() -> None:
    asked = source()
    reading, other = asked.generate([Request((1,), limit=50)]), asked.generate([Request((1, 7), limit=50)])
    next(reading)
    next(other)
    with torch.no_grad():
        asked.engine.model.head.weight.fill_(float("nan"))
    with pytest.raises(KlypeError, match="weights have changed"):
        list(other)
    with pytest.raises(KlypeError, match="this answer was lost, too"):
        list(reading)
    assert not asked.engine.busy


def test_a_wrong_request_is_refused_before_any_other_begins() -> None:
    asked = source()
    with pytest.raises(UsageError, match="empty"):
        asked.generate([Request((1,)), Request(())])
    assert not asked.engine.busy


def test_the_codec_begins_texts_and_ends_answers() -> None:
    asked = source()
    tokenizer = asked.codec.tokenizer
    ids = asked.codec.encode("jeg gikk")
    assert ids[0] == tokenizer.begin
    assert ids[-1] != tokenizer.end
    assert asked.codec.decode([*ids, tokenizer.end]) == "jeg gikk"
    prompt = asked.codec.prompt([{"role": "user", "content": "hvor gikk hun?"}])
    assert prompt == Chat(tokenizer).prompt([{"role": "user", "content": "hvor gikk hun?"}])
    with pytest.raises(KlypeError, match="no chat template"):
        NativeCodec(tokenizer).prompt([{"role": "user", "content": "hei"}])


def test_next_and_score_agree() -> None:
    asked = source()
    prefix, answer = asked.codec.encode("jeg gikk"), asked.codec.encode("en tur")[1:]
    (trace,) = asked.score([prefix], [answer])
    prefixes = [[*prefix, *answer[:i]] for i in range(len(answer))]
    for step, distribution in zip(trace.steps, asked.next(prefixes), strict=True):
        assert torch.tensor(step.logp).exp().item() == pytest.approx(distribution.p(step.token), rel=1e-4)
