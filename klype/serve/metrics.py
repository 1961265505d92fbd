"""Health check, and metrics for Prometheus."""

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import Response
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from klype.serve.api_errors import ApiError
from klype.serve.worker import Worker

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


def health(workers: Mapping[str, Worker]) -> Response:
    """Status 200 while every model answers, else 503 with the reason of one that does not."""
    for name, worker in workers.items():
        if worker.failure:
            return ApiError(f"{name}: {worker.failure}", 503, "model").response()
    return Response(b'{"status":"ok"}', media_type="application/json")


class ServerMetrics(Collector):
    """Counters and histograms by model, in a registry of the app's own; gauges are read from the workers on request."""

    def __init__(self, workers: Mapping[str, Worker]) -> None:
        self.workers = workers
        self.registry = own = CollectorRegistry()
        by, told = ("model",), dict[str, Any](buckets=SECONDS, registry=own)
        self.requests = Counter(
            "klype_requests", "Requests by endpoint and status.", ("endpoint", "status"), registry=own
        )
        self._prompts = Counter("klype_prompt_tokens", "Tokens of prompts.", by, registry=own)
        self._said = Counter("klype_generated_tokens", "Tokens of answers.", by, registry=own)
        self.first_token = Histogram("klype_first_token_seconds", "From request to the first token.", by, **told)
        self._seconds = Histogram("klype_answer_seconds", "From request to the end of the answer.", by, **told)
        ProcessCollector(registry=own)
        own.register(self)

    def count_response(self, model: str, prompt: int, said: int, seconds: float) -> None:
        """Counts a response: tokens of the prompt and generated, and the time it took."""
        self._prompts.labels(model).inc(prompt)
        self._said.labels(model).inc(said)
        self._seconds.labels(model).observe(seconds)

    def collect(self) -> Iterator[Metric]:
        running = GaugeMetricFamily("klype_running_samples", "Answers being written.", labels=["model"])
        waiting = GaugeMetricFamily("klype_waiting_samples", "Answers that wait for room.", labels=["model"])
        cancelled = CounterMetricFamily("klype_cancelled_requests", "Requests whose client left.", labels=["model"])
        for name, worker in self.workers.items():
            running.add_metric([name], worker.running)
            waiting.add_metric([name], worker.waiting)
            cancelled.add_metric([name], worker.cancelled)
        yield from (running, waiting, cancelled)


class RequestCounter:
    """ASGI middleware that counts responses by route and status."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = getattr(scope.get("route"), "path", "other")
                self.metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, counting)
