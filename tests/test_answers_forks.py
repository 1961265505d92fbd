"""Where an answer was decided: found where it is, not found where it is not, and without bias."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch

from klype.answers.forks import ForkSettings, _continue, _distances, forks, permutation_test, strength
from klype.answers.tree import TreeSettings
from klype.engine.engine import Event
from klype.errors import UsageError
from klype.sources.source import NativeSource
from klype.values import Request, Trace
from tests.toy_sources import Forwarding, grow_one, random_table, table_source


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# . a b c d: from a (even odds) to b or c; both go on to d and end. What was said is decided by the first token.
DECIDED = np.array(
    [[1, 0, 0, 0, 0], [0, 0, 0.5, 0.5, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0]], dtype=float
)


def drawn(source: NativeSource, limit: int = 8) -> Trace:
    return source.engine.run([Request((1,), limit=limit, stop=(0,))])[0][0]


def test_the_fork_is_where_the_meaning_was_decided() -> None:
    source, _ = table_source(DECIDED)
    trace = drawn(source)
    found = forks(source, trace, ForkSettings(limit=8, n=32), lambda text: text, lambda text: text == "bd")
    assert found.fork == 0
    assert found.p < 0.01
    assert found.positions[0].strength.low > 0
    assert found.positions[0].strength.value == pytest.approx(0.5, abs=0.25)
    for position in found.positions[1:]:
        assert position.strength.value == 0
        assert position.own == 1
    assert {other.token for other in found.others} == {2, 3}
    assert sorted(m for other in found.others for m, share in other.meanings if share == 1) == ["bd", "cd"]
    said = source.codec.decode(trace.tokens)
    assert found.lost == (None if said == "bd" else 0) or found.before[1] < 0.5


def test_an_answer_of_one_meaning_has_no_fork() -> None:
    source, _ = table_source(DECIDED)
    found = forks(source, drawn(source), ForkSettings(limit=8, n=8), lambda text: "same")
    assert found.fork is None
    assert found.p == 1
    assert all(position.strength.value == 0 and position.own == 1 for position in found.positions)


def test_the_mean_over_the_next_token_is_what_was_before() -> None:
    """E_w o_{t,w} = o_{t−1}, exactly, by the tree."""
    table = random_table(np.random.default_rng(2), 4)
    source, codec = table_source(table)

    def meanings(prompt: list[int], limit: int) -> dict[int, float]:
        tree = grow_one(
            source, prompt, TreeSettings(limit=limit, budget=10_000, until="budget"), codec.token_bytes, lambda t: t[:1]
        )
        return {str(c.meaning): c.low for c in tree.clusters}  # type: ignore[misc]

    before = meanings([1], 5)
    mean: dict[str, float] = {"": table[1][0]}
    for token in (1, 2, 3):
        after = meanings([1, token], 4)
        mean[codec.letters[token]] = table[1][token] * math.fsum(after.values())
    for meaning, mass in before.items():
        assert mean[meaning] == pytest.approx(mass, abs=1e-5)  # type: ignore[index]


def test_strength_is_without_bias_where_total_variation_is_not() -> None:
    """Two meanings, equal odds before and after: mean total variation .1, mean strength 0 (N = 32)."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (2000, 2, 32))
    strengths = [strength(pair, 0) for pair in labels]
    variations = [permutation_test(pair, 0, 0)[0][0] for pair in labels]
    assert np.mean(variations) == pytest.approx(0.1, abs=0.01)
    values = [figure.value for figure in strengths]
    assert abs(np.mean(values)) < 5 * np.std(values) / math.sqrt(len(values))
    covered = np.mean([figure.low <= 0 <= figure.high for figure in strengths])
    assert covered >= 0.93


def test_the_permutation_test_errs_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    p = np.array([permutation_test(rng.integers(0, 2, (8, 16)), 99, seed)[1] for seed in range(300)])
    assert (p <= 0.05).mean() <= 0.05 + 5 * math.sqrt(0.05 * 0.95 / 300)
    assert p.mean() > 0.4


def test_permutations_counted_together_are_those_counted_one_by_one() -> None:
    rng = np.random.default_rng(2)
    labels_TN = rng.integers(0, 5, (6, 10))

    def agree(a: np.ndarray, b: np.ndarray) -> float:
        """The share of pairs of different samples that mean the same."""
        return float(np.mean([a[i] == b[j] for i, j in permutations(range(len(a)), 2)]))

    def greatest(rows_TN: np.ndarray) -> float:
        return max(agree(a, a) + agree(b, b) - 2 * agree(a, b) for a, b in pairwise(rows_TN))

    drawn = np.random.default_rng(7)
    again = [greatest(drawn.permuted(labels_TN.ravel()).reshape(labels_TN.shape)) for _ in range(100)]
    as_great = sum(value >= greatest(labels_TN) - 1e-12 for value in again)
    assert permutation_test(labels_TN, 100, 7)[1] == (1 + as_great) / 101


def test_the_token_that_moved_the_meaning_is_found_among_answers_that_all_differ() -> None:
    """What does not mean the same as this answer means nothing twice: such samples are never alike, which is not a
    fork. Only the fourth token decides: from then on all mean the same."""
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        own_TN = rng.random((7, 32)) < np.array([0.2, 0.3, 0.25, 0.45, 1.0, 1.0, 1.0])[:, None]
        labels_TN = np.where(own_TN, 0, np.arange(own_TN.size).reshape(own_TN.shape) + 1)
        found.append((int(np.argmax(_distances(labels_TN[None, :, 0::2]))), permutation_test(labels_TN, 199, seed)[1]))
    assert np.mean([at == 3 and p < 0.05 for at, p in found]) > 0.9


def test_what_cannot_be_asked_is_refused() -> None:
    source, _ = table_source(DECIDED)
    with pytest.raises(UsageError):
        forks(source, drawn(source), ForkSettings(n=2), lambda text: text)
    empty = Trace((1,), (), drawn(source).sampling, 0, 0, "", "stop", 0, 0.0)
    with pytest.raises(UsageError):
        forks(source, empty, ForkSettings(), lambda text: text)


class Counted(Forwarding):
    """… and how many tokens were drawn."""

    tokens = 0

    def generate(self, requests: Sequence[Request]) -> Iterator[Event]:
        for event in self._source.generate(requests):
            self.tokens += 1
            yield event


@pytest.mark.slow
def test_samples_that_neighbours_share_are_drawn_as_if_alone() -> None:
    """By the tree: what is said after t tokens, at every t; and fewer tokens are drawn than by drawing each alone."""
    table = random_table(np.random.default_rng(4), 4)
    plain, codec = table_source(table)
    trace = next(t for t in plain.engine.run([Request((1,), 50, 6, stop=(0,))])[0] if len(t.steps) == 5)
    source, n = Counted(plain), 2000
    texts = _continue(source, trace.prompt, trace.tokens, ForkSettings(limit=6, n=n))
    assert [len(row) for row in texts] == [n] * 6
    assert set(texts[-1]) == {codec.decode(trace.tokens)}
    for t in range(5):
        grown = TreeSettings(limit=6 - t, budget=10_000, until="budget")
        tree = grow_one(plain, [1, *trace.tokens[:t]], grown, codec.token_bytes)
        begun, said = codec.decode(trace.tokens[:t]), Counter(texts[t])
        for found in tree.answers:
            spread = math.sqrt(n * found.low * (1 - found.low)) + 1
            assert abs(said[begun + found.text] - n * found.low) < 5 * spread
    alone = [Request((1, *trace.tokens[:t]), n, 6 - t, stop=(0,)) for t in range(5)]
    assert source.tokens < sum(len(one.steps) for group in plain.engine.run(alone) for one in group)


def test_an_answer_that_was_cut_short_goes_on_in_its_last_samples() -> None:
    source, _ = table_source(DECIDED)
    trace = drawn(source, limit=1)
    texts = _continue(source, trace.prompt, trace.tokens, ForkSettings(limit=8, n=16))
    assert set(texts[0]) == {"bd", "cd"}
    assert set(texts[1]) == {source.codec.decode(trace.tokens)}


def test_samples_in_common_make_the_permutation_test_no_bolder() -> None:
    """Rows of one distribution, each sample with some probability the same as in the row after."""
    rng, p = np.random.default_rng(3), []
    for seed in range(300):
        labels_TN = rng.integers(0, 2, (8, 16))
        for t in reversed(range(7)):
            labels_TN[t] = np.where(rng.random(16) < seed % 10 / 10, labels_TN[t + 1], labels_TN[t])
        p.append(permutation_test(labels_TN, 99, seed)[1])
    assert (np.array(p) <= 0.05).mean() <= 0.05 + 5 * math.sqrt(0.05 * 0.95 / 300)
