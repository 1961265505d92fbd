"""Starting from a model that somebody trained: what is done already, and what is trained in its place."""

from __future__ import annotations

import torch

from klype.errors import UsageError
from klype.model import checkpoint
from klype.model.lora import AdaptedTransformer
from klype.model.transformer import Transformer
from klype.runs.options import RunOptions, StageOptions
from klype.runs.probe import possible
from klype.runs.recipe import ModelShape, Recipe
from klype.sources.find import Found


def learner(recipe: Recipe, seed: int, whole: Transformer) -> Transformer:
    """What a stage trains: the model itself, or adapters beside it."""
    if not recipe.lora.rank:
        return whole
    torch.manual_seed(seed)
    return AdaptedTransformer(whole.requires_grad_(False), recipe.lora)


def learnt(model: Transformer, whole: Transformer) -> Transformer:
    """The model that a stage leaves: an ordinary one, with what the adapters learnt in its weights."""
    return model.merged(whole) if isinstance(model, AdaptedTransformer) else model


def suited(recipe: Recipe, options: RunOptions | StageOptions, start: Found | None) -> Recipe:
    """The recipe for this start: adapters of the rank asked for, the model's own shape, and no text longer than its
    window. UsageError for what goes with no model.
    """
    if options.lora is not None:
        if start is None:
            raise UsageError("--lora trains adapters beside a model that is there.", "Give it: --from MODEL.")
        recipe = recipe.model_copy(update={"lora": recipe.lora.model_copy(update={"rank": options.lora})})
    if recipe.lora.rank and recipe.align.how.method == "ppo":
        raise UsageError("The way to align called ppo trains a value head, which goes with no adapters.", "Use grpo.")
    if start is None:
        possible(recipe.model, 1)
        return recipe
    own = checkpoint.read_config(start.folder)
    shape = {name: getattr(own, name) for name in ModelShape._fields}
    window = min(recipe.model.window, own.window)
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={**shape, "window": window})})


def dealt_out(recipe: Recipe, processes: int) -> Recipe:
    """The recipe with as many micro-batches in a step as come out even on so many processes, if its rows allow it."""
    lessons = {}
    for name, lesson in (("pretrain", recipe.pretrain), ("finetune", recipe.finetune)):
        pieces = -(-lesson.training.micro_batches // processes) * processes
        if lesson.rows % pieces == 0:
            training = lesson.training.model_copy(update={"micro_batches": pieces})
            lessons[name] = lesson.model_copy(update={"training": training})
    return recipe.model_copy(update=lessons)


def done_already(start: Found, options: RunOptions) -> tuple[str, ...]:
    """The stages that a whole run leaves out: those behind the model that it goes on from.

    Of a model from elsewhere, nobody knows: with a chat template it answers already, and is taught only when
    there are instructions to teach.
    """
    stage = start.stage or checkpoint.read_about(start.folder).get("stage", "")
    if stage:
        return ("pretrain",) if stage == "pretrain" else ("pretrain", "finetune")
    chats = checkpoint.read_tokenizer(start.folder).template is not None
    return ("pretrain", "finetune") if chats and not (options.instructions or options.data) else ("pretrain",)
