"""Bench: figures from timings, the protocol between the processes, and bad input. Speed itself is not tested."""

from __future__ import annotations

import io
import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import figures
from benchmarks.contenders import CONTENDERS
from benchmarks.generate import generate, write
from benchmarks.process import Failed, Worker
from benchmarks.roofline import BYTES
from benchmarks.worker import main
from klype.errors import KlypeError
from klype.model import checkpoint, compiler
from klype.text.tokenizer import Tokenizer
from tests.toys import toy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small model with a window long enough for the comparison."""
    tokenizer = Tokenizer.train(["the woman of the world was a man in the wood"] * 3, 300)
    model = toy(vocab_size=tokenizer.vocab_size, window=256, width=64, hidden=64)  # few_tokens.c takes multiples of 16
    checkpoint.save(tmp_path / "model", model, tokenizer, {})
    return tmp_path / "model"


def test_ratios_are_paired_within_rounds_and_name_what_is_missing() -> None:
    timings = {
        ("klype float32", "single"): [1.0, 2.0, 4.0],
        ("transformers float32", "single"): [3.0, 6.0, 8.0],
        ("klype bfloat16", "n256"): [2.0],
        ("klype int8", "n256"): [1.0],
        ("llama.cpp Q4_0", "n256"): [9.0],
        ("llama.cpp BF16", "n256"): [8.0],
    }
    found = figures.ratios(timings, ["klype float32", "klype bfloat16"], {"OpenVINO GenAI": "it is not installed"})
    single = found["single_fp32_vs_transformers_fp32"]
    assert (single.value, single.low, single.high, single.n) == (3.0, 2.0, 3.0, 3)
    assert found["n256_vs_llama_cpp"].value == 4.0  # the exact enough one against the faster of theirs
    assert found["n256_vs_openvino"].value is None
    assert "it is not installed" in found["n256_vs_openvino"].why
    assert found["single_best_vs_llama_cpp"].value is None
    assert set(found) == set(figures.RATIOS)


def test_loss_is_zero_for_itself_and_the_formula_for_another() -> None:
    p = np.log(np.array([[0.5, 0.25, 0.25], [0.2, 0.4, 0.4]]))
    q = np.log(np.array([[0.25, 0.5, 0.25], [0.2, 0.4, 0.4]]))
    same = figures.loss(p, p, [0, 1])
    assert same["kl"].value == 0
    other = figures.loss(p, q, [0, 1])
    assert other["kl"].value == pytest.approx((0.5 * np.log(2) - 0.25 * np.log(2)) / 2)


def test_decode_time_is_what_the_tokens_after_the_first_took() -> None:
    assert figures.decode_seconds([3.0, 5.0], [1.0, 2.0]) == [2.0, 3.0]


def test_every_contender_has_a_roofline() -> None:
    assert {name.split()[-1] for name in CONTENDERS} <= set(BYTES)


def test_a_worker_answers_orders_and_survives_what_goes_wrong() -> None:
    orders = io.StringIO(
        '{"do": "peak"}\n{"do": "load", "files": {"folder": "/none", "ggufs": {}, "threads": 1, "home": ""}}\n'
    )
    answers = io.StringIO()
    main("klype float32", orders, answers)
    peak, load = map(json.loads, answers.getvalue().splitlines())
    assert peak["bytes"] is None or peak["bytes"] > 1 << 20
    assert load["error"].startswith("UsageError: There is no model")


def test_a_worker_that_says_nothing_is_ended(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        worker = Worker.start("klype float32", log)
        answer = worker.order(0.0, do="peak")
        assert isinstance(answer, Failed)
        assert worker.process.poll() is not None
        assert isinstance(worker.order(1.0, do="peak"), Failed)


@pytest.mark.slow
def test_the_whole_comparison_with_a_toy(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    document = generate(str(folder), 0.05, said.append, ["klype float32", "klype int8"])
    json.dumps(document, allow_nan=False)
    assert [row["engine"] for row in document["rows"]] == ["klype float32", "klype int8"]
    for row in document["rows"]:
        for what in ("prefill", "decode", "single", "n64", "n256"):
            assert row[what]["low"] <= row[what]["value"] <= row[what]["high"]
    assert document["rows"][0]["loss"]["kl"]["value"] == 0
    if any(map(shutil.which, compiler.COMPILERS)):
        whole, loss = document["rows"]
        assert abs(whole["loss_compiled"]["kl"]["value"]) < 1e-6
        assert 0 < loss["loss_compiled"]["kl"]["value"] < 2 * loss["loss"]["kl"]["value"]
    assert set(document["missing"]) == set(CONTENDERS) - {"klype float32", "klype int8"}
    assert document["ratios"]["n64_fp32_vs_transformers_fp32"] == {
        "value": None,
        "why": "transformers float32: it was not asked for",
    }
    assert document["ratios"]["sampler_share"]["value"] > 0  # times of a toy on a shared machine have no upper bound
    assert document["rows"][0]["per_core"]["n64"]["value"] > 0
    assert 0 <= document["machine"]["busy_elsewhere"] <= 1
    assert set(document["ratios_per_core"]) == set(figures.RATIOS)
    assert set(document["bounds"]) == set(document["ratios"])
    data, drawing = write(document, tmp_path / "out")
    assert json.loads(data.read_text()) == document
    texts = [
        element.text or "" for element in ET.fromstring(drawing.read_text()).iter() if element.tag.endswith("text")
    ]
    assert texts.count("klype int8") == 4


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"minutes": 0.0}, "minutes should be above 0"),
        ({"minutes": float("nan")}, "minutes should be above 0"),
        ({"only": ["vllm"]}, "There is no engine 'vllm' to compare."),
        ({"model": "/none"}, "There is no model folder /none."),
    ],
)
def test_bad_input_is_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    arguments: dict[str, Any] = {"model": None, "minutes": 1.0, "say": print, "only": ()}
    with pytest.raises(KlypeError, match=sentence.replace("(", r"\(")):
        generate(**{**arguments, **changes})


def test_a_window_too_short_is_named(tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["a b c"], 270)
    checkpoint.save(tmp_path / "m", toy(vocab_size=tokenizer.vocab_size), tokenizer, {})
    with pytest.raises(KlypeError, match="reads 64 tokens at most"):
        generate(str(tmp_path / "m"), 1.0, print)
