"""One word replaced, the meaning judged: closed forms on toys."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from klype.examine.error_feedback import word_swaps
from klype.examine.evidence import Evidence
from klype.examine.interventions import FeedbackSettings
from klype.examine.measures import measure
from klype.values import Request
from tests.toy_sources import table_source

# . a b c: a → b or c, evenly; both end. The first word is the whole meaning.
TABLE = np.array([[1, 0, 0, 0], [0, 0, 0.5, 0.5], [1, 0, 0, 0], [1, 0, 0, 0]], dtype=float)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_the_word_that_is_the_meaning_is_all_there_is() -> None:
    source, _ = table_source(TABLE)
    traces = source.engine.run([Request((1,), n=8, limit=4, stop=(0,))])[0]
    rows = []
    for i, trace in enumerate(traces):
        said = source.codec.decode(trace.tokens)
        rows.append((f"q{i}", trace, lambda text, done, said=said: text == said))
    found = word_swaps(source, rows, FeedbackSettings(positions=1, samples=3, limit=4))
    assert [(one.own, one.other) for one in found] == [(1.0, 0.0)] * 8
    assert measure(Evidence(replaced=found))["feedback_meaning"].value == pytest.approx(1)


def test_a_word_without_meaning_changes_nothing_and_the_undecided_are_left_out() -> None:
    source, _ = table_source(TABLE)
    trace = source.engine.run([Request((1,), limit=4, stop=(0,))])[0][0]
    settings = FeedbackSettings(positions=1, samples=2, limit=4)
    same = word_swaps(source, [("q", trace, lambda text, done: True)], settings)
    assert [(one.own, one.other) for one in same] == [(1.0, 1.0)]
    assert word_swaps(source, [("q", trace, lambda text, done: None)], settings) == []
    assert word_swaps(source, [], settings) == []
