"""The trainers of ``benchmarks quality`` with a common interface. A peer is imported in ``load``, never before.

Everything that belongs to training counts: making the vocabulary, encoding, and timing a step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.quality_reading import Characters, Reading, Tokens
from benchmarks.quality_task import Array, Given, Learnt, Trainer
from klype.runs.recipe import ModelShape, read

BATCHES = 8  # of klype's probe
TRIED = 8  # steps of the Trainer's probe, of which half warm up


class Klype:
    """klype's recipe for one's own text: vocabulary, model, plan of steps, schedule, and the training loop."""

    def __init__(self, overrides: tuple[str, ...] = ()) -> None:
        self._recipe = read("text", overrides)

    def load(self, threads: int, cache: str) -> None:
        import torch

        from klype.device import memory_policy
        from klype.model.compiled import compiled_backend

        memory_policy()
        torch.set_num_threads(threads)
        self._backend = compiled_backend(Path(cache))

    def learn(self, given: Given) -> Learnt:
        import torch

        from klype.data.batches import PackedBatches
        from klype.model.attention import TORCH
        from klype.model.config import ModelConfig
        from klype.model.transformer import Transformer
        from klype.planner import StepBudget
        from klype.runs.machine_probe import (
            Cycle,
            all_cores_seconds,
            as_planned,
            best_precision,
            choose_shape,
            fitting_steps,
            model_config,
            tokens_in_time,
        )
        from klype.train.loop import TrainResult, TrainSession, train
        from klype.train.objectives import Objective, cross_entropy
        from klype.train.optimizer import fused_parts
        from klype.values import Batches

        began = time.perf_counter()
        recipe, self._text = self._recipe, Tokens(given, self._recipe)
        if given.shape:
            recipe = recipe.model_copy(update={"model": recipe.model.with_shape(ModelShape(*given.shape))})
        documents, vocabulary = self._text.documents, self._text.shape.vocab
        training, pieces = recipe.pretrain.training, recipe.pretrain.training.micro_batches
        rows, window = recipe.pretrain.micro_rows, recipe.model.window
        precision = best_precision()

        def build(twin: torch.nn.Module) -> tuple[Objective, Batches]:
            return cross_entropy, Cycle(PackedBatches(documents, rows, window, given.seed), BATCHES * pieces)

        def left() -> float:
            return given.seconds - (time.perf_counter() - began)

        def step_seconds(config: ModelConfig) -> float:
            return all_cores_seconds(new(config), build, training, left(), given.threads, precision)

        def new(config: ModelConfig) -> Transformer:
            torch.manual_seed(given.seed)
            return Transformer(config, self._backend)

        recipe = choose_shape(recipe, vocabulary, tokens_in_time(left(), rows * pieces * window, step_seconds))
        model = new(model_config(recipe.model, vocabulary))
        planned = fitting_steps(model, build, training, left(), given.threads, precision)
        torch.set_num_threads(planned.threads)
        budget = StepBudget(planned.json(), time.perf_counter())
        training = recipe.pretraining(planned.steps, int(documents.lengths.sum()))

        def start() -> TrainResult:
            session = TrainSession(
                resume=budget.resumes,
                parts=fused_parts(model.config),
                workers=planned.workers,
                on_step=lambda step, metrics: budget.watch(step, time.perf_counter()),
                stop=lambda: budget.changed,
            )
            batches = PackedBatches(documents, rows, window, given.seed)
            return train(model, cross_entropy, batches, as_planned(training, budget.plan), Path(given.folder), session)

        trained = budget.follow(start)
        torch.set_num_threads(given.threads)
        self._model = model.eval().with_backend(TORCH)
        m = recipe.model
        shape = ModelShape(m.width, m.layers, m.heads, m.hidden)
        how = f"{m.layers} × {m.width}, {vocabulary} tokens, rows of {window}, {planned.precision}, "
        how += f"{'compiled' if planned.fused else 'torch'}, {planned.workers} side by side, "
        how += f"{planned.threads} threads each"
        return Learnt(how, trained.steps, trained.steps * rows * pieces * window, model.config.parameters, shape)

    def score(self, text: str) -> tuple[Array, Array]:
        return self._text.score(self._model, text)


class NanoGPT:
    """nanoGPT's model and script with the learning rates that its README gives for a CPU. The cosine schedule follows
    the clock, so that it ends with the seconds."""

    RATE, LEAST, WARMUP, BETA2 = 1e-3, 1e-4, 100, 0.99

    def __init__(self, read: Callable[[Given], Reading], clock: Callable[[], float] = time.perf_counter) -> None:
        self.read, self._clock = read, clock

    def load(self, threads: int, cache: str) -> None:
        import torch

        from benchmarks import nanogpt

        torch.set_num_threads(threads)
        nanogpt.optimizer(torch.nn.Linear(1, 1), self.RATE)  # what it imports when it is first made takes seconds

    def learn(self, given: Given) -> Learnt:
        import torch

        from benchmarks import nanogpt

        began, step = self._clock(), 0
        torch.manual_seed(given.seed)
        self._text = self.read(given)
        shape, ids = self._text.shape, torch.tensor(self._text.ids)
        model = nanogpt.NanoGPT(shape)
        optimizer = nanogpt.optimizer(model, self.RATE, self.BETA2)
        while (past := self._clock() - began) < given.seconds:
            for group in optimizer.param_groups:
                group["lr"] = self.rate(step, past / given.seconds)
            starts = torch.randint(len(ids) - shape.window, (shape.rows,)).tolist()
            rows = torch.stack([ids[start : start + shape.window + 1] for start in starts])
            model(rows[:, :-1], rows[:, 1:]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
        self._model = model.eval()
        return Learnt(f"{self._text.how}, AdamW, float32", step, step * shape.tokens, weights(model))

    def rate(self, step: int, over: float) -> float:
        """The learning rate: linear warm-up, then cosine decay. ``over``: the share of the time that has passed."""
        falling = self.LEAST + (self.RATE - self.LEAST) * 0.5 * (1 + math.cos(math.pi * min(1.0, over)))
        return min(self.RATE * (step + 1) / (self.WARMUP + 1), falling)

    def score(self, text: str) -> tuple[Array, Array]:
        return self._text.score(self._model.logits, text)


class HuggingFace:
    """transformers' Trainer with its defaults (eight rows per step, AdamW at 5e-5, linear decay) on a Llama of klype's
    size with klype's tokens. A few steps are timed to find how many fit."""

    def load(self, threads: int, cache: str) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self._version = transformers.__version__

    def learn(self, given: Given) -> Learnt:
        began = time.perf_counter()
        self._text = Tokens(given)
        stamps: list[float] = []
        self._train(given, TRIED, lambda step: stamps.append(time.perf_counter()))
        step_s = (stamps[-1] - stamps[TRIED // 2]) / (len(stamps) - 1 - TRIED // 2)
        steps = max(TRIED, round((given.seconds - (time.perf_counter() - began)) / step_s))
        self._model, rows = self._train(given, steps, lambda step: None)
        how = f"{self._text.how}, Llama by Trainer of transformers {self._version}, float32"
        return Learnt(how, steps, steps * rows * self._text.shape.window, weights(self._model))

    def _train(self, given: Given, steps: int, on_step: Callable[[int], None]) -> tuple[Any, int]:
        """Trains a model for so many steps; returns it and the rows per step."""
        import torch

        from benchmarks import hf_trainer

        torch.manual_seed(given.seed)
        shape, ids = self._text.shape, torch.tensor(self._text.ids)
        model = hf_trainer.llama(shape, shape.window)
        windows = list(ids[: len(ids) // shape.window * shape.window].view(-1, shape.window))
        options = {"max_steps": steps, "seed": given.seed}
        _, rows = hf_trainer.train(model, windows, given.folder, on_step, **options)
        model.train(False)
        return model, rows

    def score(self, text: str) -> tuple[Array, Array]:
        return self._text.score(lambda tokens_BT: self._model(tokens_BT).logits, text)


def weights(model: Any) -> int:
    """The number of weights, tied ones counted once."""
    return sum(p.numel() for p in model.parameters())


# name: how it is made, and the packages that it needs
TRAINERS: dict[str, tuple[Callable[[], Trainer], tuple[str, ...]]] = {
    "klype": (Klype, ()),
    "nanoGPT": (lambda: NanoGPT(Characters), ()),
    "nanoGPT, klype's size": (lambda: NanoGPT(Tokens), ()),
    "HF Trainer": (HuggingFace, ("transformers", "accelerate")),
}
