"""The words klype says, in both languages: one TOML file per catalogue and language (``cli_nb.toml``)."""

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
