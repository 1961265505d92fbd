"""Which beginnings of texts have been read, and where what was computed of them lies."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

Tokens = tuple[int, ...]
Store = TypeVar("Store")
BLOCK = 16
"""Prefixes are found at multiples of this many tokens; shorter ones are cheaper to read again."""
WORTH = 32
"""Prompts of one call that begin with at least this many equal tokens have them read once."""
ENTRY_BYTES = 160
"""What one block costs: a place in the dictionary (about 100 bytes when it is fullest) and its 64-bit key."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredText(Generic[Store]):
    """A text that has been read; what was computed of it is in ``slot`` of ``store``."""

    store: Store
    slot: int
    tokens: npt.NDArray[np.int32]


class PrefixIndex(Generic[Store]):
    """Finds the longest known prefix of a text; the oldest texts are forgotten when ``budget`` bytes are passed.

    A block's key is the hash of the key before it and its 16 tokens, so that memory and look-ups are linear in tokens
    (as vLLM's prefix caching does it; Kwon et al. 2023, arXiv:2309.06180). A hit is compared with the stored tokens:
    texts whose hashes collide are read again, never mistaken for each other.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.nbytes = 0
        self._known: dict[int, StoredText[Store]] = {}
        self._recent: deque[tuple[list[StoredText[Store]], int]] = deque()

    def __len__(self) -> int:
        return len(self._recent)

    def clear(self) -> None:
        self.nbytes = 0
        self._known.clear()
        self._recent.clear()

    def find(self, text: Tokens) -> tuple[Store, int, int] | None:
        """Where the longest known beginning lies: store, slot and its length; None when there is none."""
        hits = []
        for key in _keys(text):
            entry = self._known.get(key)
            if entry is None:
                break
            hits.append(entry)
        if not hits:
            return None
        tokens = np.array(text, np.int32)
        for blocks in range(len(hits), 0, -1):
            entry = hits[blocks - 1]
            length = _common_length(tokens, entry.tokens)
            if length >= blocks * BLOCK:  # else a collision
                return entry.store, entry.slot, length
        return None

    def add(self, store: Store, texts: Sequence[Tokens], nbytes: int) -> None:
        """Remember texts that were just read, text i in slot i of a store of so many bytes."""
        entries = [StoredText(store, slot, np.array(text, np.int32)) for slot, text in enumerate(texts)]
        for entry, text in zip(entries, texts, strict=True):
            self._known.update(dict.fromkeys(_keys(text), entry))
        nbytes += sum(len(text) // BLOCK * ENTRY_BYTES + 4 * len(text) for text in texts)
        self._recent.append((entries, nbytes))
        self.nbytes += nbytes
        while self.nbytes > self.budget:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        entries, nbytes = self._recent.popleft()
        self.nbytes -= nbytes
        for entry in entries:
            for key in _keys(tuple(entry.tokens.tolist())):
                if self._known.get(key) is entry:  # not replaced by a text that was read later
                    del self._known[key]


def shared_beginnings(texts: Sequence[Tokens]) -> list[Tokens]:
    """Beginnings of at least ``WORTH`` tokens shared by neighbours of sorted texts, one for every such run."""
    found: list[Tokens] = []
    run: Tokens = ()
    for before, text in pairwise(texts):
        shared = before[: next((i for i, (a, b) in enumerate(zip(before, text, strict=False)) if a != b), None)]
        if len(text) < len(shared):
            shared = text
        if len(shared) < WORTH:
            run = ()
        elif run and run[:WORTH] == shared[:WORTH]:
            run = run if len(run) <= len(shared) else shared
            found[-1] = run
        else:
            run = shared
            found.append(run)
    return found


def _keys(text: Tokens) -> list[int]:
    """The chained hash of every whole block."""
    keys, key = [], 0
    for end in range(BLOCK, len(text) + 1, BLOCK):
        key = hash((key, text[end - BLOCK : end]))
        keys.append(key)
    return keys


def _common_length(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> int:
    size = min(len(a), len(b))
    differ = np.flatnonzero(a[:size] != b[:size])
    return int(differ[0]) if len(differ) else size
