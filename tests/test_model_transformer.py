"""The training path against definitions, and the configuration against nonsense."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from klype.errors import KlypeError
from klype.model.attention import convolve, document_positions, rope_table, rotate
from klype.model.config import ModelConfig
from klype.model.transformer import Transformer
from tests.toys import SHAPES, bigram, toy


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def texts(count: int, length: int) -> torch.Tensor:
    return torch.randint(0, 23, (count, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", SHAPES)
def test_no_position_sees_the_future(shape: str) -> None:
    model, tokens = toy(shape), texts(2, 20)
    changed = tokens.clone()
    changed[:, 11:] = (changed[:, 11:] + 1) % 23
    with torch.inference_mode():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :11], after[:, :11])
    assert (before[:, 11:] - after[:, 11:]).abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("shape", SHAPES)
def test_packed_documents_equal_separate_ones(shape: str) -> None:
    model, tokens = toy(shape), texts(1, 30)
    documents = torch.tensor([[0] * 9 + [1] * 1 + [5] * 13 + [2] * 7])
    with torch.inference_mode():
        packed = model.hidden(tokens, document_BT=documents)
        apart = torch.cat([model.hidden(part) for part in tokens.split([9, 1, 13, 7], 1)], 1)
    torch.testing.assert_close(packed, apart, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", ["llama", "grouped"])
def test_written_out_attention_equals_the_fused_kernel(shape: str) -> None:
    model, tokens = toy(shape), texts(2, 33)
    with torch.inference_mode():
        written = model(tokens)
        model.causal = model.causal[:2, :2]  # too small a mask: the fused kernel has to be used
        torch.testing.assert_close(model(tokens), written, atol=2e-5, rtol=1e-4)


def test_long_windows_work_with_and_without_packing() -> None:
    model = toy("conv", window=1024)
    tokens, documents = texts(1, 700), torch.arange(700)[None] // 650
    with torch.inference_mode():
        packed = model.hidden(tokens, document_BT=documents)
        torch.testing.assert_close(packed[:, :650], model.hidden(tokens[:, :650]), atol=3e-5, rtol=1e-4)


def test_convolution_is_its_formula_and_its_gradient_a_finite_difference() -> None:
    x = torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True)
    taps = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    u = convolve(x, taps, None)
    for t in range(7):
        expected = x[:, t] + sum(taps[j - 1] * x[:, t - j] for j in range(1, 6) if t - j >= 0)
        torch.testing.assert_close(u[:, t], expected)
    assert torch.autograd.gradcheck(lambda a, b: convolve(a, b, None), (x, taps))
    torch.testing.assert_close(convolve(x, taps, torch.arange(7).expand(2, 7)), u)


def test_positions_restart_with_every_document() -> None:
    assert document_positions(torch.tensor([[3, 3, 3, 1, 1, 3]])).tolist() == [[0, 1, 2, 0, 1, 0]]


def test_rotation_turns_each_pair_by_its_angle() -> None:
    config = ModelConfig(vocab_size=5, width=8, heads=1, window=16, rope_theta=100.0)
    cos, sin = rope_table(config)
    x = torch.randn(8)
    got = rotate(x, cos[3], sin[3])
    for i in range(4):
        angle = 3 * 100.0 ** (-2 * i / 8)
        a, b = float(x[i]), float(x[i + 4])
        assert got[i].item() == pytest.approx(a * math.cos(angle) - b * math.sin(angle), abs=1e-5)
        assert got[i + 4].item() == pytest.approx(b * math.cos(angle) + a * math.sin(angle), abs=1e-5)


def test_linear_scaling_reads_positions_more_slowly() -> None:
    plain = ModelConfig(vocab_size=5, width=8, heads=1, window=64)
    scaled = ModelConfig.parse({**plain.model_dump(), "rope_scaling": {"kind": "linear", "factor": 4.0}})
    torch.testing.assert_close(rope_table(scaled)[0][::4], rope_table(plain)[0][:16])


def test_llama3_scaling_keeps_fast_and_divides_slow_frequencies() -> None:
    scaling = {"kind": "llama3", "factor": 8.0, "original_window": 64}
    plain = ModelConfig(vocab_size=5, width=32, heads=1, window=16, rope_theta=500_000.0)
    scaled = ModelConfig.parse({**plain.model_dump(), "rope_scaling": scaling})
    angle, slowed = (rope_table(c)[1][1, 16:].asin() for c in (plain, scaled))
    assert slowed[0] == pytest.approx(angle[0])  # wavelength 2 pi < 64 / 4
    assert slowed[-1].item() == pytest.approx(angle[-1].item() / 8, rel=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_are_counted(shape: str) -> None:
    model = toy(shape)
    assert sum(p.numel() for p in model.parameters()) == model.config.parameters


def test_every_layer_starts_as_the_identity_and_the_head_is_silent() -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=23, conv=5, rope_theta=0.0))
    logits = model(texts(2, 9))
    assert logits.abs().max() == 0
    assert model.embed.weight.std().item() == pytest.approx(0.7, rel=0.1)
    qkv = model.get_parameter("layers.0.qkv.weight")
    assert qkv.std().item() == pytest.approx(0.6 / 8, rel=0.1)


def test_a_bigram_model_has_the_logits_it_was_given() -> None:
    table = torch.randn(5, 5)
    with torch.inference_mode():
        logits = bigram(table)(torch.tensor([[0, 3, 1, 4, 2]]))
    torch.testing.assert_close(logits[0], table[[0, 3, 1, 4, 2]], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"vocab_size": 0}, "vocab_size"),
        ({"vocab_size": 9, "width": 10, "heads": 4}, "multiple of heads"),
        ({"vocab_size": 9, "heads": 4, "kv_heads": 3}, "kv_heads"),
        ({"vocab_size": 9, "depth": 3}, "depth"),
        ({"vocab_size": 9, "width": 12}, "odd"),
        ({"vocab_size": 9, "rope_theta": 0, "rope_scaling": {"kind": "linear", "factor": 2}}, "rope_theta"),
        ({"vocab_size": 9, "rope_scaling": {"kind": "yarn", "factor": 2}}, "rope_scaling.kind"),
    ],
)
def test_a_wrong_configuration_is_one_clear_sentence(data: dict[str, Any], says: str) -> None:
    with pytest.raises(KlypeError, match=says) as caught:
        ModelConfig.parse(data)
    assert "\n" not in str(caught.value)


def test_a_text_longer_than_the_window_is_refused() -> None:
    with pytest.raises(KlypeError, match="window of 64"):
        toy()(texts(1, 65))
