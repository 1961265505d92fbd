"""Turns validated HTTP requests into requests to the engine, or into an ApiError."""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from klype.api.prompt_context import read_of
from klype.engine.requests import check_request
from klype.errors import KlypeError, UsageError
from klype.serve.api_errors import ApiError
from klype.serve.guard import ServeSettings
from klype.serve.schemas import REFUSED, ChatRequest, CompletionRequest, EmbeddingRequest, GenerationRequest
from klype.serve.served_model import ServedModel
from klype.sources.source import Message
from klype.values import Request

BIASES = 1024  # tokens that logit_bias may name
BIAS = 100
SHRINKS = 4  # a tokenizer's normalisation shortens a text at most by this factor


@dataclass(frozen=True, slots=True)
class Plan:
    """What an HTTP request asks of a model: ``n`` answers to each prompt, in order.

    ``requests``: empty if nothing is to be generated. ``top``: alternatives per token; None: no log-probabilities.
    ``echoes``: for each prompt its text, which is repeated before its answers; None without echo. ``constraint``: the
    type of response_format that restricts the answers.
    """

    body: GenerationRequest
    served: ServedModel
    prompts: Sequence[tuple[int, ...]]
    requests: tuple[Request, ...]
    top: int | None
    echoes: Sequence[str] | None = None
    constraint: str = ""

    @property
    def n(self) -> int:
        return self.body.n or 1

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def scored_prompts(self) -> Sequence[tuple[int, ...]]:
        """Prompts whose own log-probabilities are requested."""
        return self.prompts if self.echoes is not None and self.top is not None else ()


def plan_chat(body: ChatRequest, messages: Sequence[Message], served: ServedModel, settings: ServeSettings) -> Plan:
    """The plan of a chat request; ``messages``: the body's as plain text. Raises ApiError if it cannot be answered."""
    for name in REFUSED:  # an unsupported field that would change the answer is never ignored in silence
        value = getattr(body, name)
        if value if name in ("tools", "functions", "audio") else value not in (None, "none", "auto"):
            raise ApiError(f"{name} is not supported by this server.", 400, name)
    if body.modalities not in (None, ["text"]):
        raise ApiError('The only modality of this server is "text".', 400, "modalities")
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError("top_logprobs needs logprobs to be true.", 400, "top_logprobs")
    _at_most(body.top_logprobs, settings.chat_top, "top_logprobs")
    _few_enough(body.n or 1, 1, settings)
    _short_enough("".join(message["content"] for message in messages), served)
    prompts = [chat_prompt(served, messages)]
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    top = (body.top_logprobs or 0) if body.logprobs else None
    requests = _requests(body, served, prompts, limit, top)
    asked = body.response_format
    if asked is None or asked.type == "text":
        return Plan(body, served, prompts, requests, top)
    schema: dict[str, Any] = {"type": "object"}
    if asked.type == "json_schema":
        if asked.json_schema is None:
            message = "A response_format of type json_schema needs json_schema."
            raise ApiError(message, 400, "response_format.json_schema")
        schema = asked.json_schema.schema_
    following = served.json.constraint_factory(schema)
    requests = tuple(replace(request, constraint=following) for request in requests)
    return Plan(body, served, prompts, requests, top, constraint=asked.type)


def plan_completion(body: CompletionRequest, served: ServedModel, settings: ServeSettings) -> Plan:
    """The plan of a completion request. Raises ApiError if it cannot be answered."""
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise ApiError("best_of is only supported when it equals n.", 400, "best_of")
    if body.suffix:
        raise ApiError("suffix is not supported by this server.", 400, "suffix")
    _at_most(body.logprobs, settings.completion_top, "logprobs")
    asked = _prompts(body.prompt)
    _few_enough(body.n or 1, len(asked), settings)
    prompts = [_ids(prompt, served) for prompt in asked]
    limit = 16 if body.max_tokens is None else body.max_tokens
    requests = _requests(body, served, prompts, limit, body.logprobs)
    echoes = [prompt if isinstance(prompt, str) else served.text(prompt) for prompt in asked] if body.echo else None
    return Plan(body, served, prompts, requests, body.logprobs, echoes)


def plan_embedding(body: EmbeddingRequest, served: ServedModel) -> list[tuple[int, ...]]:
    """The tokens of each text. Raises ApiError if the request cannot be answered."""
    if body.dimensions is not None:
        raise ApiError("dimensions is not supported by this server.", 400, "dimensions")
    found = []
    try:
        for text in _prompts(body.input):
            if not text:
                raise ApiError("The input is empty.")
            found.append(_ids(text, served))
            if len(found[-1]) > served.window:
                raise _too_long(served, f"{len(found[-1])} tokens of the prompt. Shorten the prompt or the answer.")
    except ApiError as error:
        error.param = "input"
        raise
    return found


def chat_prompt(served: ServedModel, messages: Sequence[Message]) -> tuple[int, ...]:
    """The tokens of a conversation by the model's chat template; a model that was taught single questions gets the last
    one. What users write never becomes a control token."""
    try:
        return tuple(served.source.codec.prompt(read_of(messages, served.single_turn)))
    except KlypeError as error:
        if served.source.codec.chat is None:
            message = f"The model {served.name} has no chat template: ask it at /v1/completions."
            raise ApiError(message, 400, "model") from None
        raise ApiError(error.message, 400, "messages") from None


def _requests(
    body: GenerationRequest, served: ServedModel, prompts: Sequence[tuple[int, ...]], limit: int | None, top: int | None
) -> tuple[Request, ...]:
    """A request per prompt; ``limit``: tokens of an answer (None: what the window leaves); ``top``: alternatives per
    token."""
    if body.stream_options is not None and not body.stream:
        raise ApiError("stream_options needs stream to be true.", 400, "stream_options")
    n, stop = body.n or 1, () if body.ignore_eos else served.source.codec.stop
    seed = secrets.randbits(62) if body.seed is None else body.seed
    fixed = Request((), n, 1, body.sampling(_bias(body, served)), seed, stop, body.stops, top or 0)
    found = []
    for prompt in prompts:
        left = served.window - len(prompt) + 1  # the last token of an answer is not read again
        if left < 1 or (limit or 0) > left:
            answer = f" and {limit} of the answer" if limit else ""
            asked = f"{len(prompt)} tokens of the prompt{answer}. Shorten the prompt or the answer."
            raise _too_long(served, asked)
        found.append(replace(fixed, prompt=prompt, limit=left if limit is None else max(limit, 1)))
        try:
            check_request(found[-1], served.window, served.vocab_size)
        except UsageError as error:
            raise ApiError(error.message) from None
    return () if limit == 0 else tuple(found)


def _short_enough(prompt: str | list[int], served: ServedModel) -> None:
    """Raises ApiError for a prompt that must exceed the window, before it is tokenized."""
    least = len(prompt) // (SHRINKS * served.longest) if isinstance(prompt, str) else len(prompt)
    if least > served.window:
        raise _too_long(served, f"{least} tokens of the prompt or more. Shorten it.")


def _too_long(served: ServedModel, asked: str) -> ApiError:
    message = f"This model's maximum context length is {served.window} tokens, and the request has {asked}"
    return ApiError(message, 400, "messages", "context_length_exceeded")


def _prompts(given: str | list[str] | list[int] | list[list[int]]) -> list[Any]:
    """A list of prompts, each a text or a list of token ids."""
    return [given] if isinstance(given, str) or isinstance(given[0], int) else list(given)


def _ids(prompt: str | list[int], served: ServedModel) -> tuple[int, ...]:
    """The tokens of a prompt, a text as the beginning of a document. Raises ApiError if it is too long, empty, or has
    an unknown token."""
    _short_enough(prompt, served)
    if isinstance(prompt, str):
        ids = served.source.codec.encode(prompt)
    elif (wrong := max(prompt, default=0)) >= served.vocab_size:
        raise ApiError(f"The prompt has token {wrong}; the model knows 0 to {served.vocab_size - 1}.", 400, "prompt")
    else:
        ids = prompt
    if not ids:
        raise ApiError("The prompt is empty, and this model has no token that begins a text.", 400, "prompt")
    return tuple(ids)


def _bias(body: GenerationRequest, served: ServedModel) -> tuple[tuple[int, float], ...]:
    given = body.logit_bias or {}
    if len(given) > BIASES:
        raise ApiError(f"logit_bias may name {BIASES} tokens at most.", 400, "logit_bias")
    for key, value in given.items():
        if not re.fullmatch(r"[0-9]{1,9}", key) or int(key) >= served.vocab_size:
            message = f"logit_bias has the key {key[:50]!a}: it must be a token id below {served.vocab_size}."
            raise ApiError(message, 400, "logit_bias")
        if type(value) not in (int, float) or not -BIAS <= value <= BIAS:
            raise ApiError(f"logit_bias values must be numbers from -{BIAS} to {BIAS}.", 400, "logit_bias")
    return tuple((int(key), float(value)) for key, value in given.items())


def _at_most(value: int | None, most: int, name: str) -> None:
    if value is not None and value > most:
        raise ApiError(f"{name} is {value}: this server gives {most} at most.", 400, name)


def _few_enough(n: int, prompts: int, settings: ServeSettings) -> None:
    _at_most(n, settings.n, "n")
    if n * prompts > settings.samples:
        message = f"The request asks for {n * prompts} choices in all: this server gives {settings.samples} at most."
        raise ApiError(message, 400, "n")
