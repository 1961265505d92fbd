"""What a server offers, found out by asking it once, and which measures are therefore whole, bounded or unavailable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import httpx

from klype import words
from klype.environment import language, server_key, state_folder
from klype.errors import KlypeError, UsageError
from klype.sources.dialect import choices
from klype.sources.http_client import Budget, HttpClient, RefusedError, ResponseCache, count
from klype.words.plain import aside

Kind = Literal["klype", "vllm", "llama.cpp", "lmstudio", "ollama", "openai", "other"]
OWNERS: dict[str, Kind] = {
    "klype": "klype", "vllm": "vllm", "llamacpp": "llama.cpp", "organization_owner": "lmstudio", "library": "ollama",
    "openai": "openai", "system": "openai", "openai-internal": "openai",
}  # fmt: skip
"""Kinds of servers by what their list of models says about owners."""
TOPS = (1000, 100, 50, 20, 10, 5, 1)
"""How many alternatives are asked for, until a server agrees."""
HELLO = [{"role": "user", "content": "Hi"}]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """``top``: alternatives a token; ``ids``: token ids go in and come out; ``window``, ``vocabulary`` 0: not told."""

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
    def goes_on(self) -> bool:
        """Whether it can be asked what follows a beginning of its own answer."""
        return self.completions and self.completion_top > 0 and self.ids

    def json(self) -> dict[str, Any]:
        return {**asdict(self), "models": list(self.models), "measures": self.measures()}

    def measures(self) -> dict[str, str]:
        """whole: as of a model that is here; bounded: between certain ends; unavailable."""
        told = "whole" if (self.completion_top if self.goes_on else self.chat_top) else "unavailable"
        listed = "bounded" if self.completion_top or self.chat_top else "unavailable"
        inside = "bounded" if self.goes_on else "unavailable"
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

    @staticmethod
    def of(document: dict[str, Any]) -> Capabilities:
        known = {name: value for name, value in document.items() if name != "measures"}
        return Capabilities(**{**known, "models": tuple(known["models"])})


def probe(http: HttpClient, wanted: str = "") -> Capabilities:
    """Asks a dozen short questions. Errors: no such model, nothing that can be asked."""
    listed = http.get(f"{http.base}/models").get("data")
    rows = [row for row in listed if isinstance(row, dict) and row.get("id")] if isinstance(listed, list) else []
    names = tuple(str(row["id"]) for row in rows)
    model = _chosen(http, names, wanted)
    row = next((row for row in rows if row["id"] == model), {})
    host_is_openai = http.base.startswith("https://api.openai.com")
    kind: Kind = "openai" if host_is_openai else OWNERS.get(str(row.get("owned_by", "")).lower(), "other")
    meta = row.get("meta") if isinstance(row.get("meta"), dict) else {}
    window = count(row.get("max_model_len")) or count((meta or {}).get("n_ctx"))
    found: dict[str, Any] = {"kind": kind, "model": model, "models": names, "window": window}
    found["vocabulary"] = count((meta or {}).get("n_vocab"))
    prompt = _tokenized(http, model)
    found["tokenizer"] = prompt is not None
    found |= _completions(http, model, prompt)
    found |= _chat(http, model)
    if not found["completions"] and not found["chat"]:
        raise KlypeError(f"{http.base} answers neither chat nor completions for the model {model}.", "Is it loaded?")
    return Capabilities(**found)


def _chosen(http: HttpClient, names: tuple[str, ...], wanted: str) -> str:
    if wanted and (wanted in names or not names):
        return wanted
    if wanted or len(names) != 1:
        if not names:
            raise UsageError(f"{http.base} lists no model.", f"Name the one to ask: {http.base}#MODEL.")
        raise UsageError(f"{http.base} has {', '.join(names[:8])}.", f"Name one of them: {http.base}#MODEL.")
    return names[0]


def _tokenized(http: HttpClient, model: str) -> list[int] | None:
    for body in ({"model": model, "prompt": "Hi there"}, {"content": "Hi there", "add_special": True}):
        try:
            tokens = http.probe("/tokenize", body).get("tokens")
        except KlypeError:
            continue
        if isinstance(tokens, list) and tokens and all(isinstance(token, int) for token in tokens):
            return tokens
    return None


def _completions(http: HttpClient, model: str, prompt: list[int] | None) -> dict[str, Any]:
    plain = {"model": model, "prompt": prompt or "Hi there", "max_tokens": 1}
    if _tried(http, "completions", plain) is None:
        return {"completions": False}
    found: dict[str, Any] = {"completions": True}
    as_ids = {**plain, "return_tokens_as_token_ids": True}
    if prompt is None or _tried(http, "completions", as_ids) is None:
        as_ids = plain
    for top in TOPS:
        answer = _tried(http, "completions", {**as_ids, "logprobs": top})
        said = choices(answer, 1, http.base)[0] if answer else None
        if said is not None and said.tokens and said.tokens[0].top:
            found["completion_top"] = min(top, len(said.tokens[0].top))
            found["ids"] = prompt is not None and isinstance(said.tokens[0].key, int)
            break
    if found.get("ids") and prompt:
        answer = _tried(http, "completions", {**as_ids, "logprobs": 1, "echo": True})
        try:
            told = choices(answer or {}, 1, http.base, echoed=len(prompt))[0].tokens or ()
        except KlypeError:  # llama.cpp ignores echo and tells its one token: what contradicts itself is no echo
            told = ()
        found["echo"] = [heard.key for heard in told[: len(prompt)]] == prompt
    answer = _tried(http, "completions", {**plain, "n": 2})
    found["n"] = answer is not None and isinstance(answer.get("choices"), list) and len(answer["choices"]) == 2
    return found | {"seed": _repeats(http, "completions", {**plain, "max_tokens": 8})}


def _chat(http: HttpClient, model: str) -> dict[str, Any]:
    plain: dict[str, Any] = {"model": model, "messages": HELLO}
    names = ("max_tokens", "max_completion_tokens")
    limit = next((name for name in names if _tried(http, CHAT, {**plain, name: 1}) is not None), None)
    if limit is None:
        return {"chat": False}
    found: dict[str, Any] = {"chat": True, "limit_name": limit}
    for top in (20, 5, 1):
        answer = _tried(http, CHAT, {**plain, limit: 1, "logprobs": True, "top_logprobs": top})
        told = choices(answer, 1, http.base)[0].tokens if answer else None
        if told and told[0].top:
            found["chat_top"] = min(top, len(told[0].top))
            break
    return found


CHAT = "chat/completions"


def _repeats(http: HttpClient, path: str, body: dict[str, Any]) -> bool:
    """Whether the same seed says the same."""
    said = [_tried(http, path, {**body, "seed": 7, "temperature": 1.0}) for _ in range(2)]
    texts = [choices(answer, 1, http.base)[0].text for answer in said if answer is not None]
    return len(texts) == 2 and texts[0] == texts[1]


def _tried(http: HttpClient, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
    """None when the server refuses it."""
    try:
        return http.probe(path, body)
    except RefusedError:
        return None


EVERY_S = 5.0


def client_of(address: str, budget: Budget | None = None) -> tuple[HttpClient, str]:
    """The http to an address, and the model that it names after a #."""
    base, _, model = address.partition("#")
    try:
        url = httpx.URL(base)
    except httpx.InvalidURL:
        url = httpx.URL()
    if not url.host or not 0 < (url.port or 80) < 1 << 16:
        raise UsageError(f"{base} is not the address of a server.", "Write http://host:port/v1#model.")
    kept = ResponseCache(state_folder() / "answers.sqlite")
    return HttpClient(base, server_key(url.host), kept, budget), model


def capabilities_of(http: HttpClient, model: str, again: bool = False) -> Capabilities:
    """What the server offers: probed once, then remembered; ``again`` asks anew."""
    address = f"{http.base}#{model}"
    known = None if again else http.kept.offer(address)
    if known is not None:
        return Capabilities.of(known)
    found = probe(http, model)
    http.kept.keep_offer(address, found.json())
    return found


def meter(clock: Callable[[], float]) -> Callable[[Budget], None]:
    """What has been asked for so far, told on stderr every few seconds."""
    told = clock()

    def say(budget: Budget) -> None:
        nonlocal told
        if clock() - told >= EVERY_S:
            told = clock()
            aside(f"  {cost(budget)} …")

    return say


def cost(budget: Budget) -> str:
    told = {
        "requests": budget.asked,
        "tokens": budget.spent,
        "prompt": budget.prompt_tokens,
        "answer": budget.answer_tokens,
        "kept": budget.kept,
    }
    lang = language()
    return words.words(lang)("remote.cost", **{name: words.count(number, lang) for name, number in told.items()})
