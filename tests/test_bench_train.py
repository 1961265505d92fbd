"""Bench of training: everybody learns the same tokens, arithmetic is counted right, ratios pair within rounds."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch

from benchmarks.nanogpt import NanoGPT as Peer
from benchmarks.train import SPEED, Results, _document, ratio, train
from benchmarks.train_contenders import CONTENDERS, HuggingFace, Klype, NanoGPT
from benchmarks.train_task import SHAPES, Shape, Trainer, batch
from klype.errors import UsageError

SMALL = Shape(layers=1, width=32, heads=2, hidden=48, window=12, vocab=40, rows=4)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTENDERS)
def test_everybody_learns_the_common_batches(name: str, tmp_path: Path) -> None:
    make, packages, _ = CONTENDERS[name]
    for package in packages:
        pytest.importorskip(package)
    trainer: Trainer = make()
    (tmp_path / "no-folder").touch()  # so that nothing is compiled
    trainer.load(SMALL, 1, str(tmp_path / "no-folder"))
    first, later = trainer.train(2), trainer.train(25)
    assert first["seconds"] > 0
    assert first["core_seconds"] > 0
    assert first["loss"] < math.log(SMALL.vocab) + 0.3
    assert later["loss"] < first["loss"]
    assert trainer.precision in name or name == "klype"


def test_peers_have_as_many_weights_as_klype() -> None:
    peer = sum(p.numel() for name, p in Peer(SHAPES["a"]).named_parameters() if "blocks" in name and p.ndim == 2)
    shape = SHAPES["a"]
    assert peer == shape.layers * (4 * shape.width**2 + 3 * shape.width * shape.hidden)


def test_arithmetic_is_six_for_a_weight_and_two_products_of_attention() -> None:
    one = Shape(layers=1, width=1, heads=1, hidden=1, window=10, vocab=1, rows=1)
    assert one.flops == 6 * (4 + 3 + 1) + 6 * 10
    assert SHAPES["a"].flops == pytest.approx(26.7e6, rel=0.02)


def test_batches_are_the_same_for_everybody_and_can_be_learnt() -> None:
    assert torch.equal(batch(SMALL, 3), batch(SMALL, 3))
    assert not torch.equal(batch(SMALL, 3), batch(SMALL, 4))
    steps = (batch(SMALL, 0)[:, 1:] - batch(SMALL, 0)[:, :-1]) % SMALL.vocab
    assert set(steps.unique().tolist()) == {1, 2}


def test_ratios_pair_within_rounds_and_name_what_is_missing() -> None:
    runs = {
        ("klype", "a"): [{"round": 0, "rate": 100.0}, {"round": 1, "rate": 90.0}, {"round": 2, "rate": 50.0}],
        ("nanoGPT float32", "a"): [{"round": 0, "rate": 50.0}, {"round": 2, "rate": 10.0}],
    }
    found = ratio(runs, ("klype", "a"), ("nanoGPT float32", "a"), {})
    assert (found.low, found.value, found.high, found.n) == (2.0, 3.5, 5.0, 2)
    absent = ratio(runs, ("klype", "a"), ("HF Trainer bfloat16", "a"), {"HF Trainer bfloat16": "not installed"})
    assert (absent.value, absent.why) == (None, "not installed")


def test_a_document_has_every_ratio_with_its_bounds() -> None:
    results = Results(gflops={"float32": [200.0, 100.0], "bfloat16": [400.0]}, why={"HF Trainer bfloat16": "gone"})
    for name, rate in (("klype", 9000.0), ("nanoGPT bfloat16", 3000.0)):
        results.runs[name, "a"] = [{"round": 0, "rate": rate, "loss": 1.0}]
        results.about[name, "a"] = {"precision": "bfloat16", "how": ""}
    document = _document(results, ["a"])
    expected = {name for name, row in SPEED.items() if row[0] == "a"} | {"a_mfu", "a_memory_vs_hf"}
    assert document["ratios"].keys() == document["bounds"].keys() == expected
    assert document["ratios"]["a_vs_nanogpt_bf16"]["value"] == 3.0
    assert document["ratios"]["a_mfu"]["value"] == pytest.approx(9000 * SHAPES["a"].flops / 400e9)
    assert document["ratios"]["a_vs_hf_bf16"] == {"value": None, "why": "gone"}


@pytest.mark.parametrize(("minutes", "only", "says"), [(0.0, (), "minutes should be"), (1.0, ("c",), "no shape 'c'")])
def test_bad_input_is_one_sentence(minutes: float, only: tuple[str, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        train(minutes, lambda text: None, only)


def test_forced_to_float32_klype_says_so() -> None:
    assert (NanoGPT("float32").precision, Klype("float32").asked) == ("float32", "float32")
    pytest.importorskip("transformers")
    assert HuggingFace("bfloat16").precision == "bfloat16"


ORDERS = """
import sys
from benchmarks.process import Worker
worker = Worker.start("nanoGPT float32", sys.stderr, "benchmarks.train_worker")
worker.order(90, do="load", shape="tiny", threads=1, cache="")
print(worker.process.pid, flush=True)
worker.order(90, do="train", steps=1_000_000)
"""


@pytest.mark.slow
def test_a_busy_worker_ends_with_whoever_ordered() -> None:
    boss = subprocess.Popen([sys.executable, "-c", ORDERS], stdout=subprocess.PIPE, text=True)
    assert boss.stdout is not None
    worker = psutil.Process(int(boss.stdout.readline()))
    time.sleep(0.5)
    boss.kill()
    boss.wait()
    boss.stdout.close()
    limit = time.monotonic() + 60
    with suppress(psutil.NoSuchProcess):
        while worker.status() != psutil.STATUS_ZOMBIE:  # which nobody may have buried yet
            assert time.monotonic() < limit
            time.sleep(0.1)
