"""A studio of small models, and a visitor without a browser."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

from klype.answers.tree import Meaning
from klype.engine.engine import Engine
from klype.sources.native import NativeSource
from klype.studio.studio import Model, Studio
from klype.values import Question
from tests.serve_toys import served

T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    prompt: tuple[int, ...]
    question: Question
    meaning: Meaning = field(default=lambda text: text[:1])
    judge: str = "normalised match"
    right: Callable[[str], bool | None] | None = None


def model(name: str = "toy/align", seed: int = 0, **changes: Any) -> Model:
    """Random weights behind klype's own engine; long work has an engine of its own."""
    toy = served("toy", seed, **changes)
    codec = toy.source.codec
    beside = Engine(toy.source.engine.model, decode_bytes=toy.token_bytes, name="toy")
    return Model(
        name,
        "nowhere",
        NativeSource(beside, codec),
        toy.window,
        toy.vocab_size,
        toy.token_bytes,
        toy.tokenizer.name,
        ask=lambda text: Asked(tuple(codec.prompt([{"role": "user", "content": text}])), Question("q", text)),
        stage="align",
        engine=toy.source.engine,
        flops_per_token=lambda context: 1000 + context,
        identity=f"weights {seed}",
    )


def studio(home: Path, *models: Model, command: tuple[str, ...] = ("false",)) -> Studio:
    return Studio(models or (model(),), home, command, {"en": ["Where is she?"], "nb": ["hvor gikk hun?"]})


@contextmanager
def visiting(made: Studio) -> Iterator[tuple[Callable[[Any], Any], Any]]:
    """(run, user): the pages in process, and NiceGUI's simulated user; one event loop for all."""
    import nicegui
    from nicegui.testing import User

    from klype.studio.app import pages

    nicegui.app.middleware_stack = None
    fast = pages(made)
    with asyncio.Runner() as runner:
        lifespan = fast.router.lifespan_context(fast)
        runner.run(lifespan.__aenter__())
        client = httpx.AsyncClient(transport=httpx.ASGITransport(fast), base_url="http://localhost")
        try:
            yield runner.run, User(client)
        finally:
            runner.run(client.aclose())
            runner.run(lifespan.__aexit__(None, None, None))
