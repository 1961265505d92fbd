"""What a model's run says of it: what it has read, its held-out questions, and the truth where the world knows it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

from klype.errors import KlypeError
from klype.runs.folder import read_run
from klype.sources.find_model import ModelFiles
from klype.sources.opening import PATH, find_model, kind_of
from klype.text.tokenizer import Tokenizer
from klype.values import Question
from klype.words import words
from klype.world.automaton import Filter
from klype.world.vocabulary import Spellings, TokenFilter
from klype.world.world import World


def world_of(run: Path | None) -> World | None:
    """The demo world that a run is about; None for other runs, and for none."""
    settings = read_run(run).get("settings", {}) if run is not None else {}
    return World(settings.get("world", "full")) if settings.get("kind") == "world" else None


def next_truth(found: ModelFiles, tokenizer: Tokenizer, text: str, raw: bool) -> dict[int, float] | None:
    """{token: probability} after ``text`` as the start of a document (``raw``), or as a question put to the model.

    None where there is no truth to know: another recipe, or a text or question that the world's language does not have.
    """
    world = world_of(found.run)
    if found.run is None or world is None:
        return None
    if raw:
        filter_ = world.filter("document")
        return after(filter_, tokenizer, text) if begins(filter_, text) else None
    question, _ = question_in(world, found.run, text)
    return None if question is None else after(world.filter("chat", question), tokenizer, "")


def begins(words: Filter, text: str) -> bool:
    """Whether a text begins what the language says; its last word may be unfinished."""
    reader = copy(words)
    *whole, last = World.words_of(text) or ("",)
    for word in whole:
        reader.push(word)
        if reader.slips:
            return False
    return any(word.startswith(last) for word in reader.next())


def after(words: Filter, tokenizer: Tokenizer, text: str) -> dict[int, float]:
    """The words' distribution lifted to tokens, after this text."""
    walker = copy(words)
    met = set(walker.next())  # every word that could have come along the text, or comes next: whose spelling matters
    for word in World.words_of(text):
        walker.push(word)
        met |= set(walker.next())
    spelled = Spellings(sorted(met), tokenizer.encode, tokenizer.end)
    reader = TokenFilter(words, spelled)
    for token in tokenizer.encode(f" {text.strip()}") if text.strip() else ():
        reader.push(token)
    return reader.next()


def question_in(world: World | None, run: Path, text: str) -> tuple[Question | None, str]:
    """What a text asks in a run's world: any question that its language has; else one that the run kept back; else why
    its language does not have it."""
    unread = ""
    if world is not None:
        try:
            return world.parse(text), ""
        except KlypeError as error:
            unread = f"{error.message}\n{error.hint}"
    kept = find_question(read_questions(run / "questions.jsonl"), text)
    return kept, unread if kept is None else ""


def find_question(questions: Sequence[Question], text: str) -> Question | None:
    """The world's question with this text, context and all: the same words about another story ask another thing."""
    wanted = " ".join(text.split())
    return next((one for one in questions if one.extra and wanted == " ".join(one.prompt.split())), None)


def read_questions(file: Path) -> list[Question]:
    """The questions that a run kept back, but for damaged rows; none where there is no file, or nothing in it."""
    from klype.data import rows
    from klype.data.readers import BadRows

    try:
        return rows.read_questions([file], BadRows(skip=True)) if file.is_file() and file.stat().st_size else []
    except KlypeError:  # no row is whole
        return []


NAMED = 3  # files that are named in a sentence
SHOWN = 8  # words
_WORD = re.compile(r"[^\W_]+")
_COUNT = re.compile(r"\((\d+) words\)")


@dataclass(frozen=True, slots=True)
class DataSources:
    """``names`` of what was read; ``world``: how many words the demo world has, 0 when it was something else."""

    names: tuple[str, ...]
    world: int
    tokenizer: Tokenizer

    def unknown(self, text: str) -> list[str]:
        """The words of a text that the model has never met, each once; of a large vocabulary only the strangest."""

        def strange(word: str) -> bool:
            """Where every word that was read has a token: it has none. Else: it falls apart into letters, or bytes."""
            tokens = self.tokenizer.encode(f" {word}")
            if self.tokenizer.knows_words:
                return len(tokens) > 1
            pieces = [self.tokenizer.token_bytes(token).strip().decode("utf-8", "replace") for token in tokens]
            return (len(word) > 2 and all(len(p) <= 1 for p in pieces)) or any("\ufffd" in p for p in pieces)

        return list(filter(strange, dict.fromkeys(_WORD.findall(text))))

    def about(self, lang: str) -> str:
        """What the model has read, in one sentence."""
        w, names = words(lang, "reading"), ", ".join(self.names[:NAMED])
        if self.world:
            return w("world", n=self.world)
        more = len(self.names) - NAMED
        return w("text", names=names) if more <= 0 else w("texts", names=names, more=more)

    def warning(self, text: str, lang: str) -> str:
        """Which words of the text the model does not know, in one sentence; empty when it knows them all."""
        found = self.unknown(text)
        shown = ", ".join(found[:SHOWN]) + (" …" if len(found) > SHOWN else "")
        return words(lang, "reading")("unknown", words=shown) if found else ""


def reading_of(found: ModelFiles, tokenizer: Tokenizer, seen: frozenset[Path] = frozenset()) -> DataSources | None:
    """None if unknown: a model that belongs to no run, or whose run started from such a model. ``seen``: runs that
    started from this one; a folder can be made anew from what was made of it."""
    about = read_run(found.run) if found.run is not None else {}
    names = tuple(str(row["name"]) for row in about.get("data") or () if isinstance(row, dict) and row.get("name"))
    if not names:
        return None
    counted = _COUNT.search(names[0]) if about.get("settings", {}).get("kind") == "world" else None
    reading = DataSources(names, int(counted[1]) if counted else 0, tokenizer)
    before = str(about.get("asked", {}).get("from_") or "")
    if not before:
        return reading
    if found.run is None or kind_of(before) is not PATH:  # those belong to no run: none is fetched to say so
        return None
    seen |= {found.run.resolve()}
    try:
        earlier = find_model(before)
    except KlypeError:
        return None
    again = earlier.run is not None and earlier.run.resolve() in seen
    known = None if again else reading_of(earlier, tokenizer, seen)
    return None if known is None else replace(reading, names=tuple(dict.fromkeys((*known.names, *names))))
