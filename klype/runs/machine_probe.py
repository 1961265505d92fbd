"""What a short probe of this machine decides: the steps that fit, the threads, the precision, a new model's shape."""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from klype.device import gemm_gflops, trim_memory
from klype.errors import KlypeError, TrainingInterrupted, UsageError
from klype.model.attention import TORCH
from klype.model.config import ModelConfig
from klype.planner import FEWEST_STEPS, Precision, StepPlan, ThreadConfig
from klype.runs.recipe import SHAPES, ModelSection, Recipe
from klype.train import parallel
from klype.train.loop import NumberedBatches, TrainSession, TrainSettings, train
from klype.train.objectives import Objective
from klype.values import Batch, Batches

WARM, PROBED = 3, 10  # steps of a probe: those that warm up, and those that count
PROBE, FEWEST = 0.05, 4  # the part of the time that one probe may take, with at least this many steps that count
LONG = 2.0  # seconds of probes from which on not all threads are tried, where the time is short
# tokens that a model of a million weights learns from, when it begins to be worth more than a smaller one, measured on
# texts of a few megabytes (docs/laboratory/log.md, "Width and depth by the time")
TOKENS = 1.4e6

# A stage's objective and fresh batches for a model (a copy, in a probe).
Build = Callable[[nn.Module], tuple[Objective, Batches]]


def thread_configs(cores: int, micro_batches: int) -> list[ThreadConfig]:
    """Those worth a try: one worker alone, one on all cores, and as many workers as there are micro-batches (a process
    that works with others has one).
    """
    workers = min(cores, micro_batches) if parallel.ranks() == 1 else 1
    return list(dict.fromkeys((ThreadConfig(1, 1), ThreadConfig(1, cores), ThreadConfig(workers, cores // workers))))


def fitting_steps(
    model: nn.Module, build: Build, training: TrainSettings, seconds: float, cores: int, precision: Precision
) -> StepPlan:
    """The steps that fit into ``seconds`` (the probes' own time is part of them) with the fastest threads, for the
    model as it is: with compiled code or without.
    """
    own, began = torch.get_num_threads(), time.perf_counter()
    found: list[tuple[float, ThreadConfig]] = []
    try:
        for threading in reversed(thread_configs(cores, training.micro_batches)):
            # all cores first: where steps are long compared with the time there is, nothing else is tried
            if found and parallel.any_rank(time.perf_counter() - began > max(LONG, 3 * PROBE * seconds)):
                break
            tried = StepPlan(WARM + PROBED, 0.0, threading, precision)
            found.append((seconds_per_step(model, build, tried, training, cores, PROBE * seconds), threading))
            trim_memory()  # threads keep heaps of their own, and the next ones have others
    finally:
        torch.set_num_threads(own)
    taken, best = min(found, key=lambda row: row[0])
    left = max(0.0, seconds - (time.perf_counter() - began))
    steps = max(FEWEST_STEPS, round(left / taken))
    return StepPlan(steps, steps * taken, best, precision, getattr(model, "backend", TORCH) is not TORCH)


def as_planned(settings: TrainSettings, plan: StepPlan) -> TrainSettings:
    """A stage's settings with the plan's steps and precision. Muon's iteration is coarse where the rest is."""
    coarse = settings.optimizer.model_copy(update={"coarse": plan.precision == "bfloat16"})
    return settings.model_copy(update={"steps": plan.steps, "precision": plan.precision, "optimizer": coarse})


def all_cores_seconds(
    model: nn.Module, build: Build, training: TrainSettings, seconds: float, cores: int, precision: Precision
) -> float:
    """How long a step takes on all cores (seconds), by a short probe: of a training that may take ``seconds``."""
    tried = StepPlan(WARM + PROBED, 0.0, thread_configs(cores, training.micro_batches)[-1], precision)
    return seconds_per_step(model, build, tried, training, cores, PROBE * seconds)


def best_precision(device: torch.device | None = None) -> Precision:
    """bfloat16 where its matrix products are half as fast again as float32's: elsewhere it gains nothing.

    The best of a few looks at each, by turns: another program's moment must not decide.
    """
    looks = [[gemm_gflops(dtype, seconds=0.05, device=device) for dtype in ("bfloat16", "float32")] for _ in range(4)]
    coarse, fine = (max(found) for found in zip(*looks, strict=True))
    return "bfloat16" if coarse > 1.5 * fine else "float32"


def seconds_per_step(
    model: nn.Module, build: Build, tried: StepPlan, training: TrainSettings, cores: int, longest: float = math.inf
) -> float:
    """The mean of a few steps of the real loop on a copy, the fastest and the slowest left out; of fewer steps when
    they take longer than ``longest`` seconds.

    Leaves the model and torch's generator as they were.

    Batches that are made in another process take their part of the cores.
    """
    torch.set_num_threads(tried.threading.threads)
    generator = torch.get_rng_state()
    twin = copy.deepcopy(model)
    objective, batches = build(twin)
    stamps = [time.perf_counter()]

    def enough() -> bool:
        return len(stamps) > WARM + FEWEST and stamps[-1] - stamps[0] > longest

    settings = as_planned(training, tried)
    with tempfile.TemporaryDirectory() as folder:
        session = TrainSession(
            on_step=lambda step, metrics: stamps.append(time.perf_counter()),
            stop=enough,
            workers=tried.threading.workers,
            keeps=False,
        )
        try:
            train(twin, objective, batches, settings, Path(parallel.from_first(folder)), session)
        except TrainingInterrupted:
            if not parallel.any_rank(enough()):  # a person wants it
                raise KeyboardInterrupt from None
        finally:
            torch.set_rng_state(generator)
    taken = sorted(b - a for a, b in pairwise(stamps[WARM:]))[1:-1]
    step = sum(taken) / len(taken)
    if not isinstance(batches, Cycle):
        return step
    used = tried.threading.workers * tried.threading.threads
    return max(step, (step * used + batches.making * settings.micro_batches) / cores)


class Cycle(NumberedBatches):
    """A few batches over and over: a probe of the training step alone, and of what a batch costs to make (seconds)."""

    def __init__(self, batches: Batches, n: int) -> None:
        began = time.perf_counter()
        self._kept = [next(batches) for _ in range(n)]
        self.making = (time.perf_counter() - began) / n / getattr(batches, "passes", 1)

    def batch(self, index: int) -> Batch:
        return self._kept[index % len(self._kept)]


# The shape of a new model, where its recipe leaves it open: the largest that the time can teach. In the same time a
# larger model learns from fewer tokens; from enough tokens on it is worth more than a smaller one.

# (smaller, larger): how many tokens the larger one would learn from, when the smaller one can be tried out.
Learns = Callable[[ModelConfig, ModelConfig], float]


def fitting(recipe: Recipe, vocabulary: int, learns: Learns) -> Recipe:
    """The recipe with the largest of the shapes that learns from enough tokens, but for what it says itself."""
    if not recipe.model.open:
        return recipe
    sections = possible(recipe.model, vocabulary)
    chosen = sections[0]
    for smaller, larger in pairwise(sections):
        configs = model_config(smaller, vocabulary), model_config(larger, vocabulary)
        if learns(*configs) < enough_tokens(configs[1]):
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


def enough_tokens(config: ModelConfig) -> float:
    """Tokens from which a model of this shape learns more than a smaller one does in the same time: they grow with the
    root of the weights that it multiplies with."""
    return TOKENS * math.sqrt(config.flops_per_token / 2e6)


def in_time(seconds: float, tokens_a_step: int, step_seconds: Callable[[ModelConfig], float]) -> Learns:
    """Returns a function: tokens the larger shape would see in the time left (trying the smaller one takes its part of
    it), supposing that it computes as many FLOPs a second as the smaller one."""
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
