"""Catalogues of messages. A new language is one file per catalogue; a test holds all of them to the same keys."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

LANGUAGES = ("en", "nb")


@dataclass(frozen=True, slots=True)
class Words:
    """The messages of one catalogue in one language: ``w("chat.full", dropped=2)``."""

    lang: str
    messages: Mapping[str, str]

    def __call__(self, key: str, **values: object) -> str:
        """The message with its placeholders filled in; an unknown key or a missing value is a programmer's error."""
        return self.messages[key].format_map(values)

    def section(self, prefix: str) -> dict[str, str]:
        """All messages below a prefix, by the rest of their key."""
        start = f"{prefix}."
        return {key.removeprefix(start): text for key, text in self.messages.items() if key.startswith(start)}


def words(lang: str, catalogue: str = "cli") -> Words:
    """The catalogue ``klype/words/<catalogue>_<lang>.toml``, its tables flattened to dotted keys."""
    file = resources.files("klype.words") / f"{catalogue}_{lang}.toml"
    return Words(lang, dict(_flatten(tomllib.loads(file.read_text(encoding="utf-8")))))


def catalogues() -> list[tuple[str, str]]:
    """Every (catalogue, language) there is a file for."""
    names = (f.name for f in resources.files("klype.words").iterdir() if f.name.endswith(".toml"))
    pairs = (name.removesuffix(".toml").rpartition("_") for name in names)
    return sorted((catalogue, lang) for catalogue, _, lang in pairs)


def _flatten(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in table.items():
        if isinstance(value, dict):
            found += _flatten(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", str(value)))
    return found
