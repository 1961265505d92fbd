"""The base class of judges: whether two answers mean the same, and whether one agrees with a reference."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from klype.judge.text import bare, surely
from klype.values import Figure, Question

# An answer's text to a value; answers mean the same if their values are equal.
Meaning = Callable[[str], Hashable]
Ruling = Literal["right", "same"]
RULINGS: tuple[Ruling, ...] = ("right", "same")
Errors = Mapping[tuple[Ruling, str], Figure]  # by ruling and language ("en", "nb") of the question

UNMEASURED = Figure(None, why="the judge's error was not measured")


class Judge(ABC):
    """Judges answers to a question; None means undecided. ``name`` is shown with every figure that depends on it.

    A subclass needs ``name`` and ``compare``.
    """

    name: str
    errors: Errors = MappingProxyType({})
    most: float = math.inf  # different answers to a question that are compared; each further one has its own meaning

    @abstractmethod
    def compare(self, question: Question, a: str, b: str) -> bool | None:
        """Whether two answers, neither empty nor equal, mean the same; None if undecided."""

    def agrees(self, question: Question, answer: str, reference: str) -> bool | None:
        """Whether an answer, other than the reference itself, agrees with the reference."""
        return self.compare(question, answer, reference)

    def same(self, question: Question, a: str, b: str) -> bool | None:
        """Whether two answers mean the same; None if undecided, or if one is empty."""
        if not a.strip() or not b.strip():
            return None
        return True if bare(a) == bare(b) else self.compare(question, a, b)

    def right(self, question: Question, answer: str) -> bool | None:
        """Whether an answer agrees with one of the question's references; None if undecided, or without references."""
        if not question.answers:
            return None
        if not answer.strip():
            return False
        if bare(answer) in map(bare, question.answers):
            return True
        rulings = {self.agrees(question, answer, reference) for reference in question.answers}
        return True if True in rulings else None if None in rulings else False

    def meaning(self, question: Question) -> Meaning:
        """Returns a function from an answer to its meaning: the first answer it was given that means the same.

        Meaning the same is not transitive ("Henrik Ibsen" and "Henrik Wergeland" both agree with "Henrik"): an answer
        joins the first meaning whose representative it agrees with. On the labelled answers this gives the same
        clusters as average linkage."""
        first: dict[str, str] = {}

        def meaning(text: str) -> str:
            if text not in first:
                known = list(dict.fromkeys(first.values())) if len(first) < self.most else []
                first[text] = self.among(question, text, known)
            return first[text]

        return meaning

    def among(self, question: Question, text: str, known: Sequence[str]) -> str:
        """The first of the known answers that means the same as a text; else the text."""
        return next((other for other in known if self.same(question, other, text)), text)

    def error_rate(self, ruling: Ruling, language: str) -> Figure | None:
        """How often it differs from a human reader: the share of pairs that it judges differently ("same"), or of
        decided answers that it decides wrongly ("right"). None: not measured; 0: it cannot err."""
        return self.errors.get((ruling, language))

    def error_over(self, ruling: Ruling, questions: Iterable[Question]) -> Figure | None:
        """The error rate for open questions in one language; None (not measured) if there are others."""
        languages = {"" if question.choices else surely(question.question) for question in questions}
        return self.error_rate(ruling, languages.pop()) if len(languages) == 1 else None

    def errs(self, ruling: Ruling, questions: Iterable[Question]) -> Figure | None:
        """The error rate for any questions, that of the language with the highest; UNMEASURED if it is unknown for more
        than a tenth of them; None if the judge cannot err."""
        known = [self.error_over(ruling, [question]) for question in questions]
        measured = [error for error in known if error is not None]
        if not measured or 10 * len(measured) < 9 * len(known):
            return UNMEASURED
        most = max(measured, key=lambda error: (error.high or 0.0, error.value or 0.0))
        return None if most.certain and not most.value else most
