"""A run's state in memory, pre-training and fine-tuning, and how every stage plans and trains."""

import copy
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from klype.data.batches import WithRehearsal
from klype.data.example_batches import STEPS
from klype.device import pick_device, usable_cores
from klype.engine.engine import Engine
from klype.model import checkpoint
from klype.model.attention import TORCH, Backend
from klype.model.compiled import compiled_backend
from klype.model.lora import AdaptedTransformer
from klype.model.transformer import Transformer
from klype.planner import Precision, StepBudget, StepPlan, divide
from klype.runs.best_weights import ValidatedBatches, validation_interval
from klype.runs.listener import RunListener
from klype.runs.machine_probe import Cycle, as_planned, best_precision, fitting_steps, model_config, thread_configs
from klype.runs.recipe import Recipe
from klype.runs.run_json import Record
from klype.runs.run_options import STAGES, RunOptions, StageOptions
from klype.runs.task import Task, exam_questions
from klype.train import parallel
from klype.train.loop import TrainResult, TrainSession, train
from klype.train.objectives import Objective, cross_entropy, with_rehearsal
from klype.train.optimizer import fused_parts
from klype.train.resume import newest_step, states
from klype.values import Batches, Request, Reward, end

SPEAK_EVERY = 12.0  # seconds between two samples of the model's text
TIMED = 64  # questions whose answers are timed before training


TrainStage = Literal["pretrain", "finetune", "align"]
# (model, plan) → the stage's objective and batches; plan None: for a probe
StageBuild = Callable[[nn.Module, StepPlan | None], tuple[Objective, Batches]]


@dataclass
class RunContext:
    """A run in progress. ``start``: the folder of the outside model that the first stage starts from. ``settling_s``:
    seconds spent on choosing a shape. ``functions``: the recipe's reward functions by name. ``needs``: estimated
    seconds that the parts without training steps still take (``planner.divide``). ``models``: by stage, as loaded."""

    folder: Path
    options: RunOptions | StageOptions
    recipe: Recipe
    task: Task
    record: Record
    say: RunListener
    start: Path | None = None
    settling_s: float = 0.0
    functions: Mapping[str, Reward] = field(default_factory=dict)
    needs: dict[str, float] = field(default_factory=dict)
    models: dict[str, Transformer] = field(default_factory=dict)

    def model(self, stage: str) -> Transformer:
        """The model that a stage left, from memory or its folder; for a skipped stage, the outside model."""
        left_out = stage not in self.models and not (self.folder / stage / "model.safetensors").exists()
        outside = self.start if left_out else None
        key = stage if outside is None else ""
        if key not in self.models:
            self.models[key] = self.load(outside or self.folder / stage)
        return self.models[key]

    def load(self, folder: Path) -> Transformer:
        """A checkpoint's model on this run's device and backend."""
        return checkpoint.load(folder, device=self.device).model.with_backend(self.backend)

    @cached_property
    def device(self) -> torch.device:
        """The device of a process alone; with several, each has its shards on ``parallel.device()``."""
        return pick_device("cpu" if self.options.processes > 1 else self.options.device)

    @property
    def cores(self) -> int:
        """CPU cores per process; 1 on an accelerator."""
        return max(1, usable_cores() // self.options.processes) if self.device.type == "cpu" else 1

    @cached_property
    def backend(self) -> Backend:
        """Compiled code on the CPU where there is a compiler and a cache folder, else torch."""
        if self.options.cache is None or self.device.type != "cpu":
            return TORCH
        tell = lambda: self.say.note("Compiling klype's training code for this processor, once; it takes some seconds.")
        found = compiled_backend(self.options.cache, tell)
        if found is TORCH:
            self.say.note("No C compiler works here, or none in time: training goes on without compiled code, slower.")
        return found

    def save(self, stage: str, model: Transformer, about: dict[str, Any]) -> None:
        """Writes a stage's checkpoint and keeps its model in memory."""
        full = {"stage": stage, "recipe": self.record.content["recipe"], "seed": self.options.seed, **about}
        if parallel.is_first():
            checkpoint.save(self.folder / stage, model, self.task.chat.tokenizer, full)
        self.models[stage] = model


def pretrain(run: RunContext) -> None:
    """Trains on text: cross-entropy of the next token."""
    torch.manual_seed(run.options.seed)
    if run.start is None:
        shape = model_config(run.recipe.model, run.task.chat.tokenizer.vocab_size)
        whole = Transformer(shape, run.backend).to(run.device)  # drawn on the CPU: the same weights everywhere
    else:
        whole = run.load(run.start)
    if isinstance(run.options, RunOptions) and not run.record.content["plan"]:
        estimate_needs(run, whole)

    def batches(planned: StepPlan | None) -> Batches:
        return late_batches(run) if planned is None else run.task.pretraining(planned.steps, background=True)

    _train_validated(run, "pretrain", whole, cross_entropy, batches)


def late_batches(run: RunContext) -> Cycle:
    """Batches from late in pre-training, for a probe."""
    return Cycle(run.task.late_batches(), STEPS * run.recipe.pretrain.training.micro_batches)


def finetune(run: RunContext) -> None:
    """Trains on answers, with pre-training text rehearsed in every step."""
    lesson, pieces = run.recipe.finetune, run.recipe.finetune.training.micro_batches
    whole = copy.deepcopy(run.model("pretrain"))
    run.task.before_finetuning(whole)

    def batches(planned: StepPlan | None) -> Batches:
        found = run.task.finetuning(background=planned is not None)
        if lesson.rehearsal_rows:
            found = WithRehearsal(found, run.task.rehearsal(lesson.rehearsal_rows, pieces))
        return Cycle(found, STEPS * pieces) if planned is None else found

    objective = with_rehearsal(cross_entropy, cross_entropy, lesson.rehearsal_weight)
    _train_validated(run, "finetune", whole, objective, batches)


def _train_validated(
    run: RunContext,
    stage: TrainStage,
    whole: Transformer,
    objective: Objective,
    batches: Callable[[StepPlan | None], Batches],
) -> None:
    """Trains the model, or adapters for it, on ``batches(plan)`` (plan None: for a probe), and keeps the weights with
    the lowest held-out loss."""
    model, held_out = trainable_model(run, whole), run.task.validation_batches(stage)
    pieces = run.recipe.training(stage).micro_batches
    checked: list[ValidatedBatches] = []  # the newest: a corrected plan starts with new ones

    def build(twin: nn.Module, planned: StepPlan | None) -> tuple[Objective, Batches]:
        found = batches(planned)
        if planned is None or not held_out:
            return objective, found
        often = pieces * validation_interval(planned.steps, planned.seconds)
        checked[:] = [ValidatedBatches(found, held_out, twin, often, run.folder / stage)]
        return objective, checked[0]

    about: dict[str, Any] = {"steps": run_training(run, stage, model, build)}
    about |= {"parent": "pretrain"} if stage == "finetune" else {"parameters": whole.config.parameters}
    for one in checked:
        back = one.finish()
        drawn, about["validation"] = one.kept or one.seen[-1]
        best = f"; the weights of step {drawn // pieces}, the best, are kept" if back else ""
        what = "text" if stage == "pretrain" else "answers"
        run.say.note(f"On held-out {what}: {about['validation']:.3f} nats per token{best}.")
    run.save(stage, merged_model(model, whole), about)
    for one in checked if parallel.is_first() else ():
        one.best.forget()  # nothing is left to resume


# planning and training, for all stages


def trainable_model(run: RunContext, whole: Transformer) -> Transformer:
    """The model to train: the whole model, or with LoRA frozen weights with adapters."""
    if not run.recipe.lora.rank:
        return whole
    torch.manual_seed(run.options.seed)
    return AdaptedTransformer(whole.requires_grad_(False), run.recipe.lora)


def merged_model(model: Transformer, whole: Transformer) -> Transformer:
    """The trained model; adapters are merged into the weights."""
    return model.merge(whole) if isinstance(model, AdaptedTransformer) else model


def run_training(run: RunContext, stage: TrainStage, model: Transformer, build: StageBuild) -> int:
    """Plans the stage (or reads its plan), trains or resumes it, and reports progress. Returns the number of steps."""
    model.train()
    trainee, training = model.with_backend(run.backend), run.recipe.training(stage)
    planned = planned_stage(run, stage, trainee, build)
    if planned.fused and run.backend is TORCH:
        run.say.note("Compiled code is no longer used: what follows is not bit for bit what it would have been.")
    if stage == "pretrain":
        training = run.recipe.pretraining(planned.steps, run.task.tokens)
    if not planned.fused:
        trainee = model.with_backend(TORCH)
    own = torch.get_num_threads()
    torch.set_num_threads(planned.threads)
    run.say.stage_start(stage, planned.steps)
    known, at = run.record.content["plan"][stage], newest_step(run.folder / stage)
    budget = StepBudget(known, time.perf_counter(), run.record.save, at, enough_steps(run, stage), parallel.broadcast)

    def start() -> TrainResult:
        objective, batches = build(trainee, budget.plan)
        session = session_of(run, stage, budget, trainee)
        if isinstance(batches, ValidatedBatches):
            session = replace(session, on_ready=batches.set_measure)
        try:
            settings = as_planned(training, budget.plan)
            return train(trainee, objective, batches, settings, run.folder / stage, session)
        finally:
            end(batches)

    def tell() -> None:
        run.say.note(f"{stage}: {budget.plan.steps:,} steps fit at the measured pace.")
        run.say.stage_start(stage, budget.plan.steps)

    try:
        trained = budget.follow(start, tell)
    finally:
        # later measurements must not depend, in their last bits, on the number of threads chosen for training
        torch.set_num_threads(own)
    model.eval()
    run.say.stage_end(f"{trained.steps} steps, {trained.tokens:,} tokens in {trained.seconds:.0f} s")
    return trained.steps


def planned_stage(run: RunContext, stage: TrainStage, model: nn.Module, build: StageBuild) -> StepPlan:
    """The recorded plan of the stage, or a new one: of the steps asked for, or of as many as fit into its time."""
    plans, training = run.record.content["plan"], run.recipe.training(stage)
    if stage in plans:
        return StepPlan.parse(plans[stage])
    if steps := getattr(run.options, "steps", None):
        threading = thread_configs(run.cores, training.micro_batches)[-1]
        planned = StepPlan(steps, 0.0, *threading, fused=run.backend is not TORCH)
    else:
        seconds, precision, probe = seconds_for(run, stage), precision_of(run, stage), lambda twin: build(twin, None)
        fits = fitting_steps(model, probe, training, seconds, run.cores, precision)
        if stage == "pretrain" and isinstance(run.options, RunOptions) and not run.record.done("finetune"):
            # takes over the time that fine-tuning will not need, assuming that a row takes as long in either stage
            lesson, a_row = run.recipe.finetune, fits.seconds / fits.steps / run.recipe.pretrain.rows
            needed = enough_steps(run, "finetune") * (lesson.rows + lesson.rehearsal_rows) * a_row
            fits = fits.longer(max(0.0, seconds_for(run, "finetune") - needed))
        planned = fits.at_most(enough_steps(run, stage))
        if planned.steps < fits.steps and stage == "pretrain":
            spared = fits.seconds - planned.seconds
            run.say.note(
                f"After {run.recipe.pretrain.passes} passes through this text it would be learnt by heart: "
                f"{spared:.0f} s of pre-training are left out. More text would use them (--set pretrain.passes=… to "
                "train longer anyway)."
            )
            if isinstance(run.options, RunOptions):
                run.record.content["planned_s"] -= round(spared, 1)
    plans[stage] = parallel.broadcast(planned.json())
    run.record.save()
    return StepPlan.parse(plans[stage])


def enough_steps(run: RunContext, stage: str) -> int:
    """The steps after which the data has been passed through as often as the recipe allows; sys.maxsize where there is
    no limit."""
    task, recipe = run.task, run.recipe
    if stage == "finetune" and recipe.finetune.passes and task.examples:
        return math.ceil(recipe.finetune.passes * task.examples / recipe.finetune.rows)
    if stage == "pretrain" and task.tokens:
        return math.ceil(recipe.pretrain.passes * task.tokens / (recipe.pretrain.rows * recipe.model.window))
    return sys.maxsize


def precision_of(run: RunContext, stage: str) -> Precision:
    """The precision in the stage's plan, or the one that it will be planned with."""
    known, machine = run.record.content["plan"].get(stage), run.record.content["machine"]
    if known:
        return StepPlan.parse(known).precision
    if getattr(run.options, "steps", None):
        return "float32"
    if "precision" not in machine:
        machine["precision"] = parallel.broadcast(best_precision(run.device))
    return cast(Precision, machine["precision"])


def seconds_for(run: RunContext, stage: str) -> float:
    """Seconds for a stage: its part of the time left, by the shares of the stages still to come."""
    if isinstance(run.options, StageOptions):
        return max(1.0, 60 * (run.options.minutes or 5.0) - run.settling_s)
    to_come = {n: getattr(run.recipe, n).share for n in (*STAGES, "examine") if not run.record.done(n)}
    needs = {name: seconds for name, seconds in run.needs.items() if name in to_come}
    return max(1.0, divide(run.record.content["planned_s"] - run.record.elapsed, to_come, needs)[stage])


def estimate_needs(run: RunContext, model: Transformer) -> None:
    """Estimates before training how long examinations, reward model and rankings will take, by timing a few answers
    of the untrained model, as long as the right ones."""
    encode, section = run.task.chat.tokenizer.encode_answer, run.recipe.rank
    asked = [question for question in run.task.held_out[:TIMED] if question.answers]
    if not asked or parallel.ranks() > 1:
        return
    began = time.perf_counter()
    requests = [
        Request(tuple(run.task.chat.prompt(q.messages())), 2, min(section.limit, 1 + len(encode(q.answers[0]))))
        for q in asked
    ]
    Engine(model).run(requests)
    an_answer = (time.perf_counter() - began) / (2 * len(asked))
    rank = an_answer * (section.questions + section.held_out) * (section.drawn + section.hot)
    # measured on world in five minutes and norsk in two: an examination takes six times as long as its answers, and
    # there are three and the report's; the reward model takes three quarters of the rankings' time
    examination = 6 * an_answer * len(exam_questions(run.task, run.options.minutes))
    run.needs = {"examine": 4 * examination, "reward": 0.75 * rank, "rank": rank}


def session_of(run: RunContext, stage: str, budget: StepBudget, model: Transformer | None = None) -> TrainSession:
    """The callbacks of one start of training: progress, with a ``model`` that writes also its speed and samples of its
    text, and a stop when the plan changes."""
    began = spoken = time.perf_counter()

    def on_step(step: int, metrics: dict[str, float]) -> None:
        nonlocal spoken
        now = time.perf_counter()
        shown = {"step": float(step), **{k: v for k, v in metrics.items() if k in SHOWN}}
        if model is not None:
            shown["tokens_per_second"] = metrics["tokens"] / max(1e-9, now - began)
        run.say.step(shown)
        budget.watch(step, now)
        if model is not None and parallel.ranks() == 1 and now - spoken > SPEAK_EVERY:  # a sharded model cannot
            model.eval()
            run.say.sample(run.task.sample_text(model, stage))
            model.train()
            spoken = time.perf_counter()

    return TrainSession(
        resume=bool(states(run.folder / stage)) and (run.options.resume or budget.resumes),
        workers=budget.plan.workers,
        parts=fused_parts(model.config) if model is not None else {},
        on_step=on_step,
        stop=lambda: budget.changed,
        say=run.say.note,
    )


SHOWN = frozenset(["loss", "validation", "reward", "length", "pair_accuracy", "kl"])
