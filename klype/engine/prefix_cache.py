"""The prefix cache: where the keys and values of recent prompts lie, and which prefixes new prompts share with them."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

Tokens = tuple[int, ...]
Store = TypeVar("Store")
Store_co = TypeVar("Store_co", covariant=True)
# prefixes are indexed at multiples of this many tokens; shorter ones are cheaper to compute again
BLOCK = 16
# a prefix of at least this many tokens that prompts of one call share is computed first, once
WORTH = 32
# memory per block: its dictionary entry (about 100 bytes when fullest) and its 64-bit key
ENTRY_BYTES = 160


class CachedPrefix(NamedTuple, Generic[Store_co]):
    """The first ``length`` tokens of a text whose keys and values are in ``slot`` of ``store``."""

    store: Store_co
    slot: int
    length: int


NOTHING = CachedPrefix(None, 0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class CachedPrompt(Generic[Store_co]):
    """A prompt that has been read: where its keys and values lie, and the logits [V] of the token after it."""

    tokens: Tokens
    prefix: CachedPrefix[Store_co]
    logits: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class StoredText(Generic[Store]):
    """A whole text that has been read, whose keys and values are in ``slot`` of ``store``."""

    store: Store
    slot: int
    tokens: npt.NDArray[np.int32]


class PrefixIndex(Generic[Store]):
    """Finds the longest known prefix of a text. The oldest texts are evicted beyond ``budget`` bytes.

    The key of a block is the hash of its 16 tokens and the key before it, so that memory and look-ups are linear in
    tokens (as in vLLM's prefix caching; Kwon et al. 2023, arXiv:2309.06180). Hits are compared with the stored tokens:
    after a collision of hashes a text is computed again.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.nbytes = 0
        self._known: dict[int, StoredText[Store]] = {}
        self._recent: deque[tuple[list[StoredText[Store]], int]] = deque()

    def __len__(self) -> int:
        return len(self._recent)

    def find(self, text: Tokens, most: int | None = None) -> CachedPrefix[Store | None]:
        """The longest known prefix of the text, cut to ``most`` tokens; ``NOTHING`` when it has less than a block."""
        tokens, known = np.array(text, np.int32), self._known
        hits = [known[key] for key in takewhile(known.__contains__, _keys(text))]
        for blocks, entry in zip(range(len(hits), 0, -1), reversed(hits), strict=True):
            size = min(len(tokens), len(entry.tokens))
            differ = np.flatnonzero(tokens[:size] != entry.tokens[:size])
            length = int(differ[0]) if len(differ) else size
            if length >= blocks * BLOCK:  # else a collision
                length = length if most is None else min(length, most)
                return CachedPrefix(entry.store, entry.slot, length) if length >= BLOCK else NOTHING
        return NOTHING

    def add(self, store: Store, texts: Sequence[Tokens], nbytes: int) -> None:
        """Add texts that were just read, text i in slot i of a store of ``nbytes`` bytes."""
        entries = [StoredText(store, slot, np.array(text, np.int32)) for slot, text in enumerate(texts)]
        for entry, text in zip(entries, texts, strict=True):
            self._known.update(dict.fromkeys(_keys(text), entry))
        nbytes += sum(len(text) // BLOCK * ENTRY_BYTES + 4 * len(text) for text in texts)
        self._recent.append((entries, nbytes))
        self.nbytes += nbytes
        while self.nbytes > self.budget:
            oldest, freed = self._recent.popleft()
            self.nbytes -= freed
            for entry in oldest:
                for key in _keys(tuple(entry.tokens.tolist())):
                    if self._known.get(key) is entry:  # not replaced by a text that was read later
                        del self._known[key]


def shared_prefixes(texts: Sequence[Tokens]) -> list[Tokens]:
    """Prefixes of at least ``WORTH`` tokens that neighbours in sorted texts share, one for every run of neighbours."""
    found: list[Tokens] = []
    run: Tokens = ()
    for before, text in pairwise(texts):
        shared = tuple(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, text, strict=False)))
        if len(shared) < WORTH:
            run = ()
        elif run[:WORTH] == shared[:WORTH]:
            run = found[-1] = min(run, shared, key=len)
        else:
            run = shared
            found.append(run)
    return found


def _keys(text: Tokens) -> list[int]:
    """The chained hashes of the text's whole blocks."""
    keys, key = [], 0
    for end in range(BLOCK, len(text) + 1, BLOCK):
        key = hash((key, text[end - BLOCK : end]))
        keys.append(key)
    return keys
