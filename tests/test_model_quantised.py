"""Quantised matrices computed with as they lie in their file = the same file expanded to float32, however many rows."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from klype.engine.engine import Engine
from klype.errors import KlypeError
from klype.model.cache import Cache
from klype.model.checkpoint import load, memory_needed
from klype.model.compiled import CompiledBackend, compiled_backend, compiled_library
from klype.model.gguf import SCALES, open_gguf
from klype.model.prepacked import FEW, Kernel, kernel, prepack
from klype.model.quantised import QuantisedEmbedding, QuantisedLinear, quantised_weights
from klype.model.transformer import Transformer
from klype.sources.opening import open_model
from klype.values import Request, Sampling
from tests.test_checkpoint_gguf import MERGES, model, written

gguf = pytest.importorskip("gguf")

KINDS = sorted(gguf.GGMLQuantizationType(number).name for number in SCALES)
LARGER = {"width": 96, "hidden": 160, "heads": 6, "head_dim": 16}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "pairs of rows": ("llama", {}),
    "tied, heads of 48": ("llama", {"tie": True, "head_dim": 48, "heads": 2, "kv_heads": 1}),
    "biases": ("qwen2", {"kv_heads": 3}),
    "blocks of 256": ("llama", {"width": 256, "hidden": 512, "heads": 16}),
}
DRAWN = {"Q4_K": (2.5e-4, 2e-3), "Q6_K": (4.5e-5,)}
"""What gguf cannot pack is drawn: the scales of blocks whose other bytes are anything."""
NEAR = {"atol": 1e-4, "rtol": 0}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def compiled(home: Path) -> Kernel:
    found = kernel(home / "cache")
    if found is None:
        pytest.skip("there is no C compiler here")
    return found


def packer(*kinds: str) -> Callable[[npt.NDArray[np.float32]], tuple[npt.NDArray[np.uint8], Any]]:
    """For ``written``: matrices of these types in turn."""
    turns = cycle(gguf.GGMLQuantizationType[kind] for kind in kinds)

    def pack(weight: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint8], Any]:
        to = next(turns)
        if to.name not in DRAWN:
            return gguf.quantize(weight, to), to
        numbers, size = gguf.GGML_QUANT_SIZES[to]
        rows, columns = weight.shape
        raw = np.random.default_rng(len(weight)).integers(0, 256, (rows, columns // numbers, size), np.uint8)
        for scale, at in zip(DRAWN[to.name], SCALES[to], strict=True):
            raw[..., at : at + 2] = np.array([scale], np.float16).view(np.uint8)
        return raw.reshape(rows, -1), to

    return pack


def file_of(folder: Path, *kinds: str, shape: str = "pairs of rows") -> Path:
    kind, changes = SHAPES[shape]
    ours = model(kind, **{**LARGER, **changes})
    return written(folder / f"{'-'.join(kinds)}.gguf", kind, ours, pack=packer(*kinds))


def pair(file: Path, compiled: Kernel) -> tuple[Transformer, Transformer]:
    """The model as it lies in the file, and in torch."""
    return prepack(load(file, kernel=compiled).model, "float32", compiled), load(file).model


def logp(of: Transformer, tokens_BT: Tensor, cache: Cache) -> Tensor:
    return of(tokens_BT, cache).log_softmax(-1)


def drawn(*shape: int) -> Tensor:
    return torch.randint(0, MERGES.vocab_size, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("kind", "shape"), [(k, s) for k in KINDS for s in SHAPES if k not in DRAWN or s == "blocks of 256"]
)
@torch.inference_mode()
def test_log_probabilities_are_those_of_the_expanded_file(
    kind: str, shape: str, tmp_path: Path, compiled: Kernel
) -> None:
    assert MERGES.vocab_size % 8, "the last rows of the head are not whole"
    ours, theirs = pair(file_of(tmp_path, kind, shape=shape), compiled)
    assert ours.decoder is not None
    for rows in (1, 3, FEW + 5):  # C's own pass, and torch's with C's products
        caches = ours.new_cache(rows), theirs.new_cache(rows)
        for T in (1, 21, 2, 5, 1):  # every way of tiling
            fed = drawn(rows, T)
            mine, plain = logp(ours, fed, caches[0]), logp(theirs, fed, caches[1])
            torch.testing.assert_close(mine, plain, **NEAR)
    whole = drawn(2, 40)
    torch.testing.assert_close(ours(whole).log_softmax(-1), theirs(whole).log_softmax(-1), **NEAR)


@torch.inference_mode()
def test_few_rows_wait_for_no_other_compilation(tmp_path: Path, home: Path, compiled: Kernel) -> None:
    made: list[ctypes.CDLL | None] = []

    def make() -> ctypes.CDLL | None:
        made.append(compiled_library(home / "cache"))
        return made[-1]

    packed, _ = pair(file_of(tmp_path, "Q4_1"), compiled)
    deferred = packed.with_backend(CompiledBackend(make), packed.decoder)
    for rows, compilations in ((1, 0), (FEW, 0), (FEW + 1, 1), (FEW + 5, 1)):
        at_once = packed.with_backend(compiled_backend(home / "cache"), packed.decoder)
        caches = deferred.new_cache(rows), at_once.new_cache(rows)
        for T in (21, 1, 1):
            fed = drawn(rows, T)
            assert torch.equal(logp(deferred, fed, caches[0]), logp(at_once, fed, caches[1]))
        assert len(made) == compilations


@torch.inference_mode()
def test_types_may_differ_and_what_c_does_not_read_is_expanded(tmp_path: Path, compiled: Kernel) -> None:
    """Of the weights that one matrix is made of, too."""
    file = file_of(tmp_path, *KINDS, "Q4_0", "Q5_1", shape="blocks of 256")
    assert max(len({w.kind for w in of}) for of in quantised_weights(open_gguf(file)).values()) == 3
    assert 0 < len(quantised_weights(open_gguf(file))) < 2 + 4 * 2
    ours, theirs = pair(file, compiled)
    assert ours.decoder is not None
    caches = ours.new_cache(1), theirs.new_cache(1)
    for T in (30, 1, 1):
        fed = drawn(1, T)
        torch.testing.assert_close(logp(ours, fed, caches[0]), logp(theirs, fed, caches[1]), **NEAR)


@torch.inference_mode()
def test_a_token_is_the_same_to_the_bit_in_any_company(tmp_path: Path, compiled: Kernel) -> None:
    ours, _ = pair(file_of(tmp_path, "Q4_1"), compiled)
    fed = drawn(FEW, 1)
    alone = torch.cat([ours(fed[row : row + 1], ours.new_cache(1)) for row in range(FEW)])
    x_MI = torch.randn(70, 96, generator=torch.Generator().manual_seed(5))
    for threads in (1, 3):
        torch.set_num_threads(threads)
        for rows in (2, 3, 7, FEW):
            assert torch.equal(ours(fed[:rows], ours.new_cache(rows)), alone[:rows])
        one_by_one = torch.cat([ours.head(x_MI[row : row + 1]) for row in range(70)])
        assert torch.equal(ours.head(x_MI), one_by_one)


def test_nothing_is_copied(tmp_path: Path, compiled: Kernel) -> None:
    """The model's bytes are the file's, and those of the norms."""
    file = file_of(tmp_path, "Q4_0", shape="tied, heads of 48")
    loaded = load(file, kernel=compiled)
    ours, opened = loaded.model, open_gguf(file)
    parts = [part for part in ours.modules() if isinstance(part, QuantisedLinear | QuantisedEmbedding)]
    assert len(parts) == 2 + 4 * ours.config.layers
    assert {name.rpartition(".")[0].rpartition("_")[2] for name, _ in ours.named_parameters()} == {"norm"}
    assert ours.layers[0].out.blocks0.flatten().numpy().tobytes() in file.read_bytes()  # type: ignore[union-attr, operator]
    head, embed = ours.head, ours.embed
    assert isinstance(head, QuantisedLinear)
    assert head.blocks0.data_ptr() == embed.blocks0.data_ptr()  # type: ignore[union-attr, operator]
    weights = quantised_weights(opened)
    expanded = memory_needed(loaded.config, torch.float32)
    in_file = sum(len(w.blocks) * (w.columns * 4 - w.blocks.shape[1]) for of in weights.values() for w in of)
    copy = loaded.config.vocab_size * loaded.config.width * 4
    assert memory_needed(loaded.config, torch.float32, weights) == expanded - in_file - copy


@pytest.mark.slow
def test_what_is_opened_is_the_file_as_it_lies(tmp_path: Path, compiled: Kernel) -> None:
    """Whoever asks for float32, or for what is fastest; its words are the expanded file's, and its name its own."""
    files = [file_of(tmp_path, kind, shape="blocks of 256") for kind in KINDS]
    asked = [Request(tuple(drawn(9).tolist()), n=n, limit=12, sampling=Sampling()) for n in (1, 3)]
    names = set()
    for file in files:
        plain = open_model(str(file), "int8")
        assert not any(isinstance(part, QuantisedLinear) for part in plain.loaded.model.modules())
        for precision in ("float32", "auto"):
            opened = open_model(str(file), precision)
            assert isinstance(opened.loaded.model.head, QuantisedLinear)
            answers = opened.engine.run(asked)
            names.add(opened.engine.runner.weights.fingerprint())
        expanded = Engine(load(file).model).run(asked)
        assert [[t.tokens for t in a] for a in answers] == [[t.tokens for t in a] for a in expanded]
    assert len(names) == len(files)


@pytest.mark.parametrize("token", [-1, MERGES.vocab_size])
def test_a_token_that_does_not_exist_reads_nothing(token: int, tmp_path: Path, compiled: Kernel) -> None:
    ours, _ = pair(file_of(tmp_path, "Q8_0"), compiled)
    with pytest.raises(IndexError, match="tokens"):
        ours(torch.tensor([[1, token]]), ours.new_cache(1))


@pytest.mark.parametrize(("kind", "byte"), [("Q8_0", 0), ("Q4_0", 0), ("Q4_1", 2), ("Q4_K", 2), ("Q6_K", 208)])
@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00])
def test_scales_that_are_not_finite_are_refused(
    kind: str, byte: int, bits: int, tmp_path: Path, compiled: Kernel
) -> None:
    file = file_of(tmp_path, kind, shape="blocks of 256")
    at = open_gguf(file)._placed["model.layers.1.mlp.down_proj.weight"].stop
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    raw = bytearray(file.read_bytes())
    raw[at - size + byte : at - size + byte + 2] = np.uint16(bits).tobytes()
    file.write_bytes(raw)
    with pytest.raises(KlypeError, match=r"not finite, in model\.layers\.1\.mlp\.down_proj"):
        load(file, kernel=compiled)


@pytest.mark.slow
@torch.inference_mode()
def test_a_real_model_is_what_torch_makes_of_it(smollm: Path, compiled: Kernel) -> None:
    """SmolLM2-135M in Q4_1, with a head of Q8_0, as its package brings it."""
    loaded = load(smollm, kernel=compiled)
    ours, theirs = prepack(loaded.model, "float32", compiled), load(smollm).model
    ids = torch.tensor([loaded.tokenizer.encode("The quick brown fox jumps over the lazy dog, and Ola går hjem. " * 4)])
    wanted, cache = theirs(ids).log_softmax(-1), ours.new_cache(1)
    torch.testing.assert_close(logp(ours, ids[:, :30], cache), wanted[:, :30], **NEAR)
    for at in range(30, 40):
        torch.testing.assert_close(logp(ours, ids[:, at : at + 1], cache), wanted[:, at : at + 1], **NEAR)
