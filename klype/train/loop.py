"""One training loop for all stages.

    batch → objective → backward, micro-batch by micro-batch → sum over ranks → divide once → clip → step → metrics

On one process the model's weights are whole; with several, each has its shards (see flat_parameters.py), draws all
batches of a step and computes its part of them. M processes can resume what N saved.

A run that was stopped or killed and then resumed gives the same bits as one that was not (on the same machine, with
the same settings): the state holds weights, optimizer, step, position in the data and torch's generator; other noise is
a function of (seed, step).
``TrainSettings`` are those of the whole run; ``TrainSession`` is what may differ from one start to the next.
"""

import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors.torch import save
from torch import nn

from klype import config, durable
from klype.errors import KlypeError, TrainingInterrupted, UsageError, writing_to
from klype.model.transformer import Transformer
from klype.train import parallel
from klype.train.flat_parameters import Layout, Parts, Workers
from klype.train.objectives import LossBeside, Objective, cross_entropy
from klype.train.optimizer import Optimizer, OptimizerSettings, Schedule, factor
from klype.train.resume import Metrics, MetricsFile, read_newest, states, write_state
from klype.values import Batch, Batches, Loss


class TrainSettings(config.Settings):
    """Settings of a training run. A resumed run must have the same, except for those in ``MAY_CHANGE``.

    ``micro_batches``: number per step, over all processes. ``recompute``: activation checkpointing per layer: takes
    more time and less memory, and gives the same bits. ``clip``: the largest gradient norm (0: no limit).
    ``bad_limit``: consecutive steps with a loss that is not finite, after which training stops.
    """

    steps: int = Field(ge=0)
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: Schedule = Schedule()
    clip: float = Field(default=1.0, ge=0)
    micro_batches: int = Field(default=1, ge=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    recompute: bool = False
    save_every: int = Field(default=0, ge=0)
    save_seconds: float = Field(default=30.0, ge=0)
    bad_limit: int = Field(default=10, ge=1)


# settings that may differ when a run is resumed
MAY_CHANGE = ("steps", "save_every", "save_seconds", "bad_limit", "recompute")
COMPILERS = ("c++", "g++", "clang++", "cl")

Measure = Callable[[Batch], Loss]
Weights = Callable[[], dict[str, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class TrainSession:
    """One start of a run: whether it resumes, its callbacks, and what may stop it between two steps.

    ``on_ready(measure, weights)`` is called once before the first step. ``measure(batch)`` returns the cross-entropy of
    the model as it stands; ``weights()`` returns its whole weights on the first process and nothing on the others. All
    processes must call them together, since each has only its shards. ``workers``: micro-batches computed at the same
    time. ``keeps``: whether states to resume from are saved. ``on_step(step, metrics)`` is called after each step;
    ``tokens`` in its metrics, which metrics.jsonl does not have, are those since this start.
    """

    resume: bool = False
    parts: Parts = field(default_factory=dict)
    on_ready: Callable[[Measure, Weights], None] = lambda measure, weights: None
    on_step: Callable[[int, Metrics], None] = lambda step, metrics: None
    stop: Callable[[], bool] = lambda: False
    say: Callable[[str], None] = lambda message: None
    clock: Callable[[], float] = time.perf_counter
    workers: int = 1
    keeps: bool = True


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Result of a training run: ``seconds`` and ``tokens`` (targets with a weight) include earlier starts; ``skipped``:
    steps whose loss was not finite."""

    steps: int
    seconds: float
    skipped: int
    tokens: int


def train(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    settings: TrainSettings,
    folder: Path,
    session: TrainSession | None = None,
) -> TrainResult:
    """Trains ``model`` in place for ``settings.steps`` steps and writes metrics.jsonl and resume/ in ``folder``.

    Raises TrainingInterrupted when stopped (it can be resumed), UsageError when the folder holds a state that is not to
    be resumed or has other settings, KlypeError when the disk fails or too many losses are not finite.
    """
    session = session or TrainSession()
    run = _Run(model, objective, batches, settings, folder, session)
    end = run.layout.abandon
    try:
        step = run.start()
        session.on_ready(run.measure, run.layout.weights)
        with run.metrics_from(step), interruptible() as asked:
            while step < settings.steps:
                if parallel.any_rank(asked() or session.stop()):
                    run.interrupt(step)
                metrics = run.step(step)
                step += 1
                run.report(step, metrics)
                if run.due(step):
                    run.save(step)
            if run.saved != step:
                run.save(step)
        end = run.layout.release
    except TrainingInterrupted as stop:  # on all ranks after the same step
        # a signal may come while the state is being saved for another reason, such as a new plan of steps
        stop.asked = parallel.any_rank(stop.asked or asked())
        end = run.layout.release
        raise
    finally:
        run.layout.workers.close()
        run.recompute(False)
        end()
    return TrainResult(step, run.seconds(), run.skipped, run.tokens)


@dataclass
class _Run:
    """State of one call of ``train``."""

    model: nn.Module
    objective: Objective
    batches: Batches
    settings: TrainSettings
    folder: Path
    session: TrainSession
    skipped: int = 0
    saved: int = -1
    tokens: int = 0
    tokens_before: int = 0
    skipped_in_a_row: int = 0

    def __post_init__(self) -> None:
        model, settings, session = self.model, self.settings, self.session
        if settings.compile and not (torch.cuda.is_available() or any(map(shutil.which, COMPILERS))):
            raise KlypeError("Compiling the loss needs a C++ compiler, and none was found.", "Leave out compile.")
        alone, objective = parallel.ranks() == 1, self.objective
        dtype: torch.dtype = getattr(torch, settings.precision)
        self.layout: Layout
        if alone:
            self.layout = Layout(model, dtype, Workers(1 if settings.compile else session.workers))
        else:
            from klype.train.sharded import ShardedLayout

            self.layout = ShardedLayout(model, dtype, parallel.device(), settings.compile)
        self.recompute(settings.recompute)
        if settings.compile and alone:  # in shards, where each layer is gathered apart, each is a graph of its own
            objective = torch.compile(objective, dynamic=False)
        self.objective = self.layout.objective(objective)
        self.optimizer = Optimizer(self.layout, settings.optimizer, session.parts)
        # a model for each worker, and what its backward adds to
        twins = (self.optimizer.twin() for _ in range(self.layout.workers.number - 1))
        self.replicas = [(self.layout.model, self.optimizer.added), *twins]
        self._metrics: MetricsFile | None = None
        self._began = self._saved_at = session.clock()

    def start(self) -> int:
        """Loads the state to resume from, if any; returns the number of steps that are done."""
        if not self.session.resume:
            if states(self.folder):
                raise UsageError(
                    f"{self.folder} already holds the state of a training run.", "Add --resume or choose another --out."
                )
            return 0
        state = read_newest(self.folder, self.session.say)
        if state is None:
            return 0
        about = state.about
        for name, value in self.settings.model_dump(mode="json").items():
            if name not in MAY_CHANGE and value != (saved := about["settings"].get(name)):
                raise UsageError(
                    f"The state in {self.folder} was made with {name} = {saved}, not {value}.",
                    "Resume with the same settings, or choose another --out.",
                )
        try:
            state.read_into(self.optimizer.state_dict())
            if "tokens" in about["batches"]:  # where an earlier klype counted them
                about |= about["batches"]
            self.batches.restore(about["batches"])
            self.tokens = self.tokens_before = about.get("tokens", 0)
        except (FileNotFoundError, KeyError, TypeError) as error:
            raise UsageError(
                f"The state in {self.folder} was written by an earlier klype.", "Start again, in another folder."
            ) from error
        self.layout.publish()
        torch.set_rng_state(torch.tensor(about["generator"], dtype=torch.uint8))
        self._began -= about["seconds"]
        self.saved, self.skipped, self.skipped_in_a_row = state.step, about["skipped"], about["skipped_in_a_row"]
        return state.step

    def metrics_from(self, step: int) -> AbstractContextManager[object]:
        """Opens metrics.jsonl, cut back to ``step``; only the first rank writes it."""
        with writing_to(self.folder, "Choose another --out."):
            self.folder.mkdir(parents=True, exist_ok=True)
        if not parallel.is_first():
            return nullcontext()
        self._metrics = MetricsFile(self.folder / "metrics.jsonl", step)
        return closing(self._metrics)

    @torch.no_grad()
    def measure(self, batch: Batch) -> Loss:
        """The cross-entropy of the model as it stands."""
        return self.layout.objective(cross_entropy)(self.layout.model, batch)

    def step(self, step: int) -> Metrics:
        """Makes one update and returns its metrics. When loss or gradient is not finite it is skipped and counted."""
        factor_now = factor(self.settings.schedule, step / self.settings.steps)
        self.optimizer.zero_grad()
        drawn = [next(self.batches) for _ in range(self.settings.micro_batches)]
        self.tokens += sum(int((batch.weights_BT > 0).sum()) for batch in drawn)
        sums = self._accumulate(drawn)
        count = sums["loss_count"]
        # gradients are of sums: the norm that is clipped is that of the mean
        norm = float(self.optimizer.clip(self.settings.clip, count or 1.0))
        if math.isfinite(sums["loss"]) and math.isfinite(norm):
            self.skipped_in_a_row = 0
            if count or sums.get("rehearsal_count"):
                self.optimizer.step(factor_now)
        else:
            self._skip(step, drawn)
        metrics: Metrics = {}
        for name, value in sums.items():
            if not name.endswith("_count"):  # each sum over its own count where it has one, else over the loss's
                divisor = sums.get(f"{name}_count", count)
                metrics[name] = value / divisor if divisor else math.nan
        shown = [batch.extra.get("metrics", {}) for batch in drawn]
        for name in dict.fromkeys(chain(*shown)):
            metrics[name] = sum(each.get(name, 0.0) * (1 / len(drawn)) for each in shown)
        return metrics | {"count": count, "norm": norm, "factor": factor_now, "skipped": self.skipped}

    def report(self, step: int, metrics: Metrics) -> None:
        metrics["seconds"] = self.seconds()
        if self._metrics is not None:
            self._metrics.append({"step": step, **metrics})
        metrics["tokens"] = self.tokens - self.tokens_before
        try:
            self.session.on_step(step, metrics)
        except KeyboardInterrupt:
            if parallel.ranks() > 1:  # the others do not know, and go on
                raise
            self.interrupt(step, asked=True)

    def due(self, step: int) -> bool:
        """Whether it is time to save, by the clock of any rank.

        Not while losses are not finite: the weights stay as they are, and good states would be dropped for them.
        """
        if self.skipped_in_a_row:
            return False
        if self.settings.save_every and step % self.settings.save_every == 0:
            return True
        seconds = self.settings.save_seconds
        return bool(seconds) and parallel.any_rank(self.session.clock() - self._saved_at >= seconds)

    def save(self, step: int) -> None:
        """Writes the state after ``step`` steps to the disk."""
        if not self.session.keeps:
            return
        about = {
            "batches": self.batches.state(),
            "generator": torch.get_rng_state().tolist(),
            "seconds": self.seconds(),
            "settings": self.settings.model_dump(mode="json"),
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "tokens": self.tokens,
        }
        if self._metrics is not None:
            # lines first: a state must not be ahead of the metrics that it is resumed with
            self._metrics.sync()
        # for whoever looks at the model meanwhile; in shards no process has it whole
        model = self.model.state_dict() if parallel.ranks() == 1 else {}
        write_state(self.folder, step, about, model, self.optimizer.state_dict())
        self.saved, self._saved_at = step, self.session.clock()

    def interrupt(self, step: int, asked: bool = False) -> None:
        if self.saved != step:
            self.save(step)
        raise TrainingInterrupted(
            f"Stopped after step {step} of {self.settings.steps}; everything is saved in {self.folder}.",
            "The same command with --resume goes on from there.",
            asked,
        )

    def seconds(self) -> float:
        """Seconds of training, earlier starts included."""
        return self.session.clock() - self._began

    def recompute(self, wanted: bool) -> None:
        """Switches activation checkpointing on or off."""
        if isinstance(self.layout.model, Transformer):
            self.layout.model.recompute = wanted

    def _accumulate(self, drawn: list[Batch]) -> Metrics:
        """Returns sums over micro-batches and ranks, and leaves the gradient of the step's loss times
        ``loss_count`` in the optimizer."""
        sums: Metrics = {"loss": 0.0, "loss_count": 0.0}
        own = parallel.own_batches(drawn, parallel.rank(), parallel.ranks())
        beside: torch.Tensor | None = None
        weight = 0.0
        for start in range(0, len(own), len(self.replicas)):
            wave = list(zip(self.replicas, own[start : start + len(self.replicas)], strict=False))
            results = self.layout.workers.each(lambda one: _micro_batch(self.objective, *one[0], one[1]), wave)
            self.optimizer.collect([added for (_, added), _ in wave])
            for found, gradient, its_weight in results:
                for name, value in found.items():
                    sums[name] = sums.get(name, 0.0) + value
                if gradient is not None:
                    weight = its_weight
                    beside = gradient.float() if beside is None else beside.add_(gradient)
        sums = parallel.sum_over_ranks(sums)
        if beside is not None:
            # all is divided by the main loss's count at the end, so that the other's mean is scaled up to it
            weight *= (sums["loss_count"] or 1.0) / (sums["rehearsal_count"] or 1.0)
            self.optimizer.gradient.add_(beside, alpha=weight)
        return sums

    def _skip(self, step: int, drawn: list[Batch]) -> None:
        """Counts a step whose loss was not finite and writes its batches to a file. KlypeError after too many in a
        row."""
        self.skipped += 1
        self.skipped_in_a_row += 1
        place = self.folder / f"bad-step-{step + 1:06d}.safetensors"
        tensors: dict[str, torch.Tensor] = {}
        for index, batch in enumerate(drawn):
            own = {"tokens": batch.tokens_BT, "targets": batch.targets_BT, "weights": batch.weights_BT}
            named = {f"{index}.{name}": value for name, value in (batch.extra | own).items()}
            given = {name: value.detach() for name, value in named.items() if isinstance(value, torch.Tensor)}
            # copies: some of them share memory
            tensors |= {name: t.cpu().clone(memory_format=torch.contiguous_format) for name, t in given.items()}
        try:
            if parallel.is_first():  # each has drawn all of the step
                durable.write(place, save(tensors))
        except OSError as error:
            raise KlypeError(
                f"The loss of step {step + 1} is not a finite number, and its batch could not be written to {place}:"
                f" {error.strerror or error}.",
                "Make room or make the folder writable, then go on with --resume.",
            ) from error
        self.session.say(f"The loss of step {step + 1} is not a finite number: skipped; the batch is in {place}.")
        if self.skipped_in_a_row >= self.settings.bad_limit:
            raise KlypeError(
                f"The loss was not a finite number in {self.skipped_in_a_row} steps on end, up to step {step + 1};"
                f" the batch is in {place}.",
                "Look at the data, or start another run with lower learning rates and another --out.",
            )


def _micro_batch(
    objective: Objective, model: nn.Module, added: torch.Tensor, batch: Batch
) -> tuple[Metrics, torch.Tensor | None, float]:
    """Adds the gradient of a micro-batch to ``added``. Returns its sums and, of a loss beside, gradient and weight."""
    loss = objective(model, batch)
    _backward(loss.total)
    sums = {"loss": float(loss.total.detach()), "loss_count": float(loss.count), **loss.metrics}
    if not isinstance(loss, LossBeside):
        return sums, None, 0.0
    sums |= {"rehearsal": float(loss.beside.total.detach()), "rehearsal_count": float(loss.beside.count)}
    kept = added.clone()
    added.zero_()
    _backward(loss.beside.total)
    beside = added.clone()
    added.copy_(kept)
    return sums, beside, loss.weight


def _backward(total: torch.Tensor) -> None:
    if total.requires_grad:  # a constant has no gradient
        total.backward()  # type: ignore[no-untyped-call]


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Context that catches SIGINT and SIGTERM; the yielded function tells, also afterwards, whether one came.

    A second one raises KeyboardInterrupt. Only the main thread gets signals. Former handlers are put back.
    """
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    former: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        former = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
