"""The tree's intervals are certain: they hold what enumeration says, whatever was left unexplored."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from klype.answers import distribution_bounds
from klype.answers.tree import Tree, TreeSettings, grow
from klype.errors import UsageError
from klype.values import Distribution, Sampling
from tests.toy_sources import Partial, at_temperature, enumerate_answers, grow_one, random_table, table_source

LETTERS = (".", "a", "b", "ab", " ", "")
"""Spelled so that one text has many tokenisations: "ab" is one token or two, a space leads, and one says nothing."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def by_text(p_VV: np.ndarray, start: int, limit: int) -> dict[str, float]:
    texts: dict[str, float] = {}
    for tokens, mass in enumerate_answers(p_VV, start, limit).items():
        raw = "".join(LETTERS[t] for t in tokens)
        text = raw[1:] if raw.startswith(" ") else raw
        texts[text] = texts.get(text, 0.0) + mass
    return texts


def grown(table: np.ndarray, settings: TreeSettings, k: int = 0) -> Tree:
    source, codec = table_source(table, letters=LETTERS)
    return grow_one(Partial(source, k) if k else source, [1], settings, codec.token_bytes)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.4])
def test_the_intervals_hold_the_enumerated_probabilities(seed: int, temperature: float) -> None:
    table = random_table(np.random.default_rng(seed), 6)
    exact = by_text(at_temperature(table, temperature), 1, 8)
    for budget in (1, 4, 30):
        settings = TreeSettings(Sampling(temperature), limit=5, budget=budget, until="budget", batch=3, vocabulary=6)
        tree = grown(table, settings)
        assert math.fsum(a.low for a in tree.answers) + tree.unexplored == pytest.approx(1, abs=1e-5)
        assert tree.expansions <= budget
        for answer in tree.answers:
            assert answer.low <= exact[answer.text] <= answer.high
            assert answer.high <= answer.low + tree.unexplored + 1e-4
        unseen = set(exact) - {answer.text for answer in tree.answers}
        assert all(exact[text] <= tree.unexplored + 1e-5 for text in unseen)


def test_a_text_counts_only_what_can_still_become_it() -> None:
    """After "b" nothing can become "a": its interval is narrower than the unexplored mass."""
    table = np.array([[1, 0, 0], [0.3, 0.2, 0.5], [0.1, 0.45, 0.45]])
    source, codec = table_source(table, letters=(".", "a", "b"))
    tree = grow_one(
        source, [1], TreeSettings(limit=4, budget=6, until="budget", batch=1, vocabulary=3), codec.token_bytes
    )
    empty = next(a for a in tree.answers if a.text == "")
    assert tree.unexplored > 0.1
    assert empty.high - empty.low < 1e-4
    assert empty.low <= 0.3 <= empty.high


@pytest.mark.parametrize("seed", range(4))
def test_more_work_never_leaves_more_unexplored(seed: int) -> None:
    table = random_table(np.random.default_rng(seed), 5)
    left = [
        grown(table, TreeSettings(limit=6, budget=b, until="budget", batch=2)).unexplored for b in (1, 3, 9, 27, 81)
    ]
    assert all(more <= less + 1e-12 for less, more in itertools.pairwise(left))


def test_a_tree_that_is_whole_is_the_enumeration() -> None:
    table = random_table(np.random.default_rng(3), 4)
    tree = grown(table, TreeSettings(limit=4, budget=10_000, until="budget", vocabulary=4))
    exact = by_text(table, 1, 4)
    assert tree.stopped == "whole"
    assert {a.text for a in tree.answers} == set(exact)
    assert tree.unexplored == pytest.approx(1 - math.fsum(exact.values()), abs=1e-5)
    assert tree.lost == pytest.approx(tree.unexplored)


def test_until_mode_stops_with_the_mode() -> None:
    table = np.array([[1, 0, 0], [0.6, 0.2, 0.2], [0.3, 0.3, 0.4]])
    source, codec = table_source(table)
    tree = grow_one(source, [1], TreeSettings(limit=20, budget=500, until="mode", batch=1), codec.token_bytes)
    assert tree.stopped == "mode"
    assert tree.answers[0].text == ""
    assert tree.answers[0].low > tree.answers[1].low + tree.unexplored if len(tree.answers) > 1 else tree.unexplored
    assert tree.expansions < 20


def test_a_mode_that_rounding_could_change_is_not_certain() -> None:
    """ "" has .5, "a" has .49999988, and nearly nothing is left: float32 cannot tell which of them is likelier."""
    even = [0.5, 0.49999988, 0, 1.2e-8]
    table = np.array([[1, 0, 0, 0], [1 - 1e-12, 0, 0, 1e-12], [1, 0, 0, 0], even])
    source, codec = table_source(table)
    tree = grow_one(source, [3], TreeSettings(limit=40, budget=30, until="mode", batch=1), codec.token_bytes)
    assert tree.stopped != "mode"
    assert tree.answers[0].low < tree.answers[1].high
    clear = np.array([[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0.5, 0.49, 0, 0.01]])
    source, codec = table_source(clear)
    assert (
        grow_one(source, [3], TreeSettings(limit=40, budget=30, until="mode", batch=1), codec.token_bytes).stopped
        == "mode"
    )


def test_until_mass_stops_below_eps() -> None:
    table = np.array([[1, 0, 0], [0.6, 0.2, 0.2], [0.3, 0.3, 0.4]])
    source, codec = table_source(table)
    tree = grow_one(source, [1], TreeSettings(limit=40, budget=5000, until="mass", eps=0.05), codec.token_bytes)
    assert tree.stopped == "mass"
    assert tree.unexplored < 0.05


def test_temperature_zero_has_one_answer() -> None:
    table = np.array([[1, 0, 0], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]])
    source, codec = table_source(table)
    tree = grow_one(source, [1], TreeSettings(Sampling(0.0), limit=9, budget=50), codec.token_bytes)
    assert [(a.text, round(a.low, 4)) for a in tree.answers] == [("b", 1.0)]
    assert tree.unexplored == 0
    assert tree.entropy[0] == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("k", [2, 3])
def test_a_partial_distribution_still_gives_certain_intervals(k: int, temperature: float) -> None:
    for seed in range(2):
        table = random_table(np.random.default_rng(seed), 6)
        exact = by_text(at_temperature(table, temperature), 1, 8)
        settings = TreeSettings(Sampling(temperature), limit=5, budget=40, until="budget", vocabulary=6)
        tree = grown(table, settings, k)
        assert tree.lost > 0
        for answer in tree.answers:
            assert answer.low <= exact[answer.text] <= answer.high


def test_penalties_and_truncations_of_what_is_not_listed_are_refused() -> None:
    source, _ = table_source(random_table(np.random.default_rng(0), 4))
    with pytest.raises(UsageError):
        grow_one(source, [1], TreeSettings(Sampling(repetition_penalty=1.2)))
    with pytest.raises(UsageError):
        grow_one(Partial(source, 2), [1], TreeSettings(Sampling(top_p=0.5)))
    with pytest.raises(UsageError):
        grow_one(source, [1], TreeSettings(budget=0))


def test_truncation_is_of_the_distribution_drawn_from() -> None:
    table = np.array([[1, 0, 0], [0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
    source, codec = table_source(table)
    tree = grow_one(
        source, [1], TreeSettings(Sampling(top_k=2), limit=3, budget=100, until="budget"), codec.token_bytes
    )
    assert {a.text for a in tree.answers} == {"", "a", "aa"}
    assert tree.answers[0].low == pytest.approx(0.5 / 0.8, abs=1e-4)


def test_meanings_sum_their_texts() -> None:
    table = random_table(np.random.default_rng(5), 4)
    source, codec = table_source(table)
    settings = TreeSettings(limit=6, budget=60, until="budget", vocabulary=4)
    tree = grow_one(source, [1], settings, codec.token_bytes, lambda text: len(text) % 2)
    exact = by_text_of(table, 8)
    assert len(tree.clusters) == 2
    for cluster in tree.clusters:
        mass = math.fsum(p for text, p in exact.items() if len(text) % 2 == cluster.meaning)
        assert cluster.low - 1e-5 <= mass <= cluster.high
    assert tree.meaning_entropy[0] <= tree.entropy[1]


def by_text_of(table: np.ndarray, limit: int) -> dict[str, float]:
    return {"".join(".abc"[t] for t in tokens): p for tokens, p in enumerate_answers(table, 1, limit).items()}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_entropy_lies_within_its_bounds(seed: int) -> None:
    table = random_table(np.random.default_rng(seed), 4)
    exact = by_text_of(table, 12)
    left = 1 - math.fsum(exact.values())
    entropy = math.fsum(-p * math.log(p) for p in exact.values())
    for budget in (2, 20, 200):
        source, codec = table_source(table)
        tree = grow_one(
            source, [1], TreeSettings(limit=12, budget=budget, until="budget", vocabulary=4), codec.token_bytes
        )
        assert tree.entropy[0] - 1e-4 <= entropy + left * 40
        assert entropy <= tree.entropy[1] + 1e-4


def partial(p: np.ndarray, k: int) -> Distribution:
    order = np.argsort(-p, kind="stable")[:k]
    return Distribution(order, np.log(p[order]), float(max(0.0, 1 - p[order].sum())))


def hold(rng: np.random.Generator) -> None:
    size = int(rng.integers(3, 40))
    p = rng.dirichlet(np.full(size, rng.choice([0.1, 0.5, 2.0]))) + 1e-12
    p /= p.sum()
    temperature = float(rng.choice([0.3, 0.7, 1.0, 1.3, 2.0]))
    raised = p ** (1 / temperature)
    raised /= raised.sum()
    entropy = -(p * np.log(p)).sum()
    allowed = set(np.flatnonzero(rng.random(size) < 0.4).tolist())
    before = (-math.inf, math.inf)
    for k in range(1, size):
        q = partial(p, k)
        low, high = distribution_bounds.entropy(q, size)
        assert low - 1e-9 <= entropy <= high + 1e-9
        assert before[0] - 1e-9 <= low
        assert high <= before[1] + 1e-9
        before = (low, high)
        low, high = distribution_bounds.mass_at(q, 1.0, size, allowed)
        assert low - 1e-9 <= p[sorted(allowed)].sum() <= high + 1e-9
        for known in (size, 0):
            at = distribution_bounds.temperature_bounds(q, temperature, known)
            assert (at.low_K <= raised[q.ids] + 1e-9).all()
            assert (raised[q.ids] <= at.high_K + 1e-9).all()
            assert at.low_K.sum() + at.rest == pytest.approx(1)


@pytest.mark.slow
def test_bounds_of_partial_distributions_hold() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        hold(rng)


@pytest.mark.soak
def test_bounds_of_partial_distributions_hold_ten_thousand_times() -> None:
    rng = np.random.default_rng(1)
    for _ in range(10_000):
        hold(rng)


def test_a_token_that_is_impossible_when_cold_has_no_part_in_the_entropy() -> None:
    q = Distribution(np.array([3, 5]), np.array([-1e-9, -90.0]), 0.0)  # e^−900 is 0 to a computer
    assert distribution_bounds.entropy_at(q, 0.1, 100) == (0.0, 0.0)


def test_the_width_for_entropy_is_as_published() -> None:
    """TRUTH: V = 50k, rest .1 % → .009 nats, 1 % → .085, 5 % → .40 (20 tokens listed, the least at r/20… )."""
    for rest, width in ((0.001, 0.009), (0.01, 0.085), (0.05, 0.40)):
        p = np.array([1 - rest - 19 * rest / 20, *[rest / 20] * 19])
        q = Distribution(np.arange(20), np.log(p), rest)
        low, high = distribution_bounds.entropy(q, 50_000)
        assert 0.5 * width <= high - low <= 1.5 * width


def test_trees_that_grow_are_those_that_grow_alone() -> None:
    source, codec = table_source(random_table(np.random.default_rng(6), 5))
    prompts = [(1,), (2,), (1, 3)]
    meanings = [lambda text: text[:1], lambda text: text, lambda text: len(text)]
    settings = TreeSettings(limit=6, budget=90, batch=4, vocabulary=5)
    for alone, together in zip(
        [grow_one(source, p, settings, codec.token_bytes, m) for p, m in zip(prompts, meanings, strict=True)],
        grow(source, prompts, settings, codec.token_bytes, meanings),
        strict=True,
    ):
        assert (together.expansions, together.stopped) == (alone.expansions, alone.stopped)
        assert [a.text for a in together.answers] == [a.text for a in alone.answers]
        np.testing.assert_allclose([a.low for a in together.answers], [a.low for a in alone.answers], rtol=1e-5)
        assert [c.meaning for c in together.clusters] == [c.meaning for c in alone.clusters]
        assert together.unexplored == pytest.approx(alone.unexplored, abs=1e-6)


@pytest.mark.parametrize("length", [3, 12])
def test_the_answer_of_a_peaked_model_is_found_within_twice_its_length_in_passes(length: int) -> None:
    V = length + 1
    table = np.full((V, V), 0.005 / length)
    for token in range(1, V):
        table[token, (token + 1) % V] = 0.995
    source, codec = table_source(table / table.sum(axis=1, keepdims=True), letters=tuple(".abcdefghijkl"[:V]))
    tree = grow_one(source, [1], TreeSettings(limit=2 * length, budget=2 * length, until="budget"), codec.token_bytes)
    assert tree.expansions <= 2 * length
    assert tree.answers[0].low > 0.995 ** (length + 1)
    assert tree.answers[0].text == "bcdefghijkl"[: length - 1]
