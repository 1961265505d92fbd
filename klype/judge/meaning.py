"""Judges by the demo world's grammar and by a language model, and the meaning of texts that are to be ranked."""

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from klype.judge.judge import Judge, Meaning, Ruling
from klype.judge.rule_judge import RuleJudge
from klype.judge.text import bare, choices_named, normalise, numbers
from klype.sources.source import Source, tokens_of
from klype.values import Figure, Question

if TYPE_CHECKING:
    from klype.world import World

# a model has decided if P(yes) + P(no) is at least MIN_YES_NO, and the larger one at least MIN_SHARE of that
MIN_YES_NO, MIN_SHARE = 0.2, 0.6
COMPARED = 4  # meanings with which a model compares a new answer


class WorldJudge(Judge):
    """Parses answers to the demo world's questions with its grammar: exact, in both languages."""

    name = "the world's grammar"

    def __init__(self, world: "World") -> None:
        self._world = world

    def compare(self, question: Question, a: str, b: str) -> bool | None:
        meaning = self.meaning(question)
        return meaning(a) == meaning(b)

    def right(self, question: Question, answer: str) -> bool | None:
        return self._world.judge(question, answer).right

    def meaning(self, question: Question) -> Meaning:
        read = self._world.meaning(question)
        return lambda text: read(text) or f"? {text.strip()}"

    def error_rate(self, ruling: Ruling, language: str) -> Figure | None:
        return Figure(0.0, 0.0, 0.0, unit="share of answers", certain=True, judge=self.name)


def text_meaning(question: Question) -> Meaning:
    """Meanings for candidates to be ranked, whose wording matters: the named choice, else a short answer's only number,
    else the words without case, punctuation and articles."""

    def meaning(text: str) -> Hashable:
        named = choices_named(question.choices, text)
        if len(named) == 1:
            return ("choice", next(iter(named)))
        said = numbers(text)
        if len(said) == 1 and len(said[0]) == 1 and len(text.split()) <= 3:
            return ("number", next(iter(said[0])))
        return normalise(text) or text.strip()

    return meaning


def judge_of(question: Question, world: "World | None", named: Judge | None = None) -> Judge:
    """``named`` if given; else the demo world's grammar for its own questions, and the rules for all others."""
    if named is not None:
        return named
    return WorldJudge(world) if world is not None and "kind" in question.extra else RuleJudge()


def label(meaning: Hashable) -> str:
    """A meaning as a short text, the same in every run (sets are sorted)."""
    if isinstance(meaning, frozenset):
        return " or ".join(sorted(label(one) for one in meaning))
    if isinstance(meaning, tuple):
        return "(" + ", ".join(label(part) for part in meaning) + ")"
    return str(meaning)


class JudgeModel(Judge):
    """Asks a language model whether two answers mean the same, and compares P(Yes) with P(No) as its next token.

    It is asked in both orders, so that a preference for the first or last answer has no effect. Undecided if it
    contradicts itself, if P(Yes) + P(No) is below MIN_YES_NO or the two are too close (MIN_SHARE), or if the prompt
    exceeds its ``window``.
    """

    most = 100  # a tree can have hundreds of answers; the most probable come first

    def __init__(self, source: Source, window: float = math.inf) -> None:
        self.source, self.name, self._window = source, f"judge model {source.name}", window

    def compare(self, question: Question, a: str, b: str) -> bool | None:
        said = set(self._ask_pairs(question, [(a, b), (b, a)]))
        return said.pop() if len(said) == 1 else None

    def among(self, question: Question, text: str, known: Sequence[str]) -> str:
        """As in Judge, among the first COMPARED in one batch: the cost is linear in the number of answers."""
        equal = next((other for other in known if bare(other) == bare(text)), None)
        if equal is not None or not text.strip():
            return equal or text
        known = [other for other in known if other.strip()][:COMPARED]
        said = self._ask_pairs(question, [pair for other in known for pair in ((other, text), (text, other))])
        both = zip(known, said[::2], said[1::2], strict=True)
        return next((other for other, one, turned in both if one and turned), text)

    def _ask_pairs(self, question: Question, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """Whether the answers of each ordered pair mean the same; None if undecided."""
        prompts = []
        for one, other in pairs:
            asked = f"Question: {question.transcript}\nOne answer: {one}\nAnother answer: {other}\n"
            message = {"role": "user", "content": f"{asked}Do the two answers say the same? Yes or No?"}
            prompts.append(self.source.codec.prompt([message]))
        fitting = [prompt for prompt in prompts if len(prompt) <= self._window]
        found = iter(self.source.next(fitting, -1) if fitting else ())
        words = [tokens_of(self.source.codec, word) for word in ("Yes", "No")]
        rulings: list[bool | None] = []
        for prompt in prompts:
            q = next(found) if len(prompt) <= self._window else None
            yes, no = (sum(q.p(token) or 0.0 for token in tokens) if q else 0.0 for tokens in words)
            clear = q and yes + no >= MIN_YES_NO and max(yes, no) >= MIN_SHARE * (yes + no)
            rulings.append(yes > no if clear else None)
        return rulings
