"""The words klype says, in every language: one TOML file per language, and per catalogue of it (``cli_nb.toml``)."""

from klype.words.catalogue import LANGUAGES, Words, catalogues, words
from klype.words.numbers import count, figure, number, percent, short

__all__ = [
    "LANGUAGES",
    "Words",
    "catalogues",
    "count",
    "figure",
    "number",
    "percent",
    "short",
    "words",
]
