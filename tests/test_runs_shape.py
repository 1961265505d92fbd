"""The shape of a new model: the largest that the steps, the time and the text can teach."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from train_toys import FEW

from klype.model.checkpoint import read_config
from klype.model.config import ModelConfig
from klype.runs import pipeline
from klype.runs.folder import read_run
from klype.runs.options import StageOptions
from klype.runs.recipe import SHAPES, Recipe, read
from klype.runs.say import Silent
from klype.runs.shape import enough, fitting, in_time, model_config

VOCABULARY = 2048
CONFIGS = [model_config(read("text", (), size).model, VOCABULARY) for size in SHAPES]


def chosen(tokens: float) -> ModelConfig:
    recipe = fitting(read("text"), VOCABULARY, lambda smaller, larger: tokens)
    return model_config(recipe.model, VOCABULARY)


def test_shapes_grow_and_need_more() -> None:
    weights, needed = [c.parameters for c in CONFIGS], [enough(c) for c in CONFIGS]
    assert weights == sorted(set(weights))
    assert needed == sorted(set(needed))
    for config in CONFIGS:  # compiled code computes them
        assert config.width % 16 == config.hidden % 16 == config.head_dim % 8 == 0


@given(st.floats(0, 1e8), st.floats(0, 1e8))
def test_more_tokens_never_make_it_smaller(few: float, many: float) -> None:
    few, many = sorted((few, many))
    assert chosen(few).parameters <= chosen(many).parameters


def test_it_is_the_largest_that_learns_from_enough() -> None:
    for smaller, larger in pairwise(CONFIGS):
        assert chosen(enough(larger)) == larger
        assert chosen(enough(larger) - 1) == smaller
    assert chosen(0.0) == CONFIGS[0]


def test_what_the_recipe_says_stays_and_only_smaller_ones_are_tried() -> None:
    tried: list[int] = []

    def step_seconds(config: ModelConfig) -> float:
        tried.append(config.width)
        return 6 * 2048 * config.flops_per_token / 2 / 160e9  # 160 GFLOP/s

    learns = in_time(300.0, 2048, step_seconds)
    recipe = fitting(read("text", ("model.layers=3",)), VOCABULARY, learns)
    assert recipe.model.layers == 3
    assert not recipe.model.open
    assert tried == [shape.width for shape in SHAPES.values()][: len(tried)]
    assert recipe.model.width in (tried[-1], tried[-1] * 4 // 3)
    tried.clear()
    for closed in (read("text", (), "tiny"), read("world"), read("norsk")):
        assert fitting(closed, VOCABULARY, learns) is closed
    assert not tried


@pytest.mark.parametrize("seconds", [0.0, 10.0, 1e3, 1e5, 1e7])
def test_twice_the_speed_is_twice_the_time(seconds: float) -> None:
    def shape(seconds: float, gflops: float) -> Recipe:
        return fitting(read("text"), VOCABULARY, in_time(seconds, 2048, lambda c: c.flops_per_token / gflops))

    assert shape(2 * seconds + 1, 160.0) == shape(seconds + 0.5, 320.0)


def test_a_run_of_many_steps_has_a_larger_model_and_is_gone_on_with_as_it_was(tmp_path: Path) -> None:
    text = tmp_path / "bok.txt"
    text.write_text("\n\n".join(f"Reven gikk {i} ganger over isen. Fisken så på dag {i}." for i in range(300)))
    given: dict[str, Any] = {"stage": "pretrain", "text": (str(text),), "overrides": FEW}
    said = Silent()
    pipeline.train_stage(StageOptions(**given, steps=2, out=tmp_path / "few"), said)
    assert any("2 layers, 96 wide" in note for note in said.notes)
    about = read_run(tmp_path / "few")
    assert about["settings"]["model"]["width"] == read_config(tmp_path / "few" / "pretrain").width == 96
    given["overrides"] = (*FEW, "model.width=32")
    pipeline.train_stage(StageOptions(**given, steps=2, out=tmp_path / "set"), said)
    made = json.loads((tmp_path / "set" / "pretrain" / "config.json").read_text())
    assert (made["hidden_size"], made["num_hidden_layers"]) == (32, 2)
