"""Short timing probes of this machine, which choose the number of steps, threads, precision and a model's shape."""

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
from klype.planner import MIN_STEPS, Precision, StepPlan
from klype.runs.recipe import SHAPES, ModelSection, Recipe
from klype.train import parallel
from klype.train.loop import TrainSession, TrainSettings, train
from klype.train.objectives import Objective
from klype.values import Batch, Batches, NumberedBatches

WARM, PROBED = 3, 10  # steps of a probe: warm-up, and timed
PROBE, MIN_PROBED = 0.05, 4  # the part of the time that one probe may take, with at least this many timed steps
LONG = 2.0  # seconds of probes after which no further thread configurations are tried, where the time is short
# training tokens at which a model of a million weights begins to beat a smaller one, measured on texts of a few
# megabytes (docs/laboratory/log.md, "Width and depth by the time")
TOKENS = 1.4e6

# model (in a probe a copy) → a stage's objective and new batches
Build = Callable[[nn.Module], tuple[Objective, Batches]]


def thread_configs(cores: int, micro_batches: int) -> list[tuple[int, int]]:
    """(workers, threads) worth trying: one worker on one core, one on all cores, and as many workers as there are
    micro-batches (a single one with several processes).
    """
    workers = min(cores, micro_batches) if parallel.ranks() == 1 else 1
    return list(dict.fromkeys(((1, 1), (1, cores), (workers, cores // workers))))


def fitting_steps(
    model: nn.Module, build: Build, training: TrainSettings, seconds: float, cores: int, precision: Precision
) -> StepPlan:
    """The plan with as many steps as fit into ``seconds``, including the probes' own time, with the fastest thread
    configuration. Times the model's own backend, compiled or torch.
    """
    own, began = torch.get_num_threads(), time.perf_counter()
    found: list[tuple[float, tuple[int, int]]] = []
    try:
        for threading in reversed(thread_configs(cores, training.micro_batches)):
            # all cores first: where steps are long compared with the time available, nothing else is tried
            if found and parallel.any_rank(time.perf_counter() - began > max(LONG, 3 * PROBE * seconds)):
                break
            tried = StepPlan(WARM + PROBED, 0.0, *threading, precision)
            found.append((seconds_per_step(model, build, tried, training, cores, PROBE * seconds), threading))
            trim_memory()  # threads keep heaps of their own, and the next ones have others
    finally:
        torch.set_num_threads(own)
    taken, best = min(found, key=lambda row: row[0])
    left = max(0.0, seconds - (time.perf_counter() - began))
    steps = max(MIN_STEPS, round(left / taken))
    return StepPlan(steps, steps * taken, *best, precision, getattr(model, "backend", TORCH) is not TORCH)


def as_planned(settings: TrainSettings, plan: StepPlan) -> TrainSettings:
    """A stage's settings with the plan's steps and precision; Muon's iteration has the same precision."""
    coarse = settings.optimizer.model_copy(update={"coarse": plan.precision == "bfloat16"})
    return settings.model_copy(update={"steps": plan.steps, "precision": plan.precision, "optimizer": coarse})


def all_cores_seconds(
    model: nn.Module, build: Build, training: TrainSettings, seconds: float, cores: int, precision: Precision
) -> float:
    """Seconds per step on all cores, by a short probe for a training of ``seconds`` seconds."""
    tried = StepPlan(WARM + PROBED, 0.0, *thread_configs(cores, training.micro_batches)[-1], precision)
    return seconds_per_step(model, build, tried, training, cores, PROBE * seconds)


def best_precision(device: torch.device | None = None) -> Precision:
    """bfloat16 where its matrix products are more than 1.5 times as fast as float32's, else float32.

    The best of several alternating measurements, so that another program's activity does not decide.
    """
    looks = [[gemm_gflops(dtype, seconds=0.05, device=device) for dtype in ("bfloat16", "float32")] for _ in range(4)]
    coarse, fine = (max(found) for found in zip(*looks, strict=True))
    return "bfloat16" if coarse > 1.5 * fine else "float32"


def seconds_per_step(
    model: nn.Module, build: Build, tried: StepPlan, training: TrainSettings, cores: int, longest: float = math.inf
) -> float:
    """Mean seconds per step of the training loop on a copy of the model, without the fastest and the slowest step; of
    fewer steps when they take longer than ``longest`` seconds in all.

    Leaves the model and torch's generator as they were. Includes the cost of batches that another process makes on the
    same cores.
    """
    torch.set_num_threads(tried.threads)
    generator = torch.get_rng_state()
    twin = copy.deepcopy(model)
    objective, batches = build(twin)
    stamps = [time.perf_counter()]

    def enough() -> bool:
        return len(stamps) > WARM + MIN_PROBED and stamps[-1] - stamps[0] > longest

    settings = as_planned(training, tried)
    with tempfile.TemporaryDirectory() as folder:
        session = TrainSession(
            on_step=lambda step, metrics: stamps.append(time.perf_counter()),
            stop=enough,
            workers=tried.workers,
            keeps=False,
        )
        try:
            train(twin, objective, batches, settings, Path(parallel.broadcast(folder)), session)
        except TrainingInterrupted:
            if not parallel.any_rank(enough()):  # interrupted by the user
                raise KeyboardInterrupt from None
        finally:
            torch.set_rng_state(generator)
    taken = sorted(b - a for a, b in pairwise(stamps[WARM:]))[1:-1]
    step = sum(taken) / len(taken)
    if not isinstance(batches, Cycle):
        return step
    used = tried.workers * tried.threads
    return max(step, (step * used + batches.making * settings.micro_batches) / cores)


class Cycle(NumberedBatches):
    """The same few batches in turn, to time training steps alone. ``making``: seconds that making a batch takes."""

    def __init__(self, batches: Batches, n: int) -> None:
        began = time.perf_counter()
        self._kept = [next(batches) for _ in range(n)]
        self.making = (time.perf_counter() - began) / n / getattr(batches, "passes", 1)

    def batch(self, index: int) -> Batch:
        return self._kept[index % len(self._kept)]


# The shape of a new model, where its recipe leaves it open: the largest that the time is enough for. In the same time
# a larger model sees fewer tokens; from a certain number on it beats a smaller one.

# (smaller, larger) → the number of tokens that the larger model would be trained on
TokenEstimate = Callable[[ModelConfig, ModelConfig], float]


def choose_shape(recipe: Recipe, vocabulary: int, learns: TokenEstimate) -> Recipe:
    """The recipe with the largest shape that is trained on enough tokens, where it leaves the shape open."""
    if not recipe.model.open:
        return recipe
    sections = candidate_models(recipe.model, vocabulary)
    chosen = sections[0]
    for smaller, larger in pairwise(sections):
        configs = model_config(smaller, vocabulary), model_config(larger, vocabulary)
        if learns(*configs) < enough_tokens(configs[1]):
            break
        chosen = larger
    return recipe.model_copy(update={"model": chosen})


def candidate_models(section: ModelSection, vocabulary: int) -> list[ModelSection]:
    """The recipe's [model] completed with each of the named shapes, the smallest first. UsageError when none of them
    is a valid model.
    """
    found: dict[ModelSection, ModelConfig] = {}
    why = ""
    for shape in SHAPES.values():
        filled = section.with_shape(shape)
        try:
            found[filled] = model_config(filled, vocabulary)
        except KlypeError as error:
            why = why or error.message
    if not found:
        hint = "Heads (model.heads) share the width (model.width) evenly, and each has an even part of it."
        raise UsageError(why.removesuffix("; give head_dim.").rstrip(".") + ".", hint)
    return sorted(found, key=lambda one: found[one].parameters)


def enough_tokens(config: ModelConfig) -> float:
    """The number of training tokens from which a model of this shape beats a smaller one in the same time; grows with
    the square root of its FLOPs per token."""
    return TOKENS * math.sqrt(config.flops_per_token / 2e6)


def tokens_in_time(seconds: float, tokens_a_step: int, step_seconds: Callable[[ModelConfig], float]) -> TokenEstimate:
    """Returns the function for ``choose_shape``: the tokens that the larger model would see in the time left (timing
    the smaller one takes some of it), assuming that it computes as many FLOPs per second as the smaller one."""
    began = time.perf_counter()

    def learns(smaller: ModelConfig, larger: ModelConfig) -> float:
        step = step_seconds(smaller) * larger.flops_per_token / smaller.flops_per_token
        left = max(0.0, seconds - (time.perf_counter() - began))
        return tokens_a_step * left / step

    return learns


def model_config(section: ModelSection, vocabulary: int) -> ModelConfig:
    """The configuration of a model from a recipe's [model]."""
    shape = section.model_dump()
    rope = 0.0 if section.conv else 10_000.0
    return ModelConfig.parse({**shape, "vocab_size": vocabulary, "rope_theta": rope}, "the recipe's [model]")
