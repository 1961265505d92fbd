"""Every sampling function against its definition; noise and draw against the distribution they claim."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from klype.engine.sampling import check_sampling, draw, noise, sample, shape
from klype.errors import UsageError
from klype.samplers import TokenCounts, top_p
from klype.values import Sampling

LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=40)


def probabilities(logits: list[float], sampling: Sampling) -> np.ndarray:
    return shape(torch.tensor([logits]), sampling)[0].double().exp().numpy()


def softmax(logits: list[float], temperature: float = 1.0) -> np.ndarray:
    z = np.array(logits, np.float64) / temperature
    e = np.exp(z - z.max())
    return e / e.sum()


def kept(p: np.ndarray, keep: list[int]) -> np.ndarray:
    out = np.zeros_like(p)
    out[keep] = p[keep] / p[keep].sum()
    return out


@given(LOGITS, st.floats(0.05, 5))
def test_temperature_divides_logits(logits: list[float], temperature: float) -> None:
    np.testing.assert_allclose(probabilities(logits, Sampling(temperature)), softmax(logits, temperature), atol=2e-5)


@given(LOGITS)
def test_temperature_zero_is_one_hot_on_the_greatest(logits: list[float]) -> None:
    p = probabilities(logits, Sampling(0.0))
    assert p[int(np.argmax(np.float32(logits)))] == 1 == p.sum()


@pytest.mark.parametrize("temperature", [1e-4, 1e-30, 5e-324])
def test_almost_zero_temperature_does_not_overflow(temperature: float) -> None:
    assert probabilities([3.0, 80.0, -90.0], Sampling(temperature)).tolist() == [0, 1, 0]


@given(st.permutations([0.0, 1.0, 2.5, 3.1, -4.0, 0.7]), st.integers(1, 8))
def test_top_k_keeps_the_k_most_probable(logits: list[float], k: int) -> None:
    p = softmax(logits)
    np.testing.assert_allclose(probabilities(logits, Sampling(top_k=k)), kept(p, list(np.argsort(-p)[:k])), atol=1e-6)


@given(st.permutations([0.0, 1.0, 2.5, 3.1, -4.0, 0.7]), st.sampled_from([0.01, 0.3, 0.6, 0.9, 0.99]))
def test_top_p_keeps_the_smallest_set_with_that_mass(logits: list[float], mass: float) -> None:
    p = softmax(logits)
    order = np.argsort(-p)
    n = int(np.searchsorted(np.cumsum(p[order]), mass)) + 1
    np.testing.assert_allclose(probabilities(logits, Sampling(top_p=mass)), kept(p, list(order[:n])), atol=1e-6)


@given(st.permutations([0.0, 1.0, 2.5, 3.1, -4.0, 0.7]), st.sampled_from([0.01, 0.2, 0.5, 0.999]))
def test_min_p_is_relative_to_the_most_probable(logits: list[float], fraction: float) -> None:
    p = softmax(logits)
    keep = list(np.flatnonzero(p >= fraction * p.max()))
    np.testing.assert_allclose(probabilities(logits, Sampling(min_p=fraction)), kept(p, keep), atol=1e-6)


@given(st.permutations([0.0, 1.0, 2.5, 3.1, -4.0, 0.7]), st.sampled_from([0.01, 0.2, 0.5, 0.95]))
def test_typical_keeps_surprise_near_entropy(logits: list[float], mass: float) -> None:
    p = softmax(logits)
    distance = np.abs(-np.log(p) + (p * np.log(p)).sum())
    order = np.argsort(distance)
    n = int(np.searchsorted(np.cumsum(p[order]), mass)) + 1
    np.testing.assert_allclose(probabilities(logits, Sampling(typical_p=mass)), kept(p, list(order[:n])), atol=1e-6)


def test_penalties_and_bias_are_their_formulas() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5, 3.0]])
    seen = TokenCounts(torch.tensor([[1.0, 1.0, 0.0, 2.0]]), torch.tensor([[0.0, 1.0, 0.0, 2.0]]))
    sampling = Sampling(
        repetition_penalty=2.0, presence_penalty=0.3, frequency_penalty=0.1, logit_bias=((2, 1.5), (0, -1.0))
    )
    biased = [1.0, -1.0, 2.0, 3.0]
    expected = [biased[0] / 2, biased[1] * 2 - 0.4, biased[2], biased[3] / 2 - 0.5]
    np.testing.assert_allclose(shape(logits, sampling, seen)[0].exp(), softmax(expected), atol=1e-6)


def test_a_forbidden_token_is_never_drawn() -> None:
    logp = shape(torch.zeros(1, 3), Sampling(logit_bias=((0, -math.inf), (2, -math.inf))))
    u = torch.linspace(1e-12, 1 - 1e-12, 999, dtype=torch.float64)
    assert draw(logp.expand(999, 3), u).unique().tolist() == [1]


def test_filters_see_what_the_one_before_left() -> None:
    logits = np.log([0.4, 0.3, 0.2, 0.1]).tolist()
    np.testing.assert_allclose(probabilities(logits, Sampling(top_k=3, top_p=0.7)), [4 / 7, 3 / 7, 0, 0], atol=1e-6)


@settings(max_examples=40)
@given(st.integers(2, 3000), st.integers(0, 99))
def test_draw_is_the_inverse_of_the_cumulative_distribution(size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(size, 0.1))
    p[rng.random(size) < 0.3] = 0
    p[rng.integers(size)] += 0.1
    p /= p.sum()
    logp = torch.tensor(np.log(np.maximum(p, 1e-300)), dtype=torch.float32)[None]
    logp[0, torch.tensor(p == 0)] = -math.inf
    u = np.concatenate((rng.random(50), [2.0**-53, 1 - 2.0**-53]))
    got = draw(logp.expand(len(u), -1), u).numpy()
    cumulative = np.cumsum(p)
    assert (p[got] > 0).all()
    assert (cumulative[got] >= u - 1e-5).all()
    assert (cumulative[got] - p[got] <= u + 1e-5).all()


def test_a_row_is_drawn_alike_whatever_stands_beside_it() -> None:
    logp = torch.randn(64, 5000, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    u = noise(1, np.arange(64), 0)
    together = draw(logp, u)
    assert together.tolist() == [int(draw(logp[i : i + 1], u[i : i + 1])) for i in range(64)]


def test_draws_have_the_distribution() -> None:
    logits = torch.randn(30, generator=torch.Generator().manual_seed(3))
    count = 40_000
    logp = shape(logits[None], Sampling(0.8))
    tokens = draw(logp.expand(count, -1), noise(7, np.arange(count), 0))
    observed = np.bincount(tokens.numpy(), minlength=30)
    expected = logp[0].double().softmax(-1).numpy() * count
    assert stats.chisquare(observed, expected).pvalue > 1e-3


@pytest.mark.parametrize("axis", ["seed", "sample", "position", "stream"])
def test_noise_is_uniform_and_independent_along_every_axis(axis: str) -> None:
    base = {"seed": 0, "sample": 0, "position": 0}
    if axis == "stream":
        u = np.array([float(noise(**base, stream=i)) for i in range(4000)])
    else:
        u = noise(**{**base, axis: np.arange(40_000)})
    assert u.min() > 0
    assert u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    pairs = np.histogram2d(u[:-1], u[1:], bins=10)[0]
    assert stats.chi2_contingency(pairs).pvalue > 1e-3


def test_noise_is_a_function_of_its_arguments_only() -> None:
    grid = noise(5, np.arange(4)[:, None], np.arange(6))
    assert all(grid[s, t] == noise(5, s, t) for s in range(4) for t in range(6))
    assert (
        len(np.unique(np.concatenate([noise(seed, np.arange(50)[:, None], np.arange(50)) for seed in (0, 1)]))) == 5000
    )
    assert noise(-1, 0, 0) == noise(2**64 - 1, 0, 0)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(math.nan),
        Sampling(-1.0),
        Sampling(math.inf),
        Sampling(top_k=-1),
        Sampling(top_p=0.0),
        Sampling(top_p=1.1),
        Sampling(top_p=math.nan),
        Sampling(min_p=1.5),
        Sampling(typical_p=0.0),
        Sampling(repetition_penalty=0.0),
        Sampling(presence_penalty=math.nan),
        Sampling(frequency_penalty=math.inf),
        Sampling(logit_bias=((99, 1.0),)),
        Sampling(logit_bias=((1, math.nan),)),
    ],
)
def test_impossible_settings_are_one_clear_sentence(sampling: Sampling) -> None:
    with pytest.raises(UsageError, match="must be") as caught:
        check_sampling(sampling, 50)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.7),
        Sampling(temperature=0),
        Sampling(temperature=1e-5),
        Sampling(top_k=3),
        Sampling(temperature=0.5, top_p=0.8),
    ],
)
@pytest.mark.parametrize("vocabulary", [40, 3000])
def test_sample_is_shape_then_draw(sampling: Sampling, vocabulary: int) -> None:
    logits = 3 * torch.randn(50, vocabulary, generator=torch.Generator().manual_seed(3))
    u = noise(5, np.arange(50), 2)
    tokens, logp = sample(logits, sampling, u)
    shaped = shape(logits, sampling)
    assert torch.equal(tokens, draw(shaped, u))
    torch.testing.assert_close(logp[0], logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0])
    torch.testing.assert_close(logp[1], shaped.gather(1, tokens[:, None])[:, 0])


@pytest.mark.parametrize("spread", [0.1, 5.0])
def test_the_nucleus_of_a_wide_vocabulary_is_that_of_the_whole_sort(spread: float) -> None:
    """Flat rows have a nucleus wider than what is looked at first; peaked ones lie within it."""
    logp = (spread * torch.randn(4, 4000, generator=torch.Generator().manual_seed(0))).log_softmax(-1)
    kept = top_p(logp, 0.7)
    for row, whole in zip(kept, logp, strict=True):
        order = whole.argsort(descending=True)
        size = int((whole[order].exp().cumsum(0) < 0.7).sum()) + 1
        assert set(row.isfinite().nonzero()[:, 0].tolist()) == set(order[:size].tolist())
        assert float(row.exp().sum()) == pytest.approx(1, abs=1e-4)
