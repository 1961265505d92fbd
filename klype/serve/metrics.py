"""What operators look at: whether the models answer, and what the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from fastapi import Response
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from klype.serve.errors import ApiError, error_response
from klype.serve.worker import Worker

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


def health(workers: Mapping[str, Worker]) -> Response:
    """200 as long as every model answers; else 503, with what has become of one."""
    for name, worker in workers.items():
        if worker.failure:
            return error_response(ApiError(f"{name}: {worker.failure}", 503, "model"))
    return Response(b'{"status":"ok"}', media_type="application/json")


class ServerMetrics:
    """Counters and histograms by model; what runs and waits is read from the workers when asked. Every app has its own
    registry."""

    def __init__(self, workers: Mapping[str, Worker], clock: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        self.clock = clock
        self.requests = self._counter("klype_requests", "Requests by endpoint and status.", "endpoint", "status")
        self._prompts = self._counter("klype_prompt_tokens", "Tokens of prompts.", "model")
        self._said = self._counter("klype_generated_tokens", "Tokens of answers.", "model")
        self.first_token = self._histogram("klype_first_token_seconds", "From request to the first token.")
        self._seconds = self._histogram("klype_answer_seconds", "From request to the end of the answer.")
        ProcessCollector(registry=self.registry)
        self.registry.register(_Workers(workers))

    def answered(self, model: str, prompt: int, said: int, seconds: float) -> None:
        """Tokens of prompt and answer."""
        self._prompts.labels(model).inc(prompt)
        self._said.labels(model).inc(said)
        self._seconds.labels(model).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(name, about, labels, registry=self.registry)

    def _histogram(self, name: str, about: str) -> Histogram:
        return Histogram(name, about, ("model",), buckets=SECONDS, registry=self.registry)


class Counted:
    """ASGI: counts every answer by its route and status."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = getattr(scope.get("route"), "path", "other")
                self.metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, counting)


class _Workers(Collector):
    def __init__(self, workers: Mapping[str, Worker]) -> None:
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        running = GaugeMetricFamily("klype_running_samples", "Answers being written.", labels=["model"])
        waiting = GaugeMetricFamily("klype_waiting_samples", "Answers that wait for room.", labels=["model"])
        cancelled = CounterMetricFamily("klype_cancelled_requests", "Requests whose client left.", labels=["model"])
        for name, worker in self._workers.items():
            running.add_metric([name], worker.running)
            waiting.add_metric([name], worker.waiting)
            cancelled.add_metric([name], worker.cancelled)
        yield from (running, waiting, cancelled)
