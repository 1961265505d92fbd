"""What a server offers, found out by asking it once, and which measures are therefore whole, bounded or unavailable."""

from __future__ import annotations

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
from klype.sources.response_parsing import Key, ServerChoice, choices
from klype.words.plain import aside

Kind = Literal["klype", "vllm", "llama.cpp", "lmstudio", "ollama", "openai", "other"]
# by what their list of models says about owners
OWNERS: dict[str, Kind] = {
    "klype": "klype", "vllm": "vllm", "llamacpp": "llama.cpp", "organization_owner": "lmstudio", "library": "ollama",
    "openai": "openai", "system": "openai", "openai-internal": "openai",
}  # fmt: skip
TOPS = (1000, 100, 50, 20, 10, 5, 1)  # how many alternatives are asked for, until a server agrees
CHAT = "chat/completions"
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


def probe(http: HttpClient, wanted: str = "") -> Capabilities:
    """Asks a dozen short questions. Errors: no such model, nothing that can be asked."""
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
    """A model that questions are tried on."""

    http: HttpClient
    model: str

    def answer(self, path: str, **body: Any) -> dict[str, Any] | None:
        """None when the server refuses it."""
        try:
            return self.http.probe(path, {"model": self.model, **body})
        except RefusedError:
            return None

    def said(self, path: str, **body: Any) -> ServerChoice | None:
        """The only choice of an answer."""
        answer = self.answer(path, **body)
        return choices(answer, 1, self.http.base)[0] if answer else None

    def most(self, path: str, tops: Sequence[int], asking: Callable[[int], dict[str, Any]]) -> tuple[int, Key] | None:
        """How many alternatives the server tells, and the token that it wrote; None where it tells none."""
        for top in tops:
            said = self.said(path, **asking(top))
            if said and said.tokens and said.tokens[0].top:
                return min(top, len(said.tokens[0].top)), said.tokens[0].key
        return None

    def completions(self, prompt: list[int] | None) -> dict[str, Any]:
        """What it offers of completions. ``prompt``: a text's token ids, where it tells them."""
        path, plain = "completions", {"prompt": prompt or "Hi there", "max_tokens": 1}
        if self.answer(path, **plain) is None:
            return {"completions": False}
        as_ids = {**plain, "return_tokens_as_token_ids": True}
        if prompt is None or self.answer(path, **as_ids) is None:
            as_ids = plain
        found: dict[str, Any] = {"completions": True}
        if (told := self.most(path, TOPS, lambda top: {**as_ids, "logprobs": top})) is not None:
            found |= {"completion_top": told[0], "ids": prompt is not None and isinstance(told[1], int)}
        if prompt and found.get("ids"):
            found["echo"] = False
            # a request that fails is no answer about echo: what is kept would make scores cost a request a token
            answer = self.answer(path, **as_ids, logprobs=1, echo=True) or {}
            with suppress(KlypeError):  # llama.cpp ignores echo and tells its one token: it contradicts itself
                said = choices(answer, 1, self.http.base, echoed=len(prompt))[0]
                found["echo"] = [heard.key for heard in said.tokens or ()][: len(prompt)] == prompt
        rows = (self.answer(path, **plain, n=2) or {}).get("choices")
        # the same seed says the same
        drawn: dict[str, Any] = {**plain, "max_tokens": 8, "seed": 7, "temperature": 1.0}
        first, again = (self.said(path, **drawn) for _ in range(2))
        same = first is not None and again is not None and first.text == again.text
        return found | {"n": isinstance(rows, list) and len(rows) == 2, "seed": same}

    def chat(self) -> dict[str, Any]:
        """What it offers of chat."""
        plain: dict[str, Any] = {"messages": HELLO}
        names = ("max_tokens", "max_completion_tokens")
        limit = next((name for name in names if self.answer(CHAT, **plain, **{name: 1}) is not None), None)
        if limit is None:
            return {"chat": False}
        told = self.most(CHAT, (20, 5, 1), lambda top: {**plain, limit: 1, "logprobs": True, "top_logprobs": top})
        return {"chat": True, "limit_name": limit, "chat_top": 0 if told is None else told[0]}


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
    key = f"offer of {http.base}#{model}"
    if not again and (known := http.kept.answer(key)) is not None:
        del known["measures"]
        return Capabilities(**{**known, "models": tuple(known["models"])})
    found = probe(http, model)
    http.kept.keep(key, found.json())
    return found


def meter() -> Callable[[Budget], None]:
    """What has been asked for so far, told on stderr every few seconds."""
    told = time.monotonic()

    def say(budget: Budget) -> None:
        nonlocal told
        if time.monotonic() - told >= EVERY_S:
            told = time.monotonic()
            aside(f"  {cost(budget)} …")

    return say


def cost(budget: Budget) -> str:
    """What a server was asked for, in words."""
    numbers = budget.asked, budget.spent, budget.prompt_tokens, budget.answer_tokens, budget.kept
    told, lang = dict(zip(("requests", "tokens", "prompt", "answer", "kept"), numbers, strict=True)), language()
    return words.words(lang)("remote.cost", **{name: words.count(number, lang) for name, number in told.items()})
