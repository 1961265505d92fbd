"""Cached = uncached, whatever rows do: join, leave, fork, be cut, share."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from klype.errors import KlypeError
from klype.model.attention import TORCH
from klype.model.cache import Cache
from klype.model.compiled import CompiledBackend, compiled_backend
from klype.model.transformer import Transformer
from tests.toys import SHAPES, toy

WAYS = ("torch", "C")
"""Who computes a pass of one token a row."""


def model_of(shape: str, way: str = "torch", folder: Path | None = None) -> Transformer:
    if way == "torch":
        return toy(shape)
    model = toy(shape, width=32, hidden=48, head_dim=8)
    assert folder is not None
    backend = compiled_backend(folder)
    assert isinstance(backend, CompiledBackend)
    return model.with_backend(backend)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where C is compiled to."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def texts(count: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 23, (count, length), generator=torch.Generator().manual_seed(seed))


def equal(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=3e-5, rtol=1e-4)


@torch.inference_mode()
def read(model: Transformer, cache: Cache, rows: list[list[int]]) -> list[torch.Tensor]:
    """Ragged rows, right-padded, then cut back: the states of each row's own tokens."""
    T = max(map(len, rows))
    before = cache.lengths.copy()
    padded = torch.tensor([row + [0] * (T - len(row)) for row in rows])
    hidden = model.hidden(padded, cache)
    cache.truncate(before + np.array([len(row) for row in rows]))
    return [hidden[i, : len(row)] for i, row in enumerate(rows)]


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_cached_equals_uncached_in_any_chunks(shape: str, way: str, folder: Path) -> None:
    model, tokens = model_of(shape, way, folder), texts(3, 40)
    whole = model.hidden(tokens)
    for cuts in ([40], [1] * 40, [7, 1, 1, 20, 11]):
        cache = Cache(model.config, 3)
        parts = [model.hidden(part, cache) for part in tokens.split(cuts, 1)]
        equal(torch.cat(parts, 1), whole)
        assert cache.lengths.tolist() == [40] * 3


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
@given(data=st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ragged_rows_that_share_join_leave_fork_and_are_cut(
    shape: str, way: str, folder: Path, data: st.DataObject
) -> None:
    with torch.inference_mode():
        live(model_of(shape, way, folder), data.draw, one_by_one=way == "C")


def live(model: Transformer, draw: Any, one_by_one: bool = False) -> None:
    """A random life of a cache against plain recomputation of every row's text."""
    token, more = st.integers(0, 22), 1 if one_by_one else 9
    text = st.lists(token, min_size=1, max_size=9)
    cache, written = Cache(model.config), []

    def bring() -> None:
        prompts = draw(st.lists(text, min_size=1, max_size=3))
        source = Cache(model.config, len(prompts))
        read(model, source, prompts)
        store = source.to_shared()
        chosen = draw(st.lists(st.integers(0, len(prompts) - 1), min_size=1, max_size=4))
        lengths = [draw(st.integers(0, len(prompts[slot]))) for slot in chosen]
        cache.append(store, chosen, lengths)
        written.extend(prompts[slot][:length] for slot, length in zip(chosen, lengths, strict=True))

    bring()
    for _ in range(draw(st.integers(1, 5))):
        event = draw(st.sampled_from(["bring", "read", "read", "leave", "fork", "cut", "shelve"]))
        if event == "bring":
            bring()
        elif event == "leave" and len(written) > 1:
            ended = np.array(draw(st.lists(st.booleans(), min_size=len(written), max_size=len(written))))
            ended[draw(st.integers(0, len(written) - 1))] = False
            written = [written[i] for i in cache.remove(ended)]
        elif event == "fork":
            rows = draw(st.lists(st.integers(0, len(written) - 1), min_size=1, max_size=5))
            store, cache = cache.to_shared(), Cache(model.config)
            cache.append(store, rows, [len(written[i]) for i in rows])
            written = [written[i] for i in rows]
        elif event == "cut":
            written = [row[: draw(st.integers(0, len(row)))] for row in written]
            cache.truncate([len(row) for row in written])
        elif event == "shelve":
            store, lengths = cache.to_shared(), [len(row) for row in written]
            cache = Cache(model.config)
            cache.append(store, range(len(lengths)), lengths)
        rows = [draw(st.lists(token, min_size=1, max_size=more)) for _ in written]
        if max(len(w) + len(r) for w, r in zip(written, rows, strict=True)) > 50:
            break
        states = read(model, cache, rows)
        written = [w + r for w, r in zip(written, rows, strict=True)]
        for state, new, whole in zip(states, rows, written, strict=True):
            equal(state, model.hidden(torch.tensor([whole]))[0, -len(new) :])
    assert cache.lengths.tolist() == [len(row) for row in written]


@torch.inference_mode()
def test_a_shared_prefix_is_stored_once() -> None:
    model = toy(window=512)
    source = Cache(model.config, 1)
    model.hidden(texts(1, 300), source)
    store, cache = source.to_shared(), Cache(model.config)
    cache.append(store, [0] * 64, [300] * 64)
    model.hidden(texts(64, 1), cache)
    per_token = 2 * model.config.layers * model.config.kv_heads * model.config.head_dim * 4
    assert store.nbytes == 300 * per_token
    assert sum(t.nbytes for t in cache.tensors) <= 64 * 32 * per_token


@torch.inference_mode()
def test_alike_shelves_are_merged() -> None:
    model, cache = toy("conv"), Cache(toy("conv").config)
    tokens = texts(16, 6)
    for i in range(16):
        source = Cache(model.config, 1)
        model.hidden(tokens[i : i + 1], source)
        cache.append(source.to_shared(), [0], [6])
    assert len(cache.stores) <= 2
    after = texts(16, 2, seed=1)
    equal(model.hidden(after, cache), model.hidden(torch.cat((tokens, after), 1))[:, 6:])


def test_past_the_window_is_refused() -> None:
    model = toy()
    cache = Cache(model.config, 1)
    with torch.inference_mode():
        model.hidden(texts(1, 64), cache)
        with pytest.raises(KlypeError, match="window of 64"):
            model.hidden(texts(1, 1), cache)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_a_row_that_nobody_shares_owns_its_text_until_others_join(shape: str, way: str, folder: Path) -> None:
    model, tokens = model_of(shape, way, folder), texts(1, 40)
    whole = model.hidden(tokens)
    first = Cache(model.config, 1)
    model.hidden(tokens[:, :17], first)
    store = first.to_shared()
    cache = Cache(model.config, 0)
    cache.append(store, [0], [15])
    cache.unshare()
    assert not cache.stores
    equal(model.hidden(tokens[:, 15:16], cache), whole[:, 15:16])
    equal(model.hidden(tokens[:, 16:20], cache), whole[:, 16:20])
    cache.share()
    assert cache.shared.tolist() == [20]
    cache.append(store, [0], [9])
    both = [tokens[0, 20:26].tolist(), tokens[0, 9:13].tolist()]
    long, short = read(model, cache, both)
    equal(long, whole[0, 20:26])
    equal(short, whole[0, 9:13])
    assert cache.lengths.tolist() == [26, 13]
    assert cache.shared.tolist() == [20, 9], "the own part of a row that joins is not as wide as the longest text"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_in_c_what_comes_out_for_a_row_depends_neither_on_others_nor_on_threads(
    shape: str, dtype: torch.dtype, folder: Path
) -> None:
    """Bit for bit: 70 rows on three stores' slots and on none, of all lengths, against some of them alone."""
    model = model_of(shape, "C", folder).to(dtype)
    source = Cache(model.config, 4, dtype=dtype)
    model.hidden(texts(4, 21), source)
    cache, rng = Cache(model.config, dtype=dtype), np.random.default_rng(1)
    cache.append(source.to_shared(), rng.integers(0, 4, 70).tolist(), rng.integers(0, 22, 70).tolist())
    rows, width = cache.rows, model.config.qkv_width
    for token in range(3):
        alone = deepcopy(cache)
        few = alone.remove(~np.isin(np.arange(rows), rng.choice(rows, 7, replace=False)))
        qkv_RE = torch.randn(rows, width, generator=torch.Generator().manual_seed(token)).to(dtype)
        torch.set_num_threads(1 + token)
        together = [_attended(model, cache, qkv_RE, layer) for layer in range(2)]
        torch.set_num_threads(1)
        apart = [_attended(model, alone, qkv_RE[torch.from_numpy(few)], layer) for layer in range(2)]
        for a, b in zip(together, apart, strict=True):
            assert torch.equal(a[torch.from_numpy(few)], b)
        model.hidden(texts(rows, 1, seed=token), cache)


def _attended(model: Transformer, cache: Cache, qkv_RE: torch.Tensor, layer: int) -> torch.Tensor:
    cache.reserve(1)
    attention = model.backend.decode(cache, 1, (model.cos, model.sin) if model.config.rope_theta else None)
    norms = model.layers[layer].q_norm, model.layers[layer].k_norm
    return attention.attend(qkv_RE, norms, layer)  # type: ignore[arg-type]


@torch.inference_mode()
def test_in_c_low_precision_is_torchs_but_for_rounding(folder: Path) -> None:
    model, tokens = model_of("grouped", "C", folder).to(torch.bfloat16), texts(3, 30)
    shared = Cache(model.config, 1, dtype=torch.bfloat16)
    model.hidden(tokens[:1, :8], shared)
    store, states, exact = shared.to_shared(), [], model_of("grouped", "C", folder).hidden
    for way in (model, model.with_backend(TORCH)):
        cache = Cache(model.config, dtype=torch.bfloat16)
        cache.append(store, [0, 0, 0], [8, 8, 8])
        states.append(torch.cat([way.hidden(token, cache) for token in tokens[:, 8:].split(1, 1)], 1).float())
    whole = exact(torch.cat((tokens[:1, :8].expand(3, -1), tokens[:, 8:]), 1))[:, 8:]
    ours, theirs = ((state - whole).abs().mean() for state in states)
    assert ours < 0.05
    assert ours < 1.5 * theirs
