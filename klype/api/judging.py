"""Judging answers: whether two mean the same, and whether one is correct, with the judge's name and error rate."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klype.errors import UsageError
from klype.judge.judge import RULINGS, Ruling
from klype.judge.judge import Judge as Judge
from klype.judge.rule_judge import RuleJudge
from klype.sources.model_files import resolve
from klype.sources.opening import OpenModel, find_model, kind_of, open_model
from klype.values import Figure, Question

PAIR, ANSWER = frozenset({"question", "a", "b"}), frozenset({"question", "answer", "answers"})


@dataclass(frozen=True, slots=True)
class Same:
    """The result of ``klype.same``.

    ``same``: whether two answers say the same, None if the judge cannot tell. ``judge``: its name. ``error_rate``: how
    often it differs from a human reader in the question's language; None: not measured (not: it cannot err).
    """

    same: bool | None
    judge: str
    error_rate: Figure | None


def same(question: str, a: str, b: str, judge: str | Judge | None = None) -> Same:
    """Whether two answers to one question say the same, by the rules (what their answering sentences claim) or by
    another ``judge``, as for ``klype.examine``.

    >>> import klype
    >>> klype.same("Where is Kari?", "At school.", "Kari is at school").same
    True
    >>> klype.same("Where is Kari?", "At school.", "She is at home.").same
    False

    Raises UsageError for a question or an answer that is not a string.
    """
    for name, text in (("question", question), ("a", a), ("b", b)):
        if not isinstance(text, str):
            raise UsageError(f"{name} must be a string (it is of type {type(text).__name__}).")
    ruling, asked = open_judge(judge) or RuleJudge(), Question("", question)
    return Same(ruling.same(asked, a, b), ruling.name, ruling.error_over("same", [asked]))


def open_judge(
    name: str | Judge | None, own: OpenModel | None = None, how: tuple[str, str] = ("float32", "auto")
) -> Judge | None:
    """Opens a judge by name: "rules"; "self", which is the model ``own``; "minilm"; an encoder's folder or
    ``hf:owner/name``, optionally with a similarity threshold (``FOLDER@0.7``); or another MODEL. None for no name.

    ``how``: precision and device for a MODEL. Raises KlypeError if it cannot be opened, or has no chat template.
    """
    from klype.judge.embedding import EmbeddingJudge, is_encoder, minilm, open_embedding
    from klype.judge.meaning import JudgeModel

    if name is None or isinstance(name, Judge):
        return name
    if not isinstance(name, str):
        raise UsageError("judge should be a name or a Judge.")
    if name in ("", "rules"):
        return RuleJudge() if name else None
    if name == "minilm":
        return minilm()
    name = resolve(name)
    # FOLDER@0.7: the similarity threshold
    encoder, at, alike = name.rpartition("@") if re.search(r"@-?[01](\.\d+)?$", name) else (name, "", "")
    if kind_of(encoder).find is not None and name != "self":
        folder = Path(encoder) if is_encoder(Path(encoder)) else find_model(encoder).folder
        if is_encoder(folder):
            return EmbeddingJudge(open_embedding(folder), Path(encoder).name, *([float(alike)] if at else []))
    if name == "self" and own is None:
        raise UsageError("There is no model that could judge itself here.", "Name another judge.")
    opened = own if name == "self" and own is not None else open_model(name, how[0], device=how[1])
    if not opened.template:
        raise UsageError(f"The judge {name} cannot be asked: it has no chat template.", "Give an instructed model.")
    return JudgeModel(opened.source, opened.window)


def judge_rows(rows: Iterable[Mapping[str, Any]], judge: Judge | None = None) -> dict[str, Any]:
    """The document of ``klype judge``. A row has ``question``, ``a`` and ``b`` (do they mean the same?) or
    ``question``, ``answer``, ``answers`` and optionally ``choices`` (is it correct?). ``judge``: by default the rules.
    ``error_rate`` is null where it was not measured.

    Raises UsageError for a row of neither kind, and for no rows at all.
    """
    judge = judge or RuleJudge()
    found: list[dict[str, Any]] = []
    asked: list[Question] = []
    for number, row in enumerate(rows, 1):
        question = question_of_row(row, number)
        asked.append(question)
        pair = row.keys() >= PAIR
        ruling = judge.same(question, row["a"], row["b"]) if pair else judge.right(question, row["answer"])
        found.append({"same" if pair else "right": ruling, "judge": judge.name})
    if not found:
        raise UsageError("There is no row to judge.", "Give JSONL rows with question, a and b.")
    # an error rate was measured for each kind of ruling, not for a mixture
    kinds: list[Ruling] = [kind for kind in RULINGS if any(kind in row for row in found)]
    error = judge.error_over(kinds[0], asked) if len(kinds) == 1 else None
    return {"rows": found, "judge": judge.name, "error_rate": None if error is None else error.json()}


def question_of_row(row: Mapping[str, Any], number: int) -> Question:
    """The question of a row. Raises UsageError if a field is missing or of the wrong type."""
    if not (row.keys() >= PAIR or row.keys() >= ANSWER):
        raise UsageError(f"Row {number} has neither question, a and b nor question, answer and answers.")
    for key in ("question", "a", "b", "answer"):
        if not isinstance(row.get(key, ""), str):
            raise UsageError(f"Row {number}: {key} must be a string.")
    for key in ("answers", "choices"):
        if not isinstance(row.get(key, []), list) or not all(isinstance(one, str) for one in row.get(key, [])):
            raise UsageError(f"Row {number}: {key} must be a list of strings.")
    answers, choices = tuple(row.get("answers", ())), tuple(row.get("choices", ()))
    return Question(str(number), row["question"], answers=answers, choices=choices)
