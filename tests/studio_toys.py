"""A studio of small models, and a visitor without a browser."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx

from klype.engine.engine import Engine
from klype.serve.served_model import ServedModel
from klype.sources.model_files import ModelFiles
from klype.sources.opening import OpenModel
from klype.sources.source import NativeSource, Source
from klype.studio.studio import SharedModel, Studio
from tests.serve_toys import served
from tests.toy_sources import Forwarding

T = TypeVar("T")


def model(
    name: str = "toy/align",
    seed: int = 0,
    own: bool = True,
    engine: Engine | None = None,
    batch: int = 64,
    **changes: Any,
) -> SharedModel:
    """Random weights behind klype's own engine, or (``own`` False) behind a source that is any other."""
    toy = served("toy", seed, **changes)
    source = toy.source if engine is None else NativeSource(engine, toy.source.codec)
    return SharedModel(
        name, "nowhere", opened(name, source if own else Forwarding(source), toy), f"weights {seed}", batch
    )


def opened(name: str, source: Source, toy: ServedModel) -> OpenModel:
    return OpenModel(
        name,
        ModelFiles(Path("nowhere"), None, "align"),
        source,
        toy.window,
        toy.vocab_size,
        toy.tokenizer.token_bytes,
        toy.tokenizer.name,
        encode_answer=toy.tokenizer.encode,
        template=True,
        flops_per_token=lambda context: 1000 + context,
    )


def studio(home: Path, *models: SharedModel, command: tuple[str, ...] = ("false",)) -> Studio:
    return Studio(models or (model(),), home, command)


def opened_models(names: Sequence[str], precision: str = "float32") -> list[SharedModel]:
    """What ``klype studio NAMES`` shows."""
    made = Studio([], Path("nowhere"), ["false"], precision=precision)
    for name in names:
        made.open(name)
    return list(made.models)


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
