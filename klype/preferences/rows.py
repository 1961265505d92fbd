"""Rankings as rows of JSON: klype's own, which lose nothing, and the pairs that other trainers read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from klype.data.rows import ranking_of
from klype.preferences.annotator import ranks
from klype.values import Ranking


def row_of(ranking: Ranking) -> dict[str, Any]:
    """A ranking with its whole question. ``order``: best first, tied candidates in one inner list."""
    question = ranking.question
    row: dict[str, Any] = {
        "id": question.id,
        "question": question.question,
        "context": question.context,
        "candidates": list(ranking.candidates),
        "order": [list(group) for group in ranking.order],
        "annotator": ranking.annotator,
        "when": ranking.when,
    }
    kept = {"answers": list(question.answers), "choices": list(question.choices), "extra": question.extra}
    return row | {name: value for name, value in kept.items() if value}


def ranking_from(row: Mapping[str, Any], identity: str, annotator: str = "") -> Ranking | str:
    """The ranking of a row of klype's or of another known shape, or what is wrong with it."""
    ranking = ranking_of(row, identity, annotator)
    if isinstance(ranking, str):
        return ranking
    answers, choices, extra = row.get("answers") or (), row.get("choices") or (), row.get("extra") or {}
    if not isinstance(answers, list | tuple) or not isinstance(choices, list | tuple) or not isinstance(extra, dict):
        return "has answers, choices or extra of another type"
    question = replace(ranking.question, answers=tuple(answers), choices=tuple(choices), extra=extra)
    return replace(ranking, question=question)


def trl_rows(ranking: Ranking) -> list[dict[str, str]]:
    """Every ordered pair as TRL's ``prompt``, ``chosen``, ``rejected``; tied pairs make no row."""
    places = ranks(ranking)
    return [
        {"prompt": ranking.question.prompt, "chosen": ranking.candidates[i], "rejected": ranking.candidates[j]}
        for i, better in enumerate(places)
        for j, worse in enumerate(places)
        if better < worse
    ]
