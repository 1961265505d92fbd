"""Every document once per epoch, resumed = straight, shards = memory, with a process = without."""

import random
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from klype.data.batches import PackedBatches, PaddedBatches, conversation_batches, epochs, fit
from klype.data.documents import Documents, tokenize, write_shards
from klype.data.example_batches import BLOCK, Example, Pools, PoolSettings
from klype.data.seeds import Permutation
from klype.errors import KlypeError
from klype.text.tokenizer import Tokenizer
from klype.values import Batch

SEEDS = st.integers(0, 2**40)
LENGTHS = st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(lambda ns: max(ns) > 1)


def numbered(lengths: list[int]) -> Documents:
    """Documents in which every token occurs once, so that each can be followed."""
    ends = np.cumsum([0, *lengths])
    return Documents.of([list(range(a, b)) for a, b in pairwise(ends)])


def same(a: Batch, b: Batch) -> bool:
    pairs = [(a.tokens_BT, b.tokens_BT), (a.targets_BT, b.targets_BT), (a.weights_BT, b.weights_BT)]
    pairs += [(a.extra[name], b.extra[name]) for name in a.extra]
    return all(torch.equal(x, y) for x, y in pairs)


@given(st.integers(1, 500), SEEDS)
def test_a_permutation_is_one(size: int, seed: int) -> None:
    assert sorted(map(Permutation(size, seed), range(size))) == list(range(size))


def test_permutations_differ_and_mix() -> None:
    first, second = ([Permutation(1000, s)(i) for i in range(1000)] for s in (0, 1))
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10
    assert abs(np.corrcoef(range(1000), first)[0, 1]) < 0.1
    assert Permutation(10**15, 3)(7) < 10**15


@pytest.mark.slow
@given(LENGTHS, st.integers(1, 3), st.integers(2, 20), SEEDS)
def test_each_target_is_learnt_once_per_epoch(lengths: list[int], rows: int, window: int, seed: int) -> None:
    documents = numbered(lengths)
    batches = PackedBatches(documents, rows, window, seed)
    wanted = Counter(t for i in range(len(documents)) for t in documents[i][1:].tolist())
    stream: list[int] = []
    n = wanted.total()
    while len(stream) < 3 * n:
        batch = next(batches)
        assert batch.tokens_BT.shape == (rows, window)
        assert torch.equal(batch.targets_BT, batch.tokens_BT + 1)  # numbered: the next token, never another document's
        assert bool((batch.weights_BT == 1).all())
        stream += batch.targets_BT.flatten().tolist()
    for epoch in range(3):
        assert Counter(stream[epoch * n : (epoch + 1) * n]) == wanted


def test_document_borders_are_where_the_text_breaks() -> None:
    batch = next(PackedBatches(numbered([9, 30, 4, 7]), 4, 16, 5))
    jumps = batch.tokens_BT[:, 1:] != batch.tokens_BT[:, :-1] + 1
    borders = batch.extra["document_BT"][:, 1:] != batch.extra["document_BT"][:, :-1]
    assert bool((borders | ~jumps).all())
    assert bool(borders.any())


def test_epochs_have_different_orders_and_cuts() -> None:
    batches = PackedBatches(numbered([40] * 10), 1, 25, 1)
    first = [next(batches).tokens_BT for _ in range(15)]
    second = [next(batches).tokens_BT for _ in range(15)]
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@given(LENGTHS, st.integers(0, 9), SEEDS)
def test_packed_resumed_is_straight(lengths: list[int], before: int, seed: int) -> None:
    straight, other = (PackedBatches(numbered(lengths), 2, 8, seed) for _ in range(2))
    for _ in range(before):
        next(straight)
    other.restore(straight.state())
    assert all(same(next(straight), next(other)) for _ in range(5))


def test_nothing_to_train_on_is_said() -> None:
    for lengths in ([], [1], [0, 1]):
        with pytest.raises(KlypeError, match="no text"):
            PackedBatches(numbered(lengths), 1, 8)
    with pytest.raises(KlypeError, match="No conversation"):
        conversation_batches([([1, 2], [0, 0]), ([1], [1])], PoolSettings(2))


@dataclass(frozen=True)
class Sampled:
    """Example i as a function of i; it fails at ``broken``."""

    broken: int = -1

    def __call__(self, index: int) -> Example:
        if index == self.broken:
            raise ValueError("no such document")
        rng = random.Random(index)
        n = rng.randrange(2, 40)
        return [index * 100 + i for i in range(n)], [float(rng.random() < 0.5) for _ in range(n)]


@given(st.integers(1, 4), st.integers(1, 3), SEEDS)
def test_pieces_share_a_step_s_examples_and_its_length(rows: int, pieces: int, seed: int) -> None:
    def sample(i: int) -> Example:
        n = 2 + i % 37
        return [i] * n, [1.0] * n

    whole = Pools(sample, PoolSettings(rows * pieces, batches=4, multiple=1, seed=seed))(3)
    parts = Pools(sample, PoolSettings(rows, batches=4 * pieces, multiple=1, seed=seed, pieces=pieces))(3)
    for step, (tokens_BT, _, _) in enumerate(whole):
        own = parts[step * pieces : (step + 1) * pieces]
        assert sorted(int(t) for p in own for t in p[0][:, 0]) == sorted(tokens_BT[:, 0].tolist())
        gaps = np.diff(sorted(int((row == row[0]).sum()) for row in tokens_BT)).max(initial=0)
        lengths = [p[0].shape[1] for p in own]
        assert max(lengths) - min(lengths) <= gaps * pieces


SETTINGS = PoolSettings(rows=3, batches=4, pad=7, seed=5)


def test_padded_examples_come_once_with_their_weights() -> None:
    batches = PaddedBatches(Sampled(), SETTINGS)
    seen = []
    for batch in (next(batches) for _ in range(8)):
        assert batch.tokens_BT.shape[1] % 8 == 0
        for tokens, targets, weights in zip(batch.tokens_BT, batch.targets_BT, batch.weights_BT, strict=True):
            index = int(tokens[0]) // 100
            ids, wanted = Sampled()(index)
            n = len(ids) - 1
            assert tokens.tolist() == [*ids[:-1], *[7] * (len(tokens) - n)]
            assert targets.tolist() == [*ids[1:], *[7] * (len(tokens) - n)]
            assert weights.tolist() == [*wanted[1:], *[0.0] * (len(tokens) - n)]
            seen.append(index)
    assert sorted(seen) == list(range(24))


@pytest.mark.slow
def test_a_process_gives_the_same_batches_and_resumed_is_straight() -> None:
    straight = PaddedBatches(Sampled(), SETTINGS)
    wanted = [next(straight) for _ in range(20)]
    with closing(PaddedBatches(Sampled(), SETTINGS, background=True)) as apart:
        assert all(same(next(apart), w) for w in wanted[:6])
        assert apart.state() == {"index": 6}
        apart.restore({"index": 10})
        assert all(same(next(apart), w) for w in wanted[10:])


@pytest.mark.slow
def test_a_failing_process_is_reported() -> None:
    with closing(PaddedBatches(Sampled(broken=13), SETTINGS, background=True)) as apart:
        for _ in range(4):
            next(apart)
        with pytest.raises(KlypeError, match="ValueError: no such document"):
            next(apart)


@given(st.integers(1, 20), SEEDS)
def test_conversations_come_once_per_epoch_in_another_order(n: int, seed: int) -> None:
    examples = [([i, i], [0.0, 1.0]) for i in range(n)]
    endless = epochs(examples, seed)
    orders = [[endless(e * n + i)[0][0] for i in range(n)] for e in range(4)]
    assert all(sorted(o) == list(range(n)) for o in orders)
    assert n < 5 or len({tuple(o) for o in orders}) > 1


@given(st.integers(2, 30), st.integers(1, 30))
def test_a_long_example_keeps_its_end(n: int, window: int) -> None:
    tokens, weights = fit((list(range(n)), [1.0] * n), window)
    assert list(tokens) == list(range(n))[-(window + 1) :]
    assert len(tokens) == len(weights)


@pytest.mark.parametrize("vocabulary", [300, 70_000])
def test_shards_are_the_documents_in_memory(tmp_path: Path, vocabulary: int) -> None:
    rng = random.Random(0)
    lists = [[rng.randrange(vocabulary) for _ in range(rng.randrange(0, 30))] for _ in range(50)]
    memory = Documents.of(lists)
    for size in (1, 100, 10**6):
        write_shards(iter(lists), tmp_path / str(size), vocabulary, size)
        shards = Documents.open(tmp_path / str(size))
        assert [shards[i].tolist() for i in range(len(shards))] == lists
        assert shards.lengths.tolist() == memory.lengths.tolist()
        a, b = PackedBatches(memory, 2, 16, 3), PackedBatches(shards, 2, 16, 3)
        assert all(same(next(a), next(b)) for _ in range(20))


def test_damaged_or_unfinished_shards_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    write_shards([[1, 2, 3]], folder, 300)
    raw = (folder / "shard-00000.bin").read_bytes()
    (folder / "shard-00000.bin").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(KlypeError, match=r"shard-00000\.bin is missing or damaged"):
        Documents.open(folder)
    (folder / "shards.json").unlink()
    with pytest.raises(KlypeError, match="no finished shards"):
        Documents.open(folder)


def test_tokenize_keeps_the_order() -> None:
    tokenizer = Tokenizer.train(["Hunden drakk vann."], 300)
    texts = [f"Hunden drakk {i} vann." for i in range(100)]
    assert list(tokenize(iter(texts), tokenizer)) == [tokenizer.encode_document(t) for t in texts]


def test_a_document_is_met_again_in_other_company() -> None:
    settings = PoolSettings(rows=3, batches=4, multiple=1, seed=5, passes=2)
    made: list[int] = []

    def sample(index: int) -> Example:
        made.append(index)
        return [index, *range(index % 5 + 2)], [0.0] + [1.0] * (index % 5 + 2)

    def batches() -> PaddedBatches:
        return PaddedBatches(sample, settings)

    straight = batches()
    drawn = [next(straight).tokens_BT for _ in range(2 * 2 * BLOCK * settings.batches)]
    assert sorted(made) == list(range(2 * BLOCK * settings.size))  # each made once
    half = len(drawn) // 2
    whole = [sorted(int(row[0]) for batch in part for row in batch) for part in (drawn[:half], drawn[half:])]
    for number, met in enumerate(whole):  # a block, each of its documents twice, then the next
        block = range(number * BLOCK * settings.size, (number + 1) * BLOCK * settings.size)
        assert met == sorted([*block, *block])
    quarter = half // 2
    first, again = (
        {frozenset(int(row[0]) for row in batch) for batch in part} for part in (drawn[:quarter], drawn[quarter:half])
    )
    assert len(first & again) < len(first) / 10
    for position in (3, quarter + 7, half + 1):  # resumed anywhere
        resumed = batches()
        resumed.restore({"index": position})
        assert all(torch.equal(next(resumed).tokens_BT, drawn[position + i]) for i in range(9))


def test_distinct_documents_are_counted() -> None:
    settings = PoolSettings(rows=3, batches=4, passes=2)
    assert [settings.distinct(n) for n in (0, 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 1)] == [
        12 * n for n in (0, 1, BLOCK, BLOCK, BLOCK, BLOCK + 1)
    ]
