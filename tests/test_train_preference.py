"""Rankings: Plackett-Luce and its relatives obey their laws, and find what was ranked."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from train_toys import Bigram, finite_differences, random_batch

from klype.train.objectives import score_answers
from klype.train.preference import PreferenceSettings, pairs_right, plackett_luce, preference
from klype.values import Batch, Loss

torch.set_num_threads(1)
V = 5
RANKS = torch.tensor([[0, 1, 2, 3], [0, 0, 1, -1], [1, 1, 0, 1], [0, 0, 0, 0], [0, -1, -1, -1]])


def bradley_terry(chosen_P: torch.Tensor, rejected_P: torch.Tensor) -> Loss:
    """-log σ(chosen - rejected), summed over P pairs."""
    loss_P = -torch.nn.functional.logsigmoid(chosen_P - rejected_P)
    return Loss(loss_P.sum(), torch.tensor(float(loss_P.numel())))


def scores(seed: int = 0) -> torch.Tensor:
    return torch.randn(RANKS.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_full_ranking_equals_its_definition_and_probabilities_sum_to_one() -> None:
    s = scores()[:1]
    total = 0.0
    for order in itertools.permutations(range(4)):
        ranks = torch.empty(1, 4, dtype=torch.long)
        ranks[0, list(order)] = torch.arange(4)
        by_hand = sum(float(s[0, list(order[i:])].logsumexp(0) - s[0, order[i]]) for i in range(4))
        loss = plackett_luce(s, ranks)
        assert float(loss.total) == pytest.approx(by_hand)
        total += math.exp(-by_hand)
    assert total == pytest.approx(1.0)
    assert float(loss.count) == 3


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_of_two_it_is_bradley_terry(a: float, b: float) -> None:
    s = torch.tensor([[a, b]], dtype=torch.float64)
    pl = plackett_luce(s, torch.tensor([[0, 1]]))
    torch.testing.assert_close(pl.total, bradley_terry(s[:, 0], s[:, 1]).total)


def test_gradient_is_the_finite_difference() -> None:
    s = scores().requires_grad_()
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    plackett_luce(s, RANKS, weights).total.backward()
    expected = finite_differences(lambda: plackett_luce(s, RANKS, weights).total, s.data)
    torch.testing.assert_close(s.grad, expected, rtol=1e-6, atol=1e-8)


def test_a_constant_changes_nothing_and_absent_candidates_have_no_part() -> None:
    s = scores()
    moved = s + torch.randn(len(s), 1, dtype=torch.float64)
    torch.testing.assert_close(plackett_luce(s, RANKS).total, plackett_luce(moved, RANKS).total)
    other = torch.where(RANKS < 0, s + 7, s)
    torch.testing.assert_close(plackett_luce(s, RANKS).total, plackett_luce(other, RANKS).total)
    torch.testing.assert_close(plackett_luce(s[1:2, :3], RANKS[1:2, :3]).total, plackett_luce(s[1:2], RANKS[1:2]).total)


def test_tied_pairs_have_a_term_of_their_own() -> None:
    s = torch.tensor([[1.0, -1.0]], dtype=torch.float64, requires_grad=True)
    loss = plackett_luce(s, torch.tensor([[0, 0]]))
    e = s.detach().exp()
    torch.testing.assert_close(loss.total, 2 * e.sum().log() - math.log(2) - s.sum())  # Efron, by hand
    loss.total.backward()
    assert s.grad[0, 0] > 0 > s.grad[0, 1]  # descending brings them together
    equal = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    plackett_luce(equal, torch.tensor([[0, 0]])).total.backward()
    assert equal.grad.abs().max() < 1e-12


def test_order_of_candidates_and_of_questions_does_not_matter() -> None:
    s, columns, rows = scores(), torch.tensor([2, 0, 3, 1]), torch.tensor([4, 2, 0, 1, 3])
    moved = plackett_luce(s[rows][:, columns], RANKS[rows][:, columns])
    torch.testing.assert_close(moved.total, plackett_luce(s, RANKS).total)


def test_pairs_right_counts_ties_of_scores_as_half() -> None:
    assert pairs_right(torch.tensor([[3.0, 2.0, 2.0]]), torch.tensor([[0, 1, 2]])) == (2.5, 3.0)
    assert pairs_right(torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[0, 0, -1]])) == (0.0, 0.0)


def candidate_batch(seed: int = 0, questions: int = 2, each: int = 3) -> Batch:
    batch = random_batch(seed, rows=questions * each, length=5, vocab=V)
    weights = (batch.weights_BT > 0).double()
    generator = torch.Generator().manual_seed(seed + 50)
    extra = {
        "ranks_QK": torch.tensor([[0, 1, 2], [1, 0, 0]])[:questions, :each],
        "reference_logp_B": -5 * torch.rand(questions * each, generator=generator, dtype=torch.float64),
        "good_B": torch.arange(questions * each) % 2 == 0,
    }
    return Batch(batch.tokens_BT, batch.targets_BT, weights, extra)


@pytest.mark.parametrize("kind", ["dpo", "ipo", "kto"])
def test_preference_gradient_is_the_finite_difference(kind: str) -> None:
    model, batch = Bigram(V), candidate_batch()
    settings = PreferenceSettings(kind=kind, beta=0.3, bad_weight=1.5)
    preference(model, batch, settings).total.backward()
    expected = finite_differences(lambda: preference(model, batch, settings).total, model.table.data)
    torch.testing.assert_close(model.table.grad, expected, rtol=1e-6, atol=1e-7)


def at_the_reference(model: Bigram, batch: Batch) -> Batch:
    extra = batch.extra | {"reference_logp_B": score_answers(model, batch).logp_BT.sum(1).detach()}
    return Batch(batch.tokens_BT, batch.targets_BT, batch.weights_BT, extra)


def test_dpo_at_the_reference_is_ln_2() -> None:
    model = Bigram(V)
    batch = at_the_reference(model, candidate_batch(each=2))
    extra = batch.extra | {"ranks_QK": torch.tensor([[0, 1], [1, 0]])}
    loss = preference(model, Batch(batch.tokens_BT, batch.targets_BT, batch.weights_BT, extra))
    assert (loss.total / loss.count).item() == pytest.approx(math.log(2))
    assert loss.metrics["pair_accuracy"] / loss.metrics["pair_accuracy_count"] == 0.5


def test_kto_at_the_reference_is_a_half_and_its_baseline_raises_the_bar() -> None:
    model = Bigram(V)
    batch = at_the_reference(model, candidate_batch())
    settings = PreferenceSettings(kind="kto")
    loss = preference(model, batch, settings)
    assert (loss.total / loss.count).item() == pytest.approx(0.5)
    mismatched = candidate_batch(1)
    low = mismatched.extra | {"reference_logp_B": torch.full((6,), -50.0, dtype=torch.float64)}
    other = Batch(mismatched.tokens_BT, mismatched.targets_BT, mismatched.weights_BT, low)
    good = Batch(
        batch.tokens_BT,
        batch.targets_BT,
        batch.weights_BT,
        batch.extra | {"mismatched": other, "good_B": torch.ones(6, dtype=torch.bool)},
    )
    assert preference(model, good, settings).total.item() > 6 * 0.5


@pytest.mark.parametrize("kind", ["dpo", "ipo", "kto"])
def test_a_bandit_with_a_known_best_arm_is_solved(kind: str) -> None:
    model = Bigram(V, seed=3)
    with torch.no_grad():
        model.table.zero_()
        model.table[0, 4] = 1.0  # the reference prefers the worst
    arms = torch.arange(V)
    tokens = torch.zeros(V, 1, dtype=torch.long)
    extra = {
        "ranks_QK": arms[None],
        "reference_logp_B": model.table[0].log_softmax(-1).detach().clone(),
        "good_B": arms == 0,
    }
    batch = Batch(tokens, arms[:, None], torch.ones(V, 1), extra)
    adam = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(300):
        adam.zero_grad()
        preference(model, batch, PreferenceSettings(kind=kind, beta=0.2)).total.backward()
        adam.step()
    p = model.table[0].softmax(-1)
    assert p.argmax() == 0
    assert p[0] > 0.6
    if kind != "kto":
        assert (p.argsort(descending=True) == arms).all()
