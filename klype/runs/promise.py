"""What is going to be made, settled and said before it is begun: a new model's shape, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable

from klype.model.config import ModelConfig
from klype.model.transformer import Transformer
from klype.runs.options import StageOptions
from klype.runs.plan import look
from klype.runs.recipe import Recipe
from klype.runs.shape import fitting, in_time
from klype.runs.stages import Run, enough_steps, late_text, precision_of, seconds_for
from klype.train import parallel
from klype.train.objectives import cross_entropy

SHORTEST = 2  # minutes of a run that ends in time

Look = Callable[..., float]
"""Like ``klype.runs.plan.look``."""


def settle(life: Run, look: Look = look) -> None:
    """Chooses the shape of a new model where the recipe leaves it open, for good, and says what is going to be made.

    ``look`` tells how long a step takes.
    """
    began = time.perf_counter()
    recipe, limit = _shaped(life, look)
    if limit:
        life.recipe = life.subject.recipe = recipe
        life.settling_s = time.perf_counter() - began
        life.record.content["settings"] = recipe.model_dump(mode="json")
        life.record.save()
    if isinstance(life.options, StageOptions):
        if limit:
            m = recipe.model
            life.say.note(f"A model of {m.layers} layers, {m.width} wide: the largest that {limit} can teach.")
        return
    life.say.note(_promise(life, limit))
    if life.options.minutes < SHORTEST:
        life.say.note(
            f"Rankings and the examination alone take about a minute: under {SHORTEST} it takes longer than asked."
        )


def _shaped(run: Run, look: Look) -> tuple[Recipe, str]:
    """The run's recipe with a shape for a new model, and what keeps it from being larger ("": it was not open)."""
    recipe, lesson = run.recipe, run.recipe.pretrain
    if run.start is not None or not recipe.model.open:
        return recipe, ""
    tokens_a_step, vocabulary = lesson.rows * recipe.model.window, run.subject.chat.tokenizer.vocab_size
    steps: int | None = getattr(run.options, "steps", None)
    if steps:
        return fitting(recipe, vocabulary, lambda smaller, larger: tokens_a_step * steps), f"{steps:,} steps"
    seconds = parallel.from_first(seconds_for(run, "pretrain"))
    precision, most = precision_of(run, "pretrain"), tokens_a_step * enough_steps(run, "pretrain")

    def step_seconds(config: ModelConfig) -> float:
        model = Transformer(config, run.backend).to(run.device)
        return look(model, lambda twin: (cross_entropy, late_text(run)), lesson.training, seconds, run.cores, precision)

    fits, limit = in_time(seconds, tokens_a_step, step_seconds), ""

    def learns(smaller: ModelConfig, larger: ModelConfig) -> float:
        """All processes go on with one shape."""
        nonlocal limit
        tokens: float = parallel.from_first(fits(smaller, larger))
        limit = "this text" if most < tokens else "the time"
        return min(tokens, most)

    return fitting(recipe, vocabulary, learns), limit or "the time"


def _promise(life: Run, limit: str) -> str:
    vocabulary, asked = life.subject.chat.tokenizer.vocab_size, life.subject.chat.tokenizer.asked
    minutes = life.options.minutes or 0.0
    if life.start is not None:
        rank = life.recipe.lora.rank
        how = f", by adapters of rank {rank}" if rank else ""
        return f"{minutes:g} minutes for all stages that are left{how}, in {life.folder}."
    m = life.recipe.model
    fewer = f" (the text supports no more of the {asked} asked for)" if vocabulary < asked else ""
    largest = f" (the largest that {limit} can teach)" if limit else ""
    return (
        f"{minutes:g} minutes for all stages: a model of {m.layers} layers, {m.width} wide{largest}, and a vocabulary "
        f"of {vocabulary} tokens{fewer}, in {life.folder}."
    )
