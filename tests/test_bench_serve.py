"""The bench of the server: every answer is looked at, and what is wrong is counted."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from benchmarks.serve import EDGE, FEW, Seen, _crowd, _same, alone, edge, serve
from klype.errors import UsageError
from klype.serve.app import app
from klype.values import Request
from tests.serve_toys import running, served


@pytest.mark.slow
def test_wrong_answers_and_errors_are_counted() -> None:
    tasks = alone(served("bench", window=512))[:12]
    with running(app([served("bench", window=512)])) as url:
        good = asyncio.run(_crowd(f"{url}/v1", tasks, 4, 0.3))
        assert (good.mixed, good.errors) == (0, [])
        assert good.answers == len(good.first) >= 4
        mixed = asyncio.run(_crowd(f"{url}/v1", [replace(task, answer="x") for task in tasks], 2, 0.1))
        assert mixed.mixed == mixed.answers > 0
        broken = [replace(task, body={**task.body, "n": 0}) for task in tasks]
        failed: Seen = asyncio.run(_crowd(f"{url}/v1", broken, 2, 0.1))
        assert failed.answers == 0
        assert failed.errors


def test_only_an_unfinished_character_may_be_missing() -> None:
    assert _same("hei", "hei")
    assert _same("hei", "hei\ufffd")
    assert not _same("he", "hei")
    assert not _same("hei", "he")


def test_a_draw_at_an_edge_is_noticed() -> None:
    engine = served("bench", window=512).source.engine
    traces = engine.run([Request((1, 2), n=8, limit=40, seed=3, top=-1)])[0]
    for trace in traces:
        near = edge(trace)
        assert 0 < near < 0.1
        other = engine.run([Request((1, 2), limit=40, seed=3, first_sample=trace.sample)])[0][0]
        assert other.tokens == trace.tokens or near < EDGE
    moved = replace(traces[0], steps=(replace(traces[0].steps[0], token=(traces[0].tokens[0] + 1) % 300),))
    assert edge(moved) < 0  # the noise does not lie in another token's part


@pytest.mark.slow
def test_the_whole_bench_on_a_fresh_model() -> None:
    document = serve(None, 1, lambda text: None, clients=8)
    assert (document["errors"], document["mixed_up"], document["first_errors"]) == (0, 0, [])
    assert [row["clients"] for row in document["rows"]] == [8, 1, FEW]
    figure = document["ratios"]["clients_16_vs_1"]
    assert figure["low"] <= figure["value"] <= figure["high"]
    json.dumps(document, allow_nan=False)
    with pytest.raises(UsageError):
        serve(None, 0, lambda text: None)
