"""Who says whether two answers to a question say the same, and whether one says what a reference says."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from klype.judge.text import bare, surely
from klype.values import Figure, Question

# Two answers mean the same when their values are equal; what has no meaning of its own means itself.
Meaning = Callable[[str], Hashable]
Ruling = Literal["right", "same"]
RULINGS: tuple[Ruling, ...] = ("right", "same")
Errors = Mapping[tuple[Ruling, str], Figure]  # by what is ruled and the language ("en", "nb") of the question

UNMEASURED = Figure(None, why="the judge's error was not measured")


class Judge(ABC):
    """Rules on answers to a question; None: it cannot tell. ``name`` is shown with every figure that rests on it.

    A judge of one's own says in ``compare`` whether two answers, which are neither empty nor equal, say the same.
    """

    name: str
    errors: Errors = MappingProxyType({})
    most: float = math.inf  # how many different answers to a question are compared; the rest mean themselves

    @abstractmethod
    def compare(self, question: Question, a: str, b: str) -> bool | None:
        """Whether two answers, neither empty nor equal, say the same; None if undecided."""

    def agrees(self, question: Question, answer: str, reference: str) -> bool | None:
        """Whether an answer, which is not the reference itself, says what the reference says."""
        return self.compare(question, answer, reference)

    def same(self, question: Question, a: str, b: str) -> bool | None:
        """Whether two answers say the same."""
        if not a.strip() or not b.strip():
            return None
        return True if bare(a) == bare(b) else self.compare(question, a, b)

    def right(self, question: Question, answer: str) -> bool | None:
        """Whether an answer says what one of the question's references says."""
        if not question.answers:
            return None
        if not answer.strip():
            return False
        if bare(answer) in map(bare, question.answers):
            return True
        rulings = {self.agrees(question, answer, reference) for reference in question.answers}
        return True if True in rulings else None if None in rulings else False

    def meaning(self, question: Question) -> Meaning:
        """Text → the first text that said the same: a meaning is represented by how it was first put.

        Being the same is no equivalence ("Henrik Ibsen" and "Henrik Wergeland" both agree with "Henrik"): a text joins
        the first meaning whose representative it agrees with. On the labelled answers that finds the same clusters as
        average linkage does.
        """
        first: dict[str, str] = {}

        def meaning(text: str) -> str:
            if text not in first:
                known = list(dict.fromkeys(first.values())) if len(first) < self.most else []
                first[text] = self.among(question, text, known)
            return first[text]

        return meaning

    def among(self, question: Question, text: str, known: Sequence[str]) -> str:
        """The first of the known answers that says the same as a text; else the text."""
        return next((other for other in known if self.same(question, other, text)), text)

    def clusters(self, question: Question, answers: Sequence[str]) -> list[int]:
        """Each answer's meaning, numbered as they appear."""
        meaning = self.meaning(question)
        number = {value: n for n, value in enumerate(dict.fromkeys(map(meaning, answers)))}
        return [number[meaning(answer)] for answer in answers]

    def error_rate(self, ruling: Ruling, language: str) -> Figure | None:
        """How often it differs from a reader: the share of pairs whose sameness it judges otherwise, or of the answers
        that it decides, those decided wrongly. None means that this was not measured; one that cannot err gives 0."""
        return self.errors.get((ruling, language))

    def error_over(self, ruling: Ruling, questions: Iterable[Question]) -> Figure | None:
        """The same for free questions that are all in one language which was measured; else None: not measured."""
        languages = {"" if question.choices else surely(question.question) for question in questions}
        return self.error_rate(ruling, languages.pop()) if len(languages) == 1 else None

    def errs(self, ruling: Ruling, questions: Iterable[Question]) -> Figure | None:
        """How often it errs about any questions: as in the language in which it does most. No value where that was not
        measured for nine of ten; None means that it cannot err."""
        known = [self.error_over(ruling, [question]) for question in questions]
        measured = [error for error in known if error is not None]
        if not measured or 10 * len(measured) < 9 * len(known):
            return UNMEASURED
        most = max(measured, key=lambda error: (error.high or 0.0, error.value or 0.0))
        return None if most.certain and not most.value else most
