"""A server that speaks OpenAI's protocol, as a source: as whole as what it tells, and never more.

Where the server takes and tells token ids (klype, vLLM, llama.cpp), prompts go in as ids to completions. Elsewhere a
token is its bytes, numbered by their hash, and a prompt is one such piece: a text or a conversation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from klype.engine.engine import Event
from klype.errors import KlypeError, UsageError
from klype.samplers import OWN, SAMPLERS, active, needs_seen
from klype.sources.dialect import LONGEST, Heard, Said, choice, choices
from klype.sources.offer import CHAT, Offer
from klype.sources.remote_codec import IdCodec, PieceCodec
from klype.sources.wire import Call, Wire
from klype.values import Distribution, Request, Sampling, Step, Trace

LEAST = 1e-9
"""Mass that a listed distribution leaves at least: whether it is whole is not known."""
MASK = 0x7FFFFFFF
DEFAULTING = ("klype", "vllm", "llama.cpp")


class RemoteSource:
    """``vocabulary`` 0: not known. Errors of ``next`` and ``generate``: what the server cannot do, or did wrong."""

    def __init__(self, wire: Wire, offer: Offer) -> None:
        self.wire, self.offer = wire, offer
        self.codec: IdCodec | PieceCodec = IdCodec(wire, offer) if offer.ids else PieceCodec(wire, offer)

    @property
    def name(self) -> str:
        return f"{self.wire.base}#{self.offer.model}"

    def next(self, prefixes: Sequence[Sequence[int]], top: int = -1) -> list[Distribution]:
        """One token is asked for at temperature 1; what it is does not matter."""
        asked = list(dict.fromkeys(tuple(prefix) for prefix in prefixes))
        calls = [self._call(Request(prefix, limit=1, top=-1), prefix, 1, 0) for prefix in asked]
        found = {}
        for place, answer in self.wire.many(calls):
            told = choices(answer, 1, self.wire.base, 1)[0].tokens
            if not told or not told[0].top:
                raise KlypeError(f"{self.name} tells no probabilities.", "See: klype doctor ADDRESS.")
            found[asked[place]] = self._distribution(told[0], top)
        return [found[tuple(prefix)] for prefix in prefixes]

    def score(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], top: int = 0) -> list[Trace]:
        """By the echo of the whole text where it is offered, else token by token; not listed is not known (NaN)."""
        pairs = [(tuple(p), tuple(a)) for p, a in zip(prompts, answers, strict=True)]
        steps = self._echoed(pairs) if self.offer.echo else [self._walked(p, a) for p, a in pairs]
        return [
            Trace(prompt, tuple(said if top else [replace(step, distribution=None) for step in said]), Sampling(), 0, 0,
                  self.name, "length", 1, 0.0)
            for (prompt, _), said in zip(pairs, steps, strict=True)
        ]  # fmt: skip

    def generate(self, requests: Sequence[Request]) -> Iterator[Event]:
        for request in requests:
            self._check(request)
        if len(requests) == 1 and requests[0].n == 1:
            return self._streamed(requests[0])
        return self._events(requests)

    def _events(self, requests: Sequence[Request]) -> Iterator[Event]:
        parts = [(place, first, n) for place, request in enumerate(requests) for first, n in self._parts(request)]
        calls = [self._call(requests[place], requests[place].prompt, n, first) for place, first, n in parts]
        for done, answer in self.wire.many(calls):
            place, first, n = parts[done]
            for said in choices(answer, n, self.wire.base, requests[place].limit):
                steps = self._steps(said, requests[place])
                trace = self._trace(requests[place], steps, said.finish, first + said.index)
                for i, step in enumerate(steps):
                    yield Event(place, trace.sample, step, trace if i == len(steps) - 1 else None)

    def _parts(self, request: Request) -> list[tuple[int, int]]:
        """(first sample, how many) of each HTTP request."""
        if self.offer.n and self.offer.kind != "openai":
            return [(request.first_sample, request.n)]
        return [(request.first_sample + i, 1) for i in range(request.n)]

    def _streamed(self, request: Request) -> Iterator[Event]:
        """Token by token; the last is held back until it is known how the answer ended."""
        call = self._call(request, request.prompt, 1, request.first_sample)
        steps: list[Step] = []
        text, finish, sent = "", None, 0
        for event in self.wire.stream(call):
            rows = event.get("choices") or []
            if not isinstance(rows, list):
                raise KlypeError(f"{self.wire.base} gave an answer that cannot be read.", "Nothing of it is used.")
            for row in rows:
                piece = choice(row, self.wire.base)
                if piece.index or finish is not None:
                    raise KlypeError(f"{self.wire.base} goes on after the end of its answer.", "Ask again.")
                text, finish = text + piece.text, piece.finish
                steps += self._heard(piece.tokens, request) if piece.tokens else ()
                if len(steps) > request.limit or len(text) > LONGEST * request.limit:
                    raise KlypeError(f"{self.wire.base} writes more than the {request.limit} tokens asked for.")
            while sent < len(steps) - 1:
                yield Event(0, request.first_sample, steps[sent], None)
                sent += 1
        if finish is None:
            raise KlypeError(f"{self.wire.base} cut its answer off before its end.", "Ask again.")
        if not steps:
            steps = self._steps(Said(0, text, None, finish), request)
        steps = self._ended(steps, finish)
        trace = self._trace(request, steps, finish, request.first_sample)
        for i in range(sent, len(steps)):
            yield Event(0, trace.sample, steps[i], trace if i == len(steps) - 1 else None)

    def _check(self, request: Request) -> None:
        if not request.prompt:
            raise UsageError("The prompt is empty.")
        if request.limit < 1 or request.n < 1:
            raise UsageError("An answer needs at least one token, and a request one answer.")
        kind = self.offer.kind
        refused = [name for name in active(request.sampling) if kind not in SAMPLERS[name].servers]
        refused += ["logit_bias"] if request.sampling.logit_bias and kind not in OWN else []
        if refused:
            takes = [name for name, row in SAMPLERS.items() if kind in row.servers]
            server = "This server" if kind == "other" else f"A server of the kind {kind}"
            raise UsageError(f"{self.name} takes no {' or '.join(refused)}.", f"{server} takes {', '.join(takes)}.")

    def _call(self, request: Request, prompt: Sequence[int], n: int, first: int) -> Call:
        """The HTTP request for ``n`` samples from ``first`` on."""
        offer, s = self.offer, request.sampling
        body: dict[str, Any] = {"model": offer.model, **self._shaping(s)}
        if n > 1:
            body["n"] = n
        own_numbers = offer.kind == "klype" and first == 0
        body["seed"] = request.seed if own_numbers else (request.seed * 1_000_003 + first * 7919) & MASK
        if request.stop_texts:
            body["stop"] = list(request.stop_texts)
        path, asked = self.codec.asked(tuple(prompt), request.limit)
        if path == CHAT:
            told = {"logprobs": True, "top_logprobs": offer.chat_top} if offer.chat_top else {}
        else:
            told = {"logprobs": offer.completion_top} if offer.completion_top else {}
            told |= {"return_tokens_as_token_ids": True} if offer.ids and offer.kind in ("klype", "vllm") else {}
        return Call(path, {**body, **asked, **told}, first, lambda answer: choices(answer, n, self.wire.base))

    def _shaping(self, sampling: Sampling) -> dict[str, Any]:
        """How to draw, in the server's own names; where it has defaults of its own (vLLM's come from the model,
        llama.cpp cuts at 40 tokens), also what is off."""
        kind, wanted = self.offer.kind, active(sampling)
        told = {
            row.servers[kind] or name: getattr(sampling, name)
            for name, row in SAMPLERS.items()
            if kind in row.servers and (name in ("temperature", "top_p", *wanted) or kind in DEFAULTING)
        }
        if kind == "vllm" and told["top_k"] == 0:
            told["top_k"] = -1
        if kind == "llama.cpp" and needs_seen(sampling):
            told["repeat_last_n"] = -1  # the whole text, not its last 64 tokens
        if sampling.logit_bias:
            told["logit_bias"] = {str(token): value for token, value in sampling.logit_bias}
        return told

    def _distribution(self, heard: Heard, top: int = -1) -> Distribution:
        """The k most probable: a drawn token beyond them is no part of the list."""
        most = self.offer.completion_top or self.offer.chat_top
        listed = heard.top[: most if top < 0 else min(top, most)]
        ids = np.array([self.codec.number(key) for key, _ in listed], np.int64)
        logp = np.array([logp for _, logp in listed], np.float64)
        return Distribution(ids, logp, max(LEAST, 1.0 - float(np.exp(logp).sum())))

    def _steps(self, said: Said, request: Request) -> list[Step]:
        if said.tokens is None:  # words stand for tokens whose number and probability nobody tells
            return [Step(token, math.nan, math.nan, "drawn") for token in self.codec.words(said.text)]
        return self._ended(self._heard(said.tokens, request), said.finish)

    def _heard(self, tokens: Sequence[Heard], request: Request) -> list[Step]:
        out = []
        for heard in tokens:
            if self._several(heard):
                spelled = self.codec.spelling(heard.data.decode(errors="replace"))
                out += [Step(token, math.nan, math.nan, "drawn") for token in spelled]
                continue
            listed = self._distribution(heard) if request.top and heard.top else None
            token = self.codec.number(heard.key)
            out.append(Step(token, heard.logp, drawn_logp(heard.logp, request.sampling), "drawn", listed))
        return out

    def _several(self, heard: Heard) -> bool:
        """Whether tokens before it, parts of one character, are told with it."""
        return bool(heard.hidden) and isinstance(heard.key, int) and self.codec.spell(heard.key) != heard.data

    def _ended(self, steps: list[Step], finish: str | None) -> list[Step]:
        """An end that the server keeps to itself has a probability that nobody tells."""
        if finish == "stop" and not (steps and steps[-1].token in self.codec.stop):
            steps = [*steps, Step(self.codec.end, math.nan, math.nan, "drawn")]
        return steps or [Step(self.codec.end, math.nan, math.nan, "drawn")]

    def _trace(self, request: Request, steps: Sequence[Step], finish: str | None, sample: int) -> Trace:
        ended = "stop" if finish == "stop" else "length"
        return Trace(request.prompt, tuple(steps), request.sampling, request.seed, sample, self.name,
                     ended, len(steps), 0.0)  # type: ignore[arg-type]  # fmt: skip

    def _echoed(self, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[list[Step]]:
        """One token more is asked for and left out: not every server takes a limit of none."""
        top = self.offer.completion_top
        bodies: list[dict[str, Any]] = [
            {"model": self.offer.model, "prompt": [*p, *a], "max_tokens": 1, "echo": True, "logprobs": top,
             "return_tokens_as_token_ids": True}
            for p, a in pairs
        ]  # fmt: skip
        found: list[list[Step]] = [[] for _ in pairs]
        for place, answer in self.wire.many([Call("completions", body) for body in bodies]):
            prompt, said = pairs[place]
            told = choices(answer, 1, self.wire.base, echoed=len(prompt) + len(said))[0].tokens or ()
            if [heard.key for heard in told[: len(prompt) + len(said)]] != [*prompt, *said]:
                raise KlypeError(f"{self.wire.base} echoes other tokens than it was given.", "Nothing of it is used.")
            found[place] = [
                Step(token, heard.logp, heard.logp, "forced", self._distribution(heard))
                for token, heard in zip(said, told[len(prompt) :], strict=False)
            ]
        return found

    def _walked(self, prompt: tuple[int, ...], answer: tuple[int, ...]) -> list[Step]:
        found = self.next([(*prompt, *answer[:t]) for t in range(len(answer))])
        steps = []
        for token, q in zip(answer, found, strict=True):
            p = q.p(token)
            logp = math.log(p) if p else math.nan
            steps.append(Step(token, logp, logp, "forced", q))
        return steps


def drawn_logp(logp: float, sampling: Sampling) -> float:
    """Under what was drawn from: known where nothing was shaped, or nothing was left to chance; else NaN."""
    if sampling == Sampling():
        return logp
    return 0.0 if sampling.temperature == 0.0 else math.nan
