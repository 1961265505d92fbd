"""The server's app: models by name, OpenAI's endpoints, and what operators look at."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

import klype
from klype.errors import UsageError
from klype.serve.answering import Answering, Envelope
from klype.serve.choices import ChatForm, CompletionForm
from klype.serve.embedding import Embedding
from klype.serve.errors import ApiError, handle_errors
from klype.serve.guard import Guard, Rules, ServeSettings
from klype.serve.metrics import Counted, ServerMetrics, health
from klype.serve.plan import chat_prompt, plan_chat, plan_completion, plan_embedding
from klype.serve.schemas import (
    UNUSED,
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    Detokenized,
    DetokenizeRequest,
    EmbeddingRequest,
    Embeddings,
    ErrorAnswer,
    Health,
    ModelCard,
    ModelList,
    ModelMeta,
    Tokenized,
    TokenizeRequest,
    plain,
)
from klype.serve.served import Served
from klype.serve.worker import Worker
from klype.sources.source import Message
from klype.text.tokenizer import LONG_TEXT

T = TypeVar("T")
KEYS = 100
"""Members that a body may have: each unknown one costs memory for saying so."""
LARGE = 64 << 10
"""Bytes from which on a body is read beside the event loop."""
PAUSE = 2
"""Between two large bodies, in times that the first took: while one is read, nothing else in the process goes on."""


@dataclass(frozen=True, slots=True)
class Chance:
    """Time and randomness, passed in."""

    clock: Callable[[], float] = time.perf_counter
    now: Callable[[], float] = time.time
    seed: Callable[[], int] = lambda: secrets.randbits(62)
    id: Callable[[], str] = lambda: secrets.token_hex(12)


def app(models: Sequence[Served], settings: ServeSettings | None = None, rules: Rules | None = None) -> ASGIApp:
    """The guarded app. In process, call it as http://localhost: other hosts are refused."""
    settings = settings or ServeSettings()
    rules = rules or Rules.of(settings)
    guarded = Guard(api(models, settings), rules)
    if not rules.origins:
        return guarded
    told = ("retry-after", "warning")  # headers that a page's script may read
    return CORSMiddleware(guarded, sorted(rules.origins), ("GET", "POST"), ("*",), expose_headers=told)


def api(models: Sequence[Served], settings: ServeSettings | None = None, chance: Chance | None = None) -> FastAPI:
    """The endpoints without a guard: put one around it (``app`` does), also when more is mounted on it."""
    server = _Server(models, settings or ServeSettings(), chance or Chance())
    fast = FastAPI(
        title="klype",
        version=klype.__version__,
        summary="Language models behind OpenAI's protocol.",
        lifespan=server.lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        responses={"4XX": {"model": ErrorAnswer}, "5XX": {"model": ErrorAnswer}},
    )
    fast.router.route_class = _Route
    fast.state.reading = server.reading
    handle_errors(fast)
    fast.add_middleware(Counted, metrics=server.metrics)
    _add_answers(fast, server)
    _add_tokens(fast, server)
    _add_watching(fast, server)
    return fast


class _Server:
    """The models with their workers."""

    def __init__(self, models: Sequence[Served], settings: ServeSettings, chance: Chance) -> None:
        names = [served.name for served in models]
        if not names:
            raise UsageError("There is no model to serve.", "Name at least one.")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UsageError(f"Two models are called '{twice}'.", "Give one another name: NAME=FOLDER.")
        self.models = {served.name: served for served in models}
        self.settings, self.chance = settings, chance
        self.workers = {
            name: Worker(served.source.engine, settings.batch, settings.queue, chance.clock)
            for name, served in self.models.items()
        }
        self.metrics = ServerMetrics(self.workers, chance.clock)
        self._words = ThreadPoolExecutor(2, "klype words")
        self._bodies = ThreadPoolExecutor(1, "klype bodies")
        self._templates = {name: ThreadPoolExecutor(1, "klype template") for name in self.models}

    async def beside(self, work: Callable[[], T]) -> T:
        """What takes long is done beside the event loop, so that nobody else waits for it."""
        return await asyncio.get_running_loop().run_in_executor(self._words, work)

    async def reading(self, read: Callable[[], T]) -> T:
        """What reads a large body, which keeps Python's other threads waiting: one at a time, and they have turns."""
        took = [0.0]

        def timed() -> T:
            begun = self.chance.clock()
            try:
                return read()
            finally:
                took[0] = self.chance.clock() - begun

        done = asyncio.get_running_loop().run_in_executor(self._bodies, timed)
        self._bodies.submit(lambda: time.sleep(PAUSE * took[0]))
        return await done

    async def spelled(self, served: Served, length: int, messages: Sequence[Message], work: Callable[[], T]) -> T:
        """Work on a text of this length; a short one's is done at once. A template that was never rendered for such
        messages is a stranger's program: of each model one runs at a time, and no other text waits for it."""
        chat = served.source.codec.chat
        if messages and chat is not None and not chat.is_ready(messages):
            return await asyncio.get_running_loop().run_in_executor(self._templates[served.name], work)
        return work() if length < LONG_TEXT else await self.beside(work)

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        yield
        for pool in (self._words, self._bodies, *self._templates.values()):
            pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.gather(*(asyncio.to_thread(worker.stop) for worker in self.workers.values()))

    def model(self, name: str | None) -> Served:
        """By its name, which is never a path; the first where none is named."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            there = ", ".join(self.models)
            message = f"The model {name[:100]!a} does not exist here. There is: {there}."
            raise ApiError(message, 404, "model", "model_not_found")
        return self.models[name]

    def envelope(self, prefix: str, kinds: tuple[str, str], stream: bool | None, with_usage: bool) -> Envelope:
        created = int(self.chance.now())
        return Envelope(f"{prefix}-{self.chance.id()}", *kinds, created, bool(stream), with_usage)

    def card(self, served: Served) -> ModelCard:
        return ModelCard(
            id=served.name, object="model", created=served.created, owned_by="klype", max_model_len=served.window,
            meta=ModelMeta(n_vocab=served.vocab_size, n_ctx=served.window),
        )  # fmt: skip


def _add_answers(fast: FastAPI, server: _Server) -> None:
    @fast.post("/v1/chat/completions", response_model=ChatCompletion)
    async def chat(body: ChatRequest) -> Response:
        """An answer to a conversation."""
        served, seed = server.model(body.model), server.chance.seed()
        messages = plain(body.messages)
        length = LONG_TEXT if body.response_format else _length(messages)  # a schema takes long to be read, too
        plan = await server.spelled(
            served, length, messages, lambda: plan_chat(body, messages, served, server.settings, seed)
        )
        kinds = ("chat.completion", "chat.completion.chunk")
        envelope = server.envelope("chatcmpl", kinds, body.stream, body.with_usage)
        return Answering(plan, envelope, ChatForm, server.workers[served.name], server.metrics)

    @fast.post("/v1/completions", response_model=Completion)
    async def completions(body: CompletionRequest) -> Response:
        """A text, gone on with; with ``echo`` and ``logprobs`` also how probable the given text is."""
        served, seed = server.model(body.model), server.chance.seed()
        length = len(body.prompt) if isinstance(body.prompt, str) else LONG_TEXT
        plan = await server.spelled(served, length, (), lambda: plan_completion(body, served, server.settings, seed))
        kinds = ("text_completion", "text_completion")
        envelope = server.envelope("cmpl", kinds, body.stream, body.with_usage)
        return Answering(plan, envelope, CompletionForm, server.workers[served.name], server.metrics)

    @fast.post("/v1/embeddings", response_model=Embeddings)
    async def embeddings(body: EmbeddingRequest) -> Response:
        """Texts as vectors: the mean of the last layer's states."""
        served = server.model(body.model)
        length = len(body.input) if isinstance(body.input, str) else LONG_TEXT
        texts = await server.spelled(served, length, (), lambda: plan_embedding(body, served))
        packed = body.encoding_format == "base64"
        return Embedding(served, texts, packed, server.workers[served.name], server.metrics)


def _add_tokens(fast: FastAPI, server: _Server) -> None:
    @fast.post("/tokenize", response_model=Tokenized)
    async def tokenize(body: TokenizeRequest) -> Response:
        """Token ids of a text, or of a conversation as the model reads it."""
        served, messages = server.model(body.model), plain(body.messages or [])

        def ids() -> list[int]:
            if (body.prompt is None) == (body.messages is None):
                raise ApiError("Give either prompt or messages.", 400, "prompt")
            if body.messages is not None:
                return list(chat_prompt(served, messages))
            whole = body.add_special_tokens is not False
            return (served.source.codec if whole else served.tokenizer).encode(body.prompt or "")

        def work() -> Response:
            tokens = ids()
            return _written(Tokenized(tokens=tokens, count=len(tokens), max_model_len=served.window))

        return await server.spelled(served, len(body.prompt or "") + _length(messages), messages, work)

    @fast.post("/detokenize", response_model=Detokenized)
    async def detokenize(body: DetokenizeRequest) -> Response:
        """The text of token ids; control tokens add nothing to it."""
        served = server.model(body.model)

        def work() -> Response:
            wrong = max(body.tokens, default=0)
            if wrong >= served.vocab_size:
                there = f"the model knows 0 to {served.vocab_size - 1}"
                raise ApiError(f"There is no token {wrong}: {there}.", 400, "tokens")
            return _written(Detokenized(prompt=served.text(body.tokens)))

        return await server.spelled(served, len(body.tokens), (), work)


def _add_watching(fast: FastAPI, server: _Server) -> None:
    @fast.get("/v1/models")
    async def models() -> ModelList:
        """What can be asked."""
        return ModelList(object="list", data=[server.card(served) for served in server.models.values()])

    @fast.get("/v1/models/{model}")
    async def model(model: str) -> ModelCard:
        """One model."""
        return server.card(server.model(model))

    @fast.get("/health", response_model=Health)
    async def healthy() -> Response:
        """Whether the server runs and its models answer."""
        return health(server.workers)

    @fast.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(server.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _length(messages: Sequence[Message]) -> int:
    return sum(len(message["content"]) for message in messages)


def _written(answer: Tokenized | Detokenized) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


class _Request(Request):
    asked: Any
    """The form of its body."""
    unused: tuple[str, ...] = ()
    """Fields of the body that change nothing."""

    async def json(self) -> Any:
        read = partial(_read, await self.body(), self.asked)
        found = await self.app.state.reading(read) if len(read.args[0]) >= LARGE else read()
        given = found.model_fields_set if isinstance(found, BaseModel) else found
        self.unused = tuple(sorted(UNUSED & set(given)))
        return found


def _read(body: bytes, form: type[BaseModel]) -> Any:
    """A body is JSON as it should be: valid UTF-8, whole characters, no deep nesting, no NaN. One that does not fit
    the form is returned as it is: FastAPI finds that again, and says why."""
    try:
        document = from_json(body, allow_inf_nan=False, cache_strings=False)
    except ValueError as error:
        raise ApiHttp(f"The body is no valid JSON: {str(error)[:200]}.") from None
    if not isinstance(document, dict):
        raise ApiHttp("The body must be a JSON object.")
    if len(document) > KEYS:
        raise ApiHttp(f"The body has {len(document)} members: {KEYS} at most.")
    try:
        return form.model_validate(document)
    except ValidationError:
        return document


class ApiHttp(HTTPException):
    """A body that cannot be read: FastAPI lets nothing but its own kind through here."""

    def __init__(self, message: str) -> None:
        super().__init__(400, message)


class _Route(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        asked = self.body_field and self.body_field.field_info.annotation

        async def strict(request: Request) -> Response:
            strictly = _Request(request.scope, request.receive)
            strictly.asked = asked
            response = await handle(strictly)
            if strictly.unused:
                response.headers["Warning"] = f'299 klype "not used: {", ".join(strictly.unused)}"'
            return response

        return strict
