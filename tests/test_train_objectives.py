"""Objectives: gradients are finite differences, masks hold, splitting changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from train_toys import VOCAB, Bigram, finite_differences, random_batch, tiny_model

from klype.train.objectives import _WeightedCrossEntropy, cross_entropy, score_answers, soft_cross_entropy
from klype.values import Batch

torch.set_num_threads(1)
V = 5


def double(batch: Batch) -> Batch:
    return Batch(batch.tokens_BT, batch.targets_BT, batch.weights_BT.double(), batch.extra)


def small(seed: int = 0) -> Batch:
    return double(random_batch(seed, rows=3, length=6, vocab=V))


def soft_batch() -> Batch:
    batch = small()
    p = torch.rand(3, 6, V, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return Batch(batch.tokens_BT, batch.targets_BT, batch.weights_BT, {"soft_BTV": p / p.sum(-1, keepdim=True)})


def test_cross_entropy_equals_its_definition() -> None:
    model, batch = Bigram(V), small()
    logp = model.table.log_softmax(-1)
    loss = cross_entropy(model, batch)
    total = sum(
        -batch.weights_BT[b, t] * logp[batch.tokens_BT[b, t], batch.targets_BT[b, t]]
        for b in range(3)
        for t in range(6)
    )
    torch.testing.assert_close(loss.total, total)
    torch.testing.assert_close(loss.count, batch.weights_BT.sum())


@pytest.mark.parametrize("objective", [cross_entropy, soft_cross_entropy])
def test_gradient_is_the_finite_difference(objective: object) -> None:
    model, batch = Bigram(V), soft_batch()
    objective(model, batch).total.backward()
    expected = finite_differences(lambda: objective(model, batch).total, model.table.data)
    torch.testing.assert_close(model.table.grad, expected, rtol=1e-6, atol=1e-7)


def test_one_hot_soft_targets_are_hard_targets() -> None:
    model, batch = Bigram(V), small()
    one_hot = nn.functional.one_hot(batch.targets_BT, V).double()
    soft = Batch(batch.tokens_BT, batch.targets_BT, batch.weights_BT, {"soft_BTV": one_hot})
    torch.testing.assert_close(soft_cross_entropy(model, soft).total, cross_entropy(model, batch).total)


def test_masked_targets_have_no_gradient() -> None:
    model = tiny_model(dtype=torch.float64)
    batch = double(random_batch(0))
    other = torch.where(batch.weights_BT == 0, (batch.targets_BT + 1) % VOCAB, batch.targets_BT)
    gradients = []
    for targets in (batch.targets_BT, other):
        model.zero_grad()
        cross_entropy(model, Batch(batch.tokens_BT, targets, batch.weights_BT)).total.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert not torch.equal(other, batch.targets_BT)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_only_what_is_learnt_is_unembedded_and_that_changes_nothing() -> None:
    model, batch = tiny_model(dtype=torch.float64), double(random_batch(0))
    logits = model(batch.tokens_BT)
    dense = nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets_BT.flatten(), reduction="none")
    torch.testing.assert_close(cross_entropy(model, batch).total, dense @ batch.weights_BT.flatten())
    logp = logits.log_softmax(-1).gather(-1, batch.targets_BT[..., None])[..., 0]
    torch.testing.assert_close(score_answers(model, batch).logp_BT, logp * (batch.weights_BT != 0))
    hot = Batch(batch.tokens_BT, batch.targets_BT, batch.weights_BT, {"temperature": 0.7})
    logp = (logits / 0.7).log_softmax(-1).gather(-1, batch.targets_BT[..., None])[..., 0]
    torch.testing.assert_close(score_answers(model, hot).logp_BT, logp * (batch.weights_BT != 0))


def test_packed_documents_reach_the_model() -> None:
    model, batch = tiny_model(dtype=torch.float64), double(random_batch(0, rows=1, length=8))
    document = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1]])
    packed = Batch(batch.tokens_BT, batch.targets_BT, batch.weights_BT, {"document_BT": document})
    apart = sum(
        cross_entropy(model, Batch(batch.tokens_BT[:, s], batch.targets_BT[:, s], batch.weights_BT[:, s])).total
        for s in (slice(0, 3), slice(3, 8))
    )
    torch.testing.assert_close(cross_entropy(model, packed).total, apart)


def test_uniform_is_ln_v() -> None:
    model = Bigram(V)
    nn.init.zeros_(model.table)
    loss = cross_entropy(model, small())
    assert (loss.total / loss.count).item() == pytest.approx(math.log(V))


def test_order_of_rows_does_not_matter() -> None:
    model, batch = tiny_model(dtype=torch.float64), double(random_batch(0, rows=6))
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    moved = Batch(batch.tokens_BT[order], batch.targets_BT[order], batch.weights_BT[order])
    torch.testing.assert_close(cross_entropy(model, batch).total, cross_entropy(model, moved).total)


def test_the_one_pass_cross_entropy_is_torchs_own_also_where_probabilities_underflow() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(7, 11, generator=generator, dtype=torch.float64)
    logits[2, 4] = 400.0
    targets, weights = torch.randint(0, 4, (7,), generator=generator), torch.rand(7, generator=generator).double()
    results = []
    for function in (
        lambda x: torch.nn.functional.cross_entropy(x, targets, reduction="none") @ weights,
        lambda x: _WeightedCrossEntropy.apply(x, targets, weights),
    ):
        x = logits.clone().requires_grad_(True)
        loss = function(x)
        (3 * loss).backward()
        results.append((loss.detach(), x.grad))
    torch.testing.assert_close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])
