"""What a run about text is made of: texts, conversations, questions and rankings, with where each came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from klype.data import collection, hub
from klype.data.readers import BadRows, TextDocument, TextOptions, files_of, read_texts
from klype.data.rows import Conversation, read_instructions, read_preferences
from klype.data.split import Split, blocks, is_held_out, split
from klype.data.tasks import language
from klype.errors import UsageError
from klype.examine.facts import DataFacts, Text
from klype.runs.dictionary import Dictionary, bokmalsordboka, read_articles
from klype.runs.options import InputOptions
from klype.runs.recipe import DataSection
from klype.values import Question, Ranking

HELD_OUT = 0.1  # share of questions
SHOWN_FILES = 60
BOOK = 20_000  # characters: longer documents are held out by blocks, so that some of each is measured


@dataclass(slots=True)
class Material:
    """``questions`` have known answers (a dictionary's, endings of sayings); ``conversations`` are rows of users."""

    split: Split
    conversations: list[Conversation] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    rankings: list[Ranking] = field(default_factory=list)
    dictionary: Dictionary | None = None
    data: list[DataFacts] = field(default_factory=list)
    notes: list[Text] = field(default_factory=list)


def gather(options: InputOptions, section: DataSection, bad: BadRows) -> Material:
    """Everything that is given, sorted by what it is. Raises KlypeError when it cannot be read or is nothing."""
    found = _collected(options, section)
    dictionary = _dictionary(found, section, bad)
    own = files_of(options.text) if options.text else []
    texts = [*own, *found.of("text")]
    if not texts and dictionary is None and not found.of("instructions") and not options.instructions:
        raise UsageError("This recipe needs text.", "Give --text FILES or --data FOLDER.")
    rows = [*found.of("instructions"), *([options.instructions] if options.instructions else [])]
    ranked = [*found.of("preferences"), *([options.preferences] if options.preferences else [])]
    told = {file: read_instructions([file], bad) for file in rows}
    kept = {f: [row for row in t if collection.in_language(row, section.language)] for f, t in told.items()}
    said = list({tuple((m["role"], m["content"]) for m in row): row for own in kept.values() for row in own}.values())
    foreign = sum(map(len, told.values())) - sum(map(len, kept.values()))
    documents = _documents(own, found.of("text"), options, section, bad)
    if not documents and dictionary is None:  # rows of conversations alone: their answers are the text
        documents = [
            TextDocument("\n".join(m["content"] for m in row), "conversations", i) for i, row in enumerate(said, 1)
        ]
    material = Material(_split(documents, dictionary), said, dictionary=dictionary)
    orders = {file: _rankings([file], section.language, bad) for file in ranked}
    material.rankings = [ranking for own in orders.values() for ranking in own]
    material.questions = [*(dictionary.asked(section.words) if dictionary else []), *_endings(found, section, bad)]
    material.notes = _notes(found, foreign, section)
    read = {document.source for document in documents}
    used = [file for file in texts if str(file) in read]
    used += [file for files in (kept, orders) for file, own in files.items() if own]
    used += [*found.of("endings"), *(found.of("articles") if dictionary else [])]
    material.data = [*(dictionary.sources if dictionary else []), *map(_facts, dict.fromkeys(used[:SHOWN_FILES]))]
    return material


def held_out(question: Question) -> bool:
    """A dictionary's by its word, others by their text: a function of the question alone."""
    word = question.extra.get("lemma")
    return is_held_out(word.lower(), 0.05) if isinstance(word, str) else is_held_out(question.prompt, HELD_OUT)


def _collected(options: InputOptions, section: DataSection) -> collection.Collection:
    if options.data is None:
        return collection.Collection()
    place: str | Path = options.data
    if hub.is_hub(place):
        folder = (options.out or Path()) / "data"
        place = hub.fetch(str(place), folder, section.megabytes)
    return collection.collect(place)


def _dictionary(found: collection.Collection, section: DataSection, bad: BadRows) -> Dictionary | None:
    """The recipe's dictionary, and articles that lie in the folder; without the first, articles are plain text."""
    if not section.dictionary:
        found.files.setdefault("text", []).extend(found.files.pop("articles", []))
        return None
    dictionary = Dictionary()
    bokmalsordboka(dictionary)
    for file in found.of("articles"):
        read_articles(file, dictionary, bad)
    return dictionary


def _split(documents: list[TextDocument], dictionary: Dictionary | None) -> Split:
    """Texts by their hash; articles by their word, so that a held-out word is not met in its own article."""
    parts = split(documents) if documents else Split([], [])
    if dictionary is None:
        return parts
    train, held = dictionary.documents(held_out=False), dictionary.documents(held_out=True)
    return Split([*train, *parts.train], [*held, *parts.held_out])


def _documents(
    own: list[Path], found: list[Path], options: InputOptions, section: DataSection, bad: BadRows
) -> list[TextDocument]:
    """The user's own files as they are; of a folder what is in the recipe's language. Books are cut into blocks."""
    reading = TextOptions(encoding=options.encoding, language=section.language, bad=bad)
    documents = list(read_texts(own, reading)) if own else []
    if found:
        wanted = section.language
        documents += [d for d in read_texts(found, reading) if not wanted or language(d.text) == wanted]
    return [b for d in documents for b in (blocks(d) if len(d.text) > BOOK else [d])]


def _endings(found: collection.Collection, section: DataSection, bad: BadRows) -> Iterator[Question]:
    for file in found.of("endings"):
        for asked, accepted in collection.endings(file, section.language, bad):
            name = hashlib.sha256(asked.encode()).hexdigest()[:12]
            yield Question(name, asked, answers=accepted, extra={"kind": "ending"})


def _rankings(files: list[Path], wanted: str, bad: BadRows) -> list[Ranking]:
    rankings = read_preferences(files, bad) if files else []
    return [r for r in rankings if not wanted or language(f"{r.question.prompt} {r.candidates[0]}") == wanted]


def _notes(found: collection.Collection, foreign: int, section: DataSection) -> list[Text]:
    notes: list[Text] = []
    if foreign:
        named = {"en": {"en": "English", "nb": "engelsk"}, "nb": {"en": "Norwegian", "nb": "norsk"}}[section.language]
        notes.append(
            {
                "en": f"{foreign:,} questions of the folder are not in {named['en']} and were left out.",
                "nb": f"{foreign} spørsmål i mappen er ikke på {named['nb']} og ble utelatt.",
            }
        )
    if found.of("pairs"):
        names = ", ".join(file.name for file in found.of("pairs"))
        notes.append(
            {
                "en": f"{names}: pairs of good and bad sentences test a model and are not learnt from.",
                "nb": f"{names}: Par av gode og dårlige setninger er til for å teste en modell og ble ikke lest.",
            }
        )
    return notes


def _facts(file: Path) -> DataFacts:
    licence = collection.licence_of(file)
    raw = file.read_bytes()
    facts: DataFacts = {"name": file.name, "sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    if licence.name:
        facts["licence"] = licence.name
    if licence.attribution:
        facts["attribution"] = licence.attribution
    return facts
