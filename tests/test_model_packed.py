"""Packed = plain: the same numbers in float32, bounded by rounding in the coarser ones."""

from __future__ import annotations

import copy

import pytest
import torch

from klype.engine.engine import Engine
from klype.errors import KlypeError
from klype.model.prepacked import FEW, PRECISIONS, BlockedLinear, Int8Linear, fastest_alone, is_prepacked, prepack
from klype.model.transformer import Transformer
from klype.values import Request, Sampling
from tests.toys import SHAPES, toy

TOKENS = torch.randint(0, 23, (3, 20), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def wide(shape: str) -> Transformer:
    return toy(shape, width=128, hidden=192, heads=4, head_dim=32)


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_packed_float32_computes_the_same(shape: str) -> None:
    model = wide(shape)
    packed = prepack(copy.deepcopy(model), "float32")
    assert any(isinstance(part, BlockedLinear) for part in packed.modules())
    torch.testing.assert_close(packed(TOKENS), model(TOKENS), atol=1e-4, rtol=1e-4)


def test_packed_float32_says_the_same_words() -> None:
    model = wide("grouped")
    request = Request(prompt=(3, 1, 4, 1, 5), n=3, limit=20, sampling=Sampling(temperature=0.8))
    (plain,) = Engine(model).run([request])
    (packed,) = Engine(prepack(copy.deepcopy(model), "float32")).run([request])
    assert [t.tokens for t in packed] == [t.tokens for t in plain]


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_packed_bfloat16_is_the_model_cast_to_bfloat16(shape: str) -> None:
    model = wide(shape)
    packed = prepack(copy.deepcopy(model), "bfloat16")(TOKENS).float()
    cast = copy.deepcopy(model).bfloat16()(TOKENS).float()
    exact = model(TOKENS)
    assert (packed - exact).abs().max() <= 2 * (cast - exact).abs().max()


@pytest.mark.parametrize("rows", [1, FEW, FEW + 1, 40])
@torch.inference_mode()
def test_an_int8_layer_is_off_by_no_more_than_its_rounding(rows: int) -> None:
    torch.manual_seed(0)
    weight_OI, x_MI = torch.randn(96, 64), torch.randn(rows, 64).bfloat16()
    bias_O = torch.randn(96)
    layer = Int8Linear(weight_OI, bias_O)
    exact = x_MI.double() @ weight_OI.double().T + bias_O.double()
    half_step_O = weight_OI.abs().amax(1).double() / 254
    bound = x_MI.double().abs().sum(1, keepdim=True) * half_step_O + exact.abs() / 64 + 0.1
    assert ((layer(x_MI).double() - exact).abs() <= bound).all()


def test_packing_takes_the_place_of_the_matrices() -> None:
    model = prepack(wide("llama"), "int8")
    assert is_prepacked(model)
    assert {name.rsplit(".", 1)[-1] for name, _ in model.named_parameters() if "norm" not in name} == {"weight"}
    assert all("norm" in name or "embed" in name for name, _ in model.named_parameters())
    with pytest.raises(KlypeError, match="packed already"):
        prepack(model, "int8")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(KlypeError, match="int4"):
        prepack(wide("llama"), "int4")  # type: ignore[arg-type]


def test_small_matrices_stay_as_they_are() -> None:
    model = toy()
    assert not is_prepacked(prepack(model, "float32"))


def test_what_is_fastest_alone_is_one_of_the_precisions() -> None:
    assert fastest_alone(1) in PRECISIONS
