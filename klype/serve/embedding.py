"""Texts as vectors: the mean of the last layer's states over a text's tokens, scaled to length 1."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from fastapi import Response
from starlette.types import Receive, Scope, Send

from klype.serve.answering import send_json, work
from klype.serve.metrics import ServerMetrics
from klype.serve.served import Served
from klype.serve.worker import Embedded, Job, Worker

POOLING = "mean of the last layer's hidden states over the input's tokens, scaled to length 1"


class Embedding(Response):
    """An ASGI response that asks the worker when it is called. ``packed``: vectors as base64 of float32."""

    def __init__(
        self, served: Served, texts: Sequence[tuple[int, ...]], packed: bool, worker: Worker, metrics: ServerMetrics
    ) -> None:
        self.served, self.texts, self.packed, self.worker, self.metrics = served, texts, packed, worker, metrics
        self.status_code, self.background, self.raw_headers = 200, None, []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = self.metrics.clock()

        async def answer(job: Job) -> None:
            found: dict[int, npt.NDArray[np.float32]] = {}
            async for updates in job.updates():
                found.update((one.place, one.vector) for one in updates if isinstance(one, Embedded))
            body = await asyncio.to_thread(self._body, [found[place] for place in range(len(self.texts))])
            self.metrics.answered(self.served.name, self.tokens, 0, self.metrics.clock() - begun)
            await send_json(send, body, self.raw_headers)

        await work(self.worker, Job((), self.texts, embeds=True), receive, answer)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.texts))

    def _body(self, means: Sequence[npt.NDArray[np.float32]]) -> bytes:
        """Each vector is written by itself: while one is, no other thread of Python goes on."""
        about = {"object": "list", "model": self.served.name, "system_fingerprint": self.served.fingerprint}
        written = []
        for index, mean_D in enumerate(means):
            unit_D = (mean_D / max(float(np.linalg.norm(mean_D)), 1e-12)).astype("<f4")
            vector = base64.b64encode(unit_D.tobytes()).decode() if self.packed else unit_D.tolist()
            written.append(json.dumps({"index": index, "object": "embedding", "embedding": vector}))
        usage = {"prompt_tokens": self.tokens, "total_tokens": self.tokens}
        start = json.dumps({**about, "pooling": POOLING, "usage": usage})[:-1]
        return f'{start}, "data": [{", ".join(written)}]}}'.encode()
