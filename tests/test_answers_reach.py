"""A server's budget that is spent in the middle of a batch leaves the tree's intervals certain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from klype.answers.tree import TreeSettings
from klype.errors import BudgetSpentError
from klype.values import Distribution
from tests.test_answers_tree import LETTERS, by_text
from tests.toy_sources import Partial, grow_one, random_table, table_source


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Paid(Partial):
    """Answers so many beginnings, whole batches or none."""

    left = 0

    def next(self, prefixes: Sequence[Sequence[int]], top: int = -1) -> list[Distribution]:
        if len(prefixes) > self.left:
            raise BudgetSpentError("spent")
        self.left -= len(prefixes)
        return super().next(prefixes, top)


@pytest.mark.slow
@pytest.mark.parametrize("paid", range(1, 9))
@pytest.mark.parametrize("seed", range(3))
def test_what_was_not_read_can_still_become_any_text_that_begins_so(seed: int, paid: int) -> None:
    table = random_table(np.random.default_rng(seed), 6)
    exact = by_text(table, 1, 8)
    source, codec = table_source(table, letters=LETTERS)
    server = Paid(source, 6)
    server.left = paid
    settings = TreeSettings(limit=5, budget=40, until="budget", batch=4, vocabulary=6)
    tree = grow_one(server, [1], settings, codec.token_bytes)
    assert tree.expansions == paid
    assert tree.stopped == "budget"
    assert all(answer.low <= exact[answer.text] <= answer.high for answer in tree.answers)
