"""Whether two answers say the same and whether one says what a reference says, with the judge's name and error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from klype.errors import UsageError
from klype.judge.same import JUDGE, Sameness, bare, is_known, language_of
from klype.judge.text import Judgement, choice_match
from klype.values import Figure, Question

Judge = Callable[[Question, str], Judgement]
PAIR, ANSWER = frozenset({"question", "a", "b"}), frozenset({"question", "answer", "answers"})
# Share of labelled pairs that the rules judge otherwise than a reader, with intervals over questions:
# python -m benchmarks meaning, 2026-11-30, 373 English and 211 Norwegian pairs (a test holds them to what it prints).
ERRORS = {
    "en": Figure(0.0429, 0.0173, 0.2231, 18, "share of pairs", judge=JUDGE),
    "nb": Figure(0.0758, 0.0342, 0.2333, 20, "share of pairs", judge=JUDGE),
}


@dataclass(frozen=True, slots=True)
class Same:
    """``same``: whether two answers say the same, None when the judge cannot tell; ``judge``: its name; ``error_rate``:
    how often it differs from a reader in the question's language, None where that was not measured."""

    same: bool | None
    judge: str
    error_rate: Figure | None


def same(question: str, a: str, b: str) -> Same:
    """Whether two answers to one question say the same, by what their answering sentences claim.

    >>> import klype
    >>> klype.same("Where is Kari?", "At school.", "Kari is at school").same
    True
    >>> klype.same("Where is Kari?", "At school.", "She is at home.").same
    False

    Errors: a question or an answer that is no text.
    """
    for name, text in (("question", question), ("a", a), ("b", b)):
        if not isinstance(text, str):
            raise UsageError(f"{name} should be a text (it is of type {type(text).__name__}).")
    return Same(Sameness(Question("", question)).same(a, b), JUDGE, _error_rate({question}))


def judged(rows: Iterable[Mapping[str, Any]], judge: Judge | None = None, name: str = JUDGE) -> dict[str, Any]:
    """``klype judge``'s document. A row has ``question``, ``a`` and ``b`` (are they the same?) or ``question``,
    ``answer`` and ``answers``, perhaps with ``choices`` (is it right?). ``judge``: another than the rules.

    Errors: a row of neither kind, none at all.
    """
    found: list[dict[str, Any]] = []
    asked: set[str] = set()
    for number, row in enumerate(rows, 1):
        question = _question(row, number)
        asked.add(question.question)
        if row.keys() >= PAIR:
            found.append({"same": _same(question, row["a"], row["b"], judge), "judge": name})
        else:
            found.append({"right": _right(question, row["answer"], judge), "judge": name})
    if not found:
        raise UsageError("There is no row to judge.", "Give JSONL rows with question, a and b.")
    pairs = all("same" in row for row in found)
    error = _error_rate(asked) if judge is None and pairs else None
    return {"rows": found, "judge": name, "error_rate": None if error is None else error.json()}


def _error_rate(questions: set[str]) -> Figure | None:
    """Of pairs whose questions are all of one language, and of one that was measured."""
    languages = {language_of(question) if is_known(question) else "" for question in questions}
    return ERRORS.get(languages.pop()) if len(languages) == 1 else None


def _question(row: Mapping[str, Any], number: int) -> Question:
    """The question of a row, its texts checked."""
    if not (row.keys() >= PAIR or row.keys() >= ANSWER):
        raise UsageError(f"Row {number} has neither question, a and b nor question, answer and answers.")
    texts = {key: row[key] for key in ("question", "a", "b", "answer") if key in row}
    lists = {key: row[key] for key in ("answers", "choices") if key in row}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise UsageError(f"Row {number}: {key} should be a text.")
    for key, value in lists.items():
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise UsageError(f"Row {number}: {key} should be a list of texts.")
    return Question(
        str(number), row["question"], answers=tuple(lists.get("answers", ())), choices=tuple(lists.get("choices", ()))
    )


def _same(question: Question, a: str, b: str, judge: Judge | None) -> bool | None:
    if judge is None:
        return Sameness(question).same(a, b)
    if bare(a) == bare(b):
        return True
    # asked in both orders: a model that prefers what stands first or last cannot tell
    orders = {
        judge(Question(question.id, question.question, answers=(one,), choices=question.choices), other).right
        for one, other in ((a, b), (b, a))
    }
    return orders.pop() if len(orders) == 1 else None


def _right(question: Question, answer: str, judge: Judge | None) -> bool | None:
    if judge is not None:
        return judge(question, answer).right
    if question.choices and (chosen := choice_match(question, answer).right) is not None:
        return chosen
    return Sameness(question).right(answer)
