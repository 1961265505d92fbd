"""The shape of a new model: the largest that the steps, the time and the text can teach."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_toys import Heard
from train_toys import FEW

from klype.config import make
from klype.errors import UsageError
from klype.model.checkpoint import read_config
from klype.model.config import ModelConfig
from klype.model.transformer import Transformer
from klype.runs import pipeline, run_start
from klype.runs.folder import read_run
from klype.runs.machine_probe import all_cores_seconds, choose_shape, enough_tokens, model_config, tokens_in_time
from klype.runs.pipeline import StepTimer, resolve_shape
from klype.runs.recipe import SHAPES, ModelSection, Recipe, read
from klype.runs.run_options import RunOptions, Size, StageOptions

VOCABULARY = 2048
SET = ("model.width=32", "model.layers=1", "model.heads=2", "model.hidden=32", "model.window=64")
CONFIGS = [model_config(read("text", (), size).model, VOCABULARY) for size in get_args(Size)]


def chosen(tokens: float) -> ModelConfig:
    recipe = choose_shape(read("text"), VOCABULARY, lambda smaller, larger: tokens)
    return model_config(recipe.model, VOCABULARY)


def test_shapes_grow_and_need_more() -> None:
    weights, needed = [c.parameters for c in CONFIGS], [enough_tokens(c) for c in CONFIGS]
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
        assert chosen(enough_tokens(larger)) == larger
        assert chosen(enough_tokens(larger) - 1) == smaller
    assert chosen(0.0) == CONFIGS[0]


def test_what_the_recipe_says_stays_and_only_smaller_ones_are_tried() -> None:
    tried: list[int] = []

    def step_seconds(config: ModelConfig) -> float:
        tried.append(config.width)
        return 6 * 2048 * config.flops_per_token / 2 / 160e9  # 160 GFLOP/s

    learns = tokens_in_time(300.0, 2048, step_seconds)
    recipe = choose_shape(read("text", ("model.layers=3",)), VOCABULARY, learns)
    assert recipe.model.layers == 3
    assert not recipe.model.open
    assert tried == [shape.width for shape in SHAPES.values()][: len(tried)]
    assert recipe.model.width in (tried[-1], tried[-1] * 4 // 3)
    tried.clear()
    for closed in (read("text", (), "tiny"), read("world"), read("norsk")):
        assert choose_shape(closed, VOCABULARY, learns) is closed
    assert not tried


@pytest.mark.parametrize("seconds", [0.0, 10.0, 1e3, 1e5, 1e7])
def test_twice_the_speed_is_twice_the_time(seconds: float) -> None:
    def shape(seconds: float, gflops: float) -> Recipe:
        return choose_shape(
            read("text"), VOCABULARY, tokens_in_time(seconds, 2048, lambda c: c.flops_per_token / gflops)
        )

    assert shape(2 * seconds + 1, 160.0) == shape(seconds + 0.5, 320.0)


@pytest.mark.parametrize(
    "setting", ["width=128", "width=256", "width=64", "heads=3", "heads=6", "hidden=48", "layers=9"]
)
@pytest.mark.parametrize("tokens", [0.0, 3e6, 1e9])
def test_what_is_set_makes_a_model_with_some_shape(setting: str, tokens: float) -> None:
    recipe = choose_shape(read("text", (f"model.{setting}",)), VOCABULARY, lambda smaller, larger: tokens)
    name, value = setting.split("=")
    assert getattr(model_config(recipe.model, VOCABULARY), name) == int(value)


@pytest.mark.parametrize("settings", [("model.width=7",), ("model.heads=7",), (*SET, "model.heads=5")])
def test_what_is_no_model_is_said_before_anything_is_read(settings: tuple[str, ...], tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.txt")
    for options in (
        RunOptions(text=(missing,), overrides=settings),
        StageOptions(stage="pretrain", overrides=settings),
    ):
        with pytest.raises(UsageError, match=r"width \d+ is not a multiple of heads") as error:
            run_start.adapt_recipe(read("text", settings), options, None)
        assert "model.heads" in error.value.hint


def settled(
    folder: Path, text: Path | None, look: StepTimer = all_cores_seconds, **asked: Any
) -> tuple[ModelSection, list[str]]:
    """The shape of a stage's model, and what was said of it."""
    say = Heard()
    values: dict[str, Any] = {"stage": "pretrain", "out": folder, "resume": text is None, **asked}
    values |= {"text": (str(text),), "overrides": (*FEW, *asked.get("overrides", ()))} if text else {}
    options = make(StageOptions, values)
    if text is None:
        options, recipe = run_start.saved_start(options)
    else:
        recipe = read("text", options.overrides)
    life = run_start.begin_or_resume(options, recipe, say)
    resolve_shape(life, look)
    return life.recipe.model, say.notes


@pytest.fixture
def text(tmp_path: Path) -> Path:
    rng = random.Random(0)
    words = ["".join(rng.choices("abdefghijklmnoprstuvyæøå", k=rng.randint(2, 9))) for _ in range(3000)]
    file = tmp_path / "bok.txt"
    file.write_text("\n\n".join(" ".join(rng.choices(words, k=40)) + "." for _ in range(400)))
    return file


def test_steps_minutes_and_the_text_decide(tmp_path: Path, text: Path) -> None:
    made, notes = settled(tmp_path / "few", text, steps=2)
    assert (made.width, made.layers) == (96, 2)
    assert any("2 layers, 96 wide: the largest that 2 steps can teach" in note for note in notes)
    assert read_run(tmp_path / "few")["settings"]["model"]["width"] == 96
    made, notes = settled(tmp_path / "many", text, steps=2000)
    assert made.width > 192
    again, _ = settled(tmp_path / "many", None)
    assert again == made
    short, notes = settled(tmp_path / "short", text, minutes=0.01)
    assert short.width == 96
    assert any("the largest that the time can teach" in note for note in notes)

    def measured(model: Transformer, *rest: object) -> float:
        return model.config.flops_per_token / 1e8

    made, notes = settled(tmp_path / "long", text, measured, minutes=1e4)
    assert any("the largest that this text can teach" in note for note in notes)
    often = ("pretrain.passes=100000",)
    longer, notes = settled(tmp_path / "passes", text, measured, minutes=1e4, overrides=often)
    assert longer.width == SHAPES["large"].width > made.width
    assert any("the largest that the time can teach" in note for note in notes)


def test_a_model_from_elsewhere_keeps_its_shape(tmp_path: Path, text: Path) -> None:
    pipeline.train_stage(
        StageOptions(stage="pretrain", text=(str(text),), steps=2, out=tmp_path / "one", overrides=(*FEW, *SET)),
        Heard(),
    )
    shape = read_config(tmp_path / "one" / "pretrain")
    for out, lora in (("two", None), ("three", 2)):
        more = StageOptions(
            stage="pretrain", from_=str(tmp_path / "one" / "pretrain"), text=(str(text),), steps=2, lora=lora,
            out=tmp_path / out, overrides=FEW,
        )  # fmt: skip
        pipeline.train_stage(more, Heard())
        assert read_config(tmp_path / out / "pretrain") == shape
        assert read_run(tmp_path / out)["settings"]["model"]["width"] == shape.width
