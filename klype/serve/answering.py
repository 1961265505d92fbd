"""One client's answer, whole or as it is written; ends with the client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

from klype.serve.choices import Form
from klype.serve.errors import ApiError, error_body
from klype.serve.metrics import ServerMetrics
from klype.serve.plan import Plan
from klype.serve.worker import AT_ONCE, Embedded, Job, Scored, Worker
from klype.values import Step, Trace

STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
STUCK = "An answer could not be gone on with: the schema is too complex, or the model has no token that it allows."


@dataclass(frozen=True, slots=True)
class Envelope:
    """What stands around the choices: ``kind`` and ``chunk_kind`` are the names of the object, whole and in pieces."""

    id: str
    kind: str
    chunk_kind: str
    created: int
    stream: bool
    with_usage: bool


class AnswerChoice:
    """One of the answers: what has been said, and how it is written."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.said = 0
        self.opened = False

    def open(self, prompt: Trace | None) -> list[Any]:
        """The pieces before its first token."""
        self.opened = True
        return self.form.open(prompt)

    def pieces(self, steps: Sequence[tuple[Step, bytes]], reason: str | None) -> list[Any]:
        """The next one, if any: ``steps`` with their bytes, and why it ended (None: it goes on)."""
        self.said += len(steps)
        text = "".join([self.form.spoken.add(data) for _, data in steps])
        if reason is not None:
            text += self.form.spoken.add(b"", last=True)
        piece = self.form.piece(text, [step for step, _ in steps], reason)
        return [piece] if text or reason or piece["logprobs"] else []


class Answering(Response):
    """An ASGI response that asks the worker when it is called, and takes its work back when the client has gone."""

    def __init__(
        self, plan: Plan, envelope: Envelope, form: Callable[[Plan, int], Form], worker: Worker, metrics: ServerMetrics
    ) -> None:
        self.plan, self.envelope, self.worker, self.metrics = plan, envelope, worker, metrics
        self.choices = [AnswerChoice(form(plan, index)) for index in range(plan.choices)]
        self.status_code, self.background, self.raw_headers = 200, None, []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        plan = self.plan
        scored = plan.prompts if plan.echoes is not None and plan.top is not None else ()
        answer = self._stream if self.envelope.stream else self._whole
        await work(self.worker, Job(plan.requests, scored, plan.top or 0), receive, lambda job: answer(job, send))

    async def _whole(self, job: Job, send: Send) -> None:
        found: list[list[Any]] = [[] for _ in self.choices]
        async for pieces in self._pieces(job):
            for index, piece in pieces:
                found[index].append(piece)
        body = await asyncio.to_thread(self._body, found)  # all alternatives of a hundred choices take long
        await send_json(send, body, self.raw_headers)

    def _body(self, found: Sequence[list[Any]]) -> bytes:
        """Empties what it has written: to clear all of it away at once would take long, too."""
        about = _json(self._about(self.envelope.kind))[:-1]
        choices = []
        for choice, own in zip(self.choices, found, strict=True):
            choices.append(_in_turns(choice.form.whole(own)))
            own.clear()
        return f'{about}, "choices": [{", ".join(choices)}], "usage": {_json(self._usage())}}}'.encode()

    async def _stream(self, job: Job, send: Send) -> None:
        """Server-sent events; tokens that have come meanwhile share an event."""
        about = json.dumps(self._about(self.envelope.chunk_kind), ensure_ascii=False)[:-1]
        usage = ', "usage": null}' if self.envelope.with_usage else "}"
        started = False
        try:
            async for pieces in self._pieces(job):
                if not started:
                    await send(
                        {"type": "http.response.start", "status": 200, "headers": [*STREAM_HEADERS, *self.raw_headers]}
                    )
                    started = True
                events = [f'data: {about}, "choices": [{_json(piece)}]{usage}\n\n' for _, piece in pieces]
                if events:
                    await send({"type": "http.response.body", "body": "".join(events).encode(), "more_body": True})
            tail = "data: [DONE]\n\n"
            if self.envelope.with_usage:
                tail = f'data: {about}, "choices": [], "usage": {_json(self._usage())}}}\n\n{tail}'
            last = tail.encode()
        except ApiError as error:
            if not started:
                raise
            last = b"data: " + error_body(error.message, error.status, error.param, error.code) + b"\n\n"
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _pieces(self, job: Job) -> AsyncIterator[list[tuple[int, Any]]]:
        """Pieces of choices, by index, as they come."""
        plan, clock = self.plan, self.metrics.clock
        n, begun, first = plan.n, clock(), True
        prompts: dict[int, Trace] = {}
        waiting: dict[int, list[Any]] = {}  # answers that came before their prompt was scored
        if not job.size:  # fixed when the job was made: its texts may have been taken by now
            for i, choice in enumerate(self.choices):
                yield [(i, piece) for piece in (*choice.open(None), *choice.pieces([], "length"))]
        async for updates in job.updates():
            steps: dict[int, list[tuple[Step, bytes]]] = {}
            reasons: dict[int, str] = {}
            ready: list[tuple[int, Any]] = []
            for update in updates:
                assert not isinstance(update, Embedded), "of which nothing was asked"
                if isinstance(update, Scored):
                    prompts[update.place] = update.trace
                    for index in range(update.place * n, update.place * n + n):
                        if not plan.requests:
                            reasons[index] = "length"
                        steps.setdefault(index, [])
                    continue
                index = update.request * n + update.sample
                data = plan.served.token_bytes(update.step.token)
                steps.setdefault(index, []).append((update.step, data))
                if update.trace is not None:
                    if update.trace.ended == "cancelled":
                        raise ApiError(STUCK, 400, "response_format")
                    reasons[index] = "stop" if update.trace.ended == "stop" else "length"
            scoring = plan.echoes is not None and plan.top is not None
            for index, said in steps.items():
                if scoring and index // n not in prompts:
                    waiting.setdefault(index, []).append((said, reasons.get(index)))
                    continue
                choice = self.choices[index]
                if scoring and not choice.opened:
                    for piece in await asyncio.to_thread(choice.open, prompts[index // n]):
                        yield [(index, piece)]
                        await asyncio.sleep(0)
                elif not choice.opened:
                    ready += [(index, piece) for piece in choice.open(None)]
                for earlier, reason in (*waiting.pop(index, ()), (said, reasons.get(index))):
                    if earlier or reason:
                        ready += [(index, piece) for piece in choice.pieces(earlier, reason)]
            if first and ready:
                first = False
                self.metrics.first_token.labels(plan.served.name).observe(clock() - begun)
            yield ready
        total = sum(choice.said for choice in self.choices)
        self.metrics.answered(plan.served.name, plan.prompt_tokens, total, clock() - begun)

    def _about(self, kind: str) -> dict[str, Any]:
        served, envelope = self.plan.served, self.envelope
        return {
            "id": envelope.id,
            "object": kind,
            "created": envelope.created,
            "model": served.name,
            "system_fingerprint": served.fingerprint,
        }

    def _usage(self) -> dict[str, int]:
        prompt, said = self.plan.prompt_tokens, sum(choice.said for choice in self.choices)
        return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}


async def work(worker: Worker, job: Job, receive: Receive, answer: Callable[[Job], Coroutine[Any, Any, None]]) -> None:
    """Have it done and answered; when the client has gone, or with an error, it is taken back."""
    worker.submit(job)
    tasks = [asyncio.ensure_future(answer(job)), asyncio.ensure_future(_gone(receive))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            tasks[0].result()
    finally:
        worker.cancel(job)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def send_json(send: Send, body: bytes, more: Sequence[tuple[bytes, bytes]]) -> None:
    """With further headers."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _gone(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


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
