"""The true distribution of a demo-world model's next token, where the world can know it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from klype.runs.find import Found
from klype.runs.folder import read_run
from klype.text.tokenizer import Tokenizer
from klype.values import Question
from klype.world.automaton import Filter
from klype.world.lift import Spellings, TokenFilter
from klype.world.world import ATTACHED, World


def next_truth(found: Found, tokenizer: Tokenizer, text: str, raw: bool) -> dict[int, float] | None:
    """{token: probability} after ``text`` as the start of a document (``raw``), or as a question put to the model.

    None where there is no truth to know: another recipe, or a question that is not among the run's held-out ones.
    """
    if found.run is None or read_run(found.run).get("recipe") != "world":
        return None
    world = World()
    if raw:
        words, read = world.filter("document"), tokenizer.encode(f" {text.strip()}") if text.strip() else []
    else:
        question = find_question(found.run / "questions.jsonl", text)
        if question is None or question.extra.get("world") != world.size:
            return None
        words, read = world.filter("chat", question), []
    return after(world, words, tokenizer, read)


def after(world: World, words: Filter, tokenizer: Tokenizer, read: list[int]) -> dict[int, float]:
    """The words' distribution lifted to tokens, after these tokens."""
    spelled = Spellings(world.words, tokenizer.encode, tokenizer.end, "".join(sorted(ATTACHED)))
    reader = TokenFilter(words, spelled)
    for token in read:
        reader.push(token)
    return reader.next()


def find_question(file: Path, text: str) -> Question | None:
    """The row of a question file whose question, or context and question, is this text."""
    if not file.is_file():
        return None
    wanted = " ".join(text.split())
    for line in file.read_text(encoding="utf-8").splitlines():
        question = _question(json.loads(line))
        if wanted in (" ".join(question.prompt.split()), " ".join(question.question.split())):
            return question
    return None


def _question(row: dict[str, Any]) -> Question:
    return Question(
        str(row.get("id", "")),
        row["question"],
        row.get("context", ""),
        tuple(row.get("answers", ())),
        tuple(row.get("choices", ())),
        row.get("extra", {}),
    )
