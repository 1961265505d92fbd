"""The settings of an examination: its command-line options, and sizes that the plan may reduce."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from klype.errors import UsageError
from klype.option import Option, Options

Temperatures = Annotated[tuple[Annotated[float, Ge(0)], ...], Option("A list: 0,0.7,1,1.3", commas=True)]
Samples = Annotated[int, Option("Answers per question and temperature.", "-n", also="--samples"), Ge(1)]


@dataclass(frozen=True)
class ExamSettings(Options):
    """How much is asked. 0 of a part: it is not measured.

    ``n``: answers per question and temperature (``greedy`` at temperature 0). ``trees``, ``forks``: for how many
    questions. ``interventions``: questions of the feedback experiment; ``pairs``: matched pairs it searches for.
    ``chunk``: questions that are answered together. ``keeps``: which next-token distributions are kept: none, those of
    every token of an answer, or also those along answers drawn from the truth.
    """

    temperatures: Temperatures = (0.0, 0.7, 1.0, 1.3)
    n: Samples = 16
    limit: Annotated[int, Option("Max tokens per answer."), Ge(1)] = 32
    seed: Annotated[int, Option("Same seed, same result.", least=0), Ge(0)] = 0
    trees: int = 16
    tree_budget: int = 300
    forks: int = 12
    fork_samples: int = 32
    interventions: int = 120
    intervention_samples: int = 2
    distances: int = 5
    pairs: int = 100
    chunk: int = 25
    greedy: int = 1
    keeps: Literal["answers", "distributions", "truth"] = "truth"

    def __post_init__(self) -> None:
        if not self.temperatures:
            raise UsageError("--temperatures should be numbers from 0 up, such as 0,0.7,1.")
        if len(set(self.temperatures)) < len(self.temperatures):
            raise UsageError("--temperatures names one of them twice.")

    @property
    def main(self) -> float:
        """The temperature of trees, forks and the verdict: 0.7 if it is among them, else the middle one."""
        return 0.7 if 0.7 in self.temperatures else sorted(self.temperatures)[len(self.temperatures) // 2]

    def samples_at(self, temperature: float) -> int:
        """Answers per question: ``n``, or ``greedy`` at temperature 0, where all are the same."""
        return self.greedy if temperature == 0.0 else self.n


@dataclass(frozen=True)
class ArticleSettings(ExamSettings):
    """The settings of ``klype article``, whose claims need few trees and no forks."""

    temperatures: Temperatures = (0.0, 0.7, 1.3)
    n: Samples = 8
    trees: int = 4
    forks: int = 0
