"""Requests and responses in the names of OpenAI's API.

Requests are validated strictly: "1" is no number, and unknown fields are refused. Lists fail at their first error, so
that a body full of errors costs no more than its parsing. Response models describe the API (openapi.json); the hot path
writes the same JSON by hand.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from klype.samplers import SAMPLERS, Sampler, Sampling

STOPS = 4
PARTS = 16  # of a message's content; with more, a body of a thousand messages would take long to validate
SEED = 2**63

Name = Annotated[str, Field(max_length=200)]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Tokens = Annotated[list[Token], Field(fail_fast=True, min_length=1, max_length=1 << 18)]
Texts = Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=2048)]
TokenLists = Annotated[list[Tokens], Field(fail_fast=True, min_length=1, max_length=2048)]
StopText = Annotated[str, Field(min_length=1, max_length=200)]
Stops = StopText | Annotated[list[StopText], Field(fail_fast=True, max_length=STOPS)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class BodyPart(BaseModel):
    """A part of a body, whose unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)


def _sampler(row: Sampler) -> Any:
    """The field of a sampler: its type and its bounds."""
    low, high = row.served or (row.least, row.most)
    bounds: Any = {"gt" if row.above and row.served is None else "ge": low, "le": high}
    kind: Any = int if row.whole else float
    return kind | None, Field(None, description=row.help, **bounds)


def _untyped(names: tuple[str, ...], description: str) -> dict[str, Any]:
    return dict.fromkeys(names, (Any, Field(None, description=description)))


# fields of OpenAI's API that are accepted and have no effect; the ``Warning`` header names them
UNUSED = (
    *("user", "prediction", "reasoning_effort", "verbosity", "metadata", "store", "service_tier", "prompt_cache_key"),
    *("prompt_cache_retention", "safety_identifier"),
)
# fields that would change an answer: refused
REFUSED = ("tools", "functions", "audio", "tool_choice", "function_call")

Sampled: Any = create_model("Sampled", __base__=Body, **{name: _sampler(row) for name, row in SAMPLERS.items()})
User: Any = create_model("User", __base__=Body, **_untyped(UNUSED[:1], "Accepted and not used."))
ChatOptions: Any = create_model(
    "ChatOptions",
    __base__=Body,
    **_untyped(UNUSED, "Accepted and not used."),
    **_untyped((*REFUSED, "parallel_tool_calls"), "Not supported."),
    **_untyped(("modalities",), 'Only ["text"].'),
)


class StreamOptions(BodyPart):
    include_usage: bool | None = None


class GenerationRequest(Sampled, User):  # type: ignore[misc]
    """The fields that chat and completions have in common."""

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

    def sampling(self, bias: tuple[tuple[int, float], ...]) -> Sampling:
        """The sampling parameters; OpenAI's defaults for those not given: no shaping, temperature 1."""
        values = {name: value for name in SAMPLERS if (value := getattr(self, name)) is not None}
        if values.get("top_k") == -1:  # vLLM's value for "off"
            values["top_k"] = 0
        if values.get("top_p") == 0:  # the most probable token only
            values["top_p"] = 1e-9
        return Sampling(**values, logit_bias=bias)

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionRequest(GenerationRequest):
    prompt: str | Texts | Tokens | TokenLists
    logprobs: int | None = Field(None, ge=0)
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1, description="As many as n.")
    suffix: Any = Field(None, description="Not supported.")


class EmbeddingRequest(User):  # type: ignore[misc]
    model: Name
    input: str | Texts | Tokens | TokenLists
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Any = Field(None, description="Not supported.")


class Part(BodyPart):
    type: Literal["text"]
    text: str


class ChatMessage(BodyPart):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(fail_fast=True, min_length=1, max_length=PARTS)]


def plain(messages: list[ChatMessage]) -> list[dict[str, str]]:
    """Messages as chat templates take them: parts joined to one text, "developer" under its earlier name "system"."""
    texts = (m.content if isinstance(m.content, str) else "".join(part.text for part in m.content) for m in messages)
    roles = ("system" if message.role == "developer" else message.role for message in messages)
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]


Messages = Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=1024)]


class JsonSchema(BodyPart):
    name: Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")]
    schema_: dict[str, Any] = Field({}, alias="schema")


class ResponseFormat(BodyPart):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(GenerationRequest, ChatOptions):  # type: ignore[misc]
    messages: Messages
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0)
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tokens: int | None = Field(None, ge=1)
    response_format: ResponseFormat | None = None


class TokenizeRequest(Body):
    """Text, or a conversation in its chat template, to be tokenized."""

    model: Name | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = Field(None, description="As the beginning of a document (the default).")


class DetokenizeRequest(Body):
    model: Name | None = None
    tokens: Annotated[list[Token], Field(fail_fast=True, max_length=1 << 18)]


def _form(name: str, *bases: Any, doc: str | None = None, **fields: Any) -> Any:
    """A response model: the types of its fields after those of the bases. Fields are required unless they have a
    Field."""
    config = None if bases else ConfigDict(extra="forbid", protected_namespaces=())
    told: dict[str, Any] = {name: kind if isinstance(kind, tuple) else (kind, ...) for name, kind in fields.items()}
    told |= {"__config__": config, "__base__": bases or None, "__doc__": doc}
    return create_model(name, **told)


def _list(form: Any) -> Any:
    return list[form]


ErrorDetail = _form("ErrorDetail", message=str, type=str, param=str | None, code=str | None)
ErrorAnswer = _form("ErrorAnswer", error=ErrorDetail)

Alternative = _form("Alternative", token=str, logprob=float, bytes=list[int] | None)
TokenLogprob = _form("TokenLogprob", Alternative, top_logprobs=_list(Alternative))
ALLOWED = "Probabilities are those over the tokens that this response_format allows."
Constrained = Literal["json_object", "json_schema"] | None
ChatLogprobs = _form(
    "ChatLogprobs",
    content=_list(TokenLogprob),
    refusal=None,
    constraint=(Constrained, Field(None, description=ALLOWED)),
)
AssistantMessage = _form("AssistantMessage", role=Literal["assistant"], content=str, refusal=None)
CompletionLogprobs = _form(
    "CompletionLogprobs",
    tokens=list[str],
    token_logprobs=list[float | None],
    top_logprobs=list[dict[str, float] | None],
    text_offset=list[int],
)
AnswerChoice = _form("AnswerChoice", index=int, finish_reason=Literal["stop", "length"])
ChatChoice = _form("ChatChoice", AnswerChoice, message=AssistantMessage, logprobs=ChatLogprobs | None)
CompletionChoice = _form("CompletionChoice", AnswerChoice, text=str, logprobs=CompletionLogprobs | None)
EmbeddingUsage = _form("EmbeddingUsage", prompt_tokens=int, total_tokens=int)
Usage = _form("Usage", EmbeddingUsage, completion_tokens=int)
Generated = _form("Generated", id=str, created=int, model=str, system_fingerprint=str, usage=Usage)
ChatCompletion = _form("ChatCompletion", Generated, object=Literal["chat.completion"], choices=_list(ChatChoice))
Completion = _form("Completion", Generated, object=Literal["text_completion"], choices=_list(CompletionChoice))
Vector = _form("Vector", index=int, object=Literal["embedding"], embedding=list[float] | str)
Embeddings = _form(
    "Embeddings",
    object=Literal["list"],
    model=str,
    system_fingerprint=str,
    pooling=(str, Field(description="What the vectors are.")),
    data=_list(Vector),
    usage=EmbeddingUsage,
)
ModelMeta = _form("ModelMeta", doc="As llama.cpp's server names them.", n_vocab=int, n_ctx=int)
ModelCard = _form(
    "ModelCard", id=str, object=Literal["model"], created=int, owned_by=str, max_model_len=int, meta=ModelMeta
)
ModelList = _form("ModelList", object=Literal["list"], data=_list(ModelCard))
Tokenized = _form("Tokenized", tokens=list[int], count=int, max_model_len=int)
Detokenized = _form("Detokenized", prompt=str)
Health = _form("Health", status=Literal["ok"])
