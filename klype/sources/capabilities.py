"""What a server offers, probed once, and which measures are therefore exact, bounded or unavailable."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

import httpx

from klype import words
from klype.environment import language, server_key, state_folder
from klype.errors import KlypeError, UsageError
from klype.sources.http_client import Budget, HttpClient, RefusedError, ResponseCache, count
from klype.sources.response_parsing import Key, ServerChoice, choices_of
from klype.words.plain import aside

Kind = Literal["klype", "vllm", "llama.cpp", "lmstudio", "ollama", "openai", "other"]
# by ``owned_by`` in their list of models
OWNERS: dict[str, Kind] = {
    "klype": "klype", "vllm": "vllm", "llamacpp": "llama.cpp", "organization_owner": "lmstudio", "library": "ollama",
    "openai": "openai", "system": "openai", "openai-internal": "openai",
}  # fmt: skip
TOPS = (1000, 100, 50, 20, 10, 5, 1)  # numbers of alternatives to try
CHAT = "chat/completions"
HELLO = [{"role": "user", "content": "Hi"}]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a server offers for a model. ``completion_top``, ``chat_top``: alternatives per token; ``ids``: it takes and
    returns token ids; ``window``, ``vocabulary``: 0 if unknown; ``limit_name``: how chat calls ``max_tokens``."""

    kind: Kind
    model: str
    models: tuple[str, ...]
    window: int = 0
    vocabulary: int = 0
    tokenizer: bool = False
    completions: bool = False
    completion_top: int = 0
    ids: bool = False
    echo: bool = False
    chat: bool = False
    chat_top: int = 0
    n: bool = False
    seed: bool = False
    limit_name: str = "max_tokens"

    @property
    def can_continue(self) -> bool:
        """Whether it can continue a given beginning of an answer, with probabilities."""
        return self.completions and self.completion_top > 0 and self.ids

    def json(self) -> dict[str, Any]:
        return {**asdict(self), "models": list(self.models), "measures": self.measures()}

    def measures(self) -> dict[str, str]:
        """Each measure as "whole" (as of a local model), "bounded" (an interval) or "unavailable"."""
        told = "whole" if (self.completion_top if self.can_continue else self.chat_top) else "unavailable"
        listed = "bounded" if self.completion_top or self.chat_top else "unavailable"
        inside = "bounded" if self.can_continue else "unavailable"
        return {
            "answers": "whole" if self.completions or self.chat else "unavailable",
            "probability_of_drawn_tokens": told,
            "probability_of_given_answers": "whole" if self.echo and self.ids else inside,
            "next": listed,
            "tree": inside,
            "entropy": listed,
            "forks": "whole" if self.completions and self.ids else "unavailable",
            "divergence_from_truth": inside,
        }


def probe(http: HttpClient, wanted: str = "") -> Capabilities:
    """Probes a server with a dozen short requests. Raises UsageError if it does not have the model, KlypeError if that
    answers neither chat nor completions."""
    listed = http.probe("models").get("data")
    rows = [row for row in listed if isinstance(row, dict) and row.get("id")] if isinstance(listed, list) else []
    names = tuple(str(row["id"]) for row in rows)
    model = wanted or (names[0] if len(names) == 1 else "")
    if not model and not names:
        raise UsageError(f"{http.base} lists no model.", f"Name the one to ask: {http.base}#MODEL.")
    if not model or (names and model not in names):
        raise UsageError(f"{http.base} has {', '.join(names[:8])}.", f"Name one of them: {http.base}#MODEL.")
    row = next((row for row in rows if row["id"] == model), {})
    host_is_openai = http.base.startswith("https://api.openai.com")
    kind: Kind = "openai" if host_is_openai else OWNERS.get(str(row.get("owned_by", "")).lower(), "other")
    meta = row["meta"] if isinstance(row.get("meta"), dict) else {}
    prompt: list[int] | None = None
    for body in ({"model": model, "prompt": "Hi there"}, {"content": "Hi there", "add_special": True}):
        with suppress(KlypeError):
            tokens = http.probe("/tokenize", body).get("tokens")
            if isinstance(tokens, list) and tokens and all(isinstance(token, int) for token in tokens):
                prompt = tokens
                break
    asked = Probe(http, model)
    found = {**asked.completions(prompt), **asked.chat()}
    if not found["completions"] and not found["chat"]:
        raise KlypeError(f"{http.base} answers neither chat nor completions for the model {model}.", "Is it loaded?")
    window, vocabulary = count(row.get("max_model_len")) or count(meta.get("n_ctx")), count(meta.get("n_vocab"))
    return Capabilities(kind, model, names, window, vocabulary, prompt is not None, **found)


@dataclass(frozen=True, slots=True)
class Probe:
    """Requests by which a model's capabilities are found out."""

    http: HttpClient
    model: str

    def answer(self, path: str, **body: Any) -> dict[str, Any] | None:
        """The response; None if the server refuses the request."""
        try:
            return self.http.probe(path, {"model": self.model, **body})
        except RefusedError:
            return None

    def first_choice(self, path: str, **body: Any) -> ServerChoice | None:
        """The only choice of a response; None if the server refuses the request."""
        answer = self.answer(path, **body)
        return choices_of(answer, 1, self.http.base)[0] if answer else None

    def top_n(self, path: str, tops: Sequence[int], asking: Callable[[int], dict[str, Any]]) -> tuple[int, Key] | None:
        """The number of alternatives that the server returns, and the token it sampled; None if it returns none."""
        for top in tops:
            said = self.first_choice(path, **asking(top))
            if said and said.tokens and said.tokens[0].top:
                return min(top, len(said.tokens[0].top)), said.tokens[0].key
        return None

    def completions(self, prompt: list[int] | None) -> dict[str, Any]:
        """Fields of Capabilities about completions. ``prompt``: a text's token ids, if the server tokenizes."""
        path, plain = "completions", {"prompt": prompt or "Hi there", "max_tokens": 1}
        if self.answer(path, **plain) is None:
            return {"completions": False}
        as_ids = {**plain, "return_tokens_as_token_ids": True}
        if prompt is None or self.answer(path, **as_ids) is None:
            as_ids = plain
        found: dict[str, Any] = {"completions": True}
        if (told := self.top_n(path, TOPS, lambda top: {**as_ids, "logprobs": top})) is not None:
            found |= {"completion_top": told[0], "ids": prompt is not None and isinstance(told[1], int)}
        if prompt and found.get("ids"):
            found["echo"] = False
            # A request that fails is raised: "no echo" would be cached, and scores would cost a request per token.
            answer = self.answer(path, **as_ids, logprobs=1, echo=True) or {}
            with suppress(KlypeError):  # llama.cpp ignores echo, so that its token count contradicts itself
                said = choices_of(answer, 1, self.http.base, echoed=len(prompt))[0]
                found["echo"] = [heard.key for heard in said.tokens or ()][: len(prompt)] == prompt
        rows = (self.answer(path, **plain, n=2) or {}).get("choices")
        # whether the same seed gives the same text
        drawn: dict[str, Any] = {**plain, "max_tokens": 8, "seed": 7, "temperature": 1.0}
        first, again = (self.first_choice(path, **drawn) for _ in range(2))
        same = first is not None and again is not None and first.text == again.text
        return found | {"n": isinstance(rows, list) and len(rows) == 2, "seed": same}

    def chat(self) -> dict[str, Any]:
        """Fields of Capabilities about chat."""
        plain: dict[str, Any] = {"messages": HELLO}
        names = ("max_tokens", "max_completion_tokens")
        limit = next((name for name in names if self.answer(CHAT, **plain, **{name: 1}) is not None), None)
        if limit is None:
            return {"chat": False}
        told = self.top_n(CHAT, (20, 5, 1), lambda top: {**plain, limit: 1, "logprobs": True, "top_logprobs": top})
        return {"chat": True, "limit_name": limit, "chat_top": 0 if told is None else told[0]}


EVERY_S = 5.0  # between two messages about cost


def client_of(address: str, budget: Budget | None = None) -> tuple[HttpClient, str]:
    """The client for an address, and the model that it names after a #. Raises UsageError for what is no address."""
    base, _, model = address.partition("#")
    try:
        url = httpx.URL(base)
    except httpx.InvalidURL:
        url = httpx.URL()
    if not url.host or not 0 < (url.port or 80) < 1 << 16:
        raise UsageError(f"{base} is not the address of a server.", "Write http://host:port/v1#model.")
    cache = ResponseCache(state_folder() / "answers.sqlite")
    return HttpClient(base, server_key(url.host), cache, budget), model


def capabilities_of(http: HttpClient, model: str, again: bool = False) -> Capabilities:
    """The cached capabilities of a server's model, probed the first time and with ``again``."""
    key = f"capabilities of {http.base}#{model}"
    if not again and (known := http.cache.get(key)) is not None:
        return Capabilities(**{**known, "models": tuple(known["models"])})
    found = probe(http, model)
    http.cache.put(key, asdict(found))
    return found


def meter() -> Callable[[Budget], None]:
    """Returns a ``Budget.say`` that prints the cost so far to stderr every few seconds."""
    told = time.monotonic()

    def say(budget: Budget) -> None:
        nonlocal told
        if time.monotonic() - told >= EVERY_S:
            told = time.monotonic()
            aside(f"  {cost(budget)} …")

    return say


def cost(budget: Budget) -> str:
    """What was used of a server, in words."""
    numbers = budget.asked, budget.spent, budget.prompt_tokens, budget.answer_tokens, budget.kept
    told, lang = dict(zip(("requests", "tokens", "prompt", "answer", "kept"), numbers, strict=True)), language()
    return words.words(lang)("remote.cost", **{name: words.count(number, lang) for name, number in told.items()})
