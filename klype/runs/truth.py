"""The true distribution of a demo-world model's next token, where the world can know it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from klype.errors import KlypeError
from klype.runs.folder import read_run
from klype.sources.find import Found
from klype.text.tokenizer import Tokenizer
from klype.values import Question
from klype.world.automaton import Filter
from klype.world.lift import Spellings, TokenFilter
from klype.world.world import ATTACHED, World


def next_truth(found: Found, tokenizer: Tokenizer, text: str, raw: bool) -> dict[int, float] | None:
    """{token: probability} after ``text`` as the start of a document (``raw``), or as a question put to the model.

    None where there is no truth to know: another recipe, or a question that is not among the run's held-out ones.
    """
    settings = read_run(found.run).get("settings", {}) if found.run else {}
    if found.run is None or settings.get("kind") != "world":
        return None
    world = World(settings.get("world", "full"))
    if raw:
        return after(world.filter("document"), tokenizer, text)
    question = find_question(read_questions(found.run / "questions.jsonl"), text)
    return None if question is None else after(world.filter("chat", question), tokenizer, "")


def after(words: Filter, tokenizer: Tokenizer, text: str) -> dict[int, float]:
    """The words' distribution lifted to tokens, after this text."""
    spelled = Spellings(sorted(met(words, text)), tokenizer.encode, tokenizer.end, "".join(sorted(ATTACHED)))
    reader = TokenFilter(words, spelled)
    for token in tokenizer.encode(f" {text.strip()}") if text.strip() else ():
        reader.push(token)
    return reader.next()


def met(words: Filter, text: str) -> set[str]:
    """Every word that could have come somewhere along the text, or comes next: all whose spelling matters."""
    reader = words.copy()
    known = set(reader.next())
    for word in World.words_of(text):
        reader.push(word)
        known |= set(reader.next())
    return known


def find_question(questions: Sequence[Question], text: str) -> Question | None:
    """The world's question with this text, or with this context and question."""
    wanted = " ".join(text.split())
    for question in questions:
        if question.extra and wanted in (" ".join(question.prompt.split()), " ".join(question.question.split())):
            return question
    return None


def read_questions(file: Path) -> list[Question]:
    """The questions that a run kept back, but for damaged rows; none where there is no file, or nothing in it."""
    from klype.data import rows
    from klype.data.readers import BadRows

    try:
        return rows.read_questions([file], BadRows(skip=True)) if file.is_file() and file.stat().st_size else []
    except KlypeError:  # no row is whole
        return []
