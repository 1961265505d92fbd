"""The server's ASGI app: OpenAI's endpoints, health and metrics."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

import klype
from klype.errors import UsageError
from klype.serve import schemas as s
from klype.serve.api_errors import HANDLERS, ApiError
from klype.serve.choice_writer import ChatWriter, CompletionWriter
from klype.serve.guard import Guard, Rules, ServeSettings
from klype.serve.metrics import RequestCounter, ServerMetrics, health
from klype.serve.request_parsing import chat_prompt, plan_chat, plan_completion, plan_embedding
from klype.serve.responses import EmbeddingResponse, GenerationResponse
from klype.serve.served_model import ServedModel
from klype.serve.worker import Worker
from klype.sources.source import Message
from klype.text.tokenizer import LONG_TEXT

T = TypeVar("T")
KEYS = 100  # fields that a body may have: each unknown one costs memory for its error
LARGE = 64 << 10  # bytes from which on a body is parsed outside the event loop
# a pause between two large bodies, in times the first one took: parsing holds the GIL
PAUSE = 2


def app(models: Sequence[ServedModel], settings: ServeSettings | None = None, rules: Rules | None = None) -> ASGIApp:
    """The endpoints behind a guard. Call it in process as http://localhost: other hosts are refused."""
    server, rules = _Endpoints(models, settings or ServeSettings()), rules or Rules()
    fast = FastAPI(
        title="klype",
        version=klype.__version__,
        summary="Language models behind OpenAI's protocol.",
        lifespan=server.lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        responses={"4XX": {"model": s.ErrorAnswer}, "5XX": {"model": s.ErrorAnswer}},
        exception_handlers=HANDLERS,
    )
    fast.router.route_class = _StrictRoute
    fast.state.read_in_thread = server.read_in_thread
    fast.add_middleware(RequestCounter, metrics=server.metrics)
    fast.post("/v1/chat/completions", response_model=s.ChatCompletion)(server.chat)
    fast.post("/v1/completions", response_model=s.Completion)(server.completions)
    fast.post("/v1/embeddings", response_model=s.Embeddings)(server.embeddings)
    fast.post("/tokenize", response_model=s.Tokenized)(server.tokenize)
    fast.post("/detokenize", response_model=s.Detokenized)(server.detokenize)
    fast.get("/v1/models", name="models", response_model=s.ModelList)(server.list_models)
    fast.get("/v1/models/{model}", name="model", response_model=s.ModelCard)(server.card)
    fast.get("/health", response_model=s.Health)(server.healthy)
    fast.get("/metrics", name="metrics", response_class=PlainTextResponse)(server.metrics_text)
    guarded = Guard(fast, rules)
    if not rules.origins:
        return guarded
    told = ("retry-after", "warning")  # readable by scripts of those sites
    return CORSMiddleware(guarded, sorted(rules.origins), ("GET", "POST"), ("*",), expose_headers=told)


class _Endpoints:
    """The endpoints, with the models and their workers."""

    def __init__(self, models: Sequence[ServedModel], settings: ServeSettings) -> None:
        names = [served.name for served in models]
        if not names:
            raise UsageError("There is no model to serve.", "Name at least one.")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UsageError(f"Two models are called '{twice}'.", "Give one another name: NAME=FOLDER.")
        self.models = dict(zip(names, models, strict=True))
        self.settings = settings
        self.workers = {one.name: Worker(one.source.engine, settings.batch, settings.queue) for one in models}
        self.metrics = ServerMetrics(self.workers)
        self._words = ThreadPoolExecutor(2, "klype words")
        self._bodies = ThreadPoolExecutor(1, "klype bodies")
        self._templates = {name: ThreadPoolExecutor(1, "klype template") for name in names}

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        yield
        for pool in (self._words, self._bodies, *self._templates.values()):
            pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.gather(*(asyncio.to_thread(worker.stop) for worker in self.workers.values()))

    async def read_in_thread(self, read: Callable[[], T]) -> T:
        """Runs ``read`` in a thread. Parsing a large body holds the GIL: one runs at a time, with pauses for others."""
        took = [0.0]

        def timed() -> T:
            begun = time.perf_counter()
            try:
                return read()
            finally:
                took[0] = time.perf_counter() - begun

        done = asyncio.get_running_loop().run_in_executor(self._bodies, timed)
        self._bodies.submit(lambda: time.sleep(PAUSE * took[0]))
        return await done

    async def offload(self, served: ServedModel, length: int, messages: Sequence[Message], work: Callable[[], T]) -> T:
        """Runs ``work`` on a text of this length: at once if it is short, else in a thread. A chat template that was
        never rendered for such messages is untrusted code: it runs in a thread of the model's own, so that nothing else
        waits for it."""
        chat, pool = served.source.codec.chat, None
        if messages and chat is not None and not chat.is_ready(messages):
            pool = self._templates[served.name]
        elif length >= LONG_TEXT:
            pool = self._words
        return work() if pool is None else await asyncio.get_running_loop().run_in_executor(pool, work)

    def model(self, name: str | None) -> ServedModel:
        """The model of a name; None: the first. Raises ApiError (404) for an unknown name."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            there = ", ".join(self.models)
            message = f"The model {name[:100]!a} does not exist here. There is: {there}."
            raise ApiError(message, 404, "model", "model_not_found")
        return self.models[name]

    async def chat(self, body: s.ChatRequest) -> Response:
        """An answer to a conversation."""
        served, messages = self.model(body.model), s.plain(body.messages)
        length = LONG_TEXT if body.response_format else _length(messages)  # a schema takes long to be read, too
        work = partial(plan_chat, body, messages, served, self.settings)
        plan = await self.offload(served, length, messages, work)
        return GenerationResponse(plan, ChatWriter, self.workers[served.name], self.metrics)

    async def completions(self, body: s.CompletionRequest) -> Response:
        """A text, gone on with; with ``echo`` and ``logprobs`` also how probable the given text is."""
        served = self.model(body.model)
        length = len(body.prompt) if isinstance(body.prompt, str) else LONG_TEXT
        plan = await self.offload(served, length, (), partial(plan_completion, body, served, self.settings))
        return GenerationResponse(plan, CompletionWriter, self.workers[served.name], self.metrics)

    async def embeddings(self, body: s.EmbeddingRequest) -> Response:
        """Texts as vectors: the mean of the last layer's states."""
        served = self.model(body.model)
        length = len(body.input) if isinstance(body.input, str) else LONG_TEXT
        texts = await self.offload(served, length, (), partial(plan_embedding, body, served))
        packed = body.encoding_format == "base64"
        return EmbeddingResponse(texts, packed, served, self.workers[served.name], self.metrics)

    async def tokenize(self, body: s.TokenizeRequest) -> Response:
        """Token ids of a text, or of a conversation as the model reads it."""
        served, messages, text = self.model(body.model), s.plain(body.messages or []), body.prompt or ""

        def work() -> Response:
            if (body.prompt is None) == (body.messages is None):
                raise ApiError("Give either prompt or messages.", 400, "prompt")
            if body.messages is not None:
                ids = list(chat_prompt(served, messages))
            else:
                whole = body.add_special_tokens is not False
                ids = (served.source.codec if whole else served.tokenizer).encode(text)
            return _json_response(s.Tokenized(tokens=ids, count=len(ids), max_model_len=served.window))

        return await self.offload(served, len(text) + _length(messages), messages, work)

    async def detokenize(self, body: s.DetokenizeRequest) -> Response:
        """The text of token ids; control tokens add nothing to it."""
        served = self.model(body.model)

        def work() -> Response:
            wrong = max(body.tokens, default=0)
            if wrong >= served.vocab_size:
                there = f"the model knows 0 to {served.vocab_size - 1}"
                raise ApiError(f"There is no token {wrong}: {there}.", 400, "tokens")
            return _json_response(s.Detokenized(prompt=served.text(body.tokens)))

        return await self.offload(served, len(body.tokens), (), work)

    async def list_models(self) -> Any:
        """What can be asked."""
        return s.ModelList(object="list", data=[await self.card(name) for name in self.models])

    async def card(self, model: str) -> Any:
        """One model."""
        served = self.model(model)
        return s.ModelCard(
            id=served.name, object="model", created=served.created, owned_by="klype", max_model_len=served.window,
            meta=s.ModelMeta(n_vocab=served.vocab_size, n_ctx=served.window),
        )  # fmt: skip

    async def healthy(self) -> Response:
        """Whether the server runs and its models answer."""
        return health(self.workers)

    async def metrics_text(self) -> Response:
        """For Prometheus."""
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _length(messages: Sequence[Message]) -> int:
    return sum(len(message["content"]) for message in messages)


def _json_response(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


class _StrictRequest(Request):
    asked: Any  # the model of its body
    unused: Sequence[str] = ()  # fields of the body that have no effect

    async def json(self) -> Any:
        read = partial(_read, await self.body(), self.asked)
        found = await self.app.state.read_in_thread(read) if len(read.args[0]) >= LARGE else read()
        given = found.model_fields_set if isinstance(found, BaseModel) else found
        self.unused = sorted({*s.UNUSED} & set(given))
        return found


def _read(body: bytes, form: type[BaseModel]) -> Any:
    """Parses and validates a body: strict JSON, without NaN or deep nesting. One that does not fit ``form`` is returned
    unvalidated, so that FastAPI reports the error: an error raised here would not be shown."""
    try:
        document = from_json(body, allow_inf_nan=False, cache_strings=False)
    except ValueError as error:
        raise HTTPException(400, f"The body is no valid JSON: {str(error)[:200]}.") from None
    if not isinstance(document, dict):
        raise HTTPException(400, "The body must be a JSON object.")
    if len(document) > KEYS:
        raise HTTPException(400, f"The body has {len(document)} members: {KEYS} at most.")
    try:
        return form.model_validate(document)
    except ValidationError:
        return document


class _StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            strictly = _StrictRequest(request.scope, request.receive)
            strictly.asked = self.body_field and self.body_field.field_info.annotation
            response = await handle(strictly)
            if strictly.unused:
                response.headers["Warning"] = f'299 klype "not used: {", ".join(strictly.unused)}"'
            return response

        return strict
