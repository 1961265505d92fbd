"""The model under examination with its questions and judges, and the plan that fits into the time or budget."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from klype.errors import UsageError
from klype.examine.caching_source import Shape
from klype.examine.error_feedback import LOOKS
from klype.examine.repetition import Index
from klype.examine.settings import ExamSettings
from klype.examine.truth import Reader
from klype.judge.judge import RULINGS, Judge, Meaning, Ruling
from klype.planner import first_that_fits
from klype.sources.source import Source
from klype.values import Figure, Question, Trace, Verdict

WIDE = 4096  # vocabularies up to this size have whole distributions in every trace
MAX_CACHE_BYTES = 128 << 20  # bytes of key-value cache for the prefixes that are read in one call
TREES = 16  # most trees that are grown at once
OTHERS = 3.0  # alternatives followed at a fork, about
PER_PAIR = 10  # most answers that are drawn per matched pair found
# "right": the share of a judge's decisions that are wrong; "same": the share of pairs on which it disagrees with a
# human reader. Figures without a value: not measured.
ErrorRates = Mapping[Ruling, Figure]
SHARE = 0.9  # the part of the time that is planned for: a probe is short and may be off


@dataclass(frozen=True)
class EvalTarget:
    """A model with the questions it is asked, and what judges its answers.

    ``identity``: names the weights, so that traces of other weights are not reused. ``judge(question, text, finished)``
    and ``meaning`` belong to the judge called ``judge_name``; ``deciding`` knows how often it errs. ``reader``: the
    truth of a question's answers; None where it is unknown. ``edits``: the same, with errors counted by edit distance.
    ``vocabulary``: its size, 0 if unknown. ``partial``: only the most probable tokens are returned. ``skipped``: how
    many questions were too long to be asked. ``can_continue``: whether the model can continue a given beginning of an
    answer; if not, there are no trees, forks or word swaps. ``scores(words)``: the lowest and highest score of an
    answer of so many words, where known. ``another(i)``: the i-th new question and its prompt, where questions can be
    made. ``other_manners``: see ``Evidence``.
    """

    source: Source
    name: str
    identity: str
    vocabulary: int
    questions: tuple[Question, ...]
    prompts: tuple[tuple[int, ...], ...]
    judge: Callable[[Question, str, bool], Verdict]
    judge_name: str
    meaning: Callable[[Question], Meaning]
    deciding: Judge | None = None
    reader: Callable[[Question], Reader] | None = None
    edits: Callable[[Question], Reader] | None = None
    another: Callable[[int], tuple[Question, tuple[int, ...]]] | None = None
    token_bytes: Callable[[int], bytes] | None = None
    shape: Shape | None = None
    training: Index | None = None
    partial: bool = False
    skipped: int = 0
    can_continue: bool = True
    other_manners: bool = False
    scores: Callable[[int], tuple[float, float]] | None = None

    @cached_property  # needed for every answer, and computed from all questions
    def errors(self) -> ErrorRates | None:
        """The judge's error rates on these questions; None where it cannot err, or there is no such judge."""
        if self.deciding is None:
            return None
        right, same = (self.deciding.errs(ruling, self.questions) for ruling in RULINGS)
        return None if right is None or same is None else {"right": right, "same": same}

    @property
    def whole(self) -> bool:
        return not self.partial and 0 < self.vocabulary <= WIDE

    @property
    def tree_batch(self) -> int:
        """The prefixes of a tree that are read in its first batch."""
        return 16 if self.whole else 8

    def trees_together(self, limit: int) -> int:
        """How many trees are grown at once: as many as the key-value cache of their prefixes leaves room for."""
        longest = max(map(len, self.prompts), default=0) + limit
        kept = self.tree_batch * longest * (self.shape.cache_bytes if self.shape is not None else 0)
        return max(1, min(TREES, MAX_CACHE_BYTES // kept)) if kept else 1

    def is_word(self, token: int) -> bool:
        """Whether the token has text, unlike a control token."""
        return self.token_bytes is None or self.token_bytes(token) != b""


@dataclass(frozen=True)
class ExamSpeed:
    """The speed of a model. ``tokens``: mean length of an answer; ``speed``: forward passes per second when answers are
    drawn together; ``tree_speed``: prefixes per second in trees; ``fork_tokens``: see the function."""

    tokens: float
    speed: float
    tree_speed: float
    fork_tokens: float


@dataclass(frozen=True, slots=True)
class ExamPlan:
    """The settings of an examination and what it costs: forward passes (one per token drawn) by part, and seconds."""

    settings: ExamSettings
    questions: int
    passes: dict[str, int]
    seconds: float

    @property
    def total(self) -> int:
        return sum(self.passes.values())


def fork_tokens(traces: Sequence[Trace]) -> float:
    """The mean number of tokens that finding the fork of such an answer draws per sample.

    One token at every position, and where it differs from the answer's own, as many more as answers continue for from
    there; then the continuations of the alternatives at the fork. A server returns probabilities before temperature
    only, or none; such a token is assumed to differ always.
    """
    lengths = np.array([len(trace.steps) for trace in traces])
    longest = int(lengths.max(initial=0))
    rest_T = np.array([(lengths[lengths > t] - t - 1).mean() for t in range(longest)])
    beyond_T = np.array([(lengths[lengths > t + 1] - t - 1).mean() for t in range(longest - 1)] + [0.0])
    drawn, rests = [], []
    for trace in traces:
        logp_T = [step.logp if math.isnan(step.sampling_logprob) else step.sampling_logprob for step in trace.steps]
        leaving_T = [1.0 if math.isnan(logp) else 1 - math.exp(logp) for logp in logp_T]
        after = [*rest_T[: len(leaving_T) - 1], (beyond_T if trace.ended == "stop" else rest_T)[len(leaving_T) - 1]]
        drawn.append(len(leaving_T) + float(np.dot(leaving_T, after)))
        rests += after
    return float(np.mean(drawn)) + OTHERS * float(np.mean(rests))


def plan(questions: int, settings: ExamSettings, speed: ExamSpeed, truth: bool) -> ExamPlan:
    """The cost of an examination. ``truth``: whether it is known which words can follow."""
    tokens = speed.tokens
    draws = sum(settings.samples_at(t) for t in settings.temperatures)
    warm = sum(t > 0 for t in settings.temperatures)
    asked = min(settings.interventions, questions)
    going_on = settings.intervention_samples * (min(tokens, settings.distances) if truth else tokens)
    forced = asked * (2 + 3 * going_on) if truth else asked * (min(tokens, LOOKS) + 2 * going_on)
    matched = 3 * settings.pairs * going_on if truth and asked else 0.0
    cache = settings.pairs * PER_PAIR * tokens if matched else 0.0
    passes = {
        "answers": round(questions * draws * tokens),
        "feedback": round(warm * (forced + matched) + cache),
        "truth": round(questions * tokens) if truth else 0,
        "trees": min(settings.trees, questions) * settings.tree_budget,
        "forks": round(min(settings.forks, questions) * settings.fork_samples * speed.fork_tokens),
    }
    drawn = sum(passes.values()) - passes["trees"]
    return ExamPlan(
        settings, questions, passes, drawn / max(speed.speed, 1e-9) + passes["trees"] / max(speed.tree_speed, 1e-9)
    )


def in_time(seconds: float, questions: int, settings: ExamSettings, speed: ExamSpeed, truth: bool) -> ExamPlan:
    """The plan with trees and forks for as few questions as it takes to fit into the time, but for two at least."""

    def smaller() -> Iterator[ExamPlan]:
        now = settings
        yield plan(questions, now, speed, truth)
        while max(now.trees, now.forks) > 2:
            trees, forks = (count if count <= 2 else max(2, count * 3 // 4) for count in (now.trees, now.forks))
            now = replace(now, trees=trees, forks=forks)
            yield plan(questions, now, speed, truth)

    return first_that_fits(smaller(), lambda one: one.seconds, SHARE * seconds)


def within(budget: int, questions: int, settings: ExamSettings, speed: ExamSpeed, truth: bool) -> ExamPlan:
    """The largest plan found that needs no more than ``budget`` forward passes.

    Forks, trees and interventions shrink first, then the answers to each question, then the number of questions; in the
    end only answers are left. Raises UsageError when the budget is too small for one question.
    """

    def smaller() -> Iterator[ExamPlan]:
        now, asked = settings, questions
        while True:
            yield plan(asked, now, speed, truth)
            if now.forks > 2 or now.trees > 2 or now.interventions > 20:
                now = _fewer(now, 2)
            elif now.n > 4:
                now = replace(now, n=now.n // 2)
            elif asked > 20:
                asked //= 2
            elif now.forks or now.trees or now.interventions:
                now = _fewer(now, 1000)
            elif now.n > 1:
                now = replace(now, n=now.n // 2)
            elif asked > 1:
                asked //= 2
            else:
                raise UsageError(f"A budget of {budget} passes is too small to answer even one question.")

    return first_that_fits(smaller(), lambda one: one.total, budget)


def _fewer(settings: ExamSettings, part: int) -> ExamSettings:
    names = ("forks", "trees", "interventions", "pairs")
    return replace(settings, **{name: getattr(settings, name) // part for name in names})
