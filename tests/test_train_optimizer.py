"""Muon and AdamW on flat buffers equal the plain ones, part by part."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from train_toys import random_batch, tiny_config, tiny_model

from klype.errors import KlypeError
from klype.train.flat_parameters import Layout
from klype.train.objectives import cross_entropy
from klype.train.optimizer import (
    Optimizer,
    OptimizerSettings,
    Schedule,
    factor,
    fused_parts,
    is_matrix,
    nearest_orthogonal,
)
from klype.train.resume import read_newest, write_state

torch.set_num_threads(1)


def gradients(model: nn.Module, optimizer: Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    cross_entropy(model, random_batch(seed)).total.backward()
    optimizer.collect([optimizer.added])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 20), (2, 5, 64)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    values = torch.linalg.svdvals(nearest_orthogonal(x))
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    large = s / s.norm(dim=-1, keepdim=True) > 0.01
    assert ((values - 1).abs()[large] < 0.25).all()
    alignment = torch.einsum("nri,nrc,nic->ni", u, nearest_orthogonal(x), vh)  # along the input's own singular vectors
    assert (alignment[large] > 0.75).all()


def test_a_zero_gradient_leaves_the_matrices_where_they_are() -> None:
    model = tiny_model()
    optimizer = Optimizer(Layout(model), OptimizerSettings(), fused_parts(tiny_config()))
    before = optimizer.master.clone()
    optimizer.zero_grad()
    optimizer.step()
    assert torch.equal(before, optimizer.master)


def test_fused_parts_are_updated_as_if_they_were_matrices_of_their_own() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(8, 16, bias=False)

    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (
                nn.Linear(8, 8, bias=False),
                nn.Linear(8, 4, bias=False),
                nn.Linear(8, 4, bias=False),
            )

    torch.manual_seed(0)
    fused, apart = Fused(), Apart()
    pieces = fused.qkv.weight.data.split([8, 4, 4])
    for module, piece in zip((apart.q, apart.k, apart.v), pieces, strict=True):
        module.weight.data = piece.clone()
    one = Optimizer(Layout(fused), OptimizerSettings(), {"qkv.weight": (8, 4, 4)})
    three = Optimizer(Layout(apart), OptimizerSettings())
    for _ in range(3):
        g = torch.randn(16, 8)
        fused.qkv.weight.grad.copy_(g)
        for module, piece in zip((apart.q, apart.k, apart.v), g.split([8, 4, 4]), strict=True):
            module.weight.grad.copy_(piece)
        one.step()
        three.step()
    together = torch.cat([apart.q.weight, apart.k.weight, apart.v.weight])
    torch.testing.assert_close(fused.qkv.weight, together, rtol=0, atol=1e-6)
    whole = Optimizer(Layout(Fused()), OptimizerSettings())
    assert whole.master.shape == one.master.shape  # without parts it is one matrix, which is another update
    with pytest.raises(KlypeError, match="do not add up"):
        Optimizer(Layout(Fused()), OptimizerSettings(), {"qkv.weight": (8, 8, 8)})


def test_muon_follows_its_definition() -> None:
    class Tall(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(4, 12, bias=False)

    torch.manual_seed(1)
    model = Tall()
    weight, momentum = model.up.weight.detach().clone(), torch.zeros(12, 4)
    optimizer = Optimizer(Layout(model), OptimizerSettings(matrix_rate=0.1, decay=0.01))
    for _ in range(4):
        g = torch.randn(12, 4)
        model.up.weight.grad.copy_(g)
        optimizer.step(0.5)
        momentum = 0.95 * momentum + 0.05 * g
        update = nearest_orthogonal((0.05 * g + 0.95 * momentum).T[None])[0].T
        weight = weight * (1 - 0.05 * 0.01) - 0.05 * math.sqrt(12 / 4) * update
    torch.testing.assert_close(model.up.weight.detach(), weight, rtol=1e-4, atol=1e-5)


def test_adamw_alone_equals_torch() -> None:
    ours, theirs = tiny_model(), tiny_model()
    optimizer = Optimizer(Layout(ours), OptimizerSettings(kind="adamw", rate=3e-3, decay=0.1))
    matrices = [p for p in theirs.parameters() if p.ndim >= 2]
    vectors = [p for p in theirs.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95), eps=1e-8, foreach=False)
    for seed in range(5):
        gradients(ours, optimizer, seed)
        optimizer.step()
        reference.zero_grad()
        cross_entropy(theirs, random_batch(seed)).total.backward()
        reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count", [1, 1000])
def test_clip_equals_torch_and_reports_the_norm(count: int) -> None:
    ours, theirs = tiny_model(), tiny_model()
    optimizer = Optimizer(Layout(ours), OptimizerSettings())
    gradients(ours, optimizer, 0)
    cross_entropy(theirs, random_batch(0)).total.backward()
    norm = optimizer.clip(0.5, count)
    optimizer.step()
    for p in theirs.parameters():
        p.grad.div_(count)
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
    torch.testing.assert_close(norm, expected)
    assert (expected > 0.5) == (count == 1)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_tables_go_to_adamw_and_the_inside_to_muon() -> None:
    inside = {n for n, p in tiny_model().named_parameters() if is_matrix(n, p)}
    names = ("qkv", "out", "gate_up", "down")
    assert inside == {f"layers.{i}.{name}.weight" for i in range(2) for name in names}


def test_state_goes_round_and_rejects_another_shape(tmp_path: Path) -> None:
    parts = fused_parts(tiny_config())
    one, two = tiny_model(0), tiny_model(1)
    first, second = (
        Optimizer(Layout(one), OptimizerSettings(), parts),
        Optimizer(Layout(two), OptimizerSettings(), parts),
    )
    for seed in range(3):
        gradients(one, first, seed)
        first.step()
    write_state(tmp_path, 3, {}, {}, first.state_dict())
    state = read_newest(tmp_path, print)
    assert state is not None
    state.read_into(second.state_dict())
    second.layout.publish()
    for seed in range(3, 6):
        for model, optimizer in ((one, first), (two, second)):
            gradients(model, optimizer, seed)
            optimizer.step()
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(KlypeError, match="another shape"):
        state.read_into({name: tensor[:1] for name, tensor in second.state_dict().items()})


def test_bfloat16_weights_follow_a_float32_master() -> None:
    model = tiny_model()
    optimizer = Optimizer(Layout(model, torch.bfloat16), OptimizerSettings())
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    for p in model.parameters():
        p.grad.fill_(0.25)
    optimizer.collect([optimizer.added])
    assert optimizer.gradient.max() == 0.25
    optimizer.step(1e-4)  # far below what bfloat16 resolves near 1
    ones = model.norm.weight
    assert torch.equal(ones, torch.ones_like(ones))
    optimizer.layout.release()
    assert {t.dtype for t in (*model.parameters(), *model.buffers())} == {torch.float32}
    assert not torch.equal(model.norm.weight, torch.ones_like(model.norm.weight))


def test_coarse_iteration_is_close_to_the_fine_one() -> None:
    fine, coarse = tiny_model(), tiny_model()
    updates = []
    for model, rough in ((fine, False), (coarse, True)):
        optimizer = Optimizer(Layout(model), OptimizerSettings(coarse=rough))
        before = model.layers[0].down.weight.detach().clone()
        gradients(model, optimizer, 0)
        optimizer.step()
        updates.append(model.layers[0].down.weight.detach() - before)
    cosine = torch.nn.functional.cosine_similarity(updates[0].flatten(), updates[1].flatten(), dim=0)
    assert cosine > 0.99


def test_a_frozen_model_is_refused() -> None:
    with pytest.raises(KlypeError, match="frozen"):
        Optimizer(Layout(tiny_model().requires_grad_(False)), OptimizerSettings())


@given(st.floats(0, 1), st.floats(0, 0.3), st.floats(0, 1), st.floats(0, 1))
def test_the_schedule_stays_within_its_bounds(x: float, warmup: float, flat: float, floor: float) -> None:
    schedule = Schedule(warmup=warmup, flat=flat, floor=floor)
    value = factor(schedule, x)
    assert 0 < value <= 1 or (floor == 0 and value >= 0)
    if max(warmup, flat) < x < 1:
        assert value >= floor * (1 - 1e-12)
        assert factor(schedule, min(1.0, x + 0.01)) <= value + 1e-12


def test_the_schedule_rises_stays_and_falls() -> None:
    schedule = Schedule(warmup=0.1, flat=0.5, floor=0.05)
    assert factor(schedule, 0.0) == pytest.approx(0.01)
    assert factor(schedule, 0.1) == factor(schedule, 0.5) == 1.0
    assert factor(schedule, 0.75) == pytest.approx(0.525)
    assert factor(schedule, 1.0) == pytest.approx(0.05)
