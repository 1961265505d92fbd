"""The shape of a new model, where its recipe leaves it open: the largest that the time can teach.

In the same time a larger model learns from fewer tokens. It is worth more than a smaller one from so many tokens on,
which was measured on texts of a few megabytes (docs/log.md, "Width and depth by the time").
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import pairwise

from klype.errors import KlypeError, UsageError
from klype.model.config import ModelConfig
from klype.runs.recipe import SHAPES, ModelSection, Recipe

TOKENS = 1.4e6
"""That a model of a million weights learns from, when it begins to be worth more than a smaller one."""

Learns = Callable[[ModelConfig, ModelConfig], float]
"""(smaller, larger): how many tokens the larger one would learn from, when the smaller one can be tried out."""


def fitting(recipe: Recipe, vocabulary: int, learns: Learns) -> Recipe:
    """The recipe with the largest of the shapes that learns from enough tokens, but for what it says itself."""
    if not recipe.model.open:
        return recipe
    sections = possible(recipe.model, vocabulary)
    chosen = sections[0]
    for smaller, larger in pairwise(sections):
        configs = model_config(smaller, vocabulary), model_config(larger, vocabulary)
        if learns(*configs) < enough(configs[1]):
            break
        chosen = larger
    return recipe.model_copy(update={"model": chosen})


def possible(section: ModelSection, vocabulary: int) -> list[ModelSection]:
    """What a recipe says of the shape, with each of the shapes where it is open, the smallest first. UsageError when
    none of them is a model.
    """
    found: dict[ModelSection, ModelConfig] = {}
    why = ""
    for shape in SHAPES.values():
        filled = section.filled(shape)
        try:
            found[filled] = model_config(filled, vocabulary)
        except KlypeError as error:
            why = why or error.message
    if not found:
        hint = "Heads (model.heads) share the width (model.width) evenly, and each has an even part of it."
        raise UsageError(why.removesuffix("; give head_dim.").rstrip(".") + ".", hint)
    return sorted(found, key=lambda one: found[one].parameters)


def enough(config: ModelConfig) -> float:
    """Tokens from which a model of this shape learns more than a smaller one does in the same time: they grow with the
    root of the weights that it multiplies with."""
    return TOKENS * math.sqrt(config.flops_per_token / 2e6)


def in_time(seconds: float, tokens_a_step: int, step_seconds: Callable[[ModelConfig], float]) -> Learns:
    """By how long a step of the smaller one takes, trying included: the larger one computes as fast."""
    began = time.perf_counter()

    def learns(smaller: ModelConfig, larger: ModelConfig) -> float:
        step = step_seconds(smaller) * larger.flops_per_token / smaller.flops_per_token
        left = max(0.0, seconds - (time.perf_counter() - began))
        return tokens_a_step * left / step

    return learns


def model_config(section: ModelSection, vocabulary: int) -> ModelConfig:
    """A model as a recipe describes it."""
    shape = section.model_dump()
    rope = 0.0 if section.conv else 10_000.0
    return ModelConfig.parse({**shape, "vocab_size": vocabulary, "rope_theta": rope}, "the recipe's [model]")
