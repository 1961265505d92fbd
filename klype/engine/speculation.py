"""Speculative decoding: a draft proposes tokens, one forward pass verifies them, and the distribution stays the same.

Drafts: a smaller model, or the text itself (prompt look-up).

A sampled guess (of a draft model at temperature > 0) is accepted with probability min(1, p/q) and otherwise replaced by
a sample from max(0, p - q), renormalised (Leviathan, Kalman & Matias 2023, arXiv:2211.17192): the answer has exactly
the distribution p. A deterministic guess (by look-up) is compared with the token that plain decoding samples from
p with its own noise: the answer is then token for token that of plain decoding, and the probability of acceptance is
the same, p(guess).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from klype.engine.engine import Engine
from klype.engine.requests import Ended
from klype.engine.runner import append_rows
from klype.engine.sampling import count_tokens, distributions, draw, noise, shape
from klype.model.transformer import Transformer
from klype.samplers import needs_counts, without_penalties
from klype.values import Request, Step, StepSource, Trace

DRAFT_STREAM, ACCEPT_STREAM, RESIDUAL_STREAM = 1, 2, 3  # of noise: one for each use at a position


class Proposal(NamedTuple):
    """Guessed tokens; ``logq`` [tokens, V]: the log-probabilities that each was sampled from, None if none was."""

    tokens: tuple[int, ...] = ()
    logq: Tensor | None = None


class Draft(Protocol):
    """Guesses up to ``count`` next tokens of a text (possibly none), for the first sample of a request."""

    def propose(self, text: Sequence[int], count: int, request: Request) -> Proposal: ...


class LookupDraft:
    """Guesses what followed the last few tokens where they occurred before (prompt look-up; Saxena 2023)."""

    def __init__(self, longest: int = 3) -> None:
        assert longest > 0
        self.longest = longest

    def propose(self, text: Sequence[int], count: int, request: Request) -> Proposal:
        tokens = np.asarray(text, np.int64)
        for n in range(min(self.longest, len(tokens) - 1), 0, -1):
            windows = np.lib.stride_tricks.sliding_window_view(tokens[:-1], n)
            found = np.flatnonzero((windows == tokens[-n:]).all(1))
            if len(found):
                after = int(found[-1]) + n
                return Proposal(tuple(tokens[after : after + count].tolist()))
        return Proposal()


class ModelDraft:
    """A smaller model with the same vocabulary. It keeps the KV cache of the last text."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self._cache = model.new_cache(1)
        self._fed: list[int] = []

    @torch.inference_mode()
    def propose(self, text: Sequence[int], count: int, request: Request) -> Proposal:
        if len(text) + count > self.model.config.window:
            return Proposal()
        same = next((i for i, (a, b) in enumerate(zip(self._fed, text, strict=False)) if a != b), len(self._fed))
        # the last token is computed again for its logits
        same = min(same, len(text) - 1)
        self._cache.truncate([same])
        # penalties may be left out: verification keeps the answer's distribution whatever the draft samples from
        sampling = without_penalties(request.sampling)
        text, new, logq = list(text), list(text[same:]), []
        start = len(text)
        while len(text) < start + count:
            hidden_BTD = self.model.hidden(torch.tensor([new], device=self._cache.device), self._cache)
            shaped_BV = shape(self.model.unembed(hidden_BTD[:, -1]).cpu(), sampling)
            new = [int(draw(shaped_BV, _noise(request, len(text), DRAFT_STREAM)))]
            text += new
            logq.append(shaped_BV)
        self._fed = text[: int(self._cache.lengths[0])]
        return Proposal(tuple(text[start:]), torch.cat(logq) if logq else None)


@dataclass
class Speculation:
    """Statistics over answers. ``draft_seconds`` and ``model_seconds``: time spent on guesses and on verification."""

    gamma: int
    tokens: int = 0
    passes: int = 0  # of the model, without the prompt's
    proposed: int = 0
    accepted: int = 0
    rejected: int = 0  # guesses that were verified and not accepted: at most one per pass
    draft_seconds: float = 0.0
    model_seconds: float = 0.0

    @property
    def alpha(self) -> float | None:
        """The share of verified guesses that were accepted; None when none was verified."""
        looked_at = self.accepted + self.rejected
        return self.accepted / looked_at if looked_at else None

    @property
    def tokens_per_pass(self) -> float | None:
        return self.tokens / self.passes if self.passes else None

    @property
    def cost(self) -> float | None:
        """c: the time of one guess relative to one pass of the model."""
        if not self.proposed or not self.model_seconds or not self.passes:
            return None
        return (self.draft_seconds / self.proposed) / (self.model_seconds / self.passes)

    @property
    def predicted_speedup(self) -> float | None:
        """(1 - alpha^(gamma+1)) / ((1 - alpha)(gamma c + 1)), the paper's theorem 3.8."""
        if self.alpha is None or self.cost is None:
            return None
        return expected_tokens(self.alpha, self.gamma) / (self.gamma * self.cost + 1)


def expected_tokens(alpha: float, gamma: int) -> float:
    """Expected tokens per pass if each guess is accepted with probability alpha: 1 + alpha + ... + alpha^gamma."""
    return gamma + 1.0 if alpha == 1 else (1 - alpha ** (gamma + 1)) / (1 - alpha)


def speculate(engine: Engine, request: Request, draft: Draft, gamma: int = 4) -> tuple[list[Trace], Speculation]:
    """Answers to a request, with ``gamma`` guesses per pass, and the statistics of speculation."""
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
    """One answer as it is generated: the steps that each pass added, and with the last pass the trace. Adds to
    ``counts``."""
    assert counts.gamma > 0
    assert request.n == 1
    engine.check(request)
    started, model = engine.clock(), engine.model
    answer = _AnswerWriter(engine, request, counts)
    with torch.inference_mode():
        (prompt,) = engine.runner.prefill([request.prompt])
        cache = model.new_cache()
        append_rows(cache, [prompt.prefix])
        cache.unshare()
        answer.check(prompt.logits[None], Proposal())
    yield tuple(answer.steps), answer.trace(1, started)
    for number in count(2):
        if answer.ended is not None:
            return
        before, begun = len(answer.steps), engine.clock()
        # a pass yields up to one token more than were guessed
        most = min(counts.gamma, answer.max_new_tokens - before - 1)
        proposal = draft.propose(answer.text, most, request) if most else Proposal()
        assert len(proposal.tokens) <= most, "a draft guesses no more than it is asked for"
        guessed = engine.clock()
        with torch.inference_mode():
            fed = torch.tensor([[answer.text[-1], *proposal.tokens]], device=cache.device)
            answer.check(model(fed, cache)[0], proposal)
            # drop rejected guesses from the cache; the last token is read with the next guesses
            cache.truncate([len(answer.text) - 1])
        counts.passes += 1
        counts.proposed += len(proposal.tokens)
        counts.tokens += len(answer.steps) - before
        counts.draft_seconds += guessed - begun
        counts.model_seconds += engine.clock() - guessed
        yield tuple(answer.steps[before:]), answer.trace(number, started)


class _AnswerWriter:
    """The state of one sample. ``text``: prompt and answer; the cache holds all of it but the last token."""

    def __init__(self, engine: Engine, request: Request, counts: Speculation) -> None:
        self.engine, self.request, self.counts = engine, request, counts
        self.text = list(request.prompt)
        self.steps: list[Step] = []
        self.said = bytearray()
        self.ended: Ended | None = None
        self.max_new_tokens = min(request.limit, engine.model.config.window - len(request.prompt) + 1)

    def trace(self, passes: int, started: float) -> Trace | None:
        """The finished answer; None before it has ended."""
        if self.ended is None:
            return None
        asked, seconds = self.request, self.engine.clock() - started
        about = asked.sampling, asked.seed, asked.first_sample, self.engine.label
        return Trace(asked.prompt, tuple(self.steps), *about, self.ended, passes, seconds)

    def check(self, logits_TV: Tensor, proposal: Proposal) -> None:
        """Accept guesses up to the first that fails, which is replaced; after the last one more token is sampled."""
        logits_TV = logits_TV.float().cpu()  # few rows, of which single elements are read
        seen = None
        if needs_counts(self.request.sampling):
            said = [*self.text[len(self.request.prompt) :], *proposal.tokens]
            ends = range(len(said) - len(proposal.tokens), len(said) + 1)
            seen = count_tokens([self.request.prompt], [said[:end] for end in ends], logits_TV.shape[1])
        logp_TV, shaped_TV = logits_TV.log_softmax(-1), shape(logits_TV, self.request.sampling, seen)
        if torch.isnan(logp_TV).any() or torch.isnan(shaped_TV).any():
            raise self.engine.not_numbers()
        for t, guess in enumerate((*proposal.tokens, None)):
            if guess is None or proposal.logq is None:
                token = int(draw(shaped_TV[t : t + 1], _noise(self.request, len(self.text))))
            else:
                token = accept_or_resample(shaped_TV[t], guess, proposal.logq[t], self.request, len(self.text))
            if guess is not None:
                self.counts.accepted += token == guess
                self.counts.rejected += token != guess
            source: StepSource = "drafted" if token == guess else "drawn"
            listed = distributions(logp_TV[t : t + 1], self.request.top)[0] if self.request.top else None
            self.steps.append(Step(token, float(logp_TV[t, token]), float(shaped_TV[t, token]), source, listed))
            self.text.append(token)
            if self.request.stop_texts:
                assert self.engine.decode_bytes is not None
                self.said += self.engine.decode_bytes(token)
            if token in self.request.stop or any(stop.encode() in self.said for stop in self.request.stop_texts):
                self.ended = "stop"
            elif len(self.steps) >= self.max_new_tokens:
                self.ended = "length"
            if token != guess or self.ended is not None:
                return


def accept_or_resample(shaped_V: Tensor, guess: int, logq_V: Tensor, request: Request, position: int) -> int:
    """A guess that was sampled from q, or its replacement; distributed as ``shaped_V`` (log-probabilities)."""
    ratio = float((shaped_V[guess] - logq_V[guess]).double().exp())
    if _noise(request, position, ACCEPT_STREAM)[0] < ratio:
        return guess
    residual_V = (shaped_V.double().exp() - logq_V.double().exp()).clamp_min(0)
    return int(draw(residual_V.log()[None], _noise(request, position, RESIDUAL_STREAM)))


def _noise(request: Request, position: int, stream: int = 0) -> npt.NDArray[np.float64]:
    return noise(request.seed, request.first_sample, np.array([position]), stream)
