"""Prompt prefill with a prefix cache: shared prefixes are computed once, and recent prompts are not computed again."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise, takewhile
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from klype.model.cache import SharedKV
from klype.model.transformer import Transformer

Tokens = tuple[int, ...]
Store = TypeVar("Store")
Store_co = TypeVar("Store_co", covariant=True)
# prefixes are indexed at multiples of this many tokens; shorter ones are cheaper to compute again
BLOCK = 16
# a prefix of at least this many tokens that prompts of one call share is computed first, once
WORTH = 32
# memory per block: its dictionary entry (about 100 bytes when fullest) and its 64-bit key
ENTRY_BYTES = 160
CHUNK = 512
# most tokens per pass, padding included
PADDED = 8192
# at most one token of padding per this many tokens, in addition to SPARE
PADDING = 4
# multiply-adds per layer that padding may cost before another pass (and another store in all later steps) is cheaper
SPARE = 120_000_000


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


def shared_beginnings(texts: Sequence[Tokens]) -> list[Tokens]:
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


class PrefixCache:
    """Reads prompts with a Transformer and keeps their KV, evicting the oldest beyond ``budget`` bytes."""

    def __init__(self, model: Transformer, budget: int = 256 << 20) -> None:
        self.model = model
        self.index: PrefixIndex[SharedKV] = PrefixIndex(budget)
        self.passes = 0
        self.tokens = 0  # computed, without padding

    @torch.inference_mode()
    def read(self, prompts: Sequence[Tokens]) -> list[CachedPrompt[SharedKV]]:
        """Read all prompts; in their order. A prompt that is a prefix of another is read with it."""
        # the longest prompts, each with the lengths of all its prefixes that are wanted
        wanted, host = dict[Tokens, list[int]](), Tokens()
        # in sorted order a text is right before those that begin with it
        for prompt in sorted(set(prompts), reverse=True):
            host = host if host[: len(prompt)] == prompt else prompt
            wanted.setdefault(host, []).append(len(prompt))
        hosts = sorted(wanted)
        for prefix in shared_beginnings(hosts):
            if self.index.find(prefix).length < len(prefix) - BLOCK:
                self._compute([prefix], {prefix: [len(prefix)]})
        found: dict[Tokens, CachedPrompt[SharedKV]] = {}
        for batch in self._batches(hosts, wanted):
            found.update((prompt.tokens, prompt) for prompt in self._compute(batch, wanted))
        return [found[prompt] for prompt in prompts]

    def _batches(self, hosts: list[Tokens], wanted: dict[Tokens, list[int]]) -> list[list[Tokens]]:
        """Batches of prompts of similar length, so that little is padding; a small model's may differ more."""
        rest = {prompt: len(prompt) - self._start(prompt, wanted).length for prompt in hosts}
        spare = SPARE * self.model.config.layers // self.model.config.flops_per_token
        batches: list[list[Tokens]] = []
        padding = read = 0
        for prompt in sorted(hosts, key=lambda p: rest[p]):
            if batches:
                batch = batches[-1]
                padding += len(batch) * (rest[prompt] - rest[batch[-1]])
                alike = padding <= spare + read // PADDING
                if alike and (len(batch) + 1) * min(rest[prompt], CHUNK) <= PADDED:
                    batch.append(prompt)
                    read += rest[prompt]
                    continue
            batches.append([prompt])
            padding, read = 0, rest[prompt]
        return batches

    def _compute(self, batch: list[Tokens], wanted: dict[Tokens, list[int]]) -> list[CachedPrompt[SharedKV]]:
        starts = [self._start(prompt, wanted) for prompt in batch]
        if any(start.length for start in starts):
            cache = self.model.new_cache()
            order = sorted(range(len(batch)), key=numbered([start.store for start in starts]).__getitem__)
            batch, starts = [batch[i] for i in order], [starts[i] for i in order]
            for _, group in groupby(starts, key=lambda start: id(start.store)):
                (store, *_), slots, lengths = zip(*group, strict=True)
                if store is None:
                    store = self.model.new_cache(1).to_shared()
                elif len(used := np.unique(slots)) < len(store.lengths):
                    # attention reads all slots of a store: drop those that are not used
                    store, slots = store.take(used), tuple(np.searchsorted(used, slots).tolist())
                cache.append(store, slots, lengths)
        else:
            cache = self.model.new_cache(len(batch))
        begin = np.array([start.length for start in starts])
        whole = np.array([len(prompt) for prompt in batch])
        asks = [(row, length) for row, prompt in enumerate(batch) for length in sorted(set(wanted[prompt]))]
        states: dict[tuple[int, int], Tensor] = {}
        longest = int((whole - begin).max())
        for first in range(0, longest, CHUNK):
            done, T = np.minimum(begin + first, whole), min(CHUNK, longest - first)
            rows = [prompt[at : at + T] for prompt, at in zip(batch, done, strict=True)]
            tokens_BT = torch.tensor([[*row, *(0,) * (T - len(row))] for row in rows], device=cache.device)
            hidden_BTD = self.model.hidden(tokens_BT, cache)
            cache.truncate(np.minimum(done + T, whole))
            self.passes += 1
            self.tokens += sum(map(len, rows))
            for row, length in asks:
                if done[row] < length <= done[row] + T:
                    states[row, length] = hidden_BTD[row, length - 1 - done[row]]
        logits_AV = self.model.unembed(torch.stack([states[ask] for ask in asks]))
        store = cache.to_shared()
        self.index.add(store, batch, store.nbytes)
        return [
            CachedPrompt(batch[row][:length], CachedPrefix(store, row, length), logits_V)
            for (row, length), logits_V in zip(asks, logits_AV, strict=True)
        ]

    def _start(self, prompt: Tokens, wanted: dict[Tokens, list[int]]) -> CachedPrefix[SharedKV | None]:
        """The known prefix of the prompt, cut so that the last token of its shortest wanted prefix is computed."""
        return self.index.find(prompt, min(wanted[prompt]) - 1)


def numbered(stores: Sequence[SharedKV | None]) -> list[int]:
    """The number of each store in order of first appearance, to sort by: by address the order of rows, and with it
    rounding, would differ from run to run."""
    known: dict[int, int] = {}
    return [known.setdefault(id(store), len(known)) for store in stores]
