"""What an answer means, as a value: two answers mean the same when their values are equal.

A ``Meaning`` maps a text to anything hashable. Texts without a meaning of their own (not of the language, not one of
the choices) mean themselves, so that different nonsense does not count as agreement.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from klype.judge.same import JUDGE, Sameness, SharedMeaning
from klype.judge.text import Judgement, choices_named, normalise, numbers
from klype.sources.source import Source, tokens_of
from klype.values import Question
from klype.world import World

Meaning = Callable[[str], Hashable]


def world_meaning(world: World, question: Question) -> Meaning:
    """The contents that the grammar reads in an answer; exact, and the same in both languages."""
    read = world.meanings(question)
    return lambda text: read(text) or f"? {text.strip()}"


def text_meaning(question: Question | None = None) -> Meaning:
    """What is the same but for its wording's least details: the choice that is named, else the one number, else the
    words without case, punctuation and articles. For candidates to be ranked, whose wording matters."""

    def meaning(text: str) -> Hashable:
        named = choices_named(question.choices, text) if question is not None and question.choices else set()
        if len(named) == 1:
            return ("choice", next(iter(named)))
        said = numbers(text)
        if len(said) == 1 and len(said[0]) == 1 and len(text.split()) <= 3:
            return ("number", next(iter(said[0])))
        return normalise(text) or text.strip()

    return meaning


def meaning_of(question: Question, world: World | None) -> tuple[Meaning, str]:
    """The best meaning there is for a question, and the judge's name, which stands beside every figure: the world's
    grammar for its own questions, else what the answering sentence claims."""
    if world is not None and "kind" in question.extra:
        return world_meaning(world, question), "the world's grammar"
    return SharedMeaning(Sameness(question).same), JUDGE


def label(meaning: Hashable) -> str:
    """A meaning as a short text, the same in every run (sets have no order of their own)."""
    if isinstance(meaning, frozenset):
        return " or ".join(sorted(label(one) for one in meaning))
    if isinstance(meaning, tuple):
        return "(" + ", ".join(label(part) for part in meaning) + ")"
    return str(meaning)


class JudgeModel:
    """Another model says whether an answer means what a reference means: P(yes) against P(no) as its next token.

    Undecided where neither is likely (together below ``least``) or neither clearly likelier (``margin``).
    """

    def __init__(self, source: Source, yes: str = "Yes", no: str = "No", least: float = 0.2, margin: float = 0.6):
        self.source = source
        self.name = f"judge model {source.name}"
        self._words = (yes, no)
        self._least, self._margin = least, margin

    def __call__(self, question: Question, answer: str) -> Judgement:
        if not question.answers:
            return Judgement("undecided", self.name)
        asked = (
            f"Question: {question.transcript}\nRight answer: {question.answers[0]}\nGiven answer: {answer}\n"
            f"Does the given answer mean the same as the right answer? {self._words[0]} or {self._words[1]}?"
        )
        prompt = self.source.codec.prompt([{"role": "user", "content": asked}])
        q = self.source.next([prompt], -1)[0]
        yes, no = (self._mass(q.p, word) for word in self._words)
        if yes + no < self._least or max(yes, no) < self._margin * (yes + no):
            return Judgement("undecided", self.name)
        return Judgement("right" if yes > no else "wrong", self.name)

    def _mass(self, p: Callable[[int], float | None], word: str) -> float:
        return sum(p(token) or 0.0 for token in tokens_of(self.source.codec, word))
