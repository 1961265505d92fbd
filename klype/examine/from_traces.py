"""From traces to evidence: every number that a trace holds already, without asking the model again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from klype.examine.copied import copied
from klype.examine.cost import answer_flops
from klype.examine.divergence import point
from klype.examine.evidence import Answered, ByQuestion, Told
from klype.examine.examinee import Examinee
from klype.examine.truth import Reader, at_temperature, entropy, mass
from klype.examine.tuning import cross_entropies
from klype.judge.text import word_for_word
from klype.values import Distribution, Question, Trace


def answered(examinee: Examinee, question: Question, traces: Sequence[Trace], reader: Reader | None) -> list[Answered]:
    """One question's answers, judged; equal texts are judged once."""
    meaning = examinee.meaning(question)
    verdicts = {}
    out = []
    for trace in traces:
        text, finished = examinee.source.codec.decode(trace.tokens), trace.ended == "stop"
        if (text, finished) not in verdicts:
            verdicts[text, finished] = (
                examinee.judge(question, text, finished),
                word_for_word(question, text).right if question.answers else None,
                meaning(text),
                copied(text, examinee.training) if examinee.training is not None else None,
            )
        verdict, same, meant, found = verdicts[text, finished]
        s, first_error = correctness(trace, reader)
        shape = examinee.shape
        flops = None if shape is None else float(answer_flops(shape, len(trace.prompt), len(trace.steps)))
        out.append(
            Answered(
                question=question.id,
                words=_pieces(examinee, trace) if s else tuple(text.split()),
                ended=trace.ended,
                right=verdict.right,
                word_for_word=same,
                polite=verdict.polite,
                concise=verdict.concise,
                score=verdict.score if math.isfinite(verdict.score) else None,
                first_error=first_error,
                s=s,
                passes=trace.passes,
                tokens=len(trace.steps),
                flops=flops,
                seconds=trace.seconds,
                joules=trace.joules,
                meaning=meant,
                entropy=answer_entropy(trace),
                drawn_logp=math.fsum(step.drawn_logp for step in trace.steps),
                copied=None if found is None else found.share,
            )
        )
    return out


def correctness(trace: Trace, reader: Reader | None) -> tuple[tuple[float, ...], int | None]:
    """S before every token up to the first error, and where that is; nothing where it cannot be known."""
    if reader is None or any(step.distribution is None or not step.distribution.whole for step in trace.steps):
        return (), None
    error = reader.first_error(trace.tokens)
    s = []
    for t, step in enumerate(trace.steps[: error or len(trace.steps)]):
        assert step.distribution is not None
        s.append(mass(step.distribution, trace.sampling.temperature, reader.next(trace.tokens[:t])))
    return tuple(s), error


def answer_entropy(trace: Trace) -> float:
    """Σ_t H(q_t) where the distributions are whole; else −log q(answer), which has the same mean."""
    whole = [step.distribution for step in trace.steps if step.distribution is not None and step.distribution.whole]
    if len(whole) == len(trace.steps):
        return math.fsum(entropy(q, trace.sampling.temperature) for q in whole)
    return -math.fsum(step.drawn_logp for step in trace.steps)


def told(question: str, traces: Sequence[Trace], reader: Reader | None) -> list[Told]:
    """The likeliest next token on the model's own right beginnings: how likely it says it is, and how likely it is."""
    out: list[Told] = []
    if reader is None:
        return out
    for trace in traces:
        for t, step in enumerate(trace.steps):
            if step.distribution is None or not step.distribution.whole:
                return []
            if t and not reader.is_right(trace.tokens[:t]):
                break
            said = float(at_temperature(step.distribution, trace.sampling.temperature)[0])
            true = reader.next(trace.tokens[:t]).get(int(step.distribution.ids[0]), 0.0)
            out.append(Told(said, true, question))
    return out


def sums(own: Sequence[Trace], true: Sequence[Trace], reader: Reader, temperature: float) -> ByQuestion:
    """KL(p‖q) along one's own and along true answers (means over answers), and what best temperature needs."""
    own_kl = _mean([_kl(trace, reader, temperature) for trace in own])
    true_kl = _mean([_kl(trace, reader, temperature) for trace in true])
    rows = [
        cross_entropies(reader.next(trace.tokens[:t]), step.distribution)
        for trace in true
        for t, step in enumerate(trace.steps)
        if step.distribution is not None
    ]
    return ByQuestion(own_kl, true_kl, tuple(np.sum(rows, axis=0).tolist()) if rows else ())


def _kl(trace: Trace, reader: Reader, temperature: float) -> float | None:
    """Σ over open beginnings, also after mistakes; None when not finite."""
    total = 0.0
    for t, step in enumerate(trace.steps):
        if step.distribution is None or not step.distribution.whole or temperature == 0:
            return None
        found = point(reader.next(trace.tokens[:t]), _tempered(step.distribution, temperature)).kl
        assert found is not None
        total += found
    return total if math.isfinite(total) else None


def _tempered(q: Distribution, temperature: float) -> Distribution:
    with np.errstate(divide="ignore"):
        return Distribution(q.ids, np.log(at_temperature(q, temperature)), 0.0)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(values) else None


def _pieces(examinee: Examinee, trace: Trace) -> tuple[str, ...]:
    """Token by token, as S is known token by token."""
    stop = set(examinee.source.codec.stop)
    return tuple(examinee.source.codec.decode([t]) for t in trace.tokens if t not in stop)
