"""Translations of sentences that the code has in English: errors, help, and the progress of runs.

As with gettext, the English sentence is the key, with ``{}`` in place of values; there is one file per language. A
sentence without a translation stays English.
"""

import re
import tomllib
from importlib import resources

from klype.words import LANGUAGES, count

HOLE = "{}"


class Sentences:
    """A language's translations, from the tables ``names`` of its file: ``Sentences("nb")("There is no model x.")``."""

    def __init__(self, lang: str, *names: str) -> None:
        file = resources.files(__name__) / f"{lang}.toml"
        tables = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        self._lang, self._values, self._told = lang, tables.get("values", {}), tables.get("progress", {})
        known = (tables.get(name, {}) for name in names or ("errors", "help"))
        self._known: dict[str, str] = {english: text for table in known for english, text in table.items()}

    def __call__(self, text: str) -> str:
        """The translated sentence; values in it that are words are translated, too."""
        return self._render(text, self._known)

    def name(self, text: str) -> str:
        """The translation of a name, or the name itself if it has none."""
        return self._known.get(text, text)

    def _render(self, text: str, known: dict[str, str]) -> str:
        if text in known:
            return known[text]
        # the most specific first: of the patterns that match, the one with the most text of its own
        for english in sorted((e for e in known if HOLE in e), key=lambda e: e.count(HOLE) - len(e)):
            if found := re.fullmatch("(.*)".join(map(re.escape, english.split(HOLE))), text, re.DOTALL):
                flags = [part.endswith("--") for part in english.split(HOLE)]  # flags are not translated
                values = (
                    v if flag else self._render(v, self._values) for v, flag in zip(found.groups(), flags, strict=False)
                )
                return known[english].format(*(self._number(v) if english in self._told else v for v in values))
        return text

    def _number(self, value: str) -> str:
        """A number that klype computed, in this language's format; anything else unchanged."""
        if re.fullmatch(r"\d{1,3}(,\d{3})+", value):
            return count(int(value.replace(",", "")), self._lang)
        if re.fullmatch(r"\d+(\.\d+)?%?", value):
            row = LANGUAGES[self._lang]
            return value.replace(".", row.decimal).replace("%", row.percent)
        return value
