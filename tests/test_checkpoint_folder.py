"""A checkpoint comes back as it was, shows any damage, and is whole or not there."""

import itertools
import json
import math
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import toys
from full_disk import full_disk
from safetensors.torch import load_file, save_file

from klype.errors import KlypeError, UsageError
from klype.model import atomic_folder
from klype.model.checkpoint import load, memory_needed, read_config, save
from klype.model.convert import config_from_hf, config_to_hf, hf_shapes, weights_from_hf, weights_to_hf
from klype.model.transformer import Transformer
from klype.text.chat import TEMPLATE
from klype.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["Hunden drakk vann."], 300, TEMPLATE)
TOKENS = torch.arange(24).reshape(2, 12) * 7 % TOKENIZER.vocab_size


def model(shape: str = "llama", seed: int = 0) -> Transformer:
    return toys.toy(shape, seed, vocab_size=TOKENIZER.vocab_size)


def saved(tmp_path: Path, shape: str = "llama") -> Path:
    save(tmp_path / "m", model(shape), TOKENIZER, {"stage": "pretrain", "seed": 3})
    return tmp_path / "m"


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_saved_and_loaded_is_the_same(tmp_path: Path, shape: str) -> None:
    loaded = load(saved(tmp_path, shape))
    assert loaded.config == model(shape).config
    assert loaded.about["stage"] == "pretrain"
    assert torch.equal(loaded.model(TOKENS), model(shape)(TOKENS))
    names = [n for n, _ in model(shape).named_parameters()]
    assert [n for n, _ in loaded.model.named_parameters()] == names  # a tied head is one weight again
    assert loaded.tokenizer.encode("Hunden") == TOKENIZER.encode("Hunden")
    assert loaded.chat.prompt([{"role": "user", "content": "Hunden"}])[0] == TOKENIZER.begin


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_exported_and_imported_is_the_same(shape: str) -> None:
    one = model(shape)
    assert config_from_hf(json.loads(json.dumps(config_to_hf(one.config))), "x") == one.config
    back = dict(weights_from_hf(one.config, weights_to_hf(one).__getitem__))
    state = {n: w for n, w in one.state_dict().items() if n in back}
    assert set(one.state_dict()) - set(state) == ({"head.weight"} if one.config.tie else set())
    assert all(torch.equal(w, back[n]) for n, w in state.items())


@pytest.mark.parametrize("shape", toys.SHAPES)
def test_the_shapes_looked_for_are_those_of_the_weights(shape: str) -> None:
    one = model(shape)
    assert dict(hf_shapes(one.config)) == {name: tuple(w.shape) for name, w in weights_to_hf(one).items()}


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    before = torch.random.get_rng_state()
    load(folder)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_precision_is_that_of_the_weights(tmp_path: Path) -> None:
    half = load(saved(tmp_path), dtype="bfloat16").model
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert torch.equal(half(TOKENS), model().to(torch.bfloat16)(TOKENS))
    with pytest.raises(UsageError, match="no precision 'int3'"):
        load(tmp_path / "m", dtype="int3")


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    """200 single flips over all files, and each names the file; the manifest's own among them."""
    folder = saved(tmp_path)
    rng = random.Random(1)
    files = sorted(folder.iterdir())
    for turn in range(200):
        file = files[turn % len(files)]
        raw = file.read_bytes()
        at = rng.randrange(len(raw))
        file.write_bytes(raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :])
        with pytest.raises(KlypeError, match=f"{file.name} is damaged"):
            atomic_folder.verify(folder)
        file.write_bytes(raw)
    atomic_folder.verify(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(KlypeError, match=r"tokenizer\.json is missing"):
        load(folder)


def test_a_folder_without_its_manifest_is_unfinished(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    (folder / "manifest.json").unlink()
    assert not atomic_folder.is_whole(folder)
    with pytest.raises(KlypeError, match="unfinished"):
        load(folder)


INSIDE = 3
"""Renames inside the draft, of the tokenizer's files: the folder itself is what it was."""


def is_ended(die_at: int, work: Callable[[], None]) -> bool:
    """Does it in a process that is killed before its k-th rename; whether it came to its end."""
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)  # a fork has no others, and would wait for them
        left = itertools.count(die_at, -1)

        def dies(event: str, about: object) -> None:
            if event == "os.rename" and next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(dies)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
@pytest.mark.parametrize("beside", [False, True])
def test_killed_at_any_step_the_old_or_the_new_one_loads(tmp_path: Path, beside: bool) -> None:
    """The process ends before its k-th rename, for every k: what loads is whole, and other files stay."""
    tried = 0
    for die_at in range(20):
        folder = tmp_path / str(die_at)
        if beside:
            save(folder, model(seed=1), TOKENIZER, {"stage": "old"})
            (folder / "metrics.jsonl").write_text("{}\n")
        ended = is_ended(die_at, lambda folder=folder: save(folder, model(seed=2), TOKENIZER, {"stage": "new"}))
        tried += not ended
        if folder.exists():
            loaded = load(folder)
            seed = {"old": 1, "new": 2}[loaded.about["stage"]]
            assert torch.equal(loaded.model(TOKENS), model(seed=seed)(TOKENS))
            assert loaded.about["stage"] == "new" or die_at <= INSIDE
        else:
            assert not beside
            assert die_at <= INSIDE
        save(folder, model(seed=3), TOKENIZER, {"stage": "next"})
        assert (folder / "metrics.jsonl").exists() == beside
        assert not [f for f in (*folder.iterdir(), *tmp_path.iterdir()) if f.name.startswith(".")]
        if ended:
            break
    assert tried == INSIDE + (10 if beside else 1)


def kill_inside_saves(folder: Path, times: int) -> int:
    """A process saves two models in turn until it is killed; how often the next one found a whole folder."""
    rng, models = random.Random(0), [model(seed=1), model(seed=2)]
    save(folder, models[0], TOKENIZER, {"stage": "first"})
    expected = [m(TOKENS).detach() for m in models]
    whole = 0
    for _ in range(times):
        pid = os.fork()
        if pid == 0:
            torch.set_num_threads(1)
            while True:
                for one in reversed(models):
                    save(folder, one, TOKENIZER, {"stage": "again"})
        time.sleep(rng.random() * 0.08)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        found = load(folder).model(TOKENS)
        whole += any(torch.equal(found, logits) for logits in expected)
    return whole


@pytest.mark.slow
def test_killed_inside_saves_a_folder_is_whole(tmp_path: Path) -> None:
    assert kill_inside_saves(tmp_path / "m", 10) == 10


@pytest.mark.soak
def test_killed_two_hundred_times_inside_saves_a_folder_is_whole(tmp_path: Path) -> None:
    assert kill_inside_saves(tmp_path / "m", 200) == 200


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no file")
def test_a_disk_that_is_full_leaves_the_old_one(tmp_path: Path) -> None:
    """Whichever file it is full at."""
    folder = saved(tmp_path)
    for size in sorted({file.stat().st_size for file in folder.iterdir() if file.name != "run.json"}):
        with full_disk(size - 1), pytest.raises(KlypeError, match=r"cannot be written: File too large.*\. Make room"):
            save(folder, model(seed=5), TOKENIZER, {"seed": 5})
        assert load(folder).about["seed"] == 3
        assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    broken = model()
    with torch.no_grad():
        broken.norm.weight[3] = float("nan")
    with pytest.raises(KlypeError, match=r"model\.norm\.weight is not finite"):
        save(tmp_path / "m", broken, TOKENIZER, {})
    assert not (tmp_path / "m").exists()


def foreign(tmp_path: Path, change: Callable[[Path], None] = lambda _: None) -> Path:
    """A folder of another maker: no manifest, no run.json."""
    folder = tmp_path / "foreign"
    shutil.copytree(saved(tmp_path), folder)
    (folder / "manifest.json").unlink()
    (folder / "run.json").unlink()
    change(folder)
    return folder


def edit(name: str, **fields: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps({**content, **fields}), encoding="utf-8")

    return change


def reweight(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return rewrite


NORM = "model.norm.weight"
WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "architecture": (edit("config.json", model_type="gpt2"), "architecture 'gpt2'"),
    "activation": (edit("config.json", hidden_act="gelu"), "activation 'gelu'"),
    "bias": (edit("config.json", attention_bias=True), "attention_bias"),
    "rope": (edit("config.json", rope_scaling={"rope_type": "yarn", "factor": 2}), "'yarn'"),
    "shape": (edit("config.json", hidden_size=20, head_dim=4), r"embed_tokens\.weight in the shape \[\d+, 16\]"),
    "heads": (edit("config.json", num_attention_heads=3), "heads 3"),
    "layers": (edit("config.json", num_hidden_layers=3), r"lack model\.layers\.2\."),
    "layers without end": (edit("config.json", num_hidden_layers=10**12), r"lack model\.layers\.2\."),
    "vocabulary without end": (edit("config.json", vocab_size=10**30), "asks for"),
    "window without end": (edit("config.json", max_position_embeddings=10**9), "more than klype has tables for"),
    "architectures": (edit("config.json", model_type=["llama"]), r"architecture \['llama'\]"),
    "half a layer": (edit("config.json", num_hidden_layers=2.5), "layers"),
    "layers in words": (edit("config.json", num_hidden_layers="2"), "layers"),
    "no heads": (edit("config.json", num_key_value_heads="0"), "kv_heads"),
    "less than no width": (edit("config.json", hidden_size=-16), "width"),
    "a norm of nothing": (edit("config.json", rms_norm_eps=float("nan")), "norm_eps"),
    "turning ever faster": (edit("config.json", rope_theta=1e-300), "rope_theta"),
    "deep config": (lambda f: void((f / "config.json").write_text('{"a":' * 100_000)), r"config\.json is damaged"),
    "endless config": (lambda f: void((f / "config.json").write_bytes(b" " * (16 * 2**20 + 1))), "larger than 16 MiB"),
    "deep settings": (lambda f: void((f / "tokenizer_config.json").write_text("[" * 10**5)), "_config.json is damaged"),
    "a pipe": (lambda f: void((f / "config.json").unlink(), os.mkfifo(f / "config.json")), r"config\.json is missing"),
    "fewer layers": (edit("config.json", num_hidden_layers=1), r"have model\.layers\.1\..*knows nothing of"),
    "field": (edit("config.json", hidden_size=None), "width"),
    "no config": (lambda f: (f / "config.json").unlink(), r"config\.json is missing"),
    "broken config": (lambda f: void((f / "config.json").write_text("{")), r"config\.json is damaged"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"no tokenizer\.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights"),
    "pickle": (lambda f: void((f / "model.safetensors").rename(f / "model.bin")), "is a pickle"),
    "missing": (reweight(lambda w: w.pop(NORM)), f"lack {NORM}"),
    "a flipped exponent": (reweight(lambda w: w[NORM].fill_(3e25)), f"not finite, in {NORM}"),
    "nan": (reweight(lambda w: w[NORM].fill_(float("nan"))), f"not finite, in {NORM}"),
    "integers": (reweight(lambda w: w.update({NORM: w[NORM].long()})), "as I64"),
    "vocabulary": (
        reweight(lambda w: w.update({n: w[n][:-1].clone() for n in ("model.embed_tokens.weight", "lm_head.weight")})),
        "asks for",
    ),
}


def void(*_: object) -> None:
    """A statement where an expression is wanted."""


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path, name: str) -> None:
    change, message = WRONG[name]
    with pytest.raises(KlypeError, match=message):
        load(foreign(tmp_path, change))


def header(entries: str, data: bytes = b"\0" * 8) -> bytes:
    return len(entries.encode()).to_bytes(8, "little") + entries.encode() + data


GOOD = '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
MALFORMED = [
    b"",
    b"\0" * 7,
    (2**63).to_bytes(8, "little") + b"{}",
    (1000).to_bytes(8, "little") + b"{}",
    header("{"),
    header("[]"),
    header('"a"'),
    header(GOOD, b"\0" * 7),
    header(GOOD, b"\0" * 9),
    header(GOOD.replace("[0, 8]", "[0, 4]")),
    header(GOOD.replace("[0, 8]", "[8, 0]")),
    header(GOOD.replace("[0, 8]", "[-8, 0]")),
    header(GOOD.replace("[2]", "[-2]")),
    header(GOOD.replace("[2]", "[2.0]")),
    header(GOOD.replace("F32", "F33")),
    header(GOOD.replace("[0, 8]", "[4, 12]"), b"\0" * 12),
    header(GOOD[:-1] + ', "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'),
    header(GOOD[:-1] + ', "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'),
    header(GOOD[:-1] + ', "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}', b"\0" * 12),
    header('{"a": 3}'),
    header("[" * 100_000),
]


@pytest.mark.parametrize("number", range(len(MALFORMED)))
def test_malformed_weights_are_refused(tmp_path: Path, number: int) -> None:
    folder = foreign(tmp_path, lambda f: void((f / "model.safetensors").write_bytes(MALFORMED[number])))
    with pytest.raises(KlypeError, match=r"model\.safetensors"):
        load(folder)


def test_a_model_larger_than_memory_is_refused(tmp_path: Path) -> None:
    """Its weights are a hole in a file of terabytes. Beside them, packing and a text's keys and values take room."""

    def grow(folder: Path) -> None:
        asked = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(asked | {"intermediate_size": 1 << 32}))
        at, described = 0, {}
        for name, shape in hf_shapes(read_config(folder)):
            size = 4 * math.prod(shape)
            described[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
            at += size
        (folder / "model.safetensors").write_bytes(raw := header(json.dumps(described), b""))
        os.truncate(folder / "model.safetensors", len(raw) + at)

    folder = foreign(tmp_path, grow)
    with pytest.raises(KlypeError, match="GiB of memory"):
        load(folder)
    config = model().config
    assert memory_needed(config, torch.float32) > 4 * config.parameters + 1000


def test_no_template_and_no_folder(tmp_path: Path) -> None:
    folder = foreign(tmp_path, lambda f: (f / "chat_template.jinja").unlink())
    loaded = load(folder)
    with pytest.raises(KlypeError, match="raw=True"):
        _ = loaded.chat
    with pytest.raises(UsageError, match="no model folder"):
        load(folder / "nothing")


def test_sharded_weights(tmp_path: Path) -> None:
    def shard(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        names = sorted(weights)
        parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
        for file, inside in parts.items():
            save_file({n: weights[n] for n in inside}, folder / file)
        index = {"weight_map": {n: file for file, inside in parts.items() for n in inside}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "model.safetensors").unlink()

    folder = foreign(tmp_path, shard)
    assert torch.equal(load(folder).model(TOKENS), model()(TOKENS))
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(KlypeError, match=r"model-2\.safetensors is missing"):
        load(folder)


def test_the_card_says_what_it_is(tmp_path: Path) -> None:
    card = (saved(tmp_path) / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlanguage: [nb, en]\n")
    assert f"| parameters | {model().config.parameters:,} |" in card
    assert '"stage": "pretrain"' in card
