"""What of an answer stands word for word in a training text: runs found with an index of the text's short sequences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

WORD = re.compile(r"\w+|[^\w\s]")
SHORTEST = 5
"""Words: shorter runs are the language's, not the text's."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Copied:
    """Words in the longest run; mean words of runs of at least SHORTEST; share of all words that lie in such runs."""

    longest: int
    mean: float
    share: float
    text: str


class Index:
    """The words of training texts, found by any SHORTEST of them in a row.

    Twelve bytes a word: words are numbers, sequences are hashes in order; a hit is compared word by word.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._numbers: dict[str, int] = {}
        numbered: list[npt.NDArray[np.int32]] = []
        for text in texts:  # a border between texts is a word that nobody says
            found = [self._numbers.setdefault(word, len(self._numbers) + 1) for word in words(text)]
            numbered.append(np.array([*found, 0], np.int32))
        self._words_N = np.concatenate(numbered) if numbered else np.zeros(0, np.int32)
        hashes_N = _sequences(self._words_N)
        self._places_N = np.argsort(hashes_N, kind="stable").astype(np.int32)
        self._hashes_N = hashes_N[self._places_N]

    def run(self, said: Sequence[str], at: int) -> int:
        """The longest run from word ``at`` on that stands in a text; 0 when shorter than SHORTEST."""
        numbers = np.array([self._numbers.get(word, -1) for word in said[at:]], np.int32)
        if len(numbers) < SHORTEST or (numbers[:SHORTEST] < 0).any():
            return 0
        wanted = _sequences(numbers[:SHORTEST])[0]
        first, last = (int(np.searchsorted(self._hashes_N, wanted, side)) for side in ("left", "right"))
        best = 0
        for place in self._places_N[first:last]:
            text = self._words_N[place : place + len(numbers)]
            same = text == numbers[: len(text)]
            best = max(best, len(same) if same.all() else int(np.argmin(same)))
        return best if best >= SHORTEST else 0


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


def _sequences(numbers_N: npt.NDArray[np.int32]) -> Hashes:
    """A hash of every SHORTEST numbers in a row (polynomial, modulo 2⁶⁴)."""
    length = max(0, len(numbers_N) - SHORTEST + 1)
    hashes_N = np.zeros(length, np.uint64)
    for i in range(SHORTEST):
        hashes_N = hashes_N * _FACTOR + numbers_N[i : i + length].astype(np.uint64)
    return hashes_N
