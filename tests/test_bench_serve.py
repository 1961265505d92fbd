"""The bench of the server: every answer is looked at, and what is wrong is counted."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from klype.bench.serve import Seen, _crowd, _same, alone
from klype.serve.app import app
from tests.serve_toys import running, served


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
