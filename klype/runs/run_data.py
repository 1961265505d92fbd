"""Reads the data of a run about text: texts, conversations, questions and rankings, with their sources."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

from klype.data import find_data
from klype.data.documents import Split, is_held_out, near_duplicates, sample_hash, split, unique, units
from klype.data.files import files_of
from klype.data.readers import KINDS, BadRows, ReadOptions, TextDocument, read_texts
from klype.data.rows import Conversation, read_instructions, read_preferences
from klype.data.text_tasks import language
from klype.durable import hash_file
from klype.errors import UsageError
from klype.examine.run_facts import JsonObject, LocalText
from klype.runs.dictionary import Dictionary, bokmalsordboka, read_articles
from klype.runs.recipe import DataSection
from klype.runs.run_options import InputOptions
from klype.values import Question, Ranking
from klype.words import in_all_languages

HELD_OUT = 0.1  # share of questions
LOOKED_AT = 200  # texts of a file by which its main language is detected
CLEARLY = 3  # more words of the other language than this make a text one in that language
SHOWN_FILES = 60  # that the report lists


@dataclass(frozen=True, slots=True)
class Material:
    """A run's input data. ``questions``: with known answers (a dictionary's, endings of sayings); ``conversations``:
    the user's own rows.

    ``share``: the sampled part of the texts that is in ``split`` (the dictionary's are there in full). Below 1 the
    texts are larger than memory; ``texts()`` then reads all of them, to be trained on in shards.
    """

    split: Split
    conversations: list[Conversation]
    questions: list[Question]
    rankings: list[Ranking]
    dictionary: Dictionary | None
    data: list[JsonObject]
    notes: list[LocalText]
    share: float
    texts: Callable[[], Iterator[TextDocument]]


def read_data(
    options: InputOptions, section: DataSection, bad: BadRows, known: Mapping[str, str] | None = None
) -> Material:
    """Reads all input files, sorted by what they hold. Raises KlypeError when a file cannot be read, and UsageError
    when there is no text.

    ``known``: hashes of files by absolute path, as far as computed (``run_start.input_hashes``).
    """
    place = options.data
    if place is not None and find_data.is_hub(place):
        place = find_data.fetch(str(place), (options.out or Path()) / "data", section.megabytes)
    found, dictionary = find_data.collect(place), Dictionary() if section.dictionary else None
    if dictionary is None:  # articles are then plain text
        found["text"] += found.pop("articles", [])
    else:
        bokmalsordboka(dictionary)
        for file in found["articles"]:
            read_articles(file, dictionary, bad)
    own = files_of(options.text, KINDS) if options.text else []
    texts = [*own, *found["text"]]
    if not texts and dictionary is None and not found["instructions"] and not options.instructions:
        raise UsageError("This recipe needs text.", "Give --text FILES or --data FOLDER.")
    unpacked = round(section.unpacked_megabytes * 1e6)
    rows = [*found["instructions"], *([options.instructions] if options.instructions else [])]
    told = {file: read_instructions([file], bad, unpacked) for file in rows}
    kept = {f: [row for row in t if find_data.in_language(row, section.language)] for f, t in told.items()}
    said = list({tuple((m["role"], m["content"]) for m in row): row for of in kept.values() for row in of}.values())
    most, characters = section.memory_megabytes * 1e6, 0
    share = min(1.0, most / max(1, sum(file.stat().st_size for file in texts)))
    reading = ReadOptions(options.encoding, options.text_field, section.language, bad, unpacked)
    read: set[str] = set()
    documents: list[TextDocument] = []
    left: list[str] = []
    for document in _texts(own, found["text"], reading, section.near, left):
        read.add(document.source)
        new = [unit for unit in units(document) if share == 1 or sample_hash(unit.text) < share]
        documents += new
        characters += sum(len(unit.text) for unit in new)
        while characters > 2 * most:  # compressed files hold more than their size says
            share /= 2
            documents = [unit for unit in documents if sample_hash(unit.text) < share]
            characters = sum(len(unit.text) for unit in documents)
    if not read and dictionary is None:  # only conversations: they are the text
        documents = [
            TextDocument("\n".join(m["content"] for m in row), "conversations", i) for i, row in enumerate(said, 1)
        ]
    ranked = [*found["preferences"], *([options.preferences] if options.preferences else [])]

    def wanted(ranking: Ranking) -> bool:
        said = f"{ranking.question.prompt} {ranking.candidates[0]}"
        return not section.language or language(said) == section.language

    orders = {file: list(filter(wanted, read_preferences([file], bad))) for file in ranked}
    endings = {file: list(find_data.endings(file, section.language, bad)) for file in found["endings"]}
    used = [file for file in texts if str(file) in read]
    used += [file for files in (kept, orders, endings) for file, of in files.items() if of]
    used += found["articles"] if dictionary else []
    facts = [*dictionary.sources] if dictionary else []
    for file in dict.fromkeys(used[:SHOWN_FILES]):
        digest = (known or {}).get(os.path.abspath(file)) or hash_file(file)
        facts.append({"name": file.name, "sha256": digest, "bytes": file.stat().st_size, **find_data.licence_of(file)})
    notes: list[LocalText] = []
    if foreign := sum(map(len, told.values())) - sum(map(len, kept.values())):
        notes.append(in_all_languages("run", f"note.foreign_{section.language}", n=foreign))
    if pairs := found["pairs"]:
        notes.append(in_all_languages("run", "note.pairs", names=", ".join(file.name for file in pairs)))
    if share < 1:
        sizes = {"megabytes": f"{section.memory_megabytes:g}", "percent": f"{100 * share:.0f}"}
        notes.append(in_all_languages("run", "note.sampled", **sizes))
    if left:
        notes.append(in_all_languages("run", "note.repeated", n=len(left), first=left[0]))
    again = replace(reading, bad=BadRows(skip=bad.skip))  # bad rows are already counted
    parts = split(documents) if documents else Split([], [])
    if dictionary is not None:  # split by word, so that the article of a held-out word is held out, too
        train, held = dictionary.documents(held_out=False), dictionary.documents(held_out=True)
        parts = Split([*train, *parts.train], [*held, *parts.held_out])
    return Material(
        parts,
        said,
        [*(dictionary.questions(section.words) if dictionary else []), *chain.from_iterable(endings.values())],
        list(chain.from_iterable(orders.values())),
        dictionary,
        facts,
        notes,
        share,
        lambda: _texts(own, found["text"], again, section.near, []),
    )


def held_out(question: Question) -> bool:
    """Whether a question is held out; depends on its key alone (``key_of``)."""
    return is_held_out(held_out_key(question), 0.05 if isinstance(question.extra.get("lemma"), str) else HELD_OUT)


def held_out_key(question: Question) -> str:
    """The key that decides whether a question is held out: the word, of a dictionary's question, else the whole
    prompt."""
    word = question.extra.get("lemma")
    return word.lower() if isinstance(word, str) else whole_prompt(question)


def whole_prompt(question: Question) -> str:
    """All messages before the answer, as one text."""
    return "\n".join(message["content"] for message in question.messages())


def _texts(
    own: list[Path], found: list[Path], reading: ReadOptions, near: float, left: list[str]
) -> Iterator[TextDocument]:
    """The texts of ``own`` files, and of ``found`` ones those in the recipe's language, each once. Near-duplicates are
    left out where ``near`` > 0; the names of their files are appended to ``left``."""
    if reading.language:
        given = read_texts(own, reading) if own else iter(())
        texts = unique(chain(given, *(_in_language(file, reading) for file in found)))
    else:
        texts = read_texts([*own, *found], reading) if own or found else iter(())
    is_new = near_duplicates(near) if near else None
    for document in texts:
        if is_new is None or is_new(document.text):
            yield document
        else:
            left.append(Path(document.source).name)


def _in_language(file: Path, reading: ReadOptions) -> Iterator[TextDocument]:
    """A file's texts in the language of ``reading``. Those too short to tell count as in the file's main language."""
    texts = read_texts([file], reading)
    first = list(islice(texts, LOOKED_AT))
    common = language(" ".join(d.text[:100] for d in first))
    yield from (d for d in chain(first, texts) if language(d.text, common, CLEARLY) == reading.language)
