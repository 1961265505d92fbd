"""Data in a folder, sorted by kind (text, questions with answers, ranked answers, dictionary articles), or on the Hub.

A table's kind is that of its first row; nothing else is guessed. Rows of a data set on the Hugging Face Hub
(``hf:owner/name``) are saved to a file of the run and read from there: it is hashed like any other file, and a resumed
run needs no network.
"""

import hashlib
import importlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from klype import durable
from klype.data.files import Paths, files_of, kind_of
from klype.data.readers import KINDS, TABLES, BadRows, ReadOptions, place, read_rows
from klype.data.rows import Conversation, conversation_of, strings
from klype.data.text_tasks import language
from klype.errors import KlypeError, UsageError, short_error, writing_to
from klype.values import Question

# articles: lemma, definitions; endings: a beginning and its accepted endings; pairs: good and bad sentences side by
# side, which test a model but must not be trained on
Kind = Literal["text", "instructions", "preferences", "articles", "endings", "pairs"]

_ENDING = {"nb": "Hvordan fortsetter uttrykket «{start} …»?", "en": "How does the saying “{start} …” go on?"}
_CODES = {"nb": "nb", "nob": "nb", "no": "nb", "en": "en", "eng": "en"}
_LONGEST = 300  # characters of a licence or an attribution that are shown
PREFIX = "hf:"
_NAME = re.compile(r"hf:(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?")

FilesByKind = defaultdict[Kind, list[Path]]
Rows = Iterable[Mapping[str, Any]]


def collect(paths: Paths | None) -> FilesByKind:
    """The files of folders, globs and names by their kind."""
    found: FilesByKind = defaultdict(list)
    for file in files_of(paths, KINDS) if paths is not None else ():
        found[kind(file)].append(file)
    return found


def kind(file: Path) -> Kind:
    """The kind of a file, by its first row that can be read."""
    if kind_of(file) not in TABLES:
        return "text"
    row = next((row for _, row in read_rows(file, ReadOptions(bad=BadRows(skip=True)))), dict[str, Any]())
    names = set(row)
    if {"lemma", "definitions"} <= names:
        return "articles"
    if {"idiom_start", "accepted_completions"} <= names:
        return "endings"
    if {"sentence_good", "sentence_bad"} <= names:
        return "pairs"
    if {"chosen", "rejected"} <= names or (names & {"prompt", "question"} and names & {"candidates", "ranked"}):
        return "preferences"
    said = conversation_of(row)
    return "instructions" if said and said[-1]["role"] == "assistant" else "text"


def endings(file: Path, wanted: str, bad: BadRows) -> Iterator[Question]:
    """Questions for the end of a saying, with all accepted endings, in the language ``wanted`` ("": any)."""
    for number, row in read_rows(file, ReadOptions(bad=bad)):
        start, accepted = row.get("idiom_start"), row.get("accepted_completions")
        if not isinstance(start, str) or not isinstance(accepted, list) or not strings(accepted):
            bad.add(f"{place(file, number)} has no beginning with its endings.")
            continue
        code = _CODES.get(str(row.get("language", "")), "" if "language" in row else language(start))
        if accepted and code in _ENDING and code == (wanted or code):
            asked = _ENDING[code].format(start=start.strip())
            name = hashlib.sha256(asked.encode()).hexdigest()[:12]
            yield Question(name, asked, answers=tuple(accepted), extra={"kind": "ending"})


def in_language(conversation: Conversation, wanted: str) -> bool:
    """Whether a conversation is in the wanted language ("": any is)."""
    return not wanted or language(" ".join(m["content"] for m in conversation)) == wanted


def licence_of(file: Path) -> dict[str, str]:
    """``licence`` and ``attribution`` of a file, as far as known: from the lines "Licence:", "Attribution:" and
    "Changes:" of LICENCE.txt in its folder; without such a line, the licence is the first line."""
    text = ""
    for name in ("LICENCE.txt", "LICENSE.txt", "LICENCE", "LICENSE"):
        with suppress(OSError):
            text = text or (file.parent / name).read_text(encoding="utf-8", errors="replace")
    named = {name.lower(): value.strip() for name, value in re.findall(r"(?m)^(\w+): *(.+)$", text)}
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    changed = f"changes: {named['changes']}" if named.get("changes") else ""
    said = " – ".join(part.rstrip(".") for part in (named.get("attribution", ""), changed) if part)
    facts = {"licence": named.get("licence") or named.get("license") or first, "attribution": said}
    return {
        name: text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1].rstrip()}…"
        for name, text in facts.items()
        if text
    }


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set of the Hub: ``hf:owner/name``, ``hf:owner/name:config`` or ``hf:owner/name:config@split``."""

    name: str
    config: str | None = None
    split: str = "train"

    @staticmethod
    def parse(spec: str) -> "Dataset":
        found = _NAME.fullmatch(spec)
        if found is None:
            raise UsageError(
                f"{spec} is not a data set of the Hub.", "Write hf:owner/name, hf:owner/name:config or …@split."
            )
        return Dataset(found["name"], found["config"], found["split"] or "train")

    @property
    def folder(self) -> str:
        return "--".join([*self.name.split("/"), *([self.config] if self.config else [])])


# a data set's rows as a stream, and its licence ("": its page names none)
Load = Callable[[Dataset], tuple[Rows, str]]


def is_hub(path: str | Path) -> bool:
    return str(path).startswith(PREFIX)


def fetch(spec: str, folder: Path, megabytes: float, load: Load | None = None) -> Path:
    """The folder with the first ``megabytes`` of a data set's rows, fetched unless they are there already.

    Raises KlypeError without the package, the network, the data set or its rows.
    """
    dataset = Dataset.parse(spec)
    place = folder / dataset.folder
    file = place / "rows.jsonl"
    if file.exists():
        return place
    found = _stream(dataset, load or _load, megabytes * 1e6)
    first = next(found, None)
    if first is None:
        raise KlypeError(f"The data set {dataset.name} gave no rows.", "Choose another, or another @split.")
    named = f"Licence: {first[1] or 'not named on its page'}\n"
    named += f"Attribution: the data set {dataset.name} on the Hugging Face Hub\n"
    with writing_to(place, "Choose another --out."):
        place.mkdir(parents=True, exist_ok=True)
        durable.write(place / "LICENCE.txt", named)
        durable.write(file, (line for line, _ in chain([first], found)))
    return place


def _stream(dataset: Dataset, load: Load, most: float) -> Iterator[tuple[bytes, str]]:
    """(JSON line, licence) of the first ``most`` bytes of rows, at least one, as they arrive: they may be larger than
    memory."""
    size = 0
    try:
        rows, licence = load(dataset)
        for row in rows:
            line = json.dumps(dict(row), ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n"
            if size and size + len(line) > most:
                return
            size += len(line)
            yield line, licence
    except KlypeError:
        raise
    except Exception as error:  # the client's exceptions have no common base, and change between its versions
        raise KlypeError(
            f"The data set {dataset.name} cannot be read from the Hugging Face Hub: {short_error(error)}.",
            "Check its name and the network, or fetch it elsewhere and give its folder with --data.",
        ) from error


def _load(dataset: Dataset) -> tuple[Rows, str]:
    try:
        datasets, hub = (importlib.import_module(name) for name in ("datasets", "huggingface_hub"))
    except ImportError:
        raise KlypeError(
            "Data sets of the Hugging Face Hub need the package datasets.", "Install it: pip install 'klype[data]'."
        ) from None
    licence = (hub.dataset_info(dataset.name).card_data or {}).get("license") or ""
    rows = datasets.load_dataset(dataset.name, dataset.config, split=dataset.split, streaming=True)
    return rows, ", ".join(licence) if isinstance(licence, list) else str(licence)
