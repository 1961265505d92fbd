"""Speculative decoding: one pass of the model checks several guessed tokens; what is drawn stays the same.

A guess that was itself drawn (a draft model at temperature > 0) is accepted with probability min(1, p/q) and otherwise
replaced by a draw from max(0, p - q), renormalised (Leviathan, Kalman & Matias 2023, arXiv:2211.17192): the answer has
exactly the distribution p. A guess that was chosen (look-up, n-grams, greedy) is compared with the token that plain
decoding draws from p with its own noise: the answer is then token for token that of plain decoding, with the same
probability of acceptance, p(guess).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from klype.engine.drafts import Draft, Proposal, Setting
from klype.engine.engine import Engine
from klype.engine.prefix_cache import CachedPrefix
from klype.engine.records import Ended, distribution
from klype.engine.sampling import draw, noise, seen_of, shape
from klype.errors import KlypeError
from klype.model.cache import Cache
from klype.samplers import needs_seen
from klype.values import How, Request, Step, Trace

ACCEPT_STREAM, RESIDUAL_STREAM = 2, 3


@dataclass
class Speculation:
    """Counts over answers. ``draft_seconds`` and ``model_seconds`` are what guessing and checking took."""

    gamma: int
    tokens: int = 0
    passes: int = 0  # of the model, the prompt's left out
    proposed: int = 0
    accepted: int = 0
    rejected: int = 0  # guesses that were looked at and not accepted: at most one a pass
    draft_seconds: float = 0.0
    model_seconds: float = 0.0

    @property
    def alpha(self) -> float | None:
        """Probability that a guess that is looked at is accepted; None when none was."""
        looked_at = self.accepted + self.rejected
        return self.accepted / looked_at if looked_at else None

    @property
    def tokens_per_pass(self) -> float | None:
        return self.tokens / self.passes if self.passes else None

    @property
    def cost(self) -> float | None:
        """c: the time of one guess over that of one pass."""
        if not self.proposed or not self.model_seconds or not self.passes:
            return None
        return (self.draft_seconds / self.proposed) / (self.model_seconds / self.passes)

    @property
    def predicted_speedup(self) -> float | None:
        """(1 - alpha^(gamma+1)) / ((1 - alpha)(gamma c + 1)): the paper's theorem 3.8."""
        if self.alpha is None or self.cost is None:
            return None
        return expected_tokens(self.alpha, self.gamma) / (self.gamma * self.cost + 1)


def expected_tokens(alpha: float, gamma: int) -> float:
    """Tokens a pass when each guess is accepted with probability alpha: 1 + alpha + ... + alpha^gamma."""
    return gamma + 1.0 if alpha == 1 else (1 - alpha ** (gamma + 1)) / (1 - alpha)


def speculate(engine: Engine, request: Request, draft: Draft, gamma: int = 4) -> tuple[list[Trace], Speculation]:
    """The request's answers, ``gamma`` tokens guessed a pass, and what the guessing was worth."""
    counts = Speculation(gamma)
    traces = [
        trace
        for sample in range(request.first_sample, request.first_sample + request.n)
        for _, trace in passes(engine, replace(request, n=1, first_sample=sample), draft, counts)
        if trace is not None
    ]
    return traces, counts


def passes(
    engine: Engine, request: Request, draft: Draft, counts: Speculation
) -> Iterator[tuple[Sequence[Step], Trace | None]]:
    """One answer as it is written: what each pass added, and the trace with the last. ``counts`` goes on counting."""
    if counts.gamma < 1:
        raise KlypeError(f"gamma is {counts.gamma}: at least one token must be guessed.")
    size = engine.model.config.vocab_size
    if draft.vocab_size is not None and draft.vocab_size != size:
        raise KlypeError(
            f"The draft knows {draft.vocab_size} tokens and the model {size}: they must share a tokenizer."
        )
    assert request.n == 1
    engine.check(request)
    (place,) = engine.prefixes.read([request.prompt])
    yield from _Answer(engine, request, request.first_sample, counts).passes(draft, place)


class _Answer:
    """One sample being written. ``text`` is prompt and answer; the cache holds all of it but the last token."""

    def __init__(self, engine: Engine, request: Request, sample: int, counts: Speculation) -> None:
        self.engine = engine
        self.request = request
        self.sample = sample
        self.counts = counts
        self.text = list(request.prompt)
        self.steps: list[Step] = []
        self.said = bytearray()
        self.ended: Ended | None = None
        self.room = min(request.limit, engine.model.config.window - len(request.prompt) + 1)

    def passes(self, draft: Draft, place: CachedPrefix) -> Iterator[tuple[Sequence[Step], Trace | None]]:
        started, counted = self.engine.clock(), 1
        cache = self._begin(place)
        yield tuple(self.steps), self._trace(counted, started)
        while self.ended is None:
            before = len(self.steps)
            self._pass(draft, cache)
            counted += 1
            yield tuple(self.steps[before:]), self._trace(counted, started)

    @torch.inference_mode()
    def _begin(self, place: CachedPrefix) -> Cache:
        cache = Cache.of(self.engine.model)
        cache.join(place.shelf, [place.slot], [place.length])
        cache.own()
        self._check(place.logits[None], Proposal(()))
        return cache

    @torch.inference_mode()
    def _pass(self, draft: Draft, cache: Cache) -> None:
        clock, before = self.engine.clock, len(self.steps)
        begun = clock()
        proposal = self._proposed(draft, Setting(self.request.sampling, self.request.seed, self.sample))
        guessed = clock()
        fed = torch.tensor([[self.text[-1], *proposal.tokens]], device=cache.device)
        logits_TV = self.engine.model(fed, cache)[0]
        self._check(logits_TV, proposal)
        cache.truncate([len(self.text) - 1])
        self.counts.passes += 1
        self.counts.proposed += len(proposal.tokens)
        self.counts.tokens += len(self.steps) - before
        self.counts.draft_seconds += guessed - begun
        self.counts.model_seconds += clock() - guessed

    def _trace(self, passes: int, started: float) -> Trace | None:
        """None while it is being written."""
        if self.ended is None:
            return None
        return Trace(
            prompt=self.request.prompt,
            steps=tuple(self.steps),
            sampling=self.request.sampling,
            seed=self.request.seed,
            sample=self.sample,
            model=self.engine.label,
            ended=self.ended,
            passes=passes,
            seconds=self.engine.clock() - started,
        )

    def _proposed(self, draft: Draft, setting: Setting) -> Proposal:
        count = min(self.counts.gamma, self.room - len(self.steps) - 1)
        proposal = draft.propose(self.text, count, setting) if count else Proposal(())
        size = self.engine.model.config.vocab_size
        if len(proposal.tokens) > count or any(not 0 <= token < size for token in proposal.tokens):
            raise KlypeError(f"The draft guessed more than {count} tokens, or tokens the model does not know.")
        return proposal

    def _check(self, logits_TV: Tensor, proposal: Proposal) -> None:
        """Accept guesses from the left; the first that fails is replaced, and after the last one more is drawn."""
        logits_TV = logits_TV.float().cpu()  # a few rows, of which single numbers are looked at
        logp_TV, shaped_TV = logits_TV.log_softmax(-1), self._shaped(logits_TV, proposal)
        if torch.isnan(logp_TV).any() or torch.isnan(shaped_TV).any():
            raise self.engine.not_numbers()
        for t, guess in enumerate(proposal.tokens):
            logq_V = None if proposal.logq is None else proposal.logq[t]
            token = self._judged(shaped_TV[t], guess, logq_V)
            accepted = token == guess
            self.counts.accepted += accepted
            self.counts.rejected += not accepted
            self._say(token, logp_TV[t], shaped_TV[t], drafted=accepted)
            if not accepted or self.ended is not None:
                return
        last = len(proposal.tokens)
        token = int(draw(shaped_TV[last:], self._noise(0)))
        self._say(token, logp_TV[last], shaped_TV[last], drafted=False)

    def _judged(self, shaped_V: Tensor, guess: int, logq_V: Tensor | None) -> int:
        """The token of this position: the guess, or what takes its place."""
        if logq_V is None:
            return int(draw(shaped_V[None], self._noise(0)))
        ratio = float((shaped_V[guess] - logq_V[guess]).double().exp())
        if self._noise(ACCEPT_STREAM)[0] < ratio:
            return guess
        residual_V = (shaped_V.double().exp() - logq_V.double().exp()).clamp_min(0)
        return int(draw(residual_V.log()[None], self._noise(RESIDUAL_STREAM)))

    def _noise(self, stream: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return noise(self.request.seed, self.sample, np.array([len(self.text)]), stream)

    def _shaped(self, logits_TV: Tensor, proposal: Proposal) -> Tensor:
        if not needs_seen(self.request.sampling):
            return shape(logits_TV, self.request.sampling)
        said = [*self.text[len(self.request.prompt) :], *proposal.tokens]
        ends = range(len(said) - len(proposal.tokens), len(said) + 1)
        seen = seen_of([self.request.prompt], [said[:end] for end in ends], logits_TV.shape[1])
        return shape(logits_TV, self.request.sampling, seen)

    def _say(self, token: int, logp_V: Tensor, shaped_V: Tensor, drafted: bool) -> None:
        listed = distribution(logp_V, self.request.top) if self.request.top else None
        how: How = "drafted" if drafted else "drawn"
        self.steps.append(Step(token, float(logp_V[token]), float(shaped_V[token]), how, listed))
        self.text.append(token)
        if token in self.request.stop or self._stops(token):
            self.ended = "stop"
        elif len(self.steps) >= self.room:
            self.ended = "length"

    def _stops(self, token: int) -> bool:
        if not self.request.stop_texts:
            return False
        assert self.engine.decode_bytes is not None
        self.said += self.engine.decode_bytes(token)
        return any(stop.encode() in self.said for stop in self.request.stop_texts)
