"""A model behind an OpenAI-compatible server; codecs: its own tokenizer, or pieces of text as tokens."""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, Literal

import numpy as np

from klype.engine.engine import Event
from klype.errors import KlypeError, UsageError
from klype.samplers import OWN, SAMPLERS, active, needs_counts
from klype.sources.capabilities import CHAT, Capabilities
from klype.sources.http_client import Call, HttpClient
from klype.sources.response_parsing import IDS, LONGEST, UNTOLD, Key, ServerChoice, ServerToken, choice_of, choices_of
from klype.sources.source import Message
from klype.values import Distribution, Request, Sampling, Step, Tokens, Trace

# names of tokens that end an answer
ENDS = (
    "</s>", "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end|>", "<|end_of_text|>", "<end_of_turn>", "<eos>",
    "<|eom_id|>", "<｜end▁of▁sentence｜>",
)  # fmt: skip


class IdCodec:
    """The server's own token ids, through its ``/tokenize`` and ``/detokenize``."""

    def __init__(self, http: HttpClient, caps: Capabilities) -> None:
        self._http, self._caps = http, caps
        self._llama = caps.kind == "llama.cpp"
        self._texts: dict[Tokens, str] = {}
        self.stop = self._ends()
        self.end = self.stop[0] if self.stop else 0

    def encode(self, text: str) -> list[int]:
        return self._tokens(text, True)

    def encode_answer(self, answer: str) -> list[int]:
        """The tokens of a given answer after a prompt. A tokenizer that puts a space before every text, as klype's own
        does, has one before the answer, too."""
        if self._caps.kind != "klype":
            return self.encode_bare(answer)
        bare, spaced = self.encode_bare("a"), self.encode_bare(" a")
        spaces = bare != spaced and self.encode("a")[-len(spaced) :] == spaced
        return self.encode_bare(f" {answer.strip()}" if spaces else answer)

    def encode_bare(self, text: str) -> list[int]:
        """A text's tokens, without one that begins a text."""
        return self._tokens(text, False)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        plain = [dict(message) for message in messages]
        if not self._llama:
            return self._ask({"model": self._caps.model, "messages": plain})
        written = self._http.post(Call("/apply-template", {"messages": plain})).get("prompt", "")
        return self._tokens(written, True, control=True)

    def decode(self, ids: Sequence[int]) -> str:
        return self._text(tuple(i for i in ids if i not in self.stop)).removeprefix(" ")

    def token_bytes(self, token: int) -> bytes:
        return b"" if token in self.stop else self._text((token,)).encode()

    words = encode_answer

    def number(self, key: Key) -> int:
        if not isinstance(key, int):
            raise KlypeError(f"{self._http.base} tells a token without its id.", "Nothing of it is used.")
        return key

    def asked(self, prompt: Tokens, limit: int) -> tuple[str, dict[str, Any]]:
        return "completions", {"prompt": list(prompt), "max_tokens": limit}

    def _text(self, ids: Tokens) -> str:
        """The text of tokens, including a leading space."""
        if ids and ids not in self._texts:
            model = {} if self._llama else {"model": self._caps.model}
            answer = self._http.post(Call("/detokenize", {"tokens": list(ids), **model}))
            text = answer.get("prompt", answer.get("content"))
            if not isinstance(text, str):
                raise KlypeError(f"{self._http.base} does not say which text its tokens are.")
            self._texts[ids] = text
        return self._texts.get(ids, "")

    def _tokens(self, text: str, begins: bool, control: bool = False) -> list[int]:
        """Tokenizes; ``begins``: with the token that begins a text; ``control``: names of control tokens become
        them."""
        if self._llama:
            return self._ask({"content": text, "add_special": begins, "parse_special": control})
        return self._ask({"model": self._caps.model, "prompt": text, "add_special_tokens": begins})

    def _ask(self, body: dict[str, Any]) -> list[int]:
        tokens = self._http.post(Call("/tokenize", body)).get("tokens")
        if not isinstance(tokens, list) or not all(isinstance(token, int) and 0 <= token < IDS for token in tokens):
            raise KlypeError(f"{self._http.base} does not say which tokens its text is.")
        return tokens

    def _ends(self) -> tuple[int, ...]:
        """Tokens that end an answer: those in ENDS that are a single token. klype's server never turns text into
        control tokens, so there it is the one that its chat template writes after every message."""
        talk = [{"role": role, "content": said} for role, said in (("user", "a"), ("assistant", "b"), ("user", "a"))]
        try:
            written = self.prompt(talk)
        except KlypeError:  # no chat template
            written = []
        if self._caps.kind == "klype":
            written = written or self.encode("a")
            silent = [i for i in dict.fromkeys(written) if written.count(i) == 3 and self._text((i,)) == ""]
            # without a template: the end token of the vocabularies that klype trains
            return tuple(silent) or (2,)
        named = [self._tokens(name, False, control=True) for name in ENDS]
        found = dict.fromkeys(ids[0] for ids in named if len(ids) == 1)
        # first the one that the chat template writes after a message
        return tuple(sorted(found, key=lambda token: -written.count(token)))


class PieceCodec:
    """Pieces of text as tokens, whose ids are hashes: the same in every process."""

    def __init__(self, http: HttpClient, caps: Capabilities) -> None:
        self._http, self._caps = http, caps
        self._pieces: dict[int, tuple[str, bytes]] = {}
        # "" stands for an end that the server does not report (``end``)
        self.stop = tuple(self._number("token", name.encode()) for name in ("", *ENDS))
        self.end = self.stop[0]

    def encode(self, text: str) -> list[int]:
        if not self._caps.completions:
            raise KlypeError("This server only chats: it cannot go on with a text.", "Leave out --raw.")
        return [self._number("text", text.encode())]

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        if not self._caps.chat:
            raise KlypeError("This server does not chat.", "Use --raw to give it plain text.")
        return [self._number("chat", json.dumps([dict(m) for m in messages], ensure_ascii=False).encode())]

    def encode_bare(self, text: str) -> list[int]:
        raise KlypeError("This server does not tell its tokens, so that a given answer cannot be looked at.")

    encode_answer = encode_bare

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace").removeprefix(" ")

    def token_bytes(self, token: int) -> bytes:
        kind, data = self._piece(token)
        return data if kind == "token" and token not in self.stop else b""

    def words(self, text: str) -> list[int]:
        return [self._number("token", word.encode()) for word in re.findall(r"\s*\S+\s*$|\s*\S+|\s+", text)]

    def number(self, key: Key) -> int:
        return key if isinstance(key, int) else self._number("token", key)

    def asked(self, prompt: Tokens, limit: int) -> tuple[str, dict[str, Any]]:
        (kind, data), said = self._piece(prompt[0]), b"".join(map(self.token_bytes, prompt[1:]))
        if kind == "chat":
            if len(prompt) > 1:
                raise KlypeError(
                    f"{self._http.base} cannot be asked what follows the beginning of an answer.",
                    "See what it offers: klype doctor ADDRESS.",
                )
            return CHAT, {"messages": json.loads(data), self._caps.limit_name: limit}
        return "completions", {"prompt": (data + said).decode(errors="replace"), "max_tokens": limit}

    def _number(self, kind: str, data: bytes) -> int:
        digest = hashlib.blake2b(kind.encode() + b"\0" + data, digest_size=8).digest()
        # 62 bits: below IDS, and an int64
        number = int.from_bytes(digest, "big") >> 2
        if number not in self._pieces:
            self._pieces[number] = (kind, data)
            self._http.cache.put(f"piece {number}", {"piece": [kind, data.decode("latin-1")]})
        return number

    def _piece(self, number: int) -> tuple[str, bytes]:
        if number not in self._pieces:
            if (found := self._http.cache.get(f"piece {number}")) is None:
                raise KlypeError("A token of a server is not known here any more: its kept answers were deleted.")
            kind, text = found["piece"]
            self._pieces[number] = kind, text.encode("latin-1")
        return self._pieces[number]


MIN_REST = 1e-9  # probability beside the listed tokens, at least: whether the list is complete is unknown
MASK = 0x7FFFFFFF
# servers with sampling defaults of their own
HAS_OWN_DEFAULTS = ("klype", "vllm", "llama.cpp")
# servers that take any n; llama.cpp takes as many as it has slots, and the limit of others is unknown
TAKES_N = ("klype", "vllm")


class RemoteSource:
    """A server's model as a source. Its methods raise KlypeError for what the server cannot do or does wrong."""

    def __init__(self, http: HttpClient, caps: Capabilities) -> None:
        self.http, self.caps, self.name = http, caps, f"{http.base}#{caps.model}"
        self.codec: IdCodec | PieceCodec = IdCodec(http, caps) if caps.ids else PieceCodec(http, caps)

    def next(self, prefixes: Sequence[Sequence[int]], top: int = -1) -> list[Distribution]:
        """Next-token distributions, from the logprobs of one sampled token each. Where that token is an incomplete
        character, llama.cpp returns no logprobs, and the distribution lists no token."""
        asked = list(dict.fromkeys(tuple(prefix) for prefix in prefixes))
        calls = [self._call(Request(prefix, limit=1, top=-1), prefix, 1, 0) for prefix in asked]
        found = {}
        for place, answer in self.http.many(calls):
            said = choices_of(answer, 1, self.http.base, 1)[0]
            told = bool(said.tokens and said.tokens[0].top)
            if not told and not (self.caps.ids and UNTOLD in said.text):
                raise KlypeError(f"{self.name} tells no probabilities.", "See: klype doctor ADDRESS.")
            found[asked[place]] = self._distribution(said.tokens[0].top if told and said.tokens else (), top)
        return [found[tuple(prefix)] for prefix in prefixes]

    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], top: int = 0) -> list[Trace]:
        """Scores by echo where the server offers it, else token by token; unlisted tokens have log-probability NaN."""
        pairs = [(tuple(p), tuple(a)) for p, a in zip(prompts, answers, strict=True)]
        if self.caps.echo:
            found = self._score_by_echo(pairs)
        else:
            told = iter(self.next([(*p, *a[:t]) for p, a in pairs for t in range(len(a))]))
            found = [[_forced_step(token, next(told)) for token in a] for _, a in pairs]
        steps = (tuple(said if top else [replace(step, distribution=None) for step in said]) for said in found)
        return [
            Trace(prompt, said, Sampling(), 0, 0, self.name, "length", passes=1, seconds=0.0)
            for (prompt, _), said in zip(pairs, steps, strict=True)
        ]

    def generate(self, requests: Sequence[Request]) -> Iterator[Event]:
        kind = self.caps.kind
        for request in requests:
            if not request.prompt:
                raise UsageError("The prompt is empty.")
            if request.limit < 1 or request.n < 1:
                raise UsageError("An answer needs at least one token, and a request one answer.")
            refused = [name for name in active(request.sampling) if kind not in SAMPLERS[name].servers]
            refused += ["logit_bias"] if request.sampling.logit_bias and kind not in OWN else []
            if refused:
                takes = [name for name, row in SAMPLERS.items() if kind in row.servers]
                server = "This server" if kind == "other" else f"A server of the kind {kind}"
                raise UsageError(f"{self.name} takes no {' or '.join(refused)}.", f"{server} takes {', '.join(takes)}.")
        if len(requests) == 1 and requests[0].n == 1:
            return self._stream(requests[0])
        return self._events(requests)

    def _events(self, requests: Sequence[Request]) -> Iterator[Event]:
        parts = []  # of each HTTP request: the index of ours, its first sample, how many
        for place, request in enumerate(requests):
            first, n = request.first_sample, request.n
            together = self.caps.n and self.caps.kind in TAKES_N
            parts += [(place, first, n)] if together else [(place, first + i, 1) for i in range(n)]
        calls = [self._call(requests[place], requests[place].prompt, n, first) for place, first, n in parts]
        for done, answer in self.http.many(calls):
            place, first, n = parts[done]
            request = requests[place]
            for said in choices_of(answer, n, self.http.base, request.limit):
                yield from self._events_of(request, self._steps(said, request), said.finish, place, first + said.index)

    def _events_of(
        self, request: Request, steps: Sequence[Step], finish: str | None, place: int, sample: int
    ) -> Iterator[Event]:
        """The events of a finished answer."""
        drawn = request.sampling, request.seed, sample
        ended: Literal["stop", "length"] = "stop" if finish == "stop" else "length"
        trace = Trace(request.prompt, tuple(steps), *drawn, self.name, ended, passes=len(steps), seconds=0.0)
        for step in steps[:-1]:
            yield Event(place, sample, step, None)
        yield Event(place, sample, steps[-1], trace)

    def _stream(self, request: Request) -> Iterator[Event]:
        """Events as tokens arrive; the last one is held back until the finish reason is known."""
        where, steps, text, finish, told = self.http.base, list[Step](), "", None, 0
        for chunk in self.http.stream(self._call(request, request.prompt, 1, request.first_sample)):
            rows = chunk.get("choices") or []
            if not isinstance(rows, list):
                raise KlypeError(f"{where} gave an answer that cannot be read.", "Nothing of it is used.")
            for row in rows:
                piece = choice_of(row, where)
                if piece.index or finish is not None:
                    raise KlypeError(f"{where} goes on after the end of its answer, or with another one.", "Ask again.")
                text, finish = text + piece.text, piece.finish
                steps += self._heard(piece.tokens, request) if piece.tokens else ()
                if len(steps) > request.limit or len(text) > LONGEST * request.limit:
                    raise KlypeError(f"{where} writes more than the {request.limit} tokens asked for.")
            for step in steps[told:-1]:
                yield Event(0, request.first_sample, step, None)
            told = max(told, len(steps) - 1)
        if finish is None:
            raise KlypeError(f"{where} cut its answer off before its end.", "Ask again.")
        steps = self._with_end(steps or self._steps(ServerChoice(0, text, None, finish), request), finish)
        yield from islice(self._events_of(request, steps, finish, 0, request.first_sample), told, None)

    def _call(self, request: Request, prompt: Sequence[int], n: int, first: int) -> Call:
        """The HTTP call for ``n`` samples from number ``first`` on."""
        caps, s = self.caps, request.sampling
        body: dict[str, Any] = {"model": caps.model, **self._sampling_fields(s)}
        if n > 1:
            body["n"] = n
        own_numbers = caps.kind == "klype" and first == 0
        # primes, so that neighbouring seeds and samples do not collide; 31 bits: some servers take signed 32-bit seeds
        body["seed"] = request.seed if own_numbers else (request.seed * 1_000_003 + first * 7919) & MASK
        if request.stop_texts:
            body["stop"] = list(request.stop_texts)
        path, asked = self.codec.asked(tuple(prompt), request.limit)
        if path == CHAT:
            told = {"logprobs": True, "top_logprobs": caps.chat_top} if caps.chat_top else {}
        else:
            told = {"logprobs": caps.completion_top} if caps.completion_top else {}
            told |= {"return_tokens_as_token_ids": True} if caps.ids and caps.kind in ("klype", "vllm") else {}
        return Call(path, {**body, **asked, **told}, first, lambda answer: choices_of(answer, n, self.http.base))

    def _sampling_fields(self, sampling: Sampling) -> dict[str, Any]:
        """Sampling parameters by the server's names; also those that are off where it has defaults of its own (vLLM's
        come from the model, llama.cpp's top-k is 40)."""
        kind, wanted = self.caps.kind, active(sampling)
        told = {
            row.servers[kind] or name: getattr(sampling, name)
            for name, row in SAMPLERS.items()
            if kind in row.servers and (name in ("temperature", "top_p", *wanted) or kind in HAS_OWN_DEFAULTS)
        }
        if kind == "vllm" and told["top_k"] == 0:
            told["top_k"] = -1
        if kind == "llama.cpp" and needs_counts(sampling):
            told["repeat_last_n"] = -1  # the whole text, not its last 64 tokens
        if sampling.logit_bias:
            told["logit_bias"] = {str(token): value for token, value in sampling.logit_bias}
        return told

    def _distribution(self, listed: Sequence[tuple[Key, float]], top: int = -1) -> Distribution:
        """The k most probable tokens; some servers list the sampled token beyond them, which is left out."""
        most = self.caps.completion_top or self.caps.chat_top
        listed = listed[: most if top < 0 else min(top, most)]
        ids = np.array([self.codec.number(key) for key, _ in listed], np.int64)
        logp = np.array([logp for _, logp in listed], np.float64)
        return Distribution(ids, logp, max(MIN_REST, 1.0 - float(np.exp(logp).sum())))

    def _steps(self, said: ServerChoice, request: Request) -> list[Step]:
        if said.tokens is None:  # words stand for tokens, whose number and probabilities are unknown
            return [_unknown_step(token) for token in self.codec.words(said.text)] or self._with_end([], said.finish)
        return self._with_end(self._heard(said.tokens, request), said.finish)

    def _heard(self, tokens: Sequence[ServerToken], request: Request) -> list[Step]:
        out: list[Step] = []
        for heard in tokens:
            # llama.cpp reports the parts of a character together, under the last part's id
            if heard.hidden and isinstance(heard.key, int) and self.codec.token_bytes(heard.key) != heard.data:
                out += map(_unknown_step, self.codec.encode_bare(heard.data.decode(errors="replace")))
                continue
            listed = self._distribution(heard.top) if request.top and heard.top else None
            token = self.codec.number(heard.key)
            out.append(Step(token, heard.logp, sampling_logprob(heard.logp, request.sampling), "drawn", listed))
        return out

    def _with_end(self, steps: list[Step], finish: str | None) -> list[Step]:
        """Appends an end token of unknown probability where the server does not report it."""
        silent = not steps or (finish == "stop" and steps[-1].token not in self.codec.stop)
        return [*steps, _unknown_step(self.codec.end)] if silent else steps

    def _score_by_echo(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[list[Step]]:
        """Scores by echo. One more token is requested and ignored, since some servers refuse ``max_tokens: 0``."""
        fixed = {"model": self.caps.model, "max_tokens": 1, "echo": True, "logprobs": self.caps.completion_top}
        fixed["return_tokens_as_token_ids"] = True
        found: list[list[Step]] = [[] for _ in pairs]
        for place, answer in self.http.many([Call("completions", {**fixed, "prompt": [*p, *a]}) for p, a in pairs]):
            prompt, said = pairs[place]
            told = choices_of(answer, 1, self.http.base, echoed=len(prompt) + len(said))[0].tokens or ()
            if [heard.key for heard in told[: len(prompt) + len(said)]] != [*prompt, *said]:
                raise KlypeError(f"{self.http.base} echoes other tokens than it was given.", "Nothing of it is used.")
            found[place] = [
                Step(token, heard.logp, heard.logp, "forced", self._distribution(heard.top))
                for token, heard in zip(said, told[len(prompt) :], strict=False)
            ]
        return found


def _forced_step(token: int, distribution: Distribution) -> Step:
    """The step of a given token under a distribution; NaN if it is not listed."""
    p = distribution.p(token)
    logp = math.log(p) if p else math.nan
    return Step(token, logp, logp, "forced", distribution)


def _unknown_step(token: int) -> Step:
    """A sampled token of unknown probability."""
    return Step(token, math.nan, math.nan, "drawn")


def sampling_logprob(logp: float, sampling: Sampling) -> float:
    """Log-probability under the distribution that was sampled from: known without shaping, and at temperature 0; else
    NaN."""
    if sampling == Sampling():
        return logp
    return 0.0 if sampling.temperature == 0.0 else math.nan
