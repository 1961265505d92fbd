"""Speculative = plain: the same tokens where guesses are chosen, the same distribution where they are drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from klype.engine.engine import Engine
from klype.engine.sampling import shape
from klype.engine.speculation import (
    LookupDraft,
    ModelDraft,
    Proposal,
    expected_tokens,
    speculate,
)
from klype.errors import UsageError
from klype.values import Request, Sampling
from tests.toys import bigram, toy

SETTING = Request((1,))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Oracle:
    """Guesses what it was told, right up to a wrong token now and then."""

    def __init__(self, truth: Sequence[int], wrong: frozenset[int] = frozenset()) -> None:
        self.truth, self.wrong = list(truth), wrong

    def propose(self, text: Sequence[int], count: int, request: Request) -> Proposal:
        ahead = range(len(text), min(len(text) + count, len(self.truth)))
        return Proposal(tuple((self.truth[i] + (i in self.wrong)) % 23 for i in ahead))


SAMPLINGS = st.sampled_from(
    [Sampling(), Sampling(0.0), Sampling(0.7, top_k=4), Sampling(0.9, frequency_penalty=0.7, repetition_penalty=1.3)]
)


@pytest.mark.slow
@given(
    name=st.sampled_from(["conv", "grouped"]),
    sampling=SAMPLINGS,
    gamma=st.integers(1, 6),
    wrong=st.frozensets(st.integers(0, 30), max_size=6),
    limit=st.integers(1, 20),
    stop=st.sampled_from([(), (3, 9)]),
)
@settings(max_examples=40, deadline=None)
def test_chosen_guesses_leave_every_token_as_it_is(
    name: str, sampling: Sampling, gamma: int, wrong: frozenset[int], limit: int, stop: tuple[int, ...]
) -> None:
    engine = Engine(toy(name))
    request = Request((1, 2, 3, 1, 2), limit=limit, sampling=sampling, seed=4, stop=stop, top=2)
    ((plain,),) = engine.run([request])
    draft = Oracle([*request.prompt, *plain.tokens], wrong)
    (fast,), report = speculate(engine, request, draft, gamma)
    assert (fast.tokens, fast.ended) == (plain.tokens, plain.ended)
    np.testing.assert_allclose([s.logp for s in fast.steps], [s.logp for s in plain.steps], atol=3e-5)
    np.testing.assert_allclose(
        [s.sampling_logprob for s in fast.steps], [s.sampling_logprob for s in plain.steps], atol=3e-5
    )
    assert [list(s.distribution.ids) for s in fast.steps if s.distribution] == [
        list(s.distribution.ids) for s in plain.steps if s.distribution
    ]
    assert report.accepted == sum(step.source == "drafted" for step in fast.steps)
    assert fast.passes == report.passes + 1 <= plain.passes


def test_a_perfect_draft_saves_all_it_can() -> None:
    engine, request = Engine(toy("conv")), Request((1, 2, 3), limit=41, sampling=Sampling(0.0))
    ((plain,),) = engine.run([request])
    _, report = speculate(engine, request, Oracle([*request.prompt, *plain.tokens]), gamma=4)
    assert report.alpha == 1
    assert (report.passes, report.tokens_per_pass) == (8, 5.0)
    assert report.predicted_speedup is not None
    assert report.predicted_speedup <= 5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_look_up_is_lossless(temperature: float) -> None:
    engine = Engine(toy("llama"))
    request = Request((1, 2, 3, 4, 1, 2), n=3, limit=20, sampling=Sampling(temperature), seed=8)
    (plain,) = engine.run([request])
    fast, _ = speculate(engine, request, LookupDraft())
    assert [trace.tokens for trace in fast] == [trace.tokens for trace in plain]


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [Sampling(0.8), Sampling(1.2, top_k=3)])
def test_drawn_guesses_leave_the_distribution_as_it_is(sampling: Sampling) -> None:
    """Whole answers of three tokens, model and draft far apart, against their known probabilities."""
    generator = torch.Generator().manual_seed(0)
    table, other = (2 * torch.randn(4, 4, generator=generator) for _ in range(2))
    engine, count = Engine(bigram(table)), 1000
    request = Request((0,), n=count, limit=3, sampling=sampling, seed=5)
    traces, report = speculate(engine, request, ModelDraft(bigram(other)), gamma=2)
    p = np.exp([[row[t] for t in range(4)] for row in shaped(table, sampling)])
    expected = {(a, b, c): p[0, a] * p[a, b] * p[b, c] for a in range(4) for b in range(4) for c in range(4)}
    observed = Counter(trace.tokens[:3] for trace in traces)
    keys = [key for key, value in expected.items() if value > 0]
    assert set(observed) <= set(keys)
    pooled = [key for key in keys if expected[key] * count >= 5]
    rest = 1 - sum(expected[key] for key in pooled)
    counts = [observed[key] for key in pooled] + [count - sum(observed[key] for key in pooled)]
    means = np.array([expected[key] for key in pooled] + [max(rest, 1e-9)])
    keep = means > 1e-8
    result = stats.chisquare(np.array(counts)[keep], (means[keep] / means[keep].sum()) * sum(np.array(counts)[keep]))
    assert result.pvalue > 1e-3
    assert 0.2 < (report.alpha or 0) < 0.95


def shaped(table: torch.Tensor, sampling: Sampling) -> np.ndarray:
    return shape(table, sampling).double().numpy()


@pytest.mark.slow
def test_acceptance_is_the_overlap_of_the_two_distributions() -> None:
    """alpha = sum of min(p, q) (the paper's theorem 3.5), for a model and draft that ignore the past."""
    p, q = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.25, 0.25, 0.25, 0.25])
    engine = Engine(bigram(torch.tensor(np.log(p)).expand(4, 4)))
    request = Request((0,), n=20, limit=60, seed=2)
    _, report = speculate(engine, request, ModelDraft(bigram(torch.tensor(np.log(q)).expand(4, 4))), gamma=3)
    looked_at = report.accepted + report.rejected
    assert report.alpha == pytest.approx(np.minimum(p, q).sum(), abs=4 * np.sqrt(0.25 / looked_at))
    assert report.tokens_per_pass == pytest.approx(expected_tokens(0.7, 3), rel=0.1)


def test_a_draft_equal_to_the_model_is_always_accepted() -> None:
    model = toy("grouped")
    traces, report = speculate(Engine(model), Request((1, 2), n=5, limit=20), ModelDraft(model), gamma=3)
    assert report.alpha == 1
    assert all(len(trace.steps) == 20 for trace in traces)


def test_look_up_finds_the_newest_longest_match() -> None:
    draft = LookupDraft(longest=2)
    assert draft.propose([1, 2, 7, 9, 2, 8, 1, 2], 3, SETTING).tokens == (7, 9, 2)
    assert draft.propose([5, 2, 7, 5, 3, 5], 2, SETTING).tokens == (3, 5)
    assert draft.propose([1, 2, 3], 2, SETTING).tokens == ()
    assert draft.propose([1], 2, SETTING).tokens == ()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
def test_expected_tokens_is_the_sum_it_stands_for(alpha: float) -> None:
    assert expected_tokens(alpha, 4) == pytest.approx(sum(alpha**i for i in range(5)))


def test_what_cannot_be_speculated_is_said() -> None:
    with pytest.raises(UsageError, match="empty"):
        speculate(Engine(toy()), Request(()), LookupDraft())


def test_a_draft_with_a_shorter_window_stops_guessing() -> None:
    engine, request = Engine(toy()), Request((1, 2), limit=40, sampling=Sampling(0.0))
    (fast,), _ = speculate(engine, request, ModelDraft(toy(window=16)))
    assert fast.tokens == engine.run([request])[0][0].tokens
