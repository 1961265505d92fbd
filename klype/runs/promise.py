"""What is going to be made, settled and said before it is begun: a new model's shape, and how long it takes."""

from __future__ import annotations

from klype.device import usable_cores
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


def settle(life: Run) -> None:
    """Chooses the shape of a new model where the recipe leaves it open, for good, and says what is going to be made."""
    recipe = _shaped(life)
    chosen = recipe is not life.recipe
    if chosen:
        life.recipe = life.subject.recipe = recipe
        life.record.content["settings"] = recipe.model_dump(mode="json")
        life.record.save()
    if isinstance(life.options, StageOptions):
        if chosen:
            m = recipe.model
            life.say.note(f"A model of {m.layers} layers, {m.width} wide: the largest that this can teach.")
        return
    life.say.note(_promise(life, chosen))
    if life.options.minutes < SHORTEST:
        life.say.note(
            f"Rankings and the examination alone take about a minute: under {SHORTEST} it takes longer than asked."
        )


def _shaped(run: Run) -> Recipe:
    """The run's recipe with a shape for a new model that suits the steps or the minutes asked for, and the text."""
    recipe, lesson = run.recipe, run.recipe.pretrain
    if run.start is not None or not recipe.model.open:
        return recipe
    tokens_a_step, vocabulary = lesson.rows * recipe.model.window, run.subject.chat.tokenizer.vocab_size
    steps: int | None = getattr(run.options, "steps", None)
    if steps:
        return fitting(recipe, vocabulary, lambda smaller, larger: tokens_a_step * steps)
    seconds, cores = seconds_for(run, "pretrain"), max(1, usable_cores() // run.options.processes)
    precision, most = precision_of(run, "pretrain"), tokens_a_step * enough_steps(run, "pretrain")

    def step_seconds(config: ModelConfig) -> float:
        model = Transformer(config)
        model.fused = run.fused
        return look(model, lambda twin: (cross_entropy, late_text(run)), lesson.training, seconds, cores, precision)

    learns = in_time(seconds, tokens_a_step, step_seconds)
    agreed = lambda *shapes: parallel.from_first(min(learns(*shapes), most))
    return fitting(recipe, vocabulary, agreed)


def _promise(life: Run, chosen: bool) -> str:
    vocabulary, asked = life.subject.chat.tokenizer.vocab_size, life.subject.chat.tokenizer.asked
    minutes = life.options.minutes or 0.0
    if life.start is not None:
        rank = life.recipe.lora.rank
        how = f", by adapters of rank {rank}" if rank else ""
        return f"{minutes:g} minutes for all stages that are left{how}, in {life.folder}."
    m = life.recipe.model
    fewer = f" (the text supports no more of the {asked} asked for)" if vocabulary < asked else ""
    largest = " (the largest that the time can teach)" if chosen else ""
    return (
        f"{minutes:g} minutes for all stages: a model of {m.layers} layers, {m.width} wide{largest}, and a vocabulary "
        f"of {vocabulary} tokens{fewer}, in {life.folder}."
    )
