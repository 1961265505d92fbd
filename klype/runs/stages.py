"""The stages of a life up to the rankings, as a run does them, and the common loop as all stages use it."""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from klype.data.example_batches import STEPS
from klype.device import pick_device, usable_cores
from klype.engine.engine import Engine
from klype.model import checkpoint
from klype.model.attention import TORCH, Backend
from klype.model.compiled import compiled_backend
from klype.model.lora import AdaptedTransformer
from klype.model.transformer import Transformer
from klype.planner import Precision, StepBudget, StepPlan, divide
from klype.runs import ranking
from klype.runs.best_weights import Validation
from klype.runs.machine_probe import Cycle, as_planned, best_precision, fitting_steps, model_config, thread_configs
from klype.runs.options import STAGES, RunOptions, StageOptions
from klype.runs.recipe import Recipe
from klype.runs.run_json import Record
from klype.runs.say import RunListener
from klype.runs.task import Task, examined_on
from klype.train import parallel
from klype.train.loop import Measure, TrainResult, TrainSession, TrainSettings, Weights, train
from klype.train.objectives import Objective, cross_entropy, with_rehearsal
from klype.train.optimizer import fused_parts
from klype.train.resume import newest_step, states
from klype.values import Batch, Batches, Request, Reward, end

SPEAK_EVERY = 12.0  # seconds between two samples of what the model says
TIMED = 64  # questions whose answers are timed before anything is learnt


@dataclass
class RunContext:
    """A run under way. ``start`` is the folder of an outside model that the first stage starts from. ``settling_s``:
    what it took to choose a shape. ``functions``: the recipe's rewards by name, without the reward model. ``needs``:
    seconds that the parts without steps of their own still take, by what was measured (``planner.divide``)."""

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
        """The model that a stage left, from memory or its folder; of one that was left out, the model from outside."""
        left_out = stage not in self.models and not (self.folder / stage / "model.safetensors").exists()
        outside = self.start if left_out else None
        key = stage if outside is None else ""
        if key not in self.models:
            self.models[key] = self.load(outside or self.folder / stage)
        return self.models[key]

    def load(self, folder: Path) -> Transformer:
        """A checkpoint's model, where this run computes."""
        return checkpoint.load(folder, device=self.device).model.using(self.backend)

    @cached_property
    def device(self) -> torch.device:
        """Where a process alone computes; of several, each has its shards where ``parallel.device`` says."""
        return pick_device("cpu" if self.options.processes > 1 else self.options.device)

    @property
    def cores(self) -> int:
        """On which one process may compute side by side: an accelerator is one."""
        return max(1, usable_cores() // self.options.processes) if self.device.type == "cpu" else 1

    @cached_property
    def backend(self) -> Backend:
        """What computes: compiled code for the CPU, where there is a compiler and a place to keep it."""
        if self.options.cache is None or self.device.type != "cpu":
            return TORCH
        tell = lambda: self.say.note("Compiling klype's training code for this processor, once; it takes some seconds.")
        found = compiled_backend(self.options.cache, tell)
        if found is TORCH:
            self.say.note("No C compiler works here, or none in time: training goes on without compiled code, slower.")
        return found

    def save(self, stage: str, model: Transformer, about: dict[str, Any]) -> None:
        full = {"stage": stage, "recipe": self.record.content["recipe"], "seed": self.options.seed, **about}
        if parallel.is_first():
            checkpoint.save(self.folder / stage, model, self.task.chat.tokenizer, full)
        self.models[stage] = model


def pretrain(run: RunContext) -> None:
    """Next token, one-hot cross-entropy."""
    torch.manual_seed(run.options.seed)
    if run.start is None:
        shape = model_config(run.recipe.model, run.task.chat.tokenizer.vocab_size)
        whole = Transformer(shape, run.backend).to(run.device)  # drawn on the CPU: the same weights everywhere
    else:
        whole = run.load(run.start)
    if isinstance(run.options, RunOptions) and not run.record.content["plan"]:
        estimate_needs(run, whole)

    def batches(planned: StepPlan | None) -> Batches:
        return late_text(run) if planned is None else run.task.pretraining(planned.steps, background=True)

    _teach(run, "pretrain", whole, cross_entropy, batches, {"parameters": whole.config.parameters})


def late_text(run: RunContext) -> Cycle:
    """Batches from late in pre-training, for the probe: documents grow, and the pace of the longest counts."""
    late = run.task.pretraining(1000, False)
    late.restore(run.task.late(1000))
    return Cycle(late, STEPS * run.recipe.pretrain.training.micro_batches)


def finetune(run: RunContext) -> None:
    """Answers only, with pre-training text rehearsed in every step."""
    lesson, pieces = run.recipe.finetune, run.recipe.finetune.training.micro_batches
    whole = copy.deepcopy(run.model("pretrain"))
    run.task.before_finetuning(whole)

    def batches(planned: StepPlan | None) -> Batches:
        found = run.task.finetuning(background=planned is not None)
        if lesson.rehearsal_rows:
            found = WithRehearsal(found, run.task.rehearsal(lesson.rehearsal_rows, pieces))
        return Cycle(found, STEPS * pieces) if planned is None else found

    objective = with_rehearsal(cross_entropy, cross_entropy, lesson.rehearsal_weight)
    _teach(run, "finetune", whole, objective, batches, {"parent": "pretrain"})


def _teach(
    run: RunContext,
    stage: Literal["pretrain", "finetune"],
    whole: Transformer,
    objective: Objective,
    batches: Callable[[StepPlan | None], Batches],
    about: dict[str, Any],
) -> None:
    """Trains a model, or adapters for it, on batches of a plan (without one: for a probe), and keeps the weights
    that are the best on what is held out."""
    model, training = learner(run.recipe, run.options.seed, whole), run.recipe.training(stage)
    what = "text" if stage == "pretrain" else "answers"
    looks = Validation(run.task.watched(stage), what, run.folder / stage, training.micro_batches)

    def build(twin: nn.Module, planned: StepPlan | None) -> tuple[Objective, Batches]:
        found = batches(planned)
        return objective, found if planned is None else looks.along(found, twin, planned.steps, planned.seconds)

    trained = learn(run, stage, model, build, training, looks.on_ready)
    validation = looks.finish(run.say.note)
    run.save(stage, learnt(model, whole), {"steps": trained.steps, **about, **validation})
    looks.forget()


def rank(run: RunContext) -> None:
    """Many answers to each question, in an annotator's order: given, a person's, or the simulated one's."""
    run.say.stage_start("rank", 0)
    folder = run.folder / "rank"
    seconds = seconds_for(run, "rank") if isinstance(run.options, RunOptions) else math.inf
    made = ranking.make(run.model("finetune"), run.task, run.options, folder, run.say, seconds)
    run.say.stage_end(made)


# The loop, as all stages use it


def learner(recipe: Recipe, seed: int, whole: Transformer) -> Transformer:
    """What a stage trains: the model itself, or adapters for it."""
    if not recipe.lora.rank:
        return whole
    torch.manual_seed(seed)
    return AdaptedTransformer(whole.requires_grad_(False), recipe.lora)


def learnt(model: Transformer, whole: Transformer) -> Transformer:
    """The model that a stage leaves: an ordinary one, with what the adapters learnt in its weights."""
    return model.merged(whole) if isinstance(model, AdaptedTransformer) else model


def learn(
    run: RunContext,
    stage: str,
    model: Transformer,
    build: Callable[[nn.Module, StepPlan | None], tuple[Objective, Batches]],
    training: TrainSettings,
    on_ready: Callable[[Measure, Weights], None] = lambda measure, weights: None,
) -> TrainResult:
    """Plan (or replay the plan), train or resume, and tell how it goes. ``on_ready``: see Session."""
    model.train()
    trainee = model.using(run.backend)
    planned = _planned(run, stage, trainee, lambda twin: build(twin, None), training)
    if planned.fused and run.backend is TORCH:
        run.say.note("Compiled code is no longer used: what follows is not bit for bit what it would have been.")
    if stage == "pretrain":
        training = run.recipe.pretraining(planned.steps, run.task.tokens)
    if not planned.fused:
        trainee = model.using(TORCH)
    own = torch.get_num_threads()
    torch.set_num_threads(planned.threading.threads)
    run.say.stage_start(stage, planned.steps)
    known, at = run.record.content["plan"][stage], newest_step(run.folder / stage)
    budget = StepBudget(known, time.perf_counter(), run.record.save, at, enough_steps(run, stage), parallel.from_first)

    def start() -> tuple[TrainResult, int]:
        objective, batches = build(trainee, budget.plan)
        counted = _Counted(batches)
        session = replace(session_of(run, stage, trainee, counted, budget), on_ready=on_ready)
        try:
            settings = as_planned(training, budget.plan)
            return train(trainee, objective, counted, settings, run.folder / stage, session), counted.tokens
        finally:
            end(batches)

    def tell() -> None:
        run.say.note(f"{stage}: {budget.plan.steps:,} steps fit at the measured pace.")
        run.say.stage_start(stage, budget.plan.steps)

    try:
        trained, tokens = budget.follow(start, tell)
    finally:
        # what is measured afterwards must not depend, in its last bits, on the threads that suited training
        torch.set_num_threads(own)
    model.eval()
    run.say.stage_end(f"{trained.steps} steps, {tokens:,} tokens in {trained.seconds:.0f} s")
    return trained


def _planned(run: RunContext, stage: str, model: nn.Module, build: Any, training: TrainSettings) -> StepPlan:
    known = run.record.content["plan"].get(stage)
    if known:
        return StepPlan.parse(known)
    steps, cores = getattr(run.options, "steps", None), run.cores
    if steps:
        threading = thread_configs(cores, training.micro_batches)[-1]
        planned = StepPlan(steps, 0.0, threading, fused=run.backend is not TORCH)
    else:
        fits = fitting_steps(model, build, training, seconds_for(run, stage), cores, precision_of(run, stage))
        if stage == "pretrain" and isinstance(run.options, RunOptions) and not run.record.done("finetune"):
            # what fine-tuning will not need of its share, a row of either stage taking as long
            lesson, a_row = run.recipe.finetune, fits.seconds / fits.steps / run.recipe.pretrain.rows
            needed = enough_steps(run, "finetune") * (lesson.rows + lesson.rehearsal_rows) * a_row
            fits = fits.longer(max(0.0, seconds_for(run, "finetune") - needed))
        planned = fits.at_most(enough_steps(run, stage))
        if planned.steps < fits.steps and stage == "pretrain":
            spared = fits.seconds - planned.seconds  # time that nothing is to be learnt in is not taken
            run.say.note(
                f"After {run.recipe.pretrain.passes} passes through this text it would be learnt by heart: "
                f"{spared:.0f} s of pre-training are left out. More text would use them (--set pretrain.passes=… to "
                "train longer anyway)."
            )
            if isinstance(run.options, RunOptions):
                run.record.content["planned_s"] -= round(spared, 1)
    planned = StepPlan.parse(parallel.from_first(planned.json()))
    run.record.content["plan"][stage] = planned.json()
    run.record.save()
    return planned


def enough_steps(run: RunContext, stage: str) -> int:
    """The steps after which everything has been met as often as it may be; sys.maxsize where there is no limit."""
    task, recipe = run.task, run.recipe
    if stage == "finetune" and recipe.finetune.passes and task.examples:
        return math.ceil(recipe.finetune.passes * task.examples / recipe.finetune.rows)
    if stage == "pretrain" and task.tokens:
        return math.ceil(recipe.pretrain.passes * task.tokens / (recipe.pretrain.rows * recipe.model.window))
    return sys.maxsize


def precision_of(run: RunContext, stage: str) -> Precision:
    """What a stage is or will be planned to compute in."""
    known, machine = run.record.content["plan"].get(stage), run.record.content["machine"]
    if known:
        return StepPlan.parse(known).precision
    if getattr(run.options, "steps", None):
        return "float32"
    if "precision" not in machine:
        machine["precision"] = parallel.from_first(best_precision(run.device))
    precision: Precision = machine["precision"]
    return precision


def seconds_for(run: RunContext, stage: str) -> float:
    """This stage's part of what is left of the time planned: by the shares of the stages still to come."""
    if isinstance(run.options, StageOptions):
        return max(1.0, 60 * (run.options.minutes or 5.0) - run.settling_s)
    to_come = {n: getattr(run.recipe, n).share for n in (*STAGES, "examine") if not run.record.done(n)}
    needs = {name: seconds for name, seconds in run.needs.items() if name in to_come}
    return max(1.0, divide(run.record.content["planned_s"] - run.record.elapsed, to_come, needs)[stage])


def estimate_needs(run: RunContext, model: Transformer) -> None:
    """Before anything is learnt: what examinations, the reward model and the rankings will take, by a few answers of
    the model as it is, which are as long as the right ones."""
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
    # measured, world in five minutes and norsk in two: an examination takes six times as long as its answers, there are
    # three and the report's, and the reward model takes three quarters of the rankings' time
    examination = 6 * an_answer * len(examined_on(run.task, run.options.minutes))
    run.needs = {"examine": 4 * examination, "reward": 0.75 * rank, "rank": rank}


def session_of(
    run: RunContext, stage: str, model: Transformer | None, counted: _Counted | None, budget: StepBudget | None
) -> TrainSession:
    """What the loop reports to, and what may stop it."""
    began = spoken = time.perf_counter()

    def on_step(step: int, metrics: dict[str, float]) -> None:
        nonlocal spoken
        now = time.perf_counter()
        shown = {"step": float(step), **{k: v for k, v in metrics.items() if k in SHOWN}}
        if counted is not None:
            shown["tokens_per_second"] = counted.lately / max(1e-9, now - began)
        run.say.step(shown)
        if budget is not None:
            budget.watch(step, now)
        if model is not None and parallel.ranks() == 1 and now - spoken > SPEAK_EVERY:  # in shards it cannot speak
            model.eval()
            run.say.sample(run.task.speak(model, stage))
            model.train()
            spoken = time.perf_counter()

    return TrainSession(
        resume=bool(states(run.folder / stage)) and (run.options.resume or (budget is not None and budget.resumes)),
        workers=budget.plan.threading.workers if budget is not None else 1,
        parts=fused_parts(model.config) if model is not None else {},
        on_step=on_step,
        stop=(lambda: budget.changed) if budget is not None else (lambda: False),
        say=run.say.note,
    )


SHOWN = frozenset(["loss", "validation", "reward", "length", "pair_accuracy", "kl"])


class _Counted:
    """Batches, and how many tokens have been learnt from them: ever, and since this start."""

    def __init__(self, batches: Batches) -> None:
        self._batches, self.tokens, self.lately = batches, 0, 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        learnt = int((batch.weights_BT > 0).sum())
        self.tokens, self.lately = self.tokens + learnt, self.lately + learnt
        return batch

    def state(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "batches": self._batches.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.tokens = state["tokens"]
        self._batches.restore(state["batches"])


class WithRehearsal:
    """Batches that bring rehearsal along: the main batch's ``extra["rehearsal"]``."""

    def __init__(self, main: Batches, rehearsal: Batches) -> None:
        self._main, self._rehearsal = main, rehearsal

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._main)
        return Batch(
            batch.tokens_BT, batch.targets_BT, batch.weights_BT, {**batch.extra, "rehearsal": next(self._rehearsal)}
        )

    def state(self) -> dict[str, Any]:
        return {"main": self._main.state(), "rehearsal": self._rehearsal.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self._main.restore(state["main"])
        self._rehearsal.restore(state["rehearsal"])

    def close(self) -> None:
        end(self._main)
        end(self._rehearsal)
