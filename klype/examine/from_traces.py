"""From traces to evidence: every number that a trace holds already, without asking the model again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from klype.answers import bounds
from klype.examine.calibration import cross_entropies
from klype.examine.evidence import Answered, ByQuestion, Told
from klype.examine.recorder import answer_bytes, answer_flops
from klype.examine.repetition import copied
from klype.examine.target import EvalTarget
from klype.examine.truth import Point, Reader, Tokens, mass, of, point, possible
from klype.judge.judge import Meaning
from klype.values import Distribution, Floats, Ints, Question, Trace


def answered(
    target: EvalTarget, question: Question, traces: Sequence[Trace], cache: DistributionCache
) -> list[Answered]:
    """One question's answers, judged. Equal ones are read and judged once: only what they cost is each one's own."""
    meaning = target.meaning(question)
    known: dict[tuple[Tokens, bool], Answered] = {}
    out = []
    for trace in traces:
        tokens, finished = trace.tokens, trace.ended == "stop"
        if (tokens, finished) not in known:
            known[tokens, finished] = _judged(target, question, trace, cache, meaning)
        one, shape = known[tokens, finished], target.shape
        lengths = len(trace.prompt), len(tokens)
        drawn_logp = told_sum([step.sampling_logprob for step in trace.steps])
        out.append(
            replace(
                one,
                ended=trace.ended,
                passes=trace.passes,
                tokens=len(tokens),
                flops=None if shape is None else float(answer_flops(shape, *lengths)),
                bytes_moved=None if shape is None or not shape.weight_bytes else float(answer_bytes(shape, *lengths)),
                seconds=trace.seconds,
                joules=trace.joules,
                entropy=-drawn_logp if one.entropy is None and drawn_logp is not None else one.entropy,
                drawn_logp=drawn_logp,
            )
        )
    return out


def _judged(
    target: EvalTarget, question: Question, trace: Trace, cache: DistributionCache, meaning: Meaning
) -> Answered:
    """What an answer is, whatever it cost. ``entropy``: Σ_t H(q_t) where the distributions are whole; −log q(answer),
    which has the same mean, stands for it elsewhere."""
    text = target.source.codec.decode(trace.tokens)
    verdict = target.judge(question, text, trace.ended == "stop")
    found = copied(text, target.training) if target.training is not None else None
    s, first_error = correctness(trace, cache)
    s_bounds, entropy_bounds = bounded(trace, cache, target.vocabulary)
    return Answered(
        question=question.id,
        words=pieces(target, trace) if s or s_bounds else tuple(text.split()),
        ended=trace.ended,
        right=verdict.right,
        asked=target.errors is None or bool(question.answers),
        word_for_word=text.strip() in {one.strip() for one in question.answers} if question.answers else None,
        polite=verdict.polite,
        concise=verdict.concise,
        well_formed=verdict.well_formed,
        score=verdict.score if math.isfinite(verdict.score) else None,
        first_error=first_error,
        s=s,
        meaning=meaning(text),
        entropy=whole_entropy(trace, cache),
        s_bounds=s_bounds,
        entropy_bounds=entropy_bounds,
        copied=None if found is None else found.share,
    )


class DistributionCache:
    """One question's distributions at one temperature, each looked at once: answers share their beginnings."""

    def __init__(self, reader: Reader | None, temperature: float) -> None:
        self.reader = reader
        self.temperature = temperature
        self._looked: dict[Tokens, tuple[float, float]] = {}
        self._s: dict[Tokens, float] = {}
        self._kl: dict[Tokens, float] = {}

    def entropy(self, tokens: Tokens, q: Distribution) -> float:
        return self._at(tokens, q)[0]

    def said(self, tokens: Tokens, q: Distribution) -> float:
        """The probability of the most likely token; at temperature 1 as the model tells it."""
        # listed most probable first; as told it is not rounded again
        return math.exp(q.logp[0]) if self.temperature == 1.0 else self._at(tokens, q)[1]

    def s(self, tokens: Tokens, q: Distribution) -> float:
        """The mass on what can follow a right beginning."""
        if tokens not in self._s:
            assert self.reader is not None
            self._s[tokens] = mass(q, self.temperature, self.reader.next(tokens))
        return self._s[tokens]

    def kl(self, tokens: Tokens, q: Distribution) -> float:
        """KL(p‖q) in nats, also after mistakes."""
        if tokens not in self._kl:
            assert self.reader is not None
            ids_A, p_A = possible(self.reader.next(tokens))
            logq_A = self._logq(tokens, q, ids_A)
            self._kl[tokens] = max(0.0, float((p_A * (np.log(p_A) - logq_A)).sum()))
        return self._kl[tokens]

    def _logq(self, tokens: Tokens, q: Distribution, ids_A: Ints) -> Floats:
        """Log-probabilities as drawn from."""
        if self.temperature == 0.0:
            return np.where(ids_A == q.ids[int(np.argmax(q.logp))], 0.0, -np.inf)
        with np.errstate(over="ignore"):
            logq_A: Floats = (of(q, ids_A) - float(q.logp.max())) / self.temperature
        return logq_A + math.log(self._at(tokens, q)[1])

    def _at(self, tokens: Tokens, q: Distribution) -> tuple[float, float]:
        """Entropy and the greatest probability."""
        if tokens not in self._looked:
            self._looked[tokens] = (0.0, 1.0) if self.temperature == 0.0 else _normalised(q, self.temperature)
        return self._looked[tokens]


def _normalised(q: Distribution, temperature: float) -> tuple[float, float]:
    z_K = bounds.relative(q, temperature)
    # 0 · −∞ is not 0 to a computer
    z_K = z_K[np.isfinite(z_K)]
    weight_K = np.exp(z_K)
    total = float(weight_K.sum())
    return math.log(total) - float(weight_K @ z_K) / total, 1.0 / total


def correctness(trace: Trace, cache: DistributionCache) -> tuple[tuple[float, ...], int | None]:
    """S before every token up to the first error, and where that is; nothing where it cannot be known."""
    if cache.reader is None or not _listed(trace):
        return (), None
    tokens = trace.tokens
    error = cache.reader.first_error(tokens)
    if not _whole(trace):
        return (), error
    s = []
    for t, step in enumerate(trace.steps[: error or len(tokens)]):
        assert step.distribution is not None
        s.append(cache.s(tokens[:t], step.distribution))
    return tuple(s), error


def bounded(
    trace: Trace, cache: DistributionCache, vocabulary: int
) -> tuple[tuple[tuple[float, float], ...], tuple[float, float] | None]:
    """S before every token up to the first error, and Σ_t H(q_t), each from low to high: of partial distributions."""
    if not _listed(trace) or _whole(trace):
        return (), None
    temperature, tokens = trace.sampling.temperature, trace.tokens
    listed = [step.distribution for step in trace.steps if step.distribution is not None]
    ends = [bounds.entropy_at(q, temperature, vocabulary) for q in listed]
    entropy = math.fsum(low for low, _ in ends), math.fsum(high for _, high in ends)
    if cache.reader is None:
        return (), entropy
    reader = cache.reader
    right = listed[: reader.first_error(tokens) or len(tokens)]
    s = [bounds.mass_at(q, temperature, vocabulary, reader.next(tokens[:t])) for t, q in enumerate(right)]
    return tuple(s), entropy


def told_sum(logps: Sequence[float]) -> float | None:
    """A sum of log-probabilities; None where a server did not tell one of them."""
    total = math.fsum(logps)
    return None if math.isnan(total) else total


def whole_entropy(trace: Trace, cache: DistributionCache) -> float | None:
    """Σ_t H(q_t); None where a distribution is not whole."""
    if not _whole(trace):
        return None
    tokens = trace.tokens
    return math.fsum(cache.entropy(tokens[:t], s.distribution) for t, s in enumerate(trace.steps) if s.distribution)


def told(question: str, traces: Sequence[Trace], cache: DistributionCache) -> list[Told]:
    """The likeliest next token on the model's own right beginnings: how likely it says it is, and how likely it is."""
    out: list[Told] = []
    seen: dict[Tokens, Told] = {}
    reader = cache.reader
    if reader is None:
        return out
    for trace in traces:
        tokens = trace.tokens
        for t, step in enumerate(trace.steps):
            if step.distribution is None or not step.distribution.whole:
                return []
            if t and not reader.is_right(tokens[:t]):
                break
            if tokens[:t] not in seen:
                true = reader.next(tokens[:t]).get(int(step.distribution.ids[0]), 0.0)
                seen[tokens[:t]] = Told(cache.said(tokens[:t], step.distribution), true, question)
            out.append(seen[tokens[:t]])
    return out


def _listed(trace: Trace) -> bool:
    return all(step.distribution is not None for step in trace.steps)


def _whole(trace: Trace) -> bool:
    return all(step.distribution is not None and step.distribution.whole for step in trace.steps)


def sums(
    own: Sequence[Trace], true: Sequence[Trace], cache: DistributionCache, crossed: tuple[float, ...]
) -> ByQuestion:
    """KL(p‖q) along one's own and along true answers (means over answers); ``crossed`` as ``crossings`` gives it."""
    own_kl, true_kl = (_mean([_kl(trace, cache) for trace in traces]) for traces in (own, true))
    return ByQuestion(own_kl, true_kl, crossed)


def crossings(true: Sequence[Trace], reader: Reader) -> tuple[float, ...]:
    """What the best temperature needs of one question's true answers: the same at every temperature."""
    rows = [cross_entropies(reader.next(tokens), q) for trace in true for tokens, q in beginnings(trace)]
    return tuple(np.sum(rows, axis=0).tolist()) if rows else ()


def _kl(trace: Trace, cache: DistributionCache) -> float | None:
    """Σ over open beginnings, also after mistakes; None when not finite."""
    total, tokens = 0.0, trace.tokens
    for t, step in enumerate(trace.steps):
        # at temperature 0 KL is infinite wherever the truth leaves a choice
        if step.distribution is None or not step.distribution.whole or cache.temperature == 0:
            return None
        total += cache.kl(tokens[:t], step.distribution)
    return total if math.isfinite(total) else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def compared(trace: Trace, reader: Reader, temperature: float) -> list[Point]:
    """The truth beside the model at a temperature, before every token of one true answer."""
    return [point(reader.next(tokens), bounds.whole_at(q, temperature)) for tokens, q in beginnings(trace)]


def beginnings(trace: Trace) -> Iterator[tuple[Tokens, Distribution]]:
    """What had been said before every token, and what the model then said of the next; where it did."""
    tokens = trace.tokens
    for t, step in enumerate(trace.steps):
        if step.distribution is not None:
            yield tokens[:t], step.distribution


def pieces(target: EvalTarget, trace: Trace) -> tuple[str, ...]:
    """Token by token, as S is known token by token."""
    stop = set(target.source.codec.stop)
    return tuple(target.source.codec.decode([t]) for t in trace.tokens if t not in stop)
