"""Bench of quality: all bits are counted over the same bytes, trainers learn in their seconds, aims are judged."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given as for_all
from hypothesis import strategies as st

from benchmarks.quality import Asked, Results, _document, gates, quality, ratio
from benchmarks.quality_reading import Characters, Reading, Tokens
from benchmarks.quality_task import BLOCK, TEXTS, Given, Trainer, in_blocks, parted, put
from benchmarks.quality_trainers import TRAINERS, HuggingFace, Klype, NanoGPT
from klype.data.ngram import ngram_bits, ngram_bits_per_byte
from klype.errors import UsageError
from klype.runs.recipe import read
from klype.runs.text_measures import token_bits

VERSE = "Vær så snill å gå, sa hun til ham.\nHan gikk, og døra slo igjen bak ham.\n\n"
SMALL = ("model.width=32", "model.hidden=48", "model.layers=1", "model.window=32", "tokenizer.size=300")


def given(folder: Path, text: str = VERSE * 60, seconds: float = 1.0) -> Given:
    put(folder / "text", text)
    return Given(str(folder / "text"), seconds, 0, 1, str(folder / "cache"))


def uniform(size: int) -> object:
    return lambda tokens_BT: torch.zeros(*tokens_BT.shape, size)


def test_what_is_held_out_is_the_end_and_both_parts_are_the_text(tmp_path: Path) -> None:
    text = VERSE * 10 + "\r\nslutt"
    here = given(tmp_path, text)
    assert (here.train, here.held_out) == parted(text)
    assert here.train + here.held_out == text
    assert len(here.held_out) == pytest.approx(len(text) / 10, abs=1)


@for_all(st.lists(st.integers(0, 900), min_size=1, max_size=60))
def test_blocks_keep_all_bits_and_bytes(sizes: list[int]) -> None:
    size_N = np.array(sizes, dtype=float)
    bits_M, size_M = in_blocks(size_N * 3, size_N)
    assert sum(size_M) == size_N.sum()
    assert bits_M == [3 * size for size in size_M]
    assert all(abs(size - BLOCK) < 900 for size in size_M[:-1])


@pytest.mark.parametrize("way", ["tokens", "characters"])
def test_a_uniform_model_needs_the_logarithm_of_the_vocabulary_for_each_piece(tmp_path: Path, way: str) -> None:
    here = given(tmp_path)
    text: Reading = Tokens(here, read("text", SMALL)) if way == "tokens" else Characters(here)
    bits_N, size_N = text.score(uniform(text.shape.vocab), here.held_out)  # type: ignore[arg-type]
    assert size_N.sum() == len(here.held_out.encode())
    assert (size_N >= 0).all()
    np.testing.assert_allclose(bits_N, math.log2(text.shape.vocab), rtol=1e-6)
    if way == "characters":
        assert len(text.ids) == len(here.train)


@pytest.mark.parametrize("length", [1, 2, 9, 16, 17, 18, 25, 26, 60])
def test_windows_overlap_by_half_and_each_token_is_counted_once(length: int) -> None:
    """A model whose loss tells how much context it had."""
    window = 16

    def model(tokens_BT: torch.Tensor) -> torch.Tensor:
        assert tokens_BT.shape[1] <= window
        told_T = torch.arange(1.0, tokens_BT.shape[1] + 1)
        right = -told_T * math.log(2)  # context c costs c bits
        logits = torch.stack([right, torch.log1p(-right.exp())], -1)
        return logits.expand(len(tokens_BT), -1, -1)

    alone, together = (token_bits(model, [0] * length, window, rows) for rows in (1, 8))
    expected = [i if i <= window else window // 2 + 1 + (i - window - 1) % (window // 2) for i in range(1, length)]
    np.testing.assert_allclose(alone, expected, rtol=1e-4)
    np.testing.assert_array_equal(alone, together)


def test_an_n_grams_bits_are_those_of_its_mean() -> None:
    train, text = (VERSE * 5).encode(), VERSE.encode()
    assert ngram_bits(train, text).mean() == ngram_bits_per_byte(train, text)
    assert len(ngram_bits(train, text)) == len(text)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINERS)
def test_every_trainer_learns_a_text_that_repeats(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, packages = TRAINERS[name]
    for package in packages:
        pytest.importorskip(package)
    monkeypatch.setattr("benchmarks.quality_reading.read", lambda name: read(name, SMALL))
    trainer: Trainer = Klype(SMALL) if name == "klype" else make()
    if isinstance(trainer, NanoGPT):
        ticks = itertools.count()
        trainer = NanoGPT(trainer.read, lambda: next(ticks) / 50)
    here = given(tmp_path)
    (tmp_path / "cache").touch()  # so that nothing is compiled
    trainer.load(1, here.cache)
    learnt = trainer.learn(here)
    assert learnt.steps > 0 if not isinstance(trainer, NanoGPT) else learnt.steps == 49
    assert learnt.tokens % learnt.steps == 0
    bits_N, size_N = trainer.score(here.held_out)
    assert size_N.sum() == len(here.held_out.encode())
    assert bits_N.sum() / size_N.sum() < (6 if isinstance(trainer, HuggingFace) else 4)


def test_the_script_of_a_peer_warms_up_and_falls_to_a_tenth() -> None:
    peer = NanoGPT(Characters)
    assert peer.rate(0, 0.0) == pytest.approx(peer.RATE / (peer.WARMUP + 1))
    assert peer.rate(peer.WARMUP, 0.0) == peer.RATE
    assert peer.rate(5000, 0.5) == pytest.approx((peer.RATE + peer.LEAST) / 2)
    assert peer.rate(5000, 1.0) == pytest.approx(peer.LEAST)


def results(klype: float, peer: float) -> Results:
    """Two blocks of different size, the same bits a byte in both."""
    found = Results(why={"HF Trainer": "not installed"})
    found.about["laws", "klype"] = {"seconds": TEXTS["laws"].seconds}
    for name, bits in (("klype", klype), ("nanoGPT", peer), ("5-gram", 2.0)):
        found.bits["laws", name], found.sizes["laws", name] = [bits * 2000, bits * 1000], [2000.0, 1000.0]
    return found


@pytest.mark.parametrize(("found", "passed"), [(1.1, [True, True]), (1.3, [True, False]), (1.4, [False, False])])
def test_floor_and_goal_are_judged_for_no_more_time_than_theirs(found: float, passed: list[bool]) -> None:
    for seconds in (None, 20.0, TEXTS["laws"].seconds):
        assert [gate["passed"] for gate in gates(results(found, 2.0), "laws", seconds)] == passed
    assert gates(results(found, 2.0), "laws", TEXTS["laws"].seconds + 1) == []
    assert gates(Results(), "laws", None) == []
    late = results(found, 2.0)
    late.about["laws", "klype"] = {"seconds": 1.2 * TEXTS["laws"].seconds}
    assert not any(gate["passed"] for gate in gates(late, "laws", None))


def test_ratios_pair_blocks_and_name_what_is_missing() -> None:
    found = ratio(results(1.0, 1.6), "laws", "klype", "nanoGPT")
    assert found.value == pytest.approx(1 / 1.6)
    assert found.low is None  # the same share in every block: how others differ was not seen
    assert "nearly all values are the same" in found.why
    assert ratio(results(1.0, 1.6), "laws", "klype", "HF Trainer").why == "not installed"


@pytest.mark.slow
def test_the_whole_comparison_with_a_toy(tmp_path: Path) -> None:
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare" / "input.txt").write_text(VERSE * 400, encoding="utf-8")
    said: list[str] = []
    document = quality(Asked(tmp_path, 1.0, only=("nanoGPT",), cache=tmp_path / "cache"), said.append)
    json.dumps(document, allow_nan=False)
    (row,) = document["rows"]
    held_out = len(parted(VERSE * 400)[1].encode())
    assert (row["text"], row["trainer"], document["gates"]) == ("shakespeare", "nanoGPT", [])
    assert row["bits_per_byte"]["value"] > 0
    assert "rare ones" in row["bits_per_byte"]["why"]  # of so few blocks
    assert row["bits_per_byte"]["n"] == math.ceil(held_out / BLOCK)
    assert 1 <= row["seconds"] < 60
    assert document["yardsticks"]["shakespeare"]["held_out_bytes"] == held_out
    assert document["yardsticks"]["shakespeare"]["ngram"]["value"] < 0.5
    assert "no file" in document["missing"]["laws"]
    assert document["missing"]["klype"] == "it was not asked for"
    assert document["ratios"]["shakespeare_vs_nanogpt"] == {"value": None, "why": "it was not asked for"}
    assert said


def test_a_document_has_a_ratio_to_every_peer(tmp_path: Path) -> None:
    found = results(1.0, 1.6)
    found.xz["laws"] = found.xz.get("laws") or ratio(found, "laws", "klype", "klype")
    document = _document(Asked(tmp_path), found, ["laws"])
    peers = ("nanogpt", "nanogpt_klypes_size", "hf_trainer", "5gram")
    assert list(document["ratios"]) == [f"laws_vs_{peer}" for peer in peers]
    assert document["ratios"]["laws_vs_5gram"]["value"] == 0.5
    assert document["rows"] == [
        {"text": "laws", "trainer": "klype", "bits_per_byte": document["rows"][0]["bits_per_byte"], "seconds": 300.0}
    ]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"seconds": 0.0}, "seconds should be"),
        ({"only": ("litgpt",)}, "no trainer 'litgpt'"),
        ({"texts": ("bible",)}, "no text 'bible'"),
        ({}, "holds no tinyshakespeare/input.txt or norske-lover/lover.jsonl"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, asked: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        quality(Asked(tmp_path, **asked), lambda text: None)  # type: ignore[arg-type]


def test_what_is_given_goes_through_json(tmp_path: Path) -> None:
    here = given(tmp_path)
    assert Given(**json.loads(json.dumps(asdict(here)))) == here
