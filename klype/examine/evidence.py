"""The input of all measures: judged answers, and the model's next-token distributions compared with the truth's.

Everything here is computed from traces; the model is not asked again.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from klype.answers import distribution_bounds
from klype.answers.forks import Forks
from klype.answers.tree import Tree
from klype.examine.caching_source import answer_bytes, answer_flops
from klype.examine.calibration import cross_entropies
from klype.examine.error_feedback import InterventionOutcome, WordSwap
from klype.examine.examined_model import ErrorRates, EvalTarget
from klype.examine.repetition import find_copied
from klype.examine.truth import PrefixTruth, Reader, logp_of, mass, point, possible
from klype.values import Distribution, Question, Tokens, Trace

Found = TypeVar("Found")
OTHER_MANNERS = "alignment gave it other manners than the truth has, which is that of the fine-tuning examples"


@dataclass(frozen=True, slots=True)
class JudgedAnswer:
    """One judged answer. A verdict is None when the judge cannot decide; a cost is None when it was not measured.

    ``words``: without the end-of-text token. ``first_error``: the position (1, 2, …; the end of text counts as a word)
    of the first word that cannot follow. ``s``: the probability mass on words that can follow, Σ_{v∈A} q(v), before
    every position up to the first error, the end, or the limit; it is known for all answers of one ``Evidence`` or for
    none. ``s_bounds`` and ``entropy_bounds`` (low, high) replace ``s`` and ``entropy`` where the model returns only its
    most probable tokens. ``meaning``: None when it cannot be determined. ``entropy``: Σ_t H(q_t) over the distributions
    drawn from, and ``drawn_logp`` the answer's log-probability under them (nats). ``copied``: the share of its words
    found in the training text. ``asked``: whether the judge had references to judge correctness by.
    """

    question: str
    words: tuple[str, ...]
    ended: Literal["stop", "length", "cancelled"]
    right: bool | None = None
    word_for_word: bool | None = None
    polite: bool | None = None
    concise: bool | None = None
    well_formed: bool | None = None
    score: float | None = None
    first_error: int | None = None
    s: tuple[float, ...] = ()
    passes: int | None = None
    tokens: int | None = None
    flops: float | None = None
    bytes_moved: float | None = None
    seconds: float | None = None
    joules: float | None = None
    meaning: Hashable = None
    entropy: float | None = None
    drawn_logp: float | None = None
    s_bounds: tuple[tuple[float, float], ...] = ()
    entropy_bounds: tuple[float, float] | None = None
    copied: float | None = None
    asked: bool = True


class Forecast(NamedTuple):
    """The model's probability of its most likely next token, and how often that token follows: 0 or 1, or its true
    probability."""

    said: float
    true: float
    question: str


@dataclass(frozen=True, slots=True)
class ByQuestion:
    """One question's sums over prefixes: KL(p‖q) along the model's own answers and along a true one; cross-entropy at
    each of ``calibration.TEMPERATURES``. Nats; infinite where unknown."""

    own_kl: float = math.inf
    true_kl: float = math.inf
    cross_entropies: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything known about one model at one temperature. Measures that need what is absent are left out.

    ``documents``: true answers, each prefix compared with the truth (``truth.point``). ``judge``: who decided what is
    correct; ``errors``: how often it errs (None: it cannot). ``other_manners``: alignment changed the style of answers,
    so distances between the model's probabilities and the truth's mean nothing (which words can follow is the same).
    ``points``: the lowest and highest possible score, where known. ``dropped``: prefixes of the feedback experiment
    where no correct word was as rare as the wrong one. ``language``: one true answer's words for each question.
    """

    answers: Sequence[JudgedAnswer] = ()
    documents: Sequence[Sequence[PrefixTruth]] = ()
    judge: str = ""
    errors: ErrorRates | None = None
    told: Sequence[Forecast] = ()
    sums: Sequence[ByQuestion] = ()
    outcomes: Sequence[InterventionOutcome] = ()
    dropped: int = 0
    trees: Sequence[Tree] = ()
    forks: Sequence[Forks] = ()
    replaced: Sequence[WordSwap] = ()
    language: Mapping[str, Sequence[str]] | None = None
    other_manners: bool = False
    points: tuple[float, float] | None = None
    _known: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def by_word(self) -> bool:
        """Whether it is known word by word what is an error."""
        return any(answer.s or answer.s_bounds or answer.first_error is not None for answer in self.answers)

    @property
    def referenced(self) -> "Evidence":
        """The evidence without answers that the judge had no references for."""
        return replace(self, answers=[answer for answer in self.answers if answer.asked])

    def once(self, name: str, make: Callable[[], Found]) -> Found:
        """The value of ``make()``, which is called once per ``name``: several measures need it."""
        if name not in self._known:
            self._known[name] = make()
        found: Found = self._known[name]
        return found


class DistributionCache:
    """Statistics of one question's next-token distributions at one temperature, computed once per prefix: answers
    share prefixes. ``reader``: the truth, which ``s`` and ``kl`` need."""

    def __init__(self, reader: Reader | None, temperature: float) -> None:
        self.reader, self.temperature = reader, temperature
        self._looked: dict[Tokens, tuple[float, float]] = {}
        self._s: dict[Tokens, float] = {}
        self._kl: dict[Tokens, float] = {}

    def entropy(self, tokens: Tokens, q: Distribution) -> float:
        return self._at(tokens, q)[0]

    def confidence(self, tokens: Tokens, q: Distribution) -> float:
        """The probability of the most likely token."""
        # tokens are listed most probable first; at temperature 1 the model's own number is not rounded again
        return math.exp(q.logp[0]) if self.temperature == 1.0 else self._at(tokens, q)[1]

    def s(self, tokens: Tokens, q: Distribution) -> float:
        """The probability mass on tokens that can follow."""
        if tokens not in self._s:
            assert self.reader is not None
            self._s[tokens] = mass(q, self.temperature, self.reader.next(tokens))
        return self._s[tokens]

    def kl(self, tokens: Tokens, q: Distribution) -> float:
        """KL(p‖q) in nats, also after errors; only at temperatures above 0."""
        if tokens not in self._kl:
            assert self.reader is not None
            ids_A, p_A = possible(self.reader.next(tokens))
            with np.errstate(over="ignore"):
                logq_A = (logp_of(q, ids_A) - float(q.logp.max())) / self.temperature
            logq_A = logq_A + math.log(self._at(tokens, q)[1])
            self._kl[tokens] = max(0.0, float((p_A * (np.log(p_A) - logq_A)).sum()))
        return self._kl[tokens]

    def _at(self, tokens: Tokens, q: Distribution) -> tuple[float, float]:
        """(entropy in nats, highest probability)."""
        if self.temperature == 0.0:
            return 0.0, 1.0
        if tokens not in self._looked:
            z_K = distribution_bounds.relative(q, self.temperature)
            # 0 · −∞ would be NaN
            z_K = z_K[np.isfinite(z_K)]
            weight_K = np.exp(z_K)
            total = float(weight_K.sum())
            self._looked[tokens] = math.log(total) - float(weight_K @ z_K) / total, 1.0 / total
        return self._looked[tokens]


def judged_answers(
    target: EvalTarget, question: Question, traces: Sequence[Trace], cache: DistributionCache
) -> list[JudgedAnswer]:
    """One question's answers, judged. Identical answers are judged once; each keeps its own cost."""
    meaning, shape = target.meaning(question), target.shape
    known: dict[tuple[Tokens, bool], JudgedAnswer] = {}
    out = []
    for trace in traces:
        tokens, finished = trace.tokens, trace.ended == "stop"
        if (one := known.get((tokens, finished))) is None:
            text = target.source.codec.decode(tokens)
            verdict = target.judge(question, text, finished)
            found = find_copied(text, target.training) if target.training is not None else None
            seen = read_distributions(trace, cache, target.vocabulary)
            one = known[tokens, finished] = JudgedAnswer(
                question=question.id,
                words=pieces(target, trace) if seen.get("s") or seen.get("s_bounds") else tuple(text.split()),
                ended=trace.ended,
                right=verdict.right,
                asked=target.errors is None or bool(question.answers),
                word_for_word=text.strip() in {one.strip() for one in question.answers} if question.answers else None,
                polite=verdict.polite,
                concise=verdict.concise,
                well_formed=verdict.well_formed,
                score=verdict.score if math.isfinite(verdict.score) else None,
                meaning=meaning(text),
                copied=None if found is None else found.share,
                **seen,
            )
        lengths = len(trace.prompt), len(tokens)
        # NaN where a server did not return one of them
        drawn_logp = math.fsum(step.sampling_logprob for step in trace.steps)
        told_logp = None if math.isnan(drawn_logp) else drawn_logp
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
                # −log q(answer) has the same mean as Σ_t H(q_t): the estimate where distributions are not whole
                entropy=-told_logp if one.entropy is None and told_logp is not None else one.entropy,
                drawn_logp=told_logp,
            )
        )
    return out


def read_distributions(trace: Trace, cache: DistributionCache, vocabulary: int) -> dict[str, Any]:
    """The fields of ``JudgedAnswer`` that come from the distributions along an answer: ``first_error``, and S and
    entropy, or bounds of them where distributions are partial. Empty where a distribution is missing."""
    tokens, reader = trace.tokens, cache.reader
    listed = [q for _, q in beginnings(trace)]
    if len(listed) < len(tokens):
        return {}
    error = None if reader is None else reader.first_error(tokens)
    right = [] if reader is None else [(reader.next(tokens[:t]), q) for t, q in enumerate(listed[:error])]
    if has_distributions(trace):
        s = tuple(cache.s(tokens[:t], q) for t, (_, q) in enumerate(right))
        entropy = math.fsum(cache.entropy(tokens[:t], q) for t, q in enumerate(listed))
        return {"first_error": error, "s": s, "entropy": entropy}
    at = cache.temperature, vocabulary
    ends = [distribution_bounds.entropy_at(q, *at) for q in listed]
    return {
        "first_error": error,
        "s_bounds": tuple(distribution_bounds.mass_at(q, *at, possible) for possible, q in right),
        "entropy_bounds": (math.fsum(low for low, _ in ends), math.fsum(high for _, high in ends)),
    }


def pieces(target: EvalTarget, trace: Trace) -> tuple[str, ...]:
    """The answer as the texts of its tokens, without the end: S is known per token."""
    codec = target.source.codec
    return tuple(codec.decode([t]) for t in trace.tokens if t not in codec.stop)


def forecasts(question: str, traces: Sequence[Trace], cache: DistributionCache) -> list[Forecast]:
    """One ``Forecast`` for every error-free prefix of the model's own answers; none where distributions are partial."""
    out: list[Forecast] = []
    if (reader := cache.reader) is None or not all(map(has_distributions, traces)):
        return out
    for trace in traces:
        for before, q in beginnings(trace):
            if not reader.is_right(before):
                break
            out.append(Forecast(cache.confidence(before, q), reader.next(before).get(int(q.ids[0]), 0.0), question))
    return out


def sums(own: Sequence[Trace], true: Trace, cache: DistributionCache, crossed: tuple[float, ...]) -> ByQuestion:
    """A question's sums: the mean over the model's own answers, a true answer, and ``crossed`` from ``crossings``.
    Only at temperatures above 0: at 0, KL is infinite wherever the truth leaves a choice."""

    def kl(trace: Trace) -> float:
        """Σ over the prefixes of an answer, also after errors; infinite where it cannot be known."""
        return sum(cache.kl(tokens, q) for tokens, q in beginnings(trace)) if has_distributions(trace) else math.inf

    return ByQuestion(math.fsum(map(kl, own)) / len(own) if own else math.inf, kl(true), crossed)


def crossings(true: Trace, reader: Reader) -> tuple[float, ...]:
    """Cross-entropy at each of ``calibration.TEMPERATURES``, summed over one true answer; for ``best_temperature``."""
    rows = [cross_entropies(reader.next(tokens), q) for tokens, q in beginnings(true)]
    return tuple(np.sum(rows, axis=0).tolist()) if rows else ()


def truth_points(trace: Trace, reader: Reader, temperature: float) -> list[PrefixTruth]:
    """The model at a temperature compared with the truth, before every token of one true answer."""
    return [point(reader.next(tokens), distribution_bounds.whole_at(q, temperature)) for tokens, q in beginnings(trace)]


def has_distributions(trace: Trace) -> bool:
    """Whether the trace has a whole next-token distribution for every step."""
    return all(step.distribution is not None and step.distribution.whole for step in trace.steps)


def beginnings(trace: Trace) -> Iterator[tuple[Tokens, Distribution]]:
    """(prefix, next-token distribution) of every step that has a distribution."""
    tokens = trace.tokens
    for t, step in enumerate(trace.steps):
        if step.distribution is not None:
            yield tokens[:t], step.distribution
