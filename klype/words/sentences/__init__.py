"""Sentences that stand in the code in English, in the reader's language: errors, and the command line's help.

As with gettext, the English sentence is the key, with ``{}`` where a value stands in it; one file a language. A
sentence that has no translation is said in English.
"""

from __future__ import annotations

import re
import tomllib
from importlib import resources

HOLE = "{}"


class Sentences:
    """The sentences of one language: ``Sentences("nb")("There is no model x.")``."""

    def __init__(self, lang: str) -> None:
        file = resources.files(__name__) / f"{lang}.toml"
        tables = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        self._values = tables.pop("values", {})
        self._known = {english: text for table in tables.values() for english, text in table.items()}

    def __call__(self, text: str) -> str:
        """The sentence as this language says it; the values in it that are words, too."""
        return self._said(text, self._known)

    def _said(self, text: str, known: dict[str, str]) -> str:
        if text in known:
            return known[text]
        # The most particular first: of those that fit, the one that says the most itself.
        for english in sorted((e for e in known if HOLE in e), key=lambda e: e.count(HOLE) - len(e)):
            if found := re.fullmatch("(.*)".join(map(re.escape, english.split(HOLE))), text, re.DOTALL):
                return known[english].format(*(self._said(value, self._values) for value in found.groups()))
        return text
