"""Drawn without replacement: no answer twice, its probability known, estimates unbiased."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from klype.answers.tree import TreeSettings
from klype.answers.without_replacement import without_replacement
from klype.values import Sampling
from tests.toy_sources import enumerate_answers, random_table, table_source


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_every_answer_once_with_its_probability() -> None:
    table = random_table(np.random.default_rng(0), 4)
    source, _ = table_source(table)
    exact = enumerate_answers(table, 1, 5)
    found = without_replacement(source, [1], 12, TreeSettings(limit=5))
    assert len({a.tokens for a in found.answers}) == len(found.answers) == 12
    for answer in found.answers:
        if answer.ended:
            assert answer.p == pytest.approx(exact[answer.tokens[:-1]], rel=1e-4)
    assert found.unseen == pytest.approx(1 - math.fsum(a.p for a in found.answers))


def test_when_all_are_found_nothing_is_unseen() -> None:
    table = np.array([[1, 0, 0], [0.5, 0.2, 0.3], [1.0, 0, 0]])
    source, _ = table_source(table)
    found = without_replacement(source, [2], 5, TreeSettings(Sampling(), limit=4))
    assert found.answers[0].tokens == (0,)
    assert found.answers[0].p == pytest.approx(1)
    assert found.unseen == pytest.approx(0, abs=1e-6)
    assert found.estimate(lambda a: 1.0) == pytest.approx(1)


@pytest.mark.slow
def test_estimates_are_unbiased() -> None:
    """Five standard errors over 400 seeds, for the share of answers that begin with "b"."""
    table = random_table(np.random.default_rng(4), 4)
    source, _ = table_source(table)
    exact = math.fsum(p for tokens, p in enumerate_answers(table, 1, 4).items() if tokens[:1] == (2,))
    cut = table[1][2] - exact  # answers that the limit cuts begin with it too
    settings = TreeSettings(limit=4)
    found = [
        without_replacement(source, [1], 3, settings, seed).estimate(lambda a: float(a.tokens[0] == 2))
        for seed in range(400)
    ]
    error = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found) - exact - cut) < 5 * error + 1e-6
    assert error < 0.05
