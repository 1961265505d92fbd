"""``python -m benchmarks serve``: many streaming clients at once; every answer is compared with the one given alone."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import torch

from benchmarks.figures import median
from klype.child_processes import bind_to_parent
from klype.device import processor, usable_cores
from klype.engine.sampling import noise
from klype.errors import KlypeError, UsageError
from klype.model import checkpoint
from klype.model.config import ModelConfig
from klype.model.transformer import Transformer
from klype.serve.served_model import ServedModel, open_served
from klype.sources.opening import find_model
from klype.text.chat import TEMPLATE
from klype.text.tokenizer import Tokenizer
from klype.values import Request, Trace
from klype.world.world import World

Say = Callable[[str], None]
CLIENTS = 64
FEW = 16
FLOOR = 4.0
LIMIT = 64
# number of different requests (prompt, seed), which are sent again and again
TASKS = 256
# how many times as many may be tried to find them
TRIED = 4
ROUNDS = 5
# Probability mass. Other batches round differently, and a draw this close to the boundary between two tokens may fall
# on either side (measured: log-probabilities differ by at most 1.4e-5). Such a request has two correct answers.
EDGE = 1e-5


@dataclass(frozen=True, slots=True)
class Task:
    body: dict[str, Any]
    answer: str


@dataclass
class Seen:
    """What the clients measured: seconds to the first token, tokens, and errors."""

    first: list[float] = field(default_factory=list)
    tokens: int = 0
    answers: int = 0
    mixed: int = 0
    errors: list[str] = field(default_factory=list)


def serve(model: str | None, seconds: float, say: Say, clients: int = CLIENTS) -> dict[str, Any]:
    """Runs the benchmark and returns the command's document. ``model`` None: an untrained model of the small world.

    The server is ``klype serve`` in a process of its own, reached over a real socket.
    """
    if not 1 <= seconds <= 3600:
        raise UsageError(f"--seconds should be from 1 to 3600 (it is {seconds}).")
    with TemporaryDirectory(prefix="klype-bench-") as folder:
        path = str(_fresh(Path(folder) / "fresh")) if model is None else str(find_model(model).folder)
        served = open_served(f"bench={path}")
        say(f"answering {TASKS} requests alone")
        tasks = alone(served)
        process, url = _start(path)
        try:
            say(f"{clients} clients for {seconds:g} s")
            many = asyncio.run(_crowd(url, tasks, clients, seconds))
            rates = asyncio.run(_rates(url, tasks, say))
        finally:
            process.terminate()
            process.wait(30)
    return _document(model or "fresh small world", (seconds, clients), many, rates)


def alone(served: ServedModel) -> list[Task]:
    """Requests with the answers that the engine gives to each alone; none has a draw close to a boundary."""
    rng, world = random.Random(0), World("small")
    tasks: list[Task] = []
    for seed in range(TRIED * TASKS):
        prompt = world.question(rng).prompt
        ids = tuple(served.source.codec.encode(prompt))
        limit = min(LIMIT, served.window - len(ids))
        trace = served.source.engine.run([Request(ids, limit=limit, seed=seed, top=-1)])[0][0]
        if edge(trace) < EDGE:
            continue
        text = served.text(trace.tokens)
        body = {"model": "bench", "prompt": prompt, "max_tokens": limit, "seed": seed, "ignore_eos": True}
        tasks.append(Task({**body, "stream": True}, text))
        if len(tasks) == TASKS:
            break
    if not tasks:
        raise KlypeError("This model's answers depend on rounding: no request has one answer only.", "Train it first.")
    return tasks


def edge(trace: Trace) -> float:
    """The smallest distance (probability mass) of any of the answer's draws from the boundary to another token.

    The trace must hold whole distributions, and have been drawn from them unchanged.
    """
    nearest = 1.0
    for place, step in enumerate(trace.steps):
        assert step.distribution is not None
        p_V = np.zeros(int(step.distribution.ids.max()) + 1)
        p_V[step.distribution.ids] = np.exp(step.distribution.logp)
        upto_V = p_V.cumsum()
        u = float(noise(trace.seed, trace.sample, len(trace.prompt) + place)) * upto_V[-1]
        above = float(upto_V[step.token]) - u
        nearest = min(nearest, above, float(p_V[step.token]) - above)
    return nearest


async def _crowd(url: str, tasks: Sequence[Task], clients: int, seconds: float) -> Seen:
    """Runs the clients, each of which sends one request after another until the time is over and finishes the last."""
    seen, end = Seen(), time.monotonic() + seconds
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)

    async def one(number: int, client: httpx.AsyncClient) -> None:
        turn = number
        while time.monotonic() < end:
            await _ask(client, tasks[turn % len(tasks)], seen)
            turn += clients

    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=120) as client:
        await asyncio.gather(*(one(number, client) for number in range(clients)))
    return seen


async def _ask(client: httpx.AsyncClient, task: Task, seen: Seen) -> None:
    begun, text, first = time.monotonic(), [], True
    try:
        async with client.stream("POST", "/completions", json=task.body) as response:
            if response.status_code != 200:
                await response.aread()
                raise KlypeError(f"status {response.status_code}: {response.text[:200]}")
            done = False
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    done = True
                elif line.startswith("data: "):
                    if first:
                        seen.first.append(time.monotonic() - begun)
                        first = False
                    text += [choice["text"] for choice in json.loads(line[6:])["choices"]]
            if not done:
                raise KlypeError("a stream ended early")
    except (httpx.HTTPError, KlypeError, ValueError, KeyError) as error:
        seen.errors.append(f"{type(error).__name__}: {error}")
        return
    seen.answers += 1
    seen.tokens += task.body["max_tokens"]
    seen.mixed += not _same("".join(text), task.answer)


def _same(got: str, alone: str) -> bool:
    """Whether two answers are equal, except for the bytes of an incomplete last character, which a stream leaves
    out."""
    return got == alone or (alone.startswith(got) and not alone[len(got) :].strip("\ufffd"))


async def _rates(url: str, tasks: Sequence[Task], say: Say) -> dict[int, list[tuple[float, Seen]]]:
    """Tokens per second of one client and of several, alternating in rounds."""
    rates: dict[int, list[tuple[float, Seen]]] = {1: [], FEW: []}
    for number in range(ROUNDS):
        for clients in rates:
            begun = time.monotonic()
            seen = await _crowd(url, tasks, clients, 2.0)
            rates[clients].append((seen.tokens / (time.monotonic() - begun), seen))
        say(f"round {number + 1}: {rates[1][-1][0]:.0f} and {rates[FEW][-1][0]:.0f} tokens a second")
    return rates


def _document(
    model: str, asked: tuple[float, int], many: Seen, rates: dict[int, list[tuple[float, Seen]]]
) -> dict[str, Any]:
    seconds, clients = asked
    rounds = [seen for found in rates.values() for _, seen in found]
    errors = [*many.errors, *(error for seen in rounds for error in seen.errors)]
    mixed = many.mixed + sum(seen.mixed for seen in rounds)
    pairs = zip(rates[1], rates[FEW], strict=True)
    speedup = median([few / one for (one, _), (few, _) in pairs if one], "times")
    rows = [_row(clients, many, [many.tokens / seconds])]
    rows += [
        _row(count, Seen([s for _, seen in found for s in seen.first]), [rate for rate, _ in found])
        for count, found in rates.items()
    ]
    return {
        "bench": "serve",
        "model": model,
        "machine": {"processor": processor(), "cores": usable_cores()},
        "rows": rows,
        "seconds": seconds,
        "answers": many.answers + sum(seen.answers for seen in rounds),
        "errors": len(errors),
        "first_errors": errors[:5],
        "mixed_up": mixed,
        "ratios": {"clients_16_vs_1": speedup.json()},
        "bounds": {"clients_16_vs_1": {"floor": FLOOR}},
        "passed": not errors and not mixed and (speedup.value or 0) >= FLOOR,
    }


def _row(clients: int, seen: Seen, rates: Sequence[float]) -> dict[str, Any]:
    first = np.quantile(seen.first, (0.5, 0.95)).tolist() if seen.first else [None, None]
    return {
        "clients": clients,
        "tokens_per_second": median(rates, "tokens/s").json(),
        "first_token_s": {"median": first[0], "p95": first[1], "n": len(seen.first)},
    }


def _fresh(folder: Path) -> Path:
    """An untrained model of the small world, which does as much work per token as a trained one."""
    rng, world = random.Random(0), World("small")
    texts = [world.text(world.document(rng).words) for _ in range(400)]
    tokenizer = Tokenizer.train(texts, 2000, TEMPLATE)
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=tokenizer.vocab_size, width=64, layers=2, heads=4, hidden=128))
    torch.nn.init.normal_(model.head.weight, std=1.0)  # as sure as one that has learnt: few draws are near an edge
    checkpoint.save(folder, model, tokenizer, {})
    return folder


def _start(path: str) -> tuple[subprocess.Popen[str], str]:
    """``klype serve`` in a process of its own, and its URL."""
    command = [sys.executable, "-m", "klype", "serve", f"bench={path}", "--port", "0", "--json"]
    process = subprocess.Popen(bind_to_parent(command), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    lines = ""
    for line in process.stdout:
        lines += line
        if line.rstrip() == "}":
            break
    document = json.loads(lines) if lines.strip().endswith("}") else {}
    if "url" not in document:
        process.kill()
        raise KlypeError(f"The server did not start: {document.get('error', {}).get('message', 'no reason given')}")
    return process, str(document["url"])
