"""Adapters: at first the base, merged the same, exact gradients, frozen weights untouched, resumed = straight."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from toys import SHAPES, toy
from train_toys import Seeded, random_batch

from klype.engine.engine import Engine
from klype.errors import TrainingInterrupted
from klype.model.config import ModelConfig
from klype.model.lora import AdaptedTransformer, LoraSettings, frozen_model
from klype.model.transformer import Transformer
from klype.train.flat_parameters import round_buffers
from klype.train.loop import TrainSession, TrainSettings, train
from klype.train.objectives import cross_entropy
from klype.train.optimizer import OptimizerSettings
from klype.train.resume import read_newest, states
from klype.values import Request, Sampling

torch.set_num_threads(1)
RANK_3 = LoraSettings(rank=3, alpha=6.0)


def batches() -> Seeded:
    return Seeded(lambda i: random_batch(i, vocab=23))


def settings(steps: int = 6, **changes: object) -> TrainSettings:
    rates = OptimizerSettings(kind="adamw", rate=0.02)
    return TrainSettings.model_validate({"steps": steps, "save_seconds": 0.0, "optimizer": rates, **changes})


def adapted(base: Transformer, learnt: bool = False) -> AdaptedTransformer:
    torch.manual_seed(5)
    model = AdaptedTransformer(base, RANK_3)
    if learnt:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("shape", list(SHAPES))
def test_an_adapter_that_has_learnt_nothing_is_the_base(shape: str) -> None:
    base, tokens_BT = toy(shape), torch.randint(0, 23, (2, 9), generator=torch.Generator().manual_seed(1))
    assert torch.equal(adapted(base)(tokens_BT), base(tokens_BT))


@pytest.mark.parametrize("shape", list(SHAPES))
def test_merged_is_adapted_with_and_without_a_cache(shape: str) -> None:
    base, tokens_BT = toy(shape), torch.randint(0, 23, (2, 9), generator=torch.Generator().manual_seed(1))
    model = adapted(base, learnt=True)
    whole = model.merge(base)
    assert not torch.allclose(model(tokens_BT), base(tokens_BT), atol=1e-2)
    torch.testing.assert_close(whole(tokens_BT), model(tokens_BT), rtol=1e-4, atol=1e-4)
    assert whole.state_dict().keys() == base.state_dict().keys()
    asked = [Request((1, 2, 3), limit=8, sampling=Sampling(temperature=0.0))]
    assert Engine(whole).run(asked)[0][0].tokens == Engine(model).run(asked)[0][0].tokens


def test_gradients_are_finite_differences() -> None:
    model = adapted(toy("grouped"), learnt=True).double()
    batch = random_batch(3, vocab=23)

    def loss() -> torch.Tensor:
        logits_BTV = model(batch.tokens_BT)
        each_N = functional.cross_entropy(logits_BTV.flatten(0, 1), batch.targets_BT.flatten(), reduction="none")
        return each_N @ batch.weights_BT.flatten().double()

    loss().backward()
    for name in ("layers.0.qkv.a", "layers.1.qkv.b", "layers.0.out.a", "layers.1.gate_up.b", "layers.0.down.a"):
        parameter = model.get_parameter(name)
        assert parameter.grad is not None
        where, step = (1, 2), 1e-5
        with torch.no_grad():
            parameter[where] += step
            above = loss()
            parameter[where] -= 2 * step
            below = loss()
            parameter[where] += step
        assert parameter.grad[where].item() == pytest.approx(((above - below) / (2 * step)).item(), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_frozen_weights_have_no_gradient_and_do_not_change(precision: str, tmp_path: Path) -> None:
    base = toy("qwen")
    before, model = weights(base), adapted(base)
    names = [name for name, _ in model.named_parameters()]
    assert all(name.endswith((".a", ".b")) for name in names)
    assert len(names) == 2 * 4 * 2  # A and B of four matrices in two layers
    train(model, cross_entropy, batches(), settings(precision=precision), tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())
    assert all(parameter.grad is None for parameter in base.parameters())
    assert model.embed.weight.data_ptr() == base.embed.weight.data_ptr()  # still no copy
    assert any(bool(parameter.any()) for name, parameter in model.named_parameters() if name.endswith(".b"))


def test_frozen_tied_weights_stay_one_when_they_are_rounded() -> None:
    base = Transformer(ModelConfig(vocab_size=24, width=16, layers=1, heads=2, hidden=32, window=32, tie=True))
    model = adapted(base)
    own = round_buffers(model, torch.bfloat16)
    assert model.embed.weight.dtype == torch.bfloat16
    assert model.embed.weight.data_ptr() == model.head.weight.data_ptr()
    for module, name, buffer in own:
        setattr(module, name, buffer)
    assert model.embed.weight.data_ptr() == base.embed.weight.data_ptr()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_resumed_is_straight_and_the_state_holds_adapters_only(precision: str, tmp_path: Path) -> None:
    results = []
    for name, stops in (("straight", []), ("stopped", [False, False, False, True])):
        asked, model = iter(stops), adapted(toy())
        folder = tmp_path / name
        try:
            session = TrainSession(stop=lambda asked=asked: next(asked, False))  # type: ignore[misc]
            train(model, cross_entropy, batches(), settings(precision=precision), folder, session)
        except TrainingInterrupted:
            model = adapted(toy())
            train(model, cross_entropy, batches(), settings(precision=precision), folder, TrainSession(resume=True))
        results.append(weights(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    state = read_newest(tmp_path / "straight", print)
    assert state is not None
    assert all(name.endswith((".a", ".b")) for name in load_file(state.folder / "model.safetensors"))
    assert len(states(tmp_path / "straight")) >= 1


def test_side_by_side_is_one_after_the_other() -> None:
    model = adapted(toy(), learnt=True)
    twin = copy.deepcopy(model)
    assert twin.embed.weight.data_ptr() == model.embed.weight.data_ptr()
    assert twin.get_parameter("layers.0.qkv.a").data_ptr() != model.get_parameter("layers.0.qkv.a").data_ptr()
    tokens_BT = torch.arange(6)[None]
    assert torch.equal(twin(tokens_BT), model(tokens_BT))


def test_workers_share_frozen_weights_bit_for_bit(tmp_path: Path) -> None:
    results = []
    for workers in (1, 2):
        model = adapted(toy())
        session = TrainSession(workers=workers)
        train(model, cross_entropy, batches(), settings(4, micro_batches=2), tmp_path / str(workers), session)
        results.append(weights(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_frozen_is_the_model_itself_where_it_can_be() -> None:
    base = toy()
    assert frozen_model(base, torch.float32) is base
    low = frozen_model(base, torch.bfloat16)
    assert low is not base
    assert next(low.parameters()).dtype == torch.bfloat16
    assert next(base.parameters()).dtype == torch.float32
    assert not any(parameter.requires_grad for model in (base, low) for parameter in model.parameters())


def test_a_higher_rank_learns_a_batch(tmp_path: Path) -> None:
    batch = random_batch(0, rows=2, vocab=23)
    model = AdaptedTransformer(toy(), LoraSettings(rank=16))
    losses: list[float] = []
    session = TrainSession(on_step=lambda step, metrics: losses.append(metrics["loss"]))
    train(model, cross_entropy, Seeded(lambda i: batch), settings(60), tmp_path, session)
    assert losses[-1] < 0.3 * losses[0]
