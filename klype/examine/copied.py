"""What of an answer stands word for word in a training text: runs found with an index of the text's short sequences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WORD = re.compile(r"\w+|[^\w\s]")
SHORTEST = 5
"""Words: shorter runs are the language's, not the text's."""


@dataclass(frozen=True, slots=True)
class Copied:
    """Words in the longest run; mean words of runs of at least SHORTEST; share of all words that lie in such runs."""

    longest: int
    mean: float
    share: float
    text: str


class Index:
    """The words of training texts, found by any SHORTEST of them in a row."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = [words(text) for text in texts]
        self._places: dict[tuple[str, ...], list[tuple[int, int]]] = {}
        for number, text in enumerate(self._texts):
            for at in range(len(text) - SHORTEST + 1):
                self._places.setdefault(tuple(text[at : at + SHORTEST]), []).append((number, at))

    def run(self, said: Sequence[str], at: int) -> int:
        """The longest run from word ``at`` on that stands in a text; 0 when shorter than SHORTEST."""
        best = 0
        for number, place in self._places.get(tuple(said[at : at + SHORTEST]), ()):
            text, length = self._texts[number], SHORTEST
            while at + length < len(said) and place + length < len(text) and said[at + length] == text[place + length]:
                length += 1
            best = max(best, length)
        return best


def copied(answer: str, index: Index) -> Copied | None:
    """None: the answer is too short to tell."""
    said = words(answer)
    if len(said) < SHORTEST:
        return None
    runs: list[tuple[int, int]] = []
    inside, end = 0, 0
    for at in range(len(said)):
        length = index.run(said, at)
        if at + length > end:  # not merely the tail of the run before
            if length:
                runs.append((length, at))
            inside += max(0, at + length - max(end, at))
            end = max(end, at + length)
    longest, start = max(runs, default=(0, 0))
    mean = sum(length for length, _ in runs) / len(runs) if runs else 0.0
    return Copied(longest, mean, inside / len(said), " ".join(said[start : start + longest]))


def words(text: str) -> list[str]:
    return WORD.findall(text)
