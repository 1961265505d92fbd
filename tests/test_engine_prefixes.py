"""What is known of texts that were read: the longest common prefix in whole blocks, in memory linear in tokens."""

from __future__ import annotations

import tracemalloc
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from klype.engine import prefix_cache
from klype.engine.engine import Engine
from klype.engine.prefix_cache import BLOCK, PrefixIndex, Tokens
from tests.toys import toy


class EveryPrefix:
    """The definition: every whole-block prefix of every text that is remembered, the latest text's first."""

    def __init__(self, budget: int) -> None:
        self.budget, self.texts = budget, deque[tuple[str, list[Tokens], int]]()

    def add(self, store: str, texts: list[Tokens], nbytes: int) -> None:
        bookkeeping = sum(len(text) // BLOCK * prefix_cache.ENTRY_BYTES + 4 * len(text) for text in texts)
        self.texts.append((store, texts, nbytes + bookkeeping))
        while sum(size for *_, size in self.texts) > self.budget:
            self.texts.popleft()

    def find(self, text: Tokens) -> tuple[str | None, int, int]:
        for length in range(len(text) - len(text) % BLOCK, 0, -BLOCK):
            for store, texts, _ in reversed(self.texts):
                for slot in range(len(texts) - 1, -1, -1):
                    if texts[slot][:length] == text[:length] and len(texts[slot]) >= length:
                        return store, slot, common(texts[slot], text)
        return None, 0, 0


def common(a: Tokens, b: Tokens) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


PIECES = st.lists(st.sampled_from([(1,) * 7, (2,) * 16, (1, 2, 3), (4,) * 33, (2,) * 9]), min_size=1, max_size=6)
TEXTS = PIECES.map(lambda pieces: tuple(token for piece in pieces for token in piece))


def alike(text: Tokens) -> Tokens:
    """Of two numbers that Python gives the same hash, so that all texts of a length have the same keys."""
    return tuple(-1 - token % 2 for token in text)


class Alike(int):
    """A token with the hash of any other."""

    def __hash__(self) -> int:
        return 0


@pytest.mark.parametrize("colliding", [False, True])
@given(batches=st.lists(st.lists(TEXTS, min_size=1, max_size=4), max_size=8), asked=st.lists(TEXTS, max_size=6))
@settings(max_examples=100, deadline=None)
def test_the_longest_known_beginning_is_found(
    colliding: bool, batches: list[list[Tokens]], asked: list[Tokens]
) -> None:
    """Where hashes collide, less may be found, and never another text's."""
    if colliding:
        batches, asked = [[alike(text) for text in texts] for texts in batches], [alike(text) for text in asked]
    index: PrefixIndex[str] = PrefixIndex(5_000)
    every = EveryPrefix(5_000)
    read = dict[str, list[Tokens]]()
    for number, texts in enumerate(batches):
        store = f"store {number}"
        read[store] = texts
        index.add(store, texts, 700)
        every.add(store, texts, 700)
    for text in [*asked, *(text for texts in batches for text in texts)]:
        found = index.find(text)
        if not colliding:
            assert found == every.find(text)
        elif found[0] is not None:
            store, slot, length = found
            assert BLOCK <= length == common(read[store][slot], text)
    assert index.nbytes <= 5_000


def test_a_long_text_takes_memory_linear_in_its_tokens_and_within_the_budget() -> None:
    text = tuple(np.random.default_rng(0).integers(0, 50_000, 1 << 15).tolist())
    index: PrefixIndex[str] = PrefixIndex(10 << 20)
    tracemalloc.start()
    index.add("first", [text], 0)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held <= index.nbytes
    assert held < 1 << 20
    assert peak < 2 << 20
    for other in range(60):  # each is counted, whatever else the store holds
        index.add(f"store {other}", [(other, *text)], 0)
        assert index.nbytes <= index.budget
    assert len(index) < 30
    assert len(index._known) == len(index) * (len(text) // BLOCK)
    assert index.find(text) == (None, 0, 0)
    assert index.find((59, *text)) == ("store 59", 0, len(text) + 1)


def test_texts_whose_hashes_collide_are_not_mistaken_for_each_other() -> None:
    rng = np.random.default_rng(1)
    prompts = [tuple(rng.integers(0, 23, length).tolist()) for length in (16, 40, 40, 33, 50)]
    prompts.append((*prompts[1][:20], *prompts[2][20:]))
    expected = [Engine(toy("conv")).next([prompt])[0] for prompt in prompts]
    one = Engine(toy("conv"))
    for prompt, alone in [*zip(prompts, expected, strict=True)] * 2:
        (found,) = one.next([tuple(map(Alike, prompt))])
        assert [found.p(t) for t in range(23)] == pytest.approx([alone.p(t) for t in range(23)], abs=1e-5)
