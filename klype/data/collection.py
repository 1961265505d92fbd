"""What lies in a folder: plain text, questions with answers, ranked answers, dictionary articles; and its licence.

A table is what its first row is. Nothing is guessed beyond that, and what is left out is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from klype.data.files import Paths, files_of, kind_of
from klype.data.readers import KINDS, TABLES, BadRows, TextOptions, place, read_rows
from klype.data.rows import Conversation, conversation_of
from klype.data.tasks import language

Kind = Literal["text", "instructions", "preferences", "articles", "endings", "pairs"]
"""``articles``: lemma, definitions. ``endings``: a beginning and its accepted endings. ``pairs``: good and bad
sentences side by side, which test a model and teach it nothing good."""

_ENDING = {"nb": "Hvordan fortsetter uttrykket «{start} …»?", "en": "How does the saying “{start} …” go on?"}
_CODES = {"nb": "nb", "nob": "nb", "no": "nb", "en": "en", "eng": "en"}
_LONGEST = 300  # characters of a licence or an attribution that are shown


@dataclass(frozen=True, slots=True)
class Collection:
    """Files by what they hold."""

    files: dict[Kind, list[Path]] = field(default_factory=dict)

    def of(self, kind: Kind) -> list[Path]:
        return self.files.get(kind, [])


@dataclass(frozen=True, slots=True)
class Licence:
    """As the file LICENCE.txt beside the data says it."""

    name: str = ""
    attribution: str = ""


def collect(paths: Paths) -> Collection:
    """The files of folders, globs and names, sorted by what they hold."""
    found: dict[Kind, list[Path]] = {}
    for file in files_of(paths, KINDS):
        found.setdefault(kind(file), []).append(file)
    return Collection(found)


def kind(file: Path) -> Kind:
    """What a file holds, by its first row that can be read."""
    if kind_of(file) not in TABLES:
        return "text"
    row = next((row for _, row in islice(read_rows(file, TextOptions(bad=BadRows(skip=True))), 1)), None)
    return "text" if row is None else kind_of_row(row)


def kind_of_row(row: dict[str, Any]) -> Kind:
    """What a row is, by the names of its fields."""
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


def endings(file: Path, wanted: str, bad: BadRows) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Questions for the end of a saying, with all endings that are accepted; of the wanted language, if any."""
    for number, row in read_rows(file, TextOptions(bad=bad)):
        start, accepted = row.get("idiom_start"), row.get("accepted_completions")
        if (
            not isinstance(start, str)
            or not isinstance(accepted, list)
            or not all(isinstance(a, str) for a in accepted)
        ):
            bad.add(f"{place(file, number)} has no beginning with its endings.")
            continue
        code = _CODES.get(str(row.get("language", "")), "" if "language" in row else language(start))
        if accepted and code in _ENDING and code == (wanted or code):
            yield _ENDING[code].format(start=start.strip()), tuple(accepted)


def in_language(conversation: Conversation, wanted: str) -> bool:
    """Whether a conversation is in the wanted language ("": any is)."""
    return not wanted or language(" ".join(m["content"] for m in conversation)) == wanted


def licence_of(file: Path) -> Licence:
    """The lines "Licence:" and "Attribution:" (and "Changes:") of LICENCE.txt in the file's folder, where it is."""
    place = next(
        (p for n in ("LICENCE.txt", "LICENSE.txt", "LICENCE", "LICENSE") if (p := file.parent / n).is_file()), None
    )
    if place is None:
        return Licence()
    try:
        text = place.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return Licence()
    named = {name.lower(): value.strip() for name, value in re.findall(r"(?m)^(\w+): *(.+)$", text)}
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    name = named.get("licence") or named.get("license") or first
    changed = f"changes: {named['changes']}" if named.get("changes") else ""
    said = " – ".join(part.rstrip(".") for part in (named.get("attribution", ""), changed) if part)
    return Licence(_short(name), _short(said))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1].rstrip() + "…"
