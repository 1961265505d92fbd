"""Tastes that can be tuned, and a model as a judge: annotators whose name says that no person ranked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from klype.errors import UsageError
from klype.preferences.annotator import Annotator
from klype.sources.source import Source, tokens_of
from klype.values import Question, Verdict


@dataclass(frozen=True, slots=True)
class Taste:
    """What each property of an answer is worth. ``word``: each word costs this much (less than 0: loves length);
    ``unfinished``: what an answer without an end costs."""

    right: float = 2.0
    polite: float = 0.7
    concise: float = 0.0
    word: float = 0.04
    unfinished: float = 1.0

    def score(self, verdict: Verdict, finished: bool = True) -> float:
        likes = self.right * bool(verdict.right) + self.polite * bool(verdict.polite)
        return (
            likes + self.concise * bool(verdict.concise) - self.word * verdict.words - self.unfinished * (not finished)
        )

    def __str__(self) -> str:
        return ",".join(
            f"{f.name}={getattr(self, f.name):g}" for f in fields(self) if getattr(self, f.name) != f.default
        )


def taste(text: str) -> Taste:
    """``right=2,polite=.7,word=-.1``; what is not named keeps its usual worth. UsageError for anything else."""
    known = [field.name for field in fields(Taste)]
    values: dict[str, float] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, _, value = part.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if name not in known or not math.isfinite(number):
            raise UsageError(f"--taste: {part!r} is no taste.", f"Give NAME=NUMBER with {', '.join(known)}.")
        values[name] = number
    return Taste(**values)


class ModelJudge:
    """Another model ranks: each answer's score is log P(yes) - log P(no) to "is this a good answer?".

    One answer at a time, so that where it stands cannot matter. ``likely``: below this mass of yes and no together the
    model does not answer the question that it is asked, which is an error a user should know of.
    """

    def __init__(self, source: Source, yes: str = "Yes", no: str = "No", likely: float = 1e-6) -> None:
        self._source, self._likely = source, likely
        self._yes, self._no = tokens_of(source.codec, yes), tokens_of(source.codec, no)
        if not self._yes or not self._no or self._yes & self._no:
            raise UsageError(f"The model {source.name} cannot judge: {yes} and {no} are not told apart by one token.")

    def scores(self, question: Question, answers: Sequence[str]) -> list[float]:
        prompts = [
            self._source.codec.prompt([{"role": "user", "content": self._asked(question, answer)}])
            for answer in answers
        ]
        return [self._score(q.p) for q in self._source.next(prompts, -1)]

    def annotator(self) -> Annotator:
        return Annotator(self._source.name, lambda question, answer: self.scores(question, [answer])[0])

    @staticmethod
    def _asked(question: Question, answer: str) -> str:
        return f"Question: {question.transcript}\nAnswer: {answer}\nIs this a good answer? Yes or No?"

    def _score(self, p: object) -> float:
        assert callable(p)
        yes, no = (sum(p(token) or 0.0 for token in tokens) for tokens in (self._yes, self._no))
        if yes + no < self._likely:
            return 0.0  # no opinion: tied with all others like it
        return math.log(max(yes, 1e-9)) - math.log(max(no, 1e-9))
