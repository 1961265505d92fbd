"""What clients send and what they are answered, as OpenAI's API names it.

Of requests, types are strict: "1" is no number, and what is unknown is refused; lists end at their first mistake, so
that a body full of mistakes costs no more than its parsing. Answers are models for the published description: the hot
path writes the same by hand.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from klype.samplers import SAMPLERS, Sampler, Sampling

STOPS = 4
PARTS = 16
"""Of a message's text; with more, a body of a thousand messages would take long to be checked."""
SEED = 2**63
NOT_USED = "Accepted and not used."

Name = Annotated[str, Field(max_length=200)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[list[Token], Field(fail_fast=True, min_length=1, max_length=1 << 18)]
Texts = Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=2048)]
TokenLists = Annotated[list[Tokens], Field(fail_fast=True, min_length=1, max_length=2048)]
StopText = Annotated[str, Field(min_length=1, max_length=200)]
Stops = StopText | Annotated[list[StopText], Field(fail_fast=True, max_length=STOPS)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    include_usage: bool | None = None


def _sampler(row: Sampler) -> Any:
    """A sampler as a field of a request: its type and what it may be."""
    low, high = row.served or (row.least, row.most)
    bounds: Any = {"gt" if row.above and row.served is None else "ge": low, "le": high}
    kind: Any = int if row.whole else float
    return kind | None, Field(None, description=row.help["en"], **bounds)


Sampled: Any = create_model("Sampled", __base__=Body, **{name: _sampler(row) for name, row in SAMPLERS.items()})


class GenerationRequest(Sampled):  # type: ignore[misc]
    """What chat and completions have in common."""

    model: Name
    logit_bias: dict[str, Any] | None = Field(None, description="Token id to a number from -100 to 100.")
    n: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=0)
    seed: int | None = Field(None, ge=-SEED, lt=SEED)
    stop: Stops | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = Field(None, description="Go on after an end token.")
    return_tokens_as_token_ids: bool | None = Field(None, description='Spell tokens as "token_id:7".')
    user: Any = Field(None, description=NOT_USED)

    def sampling(self, bias: tuple[tuple[int, float], ...]) -> Sampling:
        """What is not given is as OpenAI has it: nothing shaped, temperature 1."""
        given = {name: getattr(self, name) for name in SAMPLERS}
        values = {name: value for name, value in given.items() if value is not None}
        if values.get("top_k") == -1:  # as vLLM writes that it is off
            values["top_k"] = 0
        if values.get("top_p") == 0:  # only the most probable
            values["top_p"] = 1e-9
        return Sampling(**values, logit_bias=bias)

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def with_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionRequest(GenerationRequest):
    prompt: str | Texts | Tokens | TokenLists
    logprobs: int | None = Field(None, ge=0)
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1, description="As many as n.")
    suffix: Any = Field(None, description="Not supported.")


class EmbeddingRequest(Body):
    model: Name
    input: str | Texts | Tokens | TokenLists
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Any = Field(None, description="Not supported.")
    user: Any = Field(None, description=NOT_USED)


class Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(fail_fast=True, min_length=1, max_length=PARTS)]

    def plain(self) -> dict[str, str]:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


def plain(messages: list[ChatMessage]) -> list[dict[str, str]]:
    return [message.plain() for message in messages]


Messages = Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=1024)]


class JsonSchema(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    name: Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")]
    schema_: dict[str, Any] = Field({}, alias="schema")


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(GenerationRequest):
    messages: Messages
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0)
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    tools: Any = Field(None, description="Not supported.")
    tool_choice: Any = Field(None, description="Not supported.")
    parallel_tool_calls: Any = Field(None, description="Not supported.")
    functions: Any = Field(None, description="Not supported.")
    function_call: Any = Field(None, description="Not supported.")
    response_format: ResponseFormat | None = None
    modalities: Any = Field(None, description='Only ["text"].')
    audio: Any = Field(None, description="Not supported.")
    prediction: Any = Field(None, description=NOT_USED)
    reasoning_effort: Any = Field(None, description=NOT_USED)
    verbosity: Any = Field(None, description=NOT_USED)
    metadata: Any = Field(None, description=NOT_USED)
    store: Any = Field(None, description=NOT_USED)
    service_tier: Any = Field(None, description=NOT_USED)
    prompt_cache_key: Any = Field(None, description=NOT_USED)
    prompt_cache_retention: Any = Field(None, description=NOT_USED)
    safety_identifier: Any = Field(None, description=NOT_USED)


UNUSED = frozenset(name for name, field in ChatRequest.model_fields.items() if field.description == NOT_USED)
"""Fields of OpenAI's that are accepted and change nothing here; the answer's ``Warning`` header names them."""


class TokenizeRequest(Body):
    """A text, or a conversation as its chat template writes it."""

    model: Name | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = Field(None, description="As the beginning of a document (the default).")


class DetokenizeRequest(Body):
    model: Name | None = None
    tokens: Annotated[list[Token], Field(fail_fast=True, max_length=1 << 18)]


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorDetail(Answer):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(Answer):
    error: ErrorDetail


class Usage(Answer):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Alternative(Answer):
    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(Alternative):
    top_logprobs: list[Alternative]


class ChatLogprobs(Answer):
    content: list[TokenLogprob]
    refusal: None
    constraint: Literal["json_object", "json_schema"] | None = Field(
        None, description="Probabilities are those over the tokens that this response_format allows."
    )


class AssistantMessage(Answer):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Answer):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(Answer):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionLogprobs(Answer):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Answer):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(Answer):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class Vector(Answer):
    index: int
    object: Literal["embedding"]
    embedding: list[float] | str


class EmbeddingUsage(Answer):
    prompt_tokens: int
    total_tokens: int


class Embeddings(Answer):
    object: Literal["list"]
    model: str
    system_fingerprint: str
    pooling: str = Field(description="What the vectors are.")
    data: list[Vector]
    usage: EmbeddingUsage


class ModelMeta(Answer):
    """As llama.cpp's server names them."""

    n_vocab: int
    n_ctx: int


class ModelCard(Answer):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    meta: ModelMeta


class ModelList(Answer):
    object: Literal["list"]
    data: list[ModelCard]


class Tokenized(Answer):
    tokens: list[int]
    count: int
    max_model_len: int


class Detokenized(Answer):
    prompt: str


class Health(Answer):
    status: Literal["ok"]
