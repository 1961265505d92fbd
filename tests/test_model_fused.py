"""What is compiled for training = torch's, forward and backward, and the loop's laws hold with it."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from train_toys import Seeded, random_batch

from klype.errors import KlypeError, TrainingInterrupted
from klype.model import compiled as compiling
from klype.model.attention import TORCH
from klype.model.compiled import CompiledBackend, compiled_backend
from klype.model.lora import AdaptedTransformer, LoraSettings
from klype.model.packed_texts import ROUND, SharedPrefixes, pack, pack_branches
from klype.model.transformer import Transformer
from klype.planner import Precision, StepPlan
from klype.train.loop import TrainSession, TrainSettings, train
from klype.train.objectives import answers_batch, cross_entropy
from klype.train.optimizer import fused_parts
from klype.values import Batch
from tests.toys import toy

WIDE = {"width": 48, "hidden": 80, "heads": 2, "head_dim": 24, "window": 64, "vocab_size": 53}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "conv": {"rope_theta": 0.0, "conv": 5},
    "grouped": {"heads": 4, "kv_heads": 2, "head_dim": 16, "conv": 2, "qkv_bias": True},
    "tied": {"tie": True, "head_dim": 32, "kv_heads": 1},
    "narrow": {"heads": 3, "head_dim": 8},
}
DOCUMENTS = torch.tensor([[0] * 9 + [1] + [5] * 13 + [2] * 14] * 4)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> CompiledBackend:
    found = compiled_backend(tmp_path_factory.mktemp("fused"))
    if not isinstance(found, CompiledBackend):
        pytest.skip("there is no C compiler here")
    return found


def ragged(seed: int = 0, vocab: int = 53) -> Batch:
    """Four rows of 37 tokens, two of them mostly padding."""
    batch = random_batch(seed, rows=4, length=37, vocab=vocab)
    batch.weights_BT[1, 3:] = 0
    batch.weights_BT[2, 20:] = 0
    return batch


def learnt(model: Transformer, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss, and the gradient of every parameter, as float64."""
    model.zero_grad()
    loss = cross_entropy(model, batch).total
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach().double(), {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}


def off(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The worst relative error of a parameter's gradient."""
    return max(float((found[n] - g).norm() / (g.norm() + 1e-9)) for n, g in expected.items())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_losses_and_gradients_are_torchs_in_float64(shape: str, packed: bool, compiled: CompiledBackend) -> None:
    batch = ragged()
    if packed:
        batch = Batch(batch.tokens_BT, batch.targets_BT, batch.weights_BT, {"document_BT": DOCUMENTS})
    exact, fast = toy("llama", **(WIDE | SHAPES[shape])).double(), toy("llama", **(WIDE | SHAPES[shape]))
    fast = fast.with_backend(compiled)
    (loss, gradients), (expected, exactly) = learnt(fast, batch), learnt(exact, batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert off(gradients, exactly) < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_is_no_further_from_the_truth_than_torchs(shape: str, compiled: CompiledBackend) -> None:
    batch, exact = ragged(), toy("llama", **(WIDE | SHAPES[shape])).bfloat16().double()
    fast = toy("llama", **(WIDE | SHAPES[shape])).bfloat16()
    plain = copy.deepcopy(fast)
    fast = fast.with_backend(compiled)
    _, exactly = learnt(exact, batch)
    assert off(learnt(fast, batch)[1], exactly) < 1.5 * off(learnt(plain, batch)[1], exactly)


@pytest.mark.parametrize("shape", SHAPES)
def test_adapters_learn_as_with_torch(shape: str, compiled: CompiledBackend) -> None:
    base, batch = toy("llama", **(WIDE | SHAPES[shape])), ragged()
    fast = AdaptedTransformer(base, LoraSettings(rank=3))
    for parameter in fast.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    exact = copy.deepcopy(fast).double()
    fast = fast.with_backend(compiled)
    (loss, gradients), (expected, exactly) = learnt(fast, batch), learnt(exact, batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert off(gradients, exactly) < 1e-4


def grouped(group: int, seed: int = 0) -> Batch:
    """Four questions of 1 to 23 tokens, with ``group`` answers of up to 40 tokens each, one of them empty."""
    draw = random.Random(seed)
    prompts = [tuple(draw.choices(range(53), k=k)) for k in (14, 1, 23, 6)]
    rows = [prompt for prompt in prompts for _ in range(group)]
    lengths = [0 if row == 1 else draw.randint(1, 40) for row in range(len(rows))]
    return answers_batch(rows, [tuple(draw.choices(range(53), k=k)) for k in lengths], group)


def separate(batch: Batch) -> Batch:
    return Batch(batch.tokens_BT, batch.targets_BT, batch.weights_BT)


def dirty() -> None:
    """Leaves memory behind that is no zeros."""
    for size in (1 << 12, 1 << 14, 1 << 16, 1 << 17):
        del [torch.full((size,), 1e30) for _ in range(4)][:]


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_memory_that_others_have_used_changes_nothing(shape: str, compiled: CompiledBackend) -> None:
    model = toy("llama", **(WIDE | SHAPES[shape]))
    exact = copy.deepcopy(model).double()
    model = model.with_backend(compiled)
    for seed in range(12):
        batch = grouped(2, seed)
        dirty()
        assert off(learnt(model, batch)[1], learnt(exact, separate(batch))[1]) < 1e-4, seed


@pytest.mark.parametrize("shape", SHAPES)
def test_memory_that_others_have_used_changes_no_bit_in_bfloat16(shape: str, compiled: CompiledBackend) -> None:
    model = toy("llama", **(WIDE | SHAPES[shape])).bfloat16()
    model = model.with_backend(compiled)
    for seed in range(6):
        batch = grouped(2, seed)
        loss, gradients = learnt(model, batch)
        dirty()
        again, same = learnt(model, batch)
        assert again == loss, seed
        assert all(torch.equal(same[n], g) for n, g in gradients.items()), seed


@pytest.mark.parametrize("group", [2, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_branches_in_bfloat16_are_no_further_from_the_truth_than_torchs(
    shape: str, group: int, compiled: CompiledBackend
) -> None:
    batch, exact = grouped(group), toy("llama", **(WIDE | SHAPES[shape])).bfloat16().double()
    fast = toy("llama", **(WIDE | SHAPES[shape])).bfloat16()
    plain = copy.deepcopy(fast)
    fast = fast.with_backend(compiled)
    expected, exactly = learnt(exact, separate(batch))
    found, gradients = learnt(fast, batch)
    assert found.item() == pytest.approx(expected.item(), rel=0.01)
    assert off(gradients, exactly) < 1.5 * off(learnt(plain, separate(batch))[1], exactly)


@pytest.mark.parametrize("group", [2, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_answers_to_one_prompt_are_branches_and_as_if_each_had_its_own(
    shape: str, group: int, compiled: CompiledBackend
) -> None:
    batch = grouped(group)
    exact, fast = toy("llama", **(WIDE | SHAPES[shape])).double(), toy("llama", **(WIDE | SHAPES[shape]))
    fast = fast.with_backend(compiled)
    (loss, gradients), (expected, exactly) = learnt(fast, batch), learnt(exact, separate(batch))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert off(gradients, exactly) < 1e-4
    apart, _ = learnt(fast, separate(batch))
    assert loss.item() == pytest.approx(apart.item(), rel=1e-6)
    torch.set_num_threads(3)
    assert off(learnt(fast, batch)[1], gradients) < 1e-5


def test_a_prefix_is_packed_once_and_the_rest_is_as_it_was(compiled: CompiledBackend) -> None:
    batch = grouped(8)
    wanted_BT = batch.weights_BT != 0
    packed = pack_branches(wanted_BT, SharedPrefixes(8, batch.extra["prompt_B"][::8]))
    tokens_N = batch.tokens_BT.flatten()[packed.rows]
    assert packed.wanted is not None
    assert torch.equal(tokens_N[packed.wanted], batch.tokens_BT[wanted_BT])
    assert packed.texts.trees is not None
    prefixes = [packed.texts.cu_seqlens[tree : tree + 2].tolist() for tree in packed.texts.trees[:4].tolist()]
    assert [to - at for at, to in prefixes] == [14, 1, 23, 6]
    used = 14 + 1 + 23 + 6 + int((batch.weights_BT.sum(1) - 1).clamp(min=0).sum())
    assert used <= len(packed.rows) < used + ROUND
    assert len(packed.rows) < len(pack(wanted_BT).rows)


def test_gradients_are_finite_differences(compiled: CompiledBackend) -> None:
    model, batch = toy("conv", **WIDE), ragged()
    model = model.with_backend(compiled)
    _, gradients = learnt(model, batch)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        way = torch.randn_like(parameter)
        way *= 3e-3 * parameter.norm() / way.norm()
        losses = []
        for sign in (1, -2):
            parameter.data.add_(way, alpha=sign)
            losses.append(cross_entropy(model, batch).total.item())
        parameter.data.add_(way)
        slope = float((gradients[name] * way).detach().sum())
        assert (losses[0] - losses[1]) / 2 == pytest.approx(slope, rel=0.05, abs=2e-3), name


def test_padding_and_threads_change_nothing(compiled: CompiledBackend) -> None:
    model, batch = toy("conv", **WIDE), ragged()
    model = model.with_backend(compiled)
    loss, gradients = learnt(model, batch)
    again, same = learnt(model, batch)
    assert again == loss
    assert all(torch.equal(same[n], g) for n, g in gradients.items())
    tokens_BT, targets_BT, weights_BT = (functional.pad(t, (0, 11)) for t in vars_of(batch))
    assert learnt(model, Batch(tokens_BT, targets_BT, weights_BT))[0] == loss
    torch.set_num_threads(3)
    threaded, others = learnt(model, batch)
    assert threaded.item() == pytest.approx(loss.item(), rel=1e-6)
    assert off(others, gradients) < 1e-5


def vars_of(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return batch.tokens_BT, batch.targets_BT, batch.weights_BT


def test_what_is_not_learnt_is_not_computed(compiled: CompiledBackend) -> None:
    packed = pack(ragged().weights_BT != 0)
    rows = torch.tensor(ends(ragged())).cumsum(0).tolist()
    filled = -(-rows[-1] // ROUND) * ROUND
    assert packed.texts.cu_seqlens.tolist() == [0, *rows, *range(rows[-1] + 1, filled + 1)]
    assert len(packed.rows) == filled
    nothing = ragged()
    nothing.weights_BT.zero_()
    model = toy("conv", **WIDE)
    model = model.with_backend(compiled)
    loss = cross_entropy(model, nothing)
    assert (loss.total.item(), loss.count.item()) == (0.0, 0.0)
    loss.total.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def ends(batch: Batch) -> list[int]:
    return [int(row.nonzero().max()) + 1 for row in batch.weights_BT]


def test_a_loss_that_is_no_number_stays_one(compiled: CompiledBackend) -> None:
    model = toy("conv", **WIDE)
    model = model.with_backend(compiled)
    model.embed.weight.data[3] = float("nan")
    batch = ragged()
    batch.tokens_BT[0, 0] = 3
    loss, gradients = learnt(model, batch)
    assert loss.isnan()
    assert gradients["head.weight"].isnan().any()


def test_shapes_that_are_not_supported_and_long_texts_go_through_torch(compiled: CompiledBackend) -> None:
    for model in (toy("qwen"), toy("llama", **WIDE | {"width": 40, "head_dim": 24})):
        expected = learnt(model, ragged(vocab=23))[0]
        model = model.with_backend(compiled)
        assert learnt(model, ragged(vocab=23))[0].item() == pytest.approx(expected.item(), rel=1e-6)
    model = toy("conv", **WIDE | {"window": 600})
    model = model.with_backend(compiled)
    long = random_batch(0, rows=1, length=compiling.LONGEST + 20, vocab=53)
    assert torch.isfinite(learnt(model, long)[0])
    with pytest.raises(KlypeError, match="longer than the model's window"):
        cross_entropy(model, random_batch(0, rows=1, length=601, vocab=53))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resumed_is_straight_and_two_side_by_side_are_one_after_another(
    precision: Precision, tmp_path: Path, compiled: CompiledBackend
) -> None:
    def trained(folder: Path, workers: int, cuts: bool) -> dict[str, torch.Tensor]:
        model = toy("conv", **WIDE)
        model = model.with_backend(compiled)
        asked = TrainSettings(steps=6, micro_batches=2, precision=precision, save_seconds=0.0)
        parts, stops = fused_parts(model.config), iter([False, False, True])
        try:
            session = TrainSession(parts=parts, workers=workers, stop=lambda: cuts and next(stops))
            train(model, cross_entropy, Seeded(ragged), asked, folder, session)
        except TrainingInterrupted:
            train(model, cross_entropy, Seeded(ragged), asked, folder, TrainSession(True, parts, workers=workers))
        return dict(model.state_dict())

    expected = trained(tmp_path / "one", 1, cuts=False)
    for name, workers, cuts in (("two", 2, False), ("cut", 2, True)):
        found = trained(tmp_path / name, workers, cuts)
        assert all(torch.equal(found[k], tensor) for k, tensor in expected.items()), name


def test_without_a_place_for_it_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert compiled_backend(tmp_path / "file") is TORCH


def test_whether_it_is_compiled_is_part_of_the_plan() -> None:
    planned = StepPlan(10, 1.0, 2, 1, "float32", fused=True)
    assert StepPlan.parse(planned.json()) == planned
    old = {k: v for k, v in planned.json().items() if k != "fused"}
    assert not StepPlan.parse(old).fused
