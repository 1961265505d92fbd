"""Drawn without replacement: no answer twice, its probability known, the first as plain samples are."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from klype.answers.tree import TreeSettings, without_replacement
from klype.values import Sampling
from tests.toy_sources import enumerate_answers, random_table, table_source


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_every_answer_once_with_its_probability() -> None:
    table = random_table(np.random.default_rng(0), 4)
    source, _ = table_source(table)
    exact = enumerate_answers(table, 1, 5)
    found = without_replacement(source, (1,), 12, TreeSettings(limit=5))
    assert len({a.tokens for a in found}) == len(found) == 12
    assert all(math.exp(a.logp) == pytest.approx(exact[a.tokens[:-1]], rel=1e-4) for a in found if a.ended)
    assert [a.key for a in found] == sorted((a.key for a in found), reverse=True)


def test_when_there_are_fewer_all_are_found() -> None:
    table = np.array([[1, 0, 0], [0.5, 0.2, 0.3], [1.0, 0, 0]])
    source, _ = table_source(table)
    found = without_replacement(source, (2,), 5, TreeSettings(Sampling(), limit=4))
    assert found[0].tokens == (0,)
    assert math.fsum(math.exp(a.logp) for a in found) == pytest.approx(1)


@pytest.mark.slow
def test_of_those_left_each_is_drawn_as_its_probability_says() -> None:
    """The first over 400 seeds; the second given the first, whose probability is taken off."""
    table = np.array([[1, 0, 0, 0], [0, 0.0, 0.6, 0.4], [0.5, 0, 0, 0.5], [1, 0, 0, 0]])
    source, _ = table_source(table)
    drawn = [without_replacement(source, (1,), 2, TreeSettings(limit=4), seed) for seed in range(400)]
    exact = {(*tokens, 0): p for tokens, p in enumerate_answers(table, 1, 4).items()}
    assert len(exact) == 3
    firsts, pairs = (Counter(tuple(a.tokens for a in found[:n]) for found in drawn) for n in (1, 2))
    assert stats.chisquare([firsts[(a,)] for a in exact], [400 * p for p in exact.values()]).pvalue > 1e-3
    left = {(a, b): p * q / (1 - p) for a, p in exact.items() for b, q in exact.items() if a != b}
    assert stats.chisquare([pairs[pair] for pair in left], [400 * p for p in left.values()]).pvalue > 1e-3
