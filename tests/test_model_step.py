"""The compiled pass = torch's: the same states, the same cache, one token or several, one row or several."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from klype.device import Precision
from klype.engine.engine import Engine
from klype.model import prepacked
from klype.model.cache import Cache
from klype.model.compiler import library
from klype.model.prepacked import FEW, BlockedLinear, Int8Linear, Kernel, decodes, kernel, prepack
from klype.model.transformer import Transformer
from klype.values import Request, Sampling
from tests.toys import toy

WIDE = {"width": 64, "hidden": 96, "heads": 4, "head_dim": 16, "window": 64, "vocab_size": 61}
SHAPES = {
    "llama": {},
    "grouped": {"kv_heads": 2},
    "qwen": {"kv_heads": 1, "qkv_bias": True, "qk_norm": True, "head_dim": 32},
    "unrotated": {"rope_theta": 0.0, "heads": 2, "head_dim": 48},
}

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8")
TOLERANCE = {"float32": 2e-4, "bfloat16": 0.06, "int8": 2e-4}
"""Of what C computes, against float32 with the same numbers; a cache of bfloat16 rounds keys and values."""


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Kernel:
    found = kernel(tmp_path_factory.mktemp("kernel"))
    if found is None:
        pytest.skip("there is no C compiler here")
    return found


def pair(
    shape: str, compiled: Kernel, precision: Precision = "int8", **changes: int
) -> tuple[Transformer, Transformer]:
    """The packed model in C, and the numbers it stands for in plain float32."""
    fields = {**WIDE, **SHAPES[shape], **changes}
    exact, packed = toy("llama", **fields), prepack(toy("llama", **fields), precision, compiled)
    if precision == "bfloat16":
        exact = exact.bfloat16().float()
    with torch.no_grad():
        for ours, theirs in zip([*packed.layers, packed], [*exact.layers, exact], strict=True):
            for name, part in ours.named_children():
                if isinstance(part, Int8Linear):
                    getattr(theirs, name).weight.copy_(part.to_float32().T * part.wide_scale[:, None])
                    if part.bias is not None:
                        getattr(theirs, name).bias.copy_(part.bias.float())
    if packed.decoder is None and precision != "int8":
        pytest.skip("oneDNN has another order here")
    assert packed.decoder is not None
    return packed, exact


def cached(model: Transformer, rows: int) -> Cache:
    return Cache(model.config, rows, dtype=model.embed.weight.dtype)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_c_computes_what_float32_does_with_the_same_numbers(
    shape: str, threads: int, precision: Precision, compiled: Kernel
) -> None:
    packed, exact = pair(shape, compiled, precision)
    ours, theirs = cached(packed, 1), Cache(exact.config, 1)
    tokens_1T = torch.randint(0, 61, (1, 45), generator=torch.Generator().manual_seed(2))
    torch.set_num_threads(threads)
    near = {"atol": TOLERANCE[precision], "rtol": TOLERANCE[precision]}
    for T in (1, 2, 4, 5, 7, 16, 1, 9):  # every way of tiling
        done = int(ours.lengths[0])
        fed = tokens_1T[:, done : done + T]
        torch.testing.assert_close(packed(fed, ours).float(), exact(fed, theirs), **near)
        for mine, plain in zip((*ours.keys, *ours.values), (*theirs.keys, *theirs.values), strict=True):
            torch.testing.assert_close(mine[:, :, : done + T].float(), plain[:, :, : done + T], **near)
    assert ours.lengths.tolist() == theirs.lengths.tolist() == [45]


@pytest.mark.parametrize("precision", PRECISIONS)
@torch.inference_mode()
def test_a_token_is_the_same_to_the_bit_in_any_company_of_few(precision: Precision, compiled: Kernel) -> None:
    packed, _ = pair("qwen", compiled, precision)
    fed = torch.randint(0, 61, (FEW, 1), generator=torch.Generator().manual_seed(4))
    alone = torch.cat([packed(fed[row : row + 1], cached(packed, 1)) for row in range(FEW)])
    for threads in (1, 3):
        torch.set_num_threads(threads)
        for rows in (2, 3, 4, 7, FEW):
            assert torch.equal(packed(fed[:rows], cached(packed, rows)), alone[:rows])


@torch.inference_mode()
def test_in_bfloat16_c_is_nearer_to_the_truth_than_torch(compiled: Kernel) -> None:
    packed, exact = pair("llama", compiled, "bfloat16")
    torchs = prepack(toy("llama", **WIDE), "bfloat16")
    fed = torch.randint(0, 61, (2, 8), generator=torch.Generator().manual_seed(3))
    wanted = exact(fed)
    mine, plain = packed(fed, cached(packed, 2)), torchs(fed, cached(torchs, 2))
    assert (mine - wanted).abs().mean() < (plain - wanted).abs().mean()


@pytest.mark.parametrize("precision", PRECISIONS)
@torch.inference_mode()
def test_few_rows_and_many_meet_the_same_matrix(precision: Precision, compiled: Kernel) -> None:
    packed, exact = pair("qwen", compiled, precision)
    layer, plain = packed.layers[0].qkv, exact.layers[0].qkv
    assert isinstance(layer, BlockedLinear | Int8Linear)
    x_MI = torch.randn(2 * FEW, 64, generator=torch.Generator().manual_seed(5)).to(packed.embed.weight.dtype)
    near = 2**-7 if precision == "bfloat16" else 1e-5
    for rows in (1, FEW, 2 * FEW):
        torch.testing.assert_close(layer(x_MI[:rows]).float(), plain(x_MI[:rows].float()), atol=near, rtol=near)  # type: ignore[operator]


def test_another_order_than_the_kernels_goes_through_torch(compiled: Kernel) -> None:
    model = prepack(toy("llama", **WIDE), "float32", replace(compiled, block=32))
    assert model.decoder is None
    torch.testing.assert_close(model(torch.tensor([[1, 2, 3]])), toy("llama", **WIDE)(torch.tensor([[1, 2, 3]])))


@torch.inference_mode()
def test_rows_of_different_lengths_go_together(compiled: Kernel) -> None:
    packed, exact = pair("grouped", compiled)
    rows = [[3, 1, 4], [1, 5, 9, 2, 6], [58]]
    ours, theirs = Cache(packed.config, 3), Cache(exact.config, 3)
    longest = max(map(len, rows))
    fed = torch.tensor([[*row, *(0,) * (longest - len(row))] for row in rows])
    for model, cache in ((packed, ours), (exact, theirs)):
        model.hidden(fed, cache)
        cache.truncate([len(row) for row in rows])
    after = torch.tensor([[7], [8], [9]])
    torch.testing.assert_close(packed(after, ours), exact(after, theirs), atol=2e-4, rtol=2e-4)


@torch.inference_mode()
def test_c_and_torch_agree_to_the_rounding_of_bfloat16(compiled: Kernel) -> None:
    packed, exact = pair("llama", compiled)
    torchs = prepack(toy("llama", **WIDE), "int8")
    fed = torch.randint(0, 61, (2, 8), generator=torch.Generator().manual_seed(3))
    mine, plain = packed(fed, Cache(packed.config, 2)), torchs(fed, Cache(torchs.config, 2))
    wanted = exact(fed)
    assert (mine - wanted).abs().max() < 1e-3
    assert (plain - wanted).abs().max() < 0.02 * wanted.abs().max()
    assert (mine - plain).abs().max() < 0.02 * wanted.abs().max()


@torch.inference_mode()
def test_damaged_weights_give_no_numbers_rather_than_wrong_ones(compiled: Kernel) -> None:
    packed, _ = pair("llama", compiled)
    packed.layers[0].mlp_norm.weight[3] = float("nan")  # type: ignore[union-attr, index, operator]
    assert packed(torch.tensor([[1]]), Cache(packed.config, 1)).isnan().all()


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_answers_do_not_depend_on_their_company(precision: Precision, compiled: Kernel) -> None:
    packed, exact = pair("grouped", compiled, precision)
    prompts = [(3, 1, 4, 1, 5), (9, 2, 6), (5, 3, 5, 8, 9, 7, 9)]
    asked = [Request(prompt, n=6, limit=12 + 5 * i, sampling=Sampling()) for i, prompt in enumerate(prompts)]
    together = Engine(packed).run(asked)  # from 18 rows, which torch computes, to the last 6
    alone = [Engine(packed).run([request])[0] for request in asked]
    plain = Engine(exact).run(asked)
    words = [[[trace.tokens for trace in traces] for traces in way] for way in (together, alone, plain)]
    assert words[0] == words[1] == words[2]


@torch.inference_mode()
def test_what_is_not_supported_goes_through_torch(compiled: Kernel) -> None:
    for fields in ({"conv": 3, "rope_theta": 0.0}, {"hidden": 40}):
        model = prepack(toy("llama", **{**WIDE, **fields}), "int8", compiled)
        assert not decodes(model.config)
        assert model.decoder is None
        model(torch.tensor([[1, 2, 3]]), Cache(model.config, 1))
    packed, _ = pair("llama", compiled)
    assert packed.decoder is not None
    cache = Cache(packed.config, 1)
    assert not packed.decoder.supports(cache, FEW + 1)
    cache.lengths = np.array([packed.config.window - 1])
    assert packed.decoder.supports(cache, 1)
    assert not packed.decoder.supports(cache, 2)


@pytest.mark.slow
def test_it_is_compiled_once_and_told_before(tmp_path: Path, compiled: Kernel) -> None:
    told: list[str] = []
    for _ in range(2):
        assert kernel(tmp_path / "new", lambda: told.append("now")) is not None
    assert told == ["now"]
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0


DAMAGED = """
import random, sys
from pathlib import Path
from klype.model.compiler import library
source, folder = Path(sys.argv[1]) / "small.c", Path(sys.argv[1]) / "kept"
source.write_text("int klype_seven(void) { return 7; }")
told, rng = [], random.Random(1)
library([source], folder)
for damage in [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-1]] + [None] * 12:
    (file,) = folder.glob("*.so")
    whole = file.read_bytes()
    at = rng.randrange(len(whole))
    flipped = whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :]
    file.unlink()  # the process has it mapped
    file.write_bytes(damage(whole) if damage else flipped)
    library([source], folder, lambda: told.append("anew"))
    (file,) = folder.glob("*.so")
    assert file.read_bytes() == whole
print(len(told), library([source], folder).klype_seven())
"""


@pytest.mark.slow
def test_a_damaged_library_is_compiled_anew_and_never_loaded(tmp_path: Path, compiled: Kernel) -> None:
    run = [sys.executable, "-c", DAMAGED, str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert (done.returncode, done.stdout) == (0, "15 7\n"), done.stderr[-500:]


def test_neither_a_link_nor_what_others_may_have_written_is_loaded(tmp_path: Path, compiled: Kernel) -> None:
    source, kept, told = tmp_path / "small.c", tmp_path / "kept", list[str]()
    source.write_text("int klype_seven(void) { return 7; }")

    def anew() -> None:
        told.append("anew")

    assert library([source], kept, anew) is not None
    (file,) = kept.glob("*.so")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    file.rename(tmp_path / "open" / file.name)
    file.symlink_to(tmp_path / "open" / file.name)
    assert library([source], kept, anew) is not None
    assert not file.is_symlink()
    file.chmod(0o777)
    assert library([source], kept, anew) is not None
    assert stat.S_IMODE(file.stat().st_mode) == 0o700
    assert told == ["anew"] * 3
    (tmp_path / "open" / "mine").mkdir(mode=0o700)  # anybody may put another folder in its place
    (tmp_path / "link").symlink_to(tmp_path / "open" / "mine")
    assert library([source], tmp_path / "link") is None


@pytest.mark.skipif(not sys.platform.startswith("linux") or os.getuid() != 0, reason="only root gives folders away")
def test_a_library_in_another_user_s_folder_is_not_loaded(tmp_path: Path) -> None:
    source = tmp_path / "one.c"
    source.write_text("int one(void) { return 1; }")
    kept = tmp_path / "theirs" / "mine"
    kept.mkdir(mode=0o700, parents=True)
    assert library([source], kept) is not None
    os.chown(kept.parent, 12345, 12345)  # who may put another folder in its place
    assert library([source], kept) is None


def test_without_a_compiler_or_a_place_of_ones_own_there_is_none(tmp_path: Path, compiled: Kernel) -> None:
    tmp_path.chmod(0o777)  # anybody could have put a library there
    assert kernel(tmp_path) is None
    tmp_path.chmod(0o700)
    (tmp_path / "file").write_text("")
    assert kernel(tmp_path / "file") is None
    (tmp_path / "no.c").write_text("int one(")
    assert library([tmp_path / "no.c"], tmp_path) is None
    assert library([prepacked.SOURCE], tmp_path, compilers=("no-such-compiler",)) is None
