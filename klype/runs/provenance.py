"""What is known of a model from its run: its training data, held-out questions, and the true probabilities."""

import re
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

from klype.errors import KlypeError
from klype.runs.folder import read_run
from klype.sources.model_files import ModelFiles
from klype.sources.opening import PATH, find_model, kind_of
from klype.text.tokenizer import Tokenizer
from klype.values import Question
from klype.words import words
from klype.world.automaton import Filter
from klype.world.vocabulary import Spellings, TokenFilter
from klype.world.world import World


def world_of(run: Path | None) -> World | None:
    """The demo world that a run is about; None for other runs and without a run."""
    settings = read_run(run).get("settings", {}) if run is not None else {}
    return World(settings.get("world", "full")) if settings.get("kind") == "world" else None


def next_truth(found: ModelFiles, tokenizer: Tokenizer, text: str, raw: bool) -> dict[int, float] | None:
    """{token: probability} after ``text`` as the start of a document (``raw``), or as a question put to the model.

    None where the truth is unknown: another recipe, or a text or question that the world's grammar does not have.
    """
    world = world_of(found.run)
    if found.run is None or world is None:
        return None
    if raw:
        filter_ = world.filter()
        return next_tokens(filter_, tokenizer, text) if is_beginning(filter_, text) else None
    question, _ = question_in(world, found.run, text)
    return None if question is None else next_tokens(world.filter(question), tokenizer, "")


def is_beginning(words: Filter, text: str) -> bool:
    """Whether the text is the beginning of something in the language; its last word may be incomplete."""
    reader = copy(words)
    *whole, last = World.words_of(text) or ("",)
    for word in whole:
        reader.push(word)
        if reader.slips:
            return False
    return any(word.startswith(last) for word in reader.next())


def next_tokens(words: Filter, tokenizer: Tokenizer, text: str) -> dict[int, float]:
    """{token: probability} after this text, from the distribution over words."""
    walker = copy(words)
    met = set(walker.next())  # the words that were or are possible at any point: only their spellings matter
    for word in World.words_of(text):
        walker.push(word)
        met |= set(walker.next())
    spelled = Spellings(sorted(met), tokenizer.encode, tokenizer.end)
    reader = TokenFilter(words, spelled)
    for token in tokenizer.encode(f" {text.strip()}") if text.strip() else ():
        reader.push(token)
    return reader.next()


def question_in(world: World | None, run: Path, text: str) -> tuple[Question | None, str]:
    """(question, "") for a text that is a question of the run's world, or one of its held-out questions; else (None,
    why the grammar does not know it)."""
    unread = ""
    if world is not None:
        try:
            return world.parse(text), ""
        except KlypeError as error:
            unread = f"{error.message}\n{error.hint}"
    kept = find_question(read_questions(run / "questions.jsonl"), text)
    return kept, unread if kept is None else ""


def find_question(questions: Sequence[Question], text: str) -> Question | None:
    """The world's question with this prompt, context included: the same words about another story are another
    question."""
    wanted = " ".join(text.split())
    return next((one for one in questions if one.extra and wanted == " ".join(one.prompt.split())), None)


def read_questions(file: Path) -> list[Question]:
    """The held-out questions of a run, without damaged rows; none if the file is missing or empty."""
    from klype.data import rows
    from klype.data.readers import BadRows

    try:
        return rows.read_questions([file], BadRows(skip=True)) if file.is_file() and file.stat().st_size else []
    except KlypeError:  # every row is damaged
        return []


NAMED = 3  # files that are named in a sentence
SHOWN = 8  # words
_WORD = re.compile(r"[^\W_]+")
_COUNT = re.compile(r"\((\d+) words\)")


@dataclass(frozen=True, slots=True)
class DataSources:
    """The training data of a model. ``names`` of its sources; ``world``: number of words in the demo world, or 0."""

    names: tuple[str, ...]
    world: int
    tokenizer: Tokenizer

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that the model does not know, each once, as far as its tokens tell."""

        def strange(word: str) -> bool:
            """Has no token of its own, if the tokenizer has one for every known word; else falls apart into letters."""
            tokens = self.tokenizer.encode(f" {word}")
            if self.tokenizer.knows_words:
                return len(tokens) > 1
            pieces = [self.tokenizer.token_bytes(token).strip().decode("utf-8", "replace") for token in tokens]
            return (len(word) > 2 and all(len(p) <= 1 for p in pieces)) or any("\ufffd" in p for p in pieces)

        return list(filter(strange, dict.fromkeys(_WORD.findall(text))))

    def about(self, lang: str) -> str:
        """What the model was trained on, in one sentence."""
        w, names = words(lang, "reading"), ", ".join(self.names[:NAMED])
        if self.world:
            return w("world", n=self.world)
        more = len(self.names) - NAMED
        return w("text", names=names) if more <= 0 else w("texts", names=names, more=more)

    def warning(self, text: str, lang: str) -> str:
        """A sentence that names the words of the text that the model does not know; empty if there are none."""
        found = self.unknown_words(text)
        shown = ", ".join(found[:SHOWN]) + (" …" if len(found) > SHOWN else "")
        return words(lang, "reading")("unknown", words=shown) if found else ""


def data_sources(found: ModelFiles, tokenizer: Tokenizer, seen: frozenset[Path] = frozenset()) -> DataSources | None:
    """The training data of a model, from its run and the runs that this one started from. None if unknown: the model,
    or one that it started from, belongs to no run. ``seen``: runs visited, since a folder may have been overwritten by
    a run that started from it."""
    about = read_run(found.run) if found.run is not None else {}
    names = tuple(str(row["name"]) for row in about.get("data") or () if isinstance(row, dict) and row.get("name"))
    if not names:
        return None
    counted = _COUNT.search(names[0]) if about.get("settings", {}).get("kind") == "world" else None
    reading = DataSources(names, int(counted[1]) if counted else 0, tokenizer)
    before = str(about.get("asked", {}).get("from_") or "")
    if not before:
        return reading
    if found.run is None or kind_of(before) is not PATH:  # belongs to no run; do not download it to find out
        return None
    seen |= {found.run.resolve()}
    try:
        earlier = find_model(before)
    except KlypeError:
        return None
    again = earlier.run is not None and earlier.run.resolve() in seen
    known = None if again else data_sources(earlier, tokenizer, seen)
    return None if known is None else replace(reading, names=tuple(dict.fromkeys((*known.names, *names))))
