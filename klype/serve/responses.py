"""One client's answer, whole or as it is written; ends with the client."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from fastapi import Response
from starlette.types import Receive, Scope, Send

from klype.serve.api_errors import ApiError
from klype.serve.choice_writer import ChoiceWriter, Piece
from klype.serve.metrics import ServerMetrics
from klype.serve.request_parsing import Plan
from klype.serve.served_model import ServedModel
from klype.serve.worker import AT_ONCE, Job, TextResult, Worker
from klype.values import Step, Trace

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
STUCK = "An answer could not be gone on with: the schema is too complex, or the model has no token that it allows."
POOLING = "mean of the last layer's hidden states over the input's tokens, scaled to length 1"


class WorkerResponse(Response):
    """An ASGI response that asks the worker when it is called, and takes its work back when the client has gone, or
    with an error."""

    def __init__(self, served: ServedModel, job: Job, worker: Worker, metrics: ServerMetrics) -> None:
        self.served, self.job, self.worker, self.metrics = served, job, worker, metrics
        self.begun = time.perf_counter()
        self.status_code, self.background, self.raw_headers = 200, None, []

    async def answer(self, send: Send) -> None:
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        self.worker.submit(self.job)
        tasks = [asyncio.ensure_future(self.answer(send)), asyncio.ensure_future(gone())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                tasks[0].result()
        finally:
            self.worker.cancel(self.job)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def send_json(self, send: Send, body: bytes) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": [*headers, *self.raw_headers]})
        await send({"type": "http.response.body", "body": body})

    def count(self, prompt: int, said: int) -> None:
        self.metrics.answered(self.served.name, prompt, said, time.perf_counter() - self.begun)


class GenerationResponse(WorkerResponse):
    """The answers of a plan, each written as a ``form``."""

    def __init__(self, plan: Plan, form: type[ChoiceWriter], worker: Worker, metrics: ServerMetrics) -> None:
        super().__init__(plan.served, Job(plan.requests, plan.scored, plan.top or 0), worker, metrics)
        self.plan = plan
        self.choices = [form(plan, index) for index in range(len(plan.prompts) * plan.n)]
        options = plan.body.stream_options
        self.with_usage = bool(options and options.include_usage)
        self.about = {
            "id": f"{form.prefix}-{secrets.token_hex(12)}",
            "object": form.chunk_kind if plan.body.stream else form.kind,
            "created": int(time.time()),
            "model": plan.served.name,
            "system_fingerprint": plan.served.fingerprint,
        }

    async def answer(self, send: Send) -> None:
        if self.plan.body.stream:
            await self._stream(send)
            return
        found: list[list[Piece]] = [[] for _ in self.choices]
        async for pieces in self._pieces():
            for index, piece in pieces:
                found[index].append(piece)
        body = await asyncio.to_thread(self._body, found)  # all alternatives of a hundred choices take long
        await self.send_json(send, body)

    def _body(self, found: Sequence[list[Piece]]) -> bytes:
        """Empties what it has written: to clear all of it away at once would take long, too."""
        choices = []
        for choice, own in zip(self.choices, found, strict=True):
            choices.append(_in_turns(choice.whole(own)))
            own.clear()
        return f'{_json(self.about)[:-1]}, "choices": [{", ".join(choices)}], "usage": {self._usage()}}}'.encode()

    async def _stream(self, send: Send) -> None:
        """Server-sent events; tokens that have come meanwhile share an event."""
        about = _json(self.about)[:-1]
        usage = ', "usage": null}' if self.with_usage else "}"
        started = False
        try:
            async for pieces in self._pieces():
                if not started:
                    headers = [*STREAM_HEADERS, *self.raw_headers]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                    started = True
                events = [f'data: {about}, "choices": [{_json(piece)}]{usage}\n\n' for _, piece in pieces]
                if events:
                    await send({"type": "http.response.body", "body": "".join(events).encode(), "more_body": True})
            tail = f'data: {about}, "choices": [], "usage": {self._usage()}}}\n\n' if self.with_usage else ""
            last = f"{tail}data: [DONE]\n\n".encode()
        except ApiError as error:
            if not started:
                raise
            last = b"data: " + error.body() + b"\n\n"
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _pieces(self) -> AsyncIterator[list[tuple[int, Piece]]]:
        """Pieces of choices, by index, as they come; those of a prompt that is to be scored wait until it is."""
        plan, n, first = self.plan, self.plan.n, True
        prompts, reasons = dict[int, Trace](), dict[int, str]()
        steps: list[list[Step]] = [[] for _ in self.choices]  # that are not yet written
        if not self.job.size:  # fixed when the job was made: its texts may have been taken by now
            for i, choice in enumerate(self.choices):
                yield [(i, piece) for piece in (*choice.opening(None), *choice.pieces([], "length"))]
        async for updates in self.job.updates():
            changed = dict[int, None]()
            for update in updates:
                if isinstance(update, TextResult):
                    assert isinstance(update.value, Trace), "no states were asked for"
                    prompts[update.place] = update.value
                    own = range(update.place * n, update.place * n + n)
                    changed |= dict.fromkeys(own)
                    reasons |= {} if plan.requests else dict.fromkeys(own, "length")
                    continue
                index = update.request * n + update.sample
                changed[index] = None
                steps[index].append(update.step)
                if update.trace is not None:
                    if update.trace.ended == "cancelled":
                        raise ApiError(STUCK, 400, "response_format")
                    reasons[index] = "stop" if update.trace.ended == "stop" else "length"
            ready: list[tuple[int, Piece]] = []
            for index in changed:
                choice, prompt = self.choices[index], prompts.get(index // n)
                if plan.scored and prompt is None:
                    continue
                if not choice.opened:
                    choice.opened = True
                    if prompt is None:
                        ready += [(index, piece) for piece in choice.opening(None)]
                    else:
                        for piece in await asyncio.to_thread(choice.opening, prompt):
                            yield [(index, piece)]
                            await asyncio.sleep(0)
                said, steps[index] = steps[index], []
                ready += [(index, piece) for piece in choice.pieces(said, reasons.get(index))]
            if first and ready:
                first = False
                self.metrics.first_token.labels(self.served.name).observe(time.perf_counter() - self.begun)
            yield ready
        self.count(plan.prompt_tokens, self._said())

    def _said(self) -> int:
        return sum(choice.said for choice in self.choices)

    def _usage(self) -> str:
        prompt, said = self.plan.prompt_tokens, self._said()
        return _json({"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said})


class EmbeddingResponse(WorkerResponse):
    """Texts as vectors: the mean of the last layer's states over a text's tokens, scaled to length 1. ``packed``: as
    base64 of float32."""

    def __init__(
        self, texts: list[tuple[int, ...]], packed: bool, served: ServedModel, worker: Worker, metrics: ServerMetrics
    ) -> None:
        super().__init__(served, Job((), texts, embeds=True), worker, metrics)
        self.packed, self.tokens = packed, sum(map(len, texts))

    async def answer(self, send: Send) -> None:
        found: dict[int, Any] = {}
        async for updates in self.job.updates():
            found |= {one.place: one.value for one in updates if isinstance(one, TextResult)}
        body = await asyncio.to_thread(self._body, [found[place] for place in range(self.job.size)])
        self.count(self.tokens, 0)
        await self.send_json(send, body)

    def _body(self, states: Sequence[npt.NDArray[np.float32]]) -> bytes:
        """Each vector is written by itself: while one is, no other thread of Python goes on."""
        written = []
        for index, state_D in enumerate(states):
            unit_D = (state_D / max(float(np.linalg.norm(state_D)), 1e-12)).astype("<f4")
            vector = base64.b64encode(unit_D.tobytes()).decode() if self.packed else unit_D.tolist()
            written.append(_json({"index": index, "object": "embedding", "embedding": vector}))
        usage = {"prompt_tokens": self.tokens, "total_tokens": self.tokens}
        about = {"object": "list", "model": self.served.name, "system_fingerprint": self.served.fingerprint,
                 "pooling": POOLING, "usage": usage}  # fmt: skip
        return f'{_json(about)[:-1]}, "data": [{", ".join(written)}]}}'.encode()


def _json(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False, allow_nan=False)


def _in_turns(document: Any) -> str:
    """The same JSON, a long list in pieces: while one is written, no other thread of Python goes on."""
    if isinstance(document, dict):
        return f"{{{', '.join(f'{_json(name)}: {_in_turns(value)}' for name, value in document.items())}}}"
    if isinstance(document, list) and len(document) > AT_ONCE:
        pieces = (document[start : start + AT_ONCE] for start in range(0, len(document), AT_ONCE))
        return f"[{', '.join(_json(piece)[1:-1] for piece in pieces)}]"
    return _json(document)
