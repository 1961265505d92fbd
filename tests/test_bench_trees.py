"""The benchmark of trees and forks on a toy: what it counts, and that the answer is as long as was asked."""

from __future__ import annotations

from klype.bench.trees import TreeBench, trees
from tests.test_examine_whole import ERRING, examinee


class Clock:
    """A second passes whenever it is looked at."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def test_every_tree_is_a_row_and_the_share_in_time_counts_those_explored_soon() -> None:
    settings = TreeBench(budget=100, limit=8, eps=0.2, until_s=1e9, forked=5, samples=8)
    found = trees(examinee(ERRING, 3), settings, lambda text: None, Clock())
    assert len(found["rows"]) == 3
    assert all(0 <= row["unexplored"] < 0.2 and row["stopped"] == "mass" for row in found["rows"])
    assert all(row["seconds"] > row["model_seconds"] > 0 for row in found["rows"])
    assert found["in_time"]["value"] == 1.0
    assert found["forks"]["tokens"] == 5
    late = trees(
        examinee(ERRING, 3), TreeBench(budget=100, limit=8, eps=0.2, until_s=0.5, samples=8), lambda text: None, Clock()
    )
    assert late["in_time"]["value"] == 0.0
