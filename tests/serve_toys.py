"""A small model behind the real server, in process and over a socket."""

from __future__ import annotations

import asyncio
import socket as sockets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from starlette.types import ASGIApp

from klype.serve.app import app
from klype.serve.guard import Rules
from klype.serve.served_model import ServedModel
from klype.serve.server import listen, server
from klype.sources.source import NativeSource
from klype.text.chat import TEMPLATE, Chat
from klype.text.tokenizer import Tokenizer
from tests.toys import toy

TEXTS = ["jeg gikk en tur på fjellet 🙂", "hun gikk en tur i byen", "hvor gikk hun?", "blåbær og øl på ei ås 🫐"]


def served(name: str = "toy", seed: int = 0, **changes: Any) -> ServedModel:
    """Tokens are bytes and a few words: a random model's text is full of broken characters."""
    tokenizer = Tokenizer.train(TEXTS, 300, TEMPLATE)
    model = toy("conv", seed, vocab_size=tokenizer.vocab_size, **changes)
    return ServedModel(name, NativeSource.of(model, tokenizer, Chat(tokenizer), name))


def post(guarded: ASGIApp, path: str, **sent: Any) -> httpx.Response:
    return ask(guarded, "POST", path, **sent)


def ask(guarded: ASGIApp, method: str, path: str, **sent: Any) -> httpx.Response:
    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(guarded)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **sent)

    return asyncio.run(once())


@contextmanager
def running(guarded: ASGIApp | None = None, rules: Rules | None = None) -> Iterator[str]:
    """The app on a real socket, in a thread; yields its URL."""
    with running_at(listen("127.0.0.1", 0), guarded, rules) as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def running_at(socket: sockets.socket, guarded: ASGIApp | None = None, rules: Rules | None = None) -> Iterator[int]:
    """As ``running``, on this socket; yields its port."""
    rules = rules or Rules()
    guarded = guarded or app([served()], rules=rules)
    uvicorn = server(guarded, rules, grace=20)
    thread = threading.Thread(target=uvicorn.run, kwargs={"sockets": [socket]}, daemon=True)
    thread.start()
    try:
        yield int(socket.getsockname()[1])
    finally:
        uvicorn.should_exit = True
        thread.join(30)
        assert not thread.is_alive(), "the server did not end"
