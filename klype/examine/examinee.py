"""Who is examined, and how: a source with its questions, judges and, where it is known, the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from klype.errors import UsageError
from klype.examine.copied import Index
from klype.examine.cost import Shape
from klype.examine.truth import Reader
from klype.judge.meaning import Meaning
from klype.sources.source import Source
from klype.values import Question, Verdict

WIDE = 4096
"""Vocabularies up to this size have whole distributions in every trace."""


@dataclass(frozen=True)
class Examinee:
    """``identity`` names the weights (traces of others are not used again). ``judge(question, text, finished)`` and
    ``meaning`` are named by ``judge_name``. ``reader`` knows the truth of a question's answers; None: nobody does.
    ``vocabulary`` 0: nobody knows; ``partial``: only the most probable tokens are told. ``skipped``: questions that
    were too long to be asked."""

    source: Source
    name: str
    identity: str
    vocabulary: int
    questions: tuple[Question, ...]
    prompts: tuple[tuple[int, ...], ...]
    judge: Callable[[Question, str, bool], Verdict]
    judge_name: str
    meaning: Callable[[Question], Meaning]
    reader: Callable[[Question], Reader] | None = None
    spell: Callable[[int], bytes] | None = None
    shape: Shape | None = None
    training: Index | None = None
    partial: bool = False
    skipped: int = 0

    @property
    def whole(self) -> bool:
        return not self.partial and 0 < self.vocabulary <= WIDE

    def is_word(self, token: int) -> bool:
        """A token that says something: not a control token."""
        return self.spell is None or self.spell(token) != b""


@dataclass(frozen=True, slots=True)
class ExamSettings:
    """``n`` answers a question and temperature; ``trees`` and ``forks``: of how many questions; ``shocks``: how many
    questions the feedback experiment asks. What has no question left is not measured."""

    temperatures: tuple[float, ...] = (0.0, 0.7, 1.0, 1.3)
    n: int = 16
    limit: int = 32
    seed: int = 0
    trees: int = 16
    tree_budget: int = 300
    forks: int = 12
    fork_samples: int = 32
    shocks: int = 120
    shock_samples: int = 2
    distances: int = 5
    chunk: int = 25

    def check(self) -> None:
        if not self.temperatures or any(not 0 <= t < float("inf") for t in self.temperatures):
            raise UsageError("--temperatures should be numbers from 0 up, such as 0,0.7,1.")
        if len(set(self.temperatures)) < len(self.temperatures):
            raise UsageError("--temperatures names one of them twice.")
        if self.n < 1 or self.limit < 1:
            raise UsageError("-n and --limit should be at least 1.")

    @property
    def main(self) -> float:
        """The temperature that trees, forks and the verdict are about: 0.7 if asked for, else the middle one."""
        return 0.7 if 0.7 in self.temperatures else sorted(self.temperatures)[len(self.temperatures) // 2]

    def drawn(self, temperature: float) -> int:
        """Answers a question: at temperature 0 all are equal, so one is drawn."""
        return 1 if temperature == 0.0 else self.n


@dataclass(frozen=True, slots=True)
class Plan:
    """What an examination costs, in forward passes (one a token that is drawn) and seconds, part by part."""

    settings: ExamSettings
    questions: int
    passes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def total(self) -> int:
        return sum(self.passes.values())


def plan(questions: int, settings: ExamSettings, tokens: float, speed: float, truth: bool) -> Plan:
    """``tokens``: mean length of an answer, ``speed``: passes a second, both from a probe."""
    draws = sum(settings.drawn(t) for t in settings.temperatures)
    warm = sum(t > 0 for t in settings.temperatures)
    asked = min(settings.shocks, questions)
    passes = {
        "answers": round(questions * draws * tokens),
        "feedback": round(asked * warm * (2 + 3 * settings.shock_samples * min(tokens, settings.distances)))
        if truth
        else 0,
        "truth": round(questions * tokens) if truth else 0,
        "trees": min(settings.trees, questions) * settings.tree_budget,
        "forks": round(min(settings.forks, questions) * settings.fork_samples * tokens * (tokens + 1) / 2),
    }
    return Plan(settings, questions, passes, sum(passes.values()) / max(speed, 1e-9))


def within(budget: int, questions: int, settings: ExamSettings, tokens: float, truth: bool) -> tuple[ExamSettings, int]:
    """Smaller settings, and questions, whose plan keeps to a budget of passes.

    Forks, trees and shocks shrink first, then answers, then questions; at last only answers are left. Errors: a budget
    that not even one question fits.
    """
    asked = questions
    while plan(asked, settings, tokens, 1.0, truth).total > budget:
        if settings.forks > 2 or settings.trees > 2 or settings.shocks > 20:
            settings = _fewer(settings, 2)
        elif settings.n > 4:
            settings = replace(settings, n=settings.n // 2)
        elif asked > 20:
            asked //= 2
        elif settings.forks or settings.trees or settings.shocks:
            settings = _fewer(settings, 1000)
        elif settings.n > 1:
            settings = replace(settings, n=settings.n // 2)
        elif asked > 1:
            asked //= 2
        else:
            raise UsageError(f"A budget of {budget} passes is too small to answer even one question.")
    return settings, asked


def _fewer(settings: ExamSettings, part: int) -> ExamSettings:
    forks, trees, shocks = (count // part for count in (settings.forks, settings.trees, settings.shocks))
    return replace(settings, forks=forks, trees=trees, shocks=shocks)
