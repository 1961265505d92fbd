"""The trainers with a common interface. A peer is imported when its trainer is made, never before."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from benchmarks.train_task import WARM, Shape, Trainer, batch
from klype.values import Batch

RATE = 1e-3
TRIED, LOOKS = 2, 3  # steps of each crew, and how often by turns, before the fastest one is chosen


class Clock:
    """Wall-clock and core seconds from the end of the warm-up steps to that of the last step."""

    def __init__(self, steps: int) -> None:
        self._last, self._marks = WARM + steps, [(0.0, 0.0)]

    def step(self, number: int) -> None:
        """Called after step ``number`` (from 1)."""
        if number in (WARM, self._last):
            self._marks.append((time.perf_counter(), time.process_time()))

    def read(self, loss: float) -> dict[str, Any]:
        (wall, busy), (wall_end, busy_end) = self._marks[-2:]
        return {"seconds": wall_end - wall, "core_seconds": busy_end - busy, "loss": loss}


class Klype:
    """klype's training loop, with the precision, threads and compiled code that its own plan would choose, or in
    float32. The optimizer is AdamW, as for the peers: Muon is for quality."""

    def __init__(self, precision: Literal["auto", "float32"] = "auto") -> None:
        self.asked = precision

    def load(self, shape: Shape, threads: int, cache: str) -> None:
        import torch

        from klype.device import memory_policy, trim_memory
        from klype.model.attention import TORCH
        from klype.model.compiled import compiled_backend
        from klype.model.config import ModelConfig
        from klype.model.transformer import Transformer
        from klype.runs.machine_probe import best_precision, thread_configs

        memory_policy()
        torch.set_num_threads(threads)
        self._shape = shape
        self.precision = best_precision() if self.asked == "auto" else "float32"
        torch.manual_seed(0)
        fields = {"vocab_size": shape.vocab, "width": shape.width, "layers": shape.layers, "heads": shape.heads}
        rotation = 0.0 if shape.conv else 10_000.0
        sizes = {"hidden": shape.hidden, "window": shape.window, "conv": shape.conv, "rope_theta": rotation}
        backend = compiled_backend(Path(cache))
        self._model = Transformer(ModelConfig.parse({**fields, **sizes}), backend)
        tried: dict[tuple[int, int], float] = {}
        for crew in thread_configs(threads, threads) * LOOKS:
            tried[crew] = min(self._run(crew, TRIED)["seconds"], tried.get(crew, math.inf))
            trim_memory()
        self._crew = min(tried, key=lambda crew: tried[crew])
        code = "torch" if backend is TORCH else "compiled"
        workers, each = self._crew
        side = f"{workers} side by side, {each} threads each"
        self.how = f"{self.precision}, {code} between the products, {side}, AdamW"

    def train(self, steps: int) -> dict[str, Any]:
        return self._run(self._crew, steps)

    def _run(self, crew: tuple[int, int], steps: int) -> dict[str, Any]:
        import torch

        from klype.train.loop import TrainSession, TrainSettings, train
        from klype.train.objectives import cross_entropy
        from klype.train.optimizer import OptimizerSettings, Schedule, fused_parts

        workers, threads = crew
        torch.set_num_threads(threads)
        settings = TrainSettings(
            steps=WARM + steps,
            optimizer=OptimizerSettings(kind="adamw", rate=RATE),
            schedule=Schedule(warmup=0.0, flat=1.0),
            micro_batches=workers,
            precision=self.precision,
            save_seconds=0.0,
        )
        clock, losses = Clock(steps), []

        def on_step(step: int, metrics: dict[str, float]) -> None:
            clock.step(step)
            losses.append(metrics["loss"])

        with tempfile.TemporaryDirectory() as folder:
            session = TrainSession(parts=fused_parts(self._model.config), on_step=on_step, workers=workers)
            train(self._model, cross_entropy, _Rows(self._shape, workers), settings, Path(folder), session)
        return clock.read(losses[-1])


class _Rows:
    """The common batches, split into equal micro-batches."""

    def __init__(self, shape: Shape, parts: int) -> None:
        self._shape, self._parts, self._at = shape, parts, 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        import torch

        number, part = divmod(self._at, self._parts)
        self._at += 1
        rows = batch(self._shape, number).chunk(self._parts)[part]
        return Batch(rows[:, :-1], rows[:, 1:], torch.ones(rows[:, 1:].shape))

    def state(self) -> dict[str, Any]:
        return {"at": self._at}

    def restore(self, state: dict[str, Any]) -> None:
        self._at = state["at"]


class NanoGPT:
    """A plain script: forward, backward, clip, AdamW, with autocast for bfloat16."""

    def __init__(self, precision: Literal["float32", "bfloat16"]) -> None:
        self.precision = precision
        self.how = "torch's AdamW, SDPA" + ("" if precision == "float32" else ", autocast")

    def load(self, shape: Shape, threads: int, cache: str) -> None:
        import torch

        from benchmarks import nanogpt

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self._shape = shape
        self._model = nanogpt.NanoGPT(shape)

    def train(self, steps: int) -> dict[str, Any]:
        import torch

        from benchmarks import nanogpt

        clock, optimizer = Clock(steps), nanogpt.optimizer(self._model, RATE)
        low = self.precision == "bfloat16"
        loss = torch.zeros(())
        for number in range(WARM + steps):
            rows = batch(self._shape, number)
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                loss = self._model(rows[:, :-1], rows[:, 1:])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            clock.step(number + 1)
        return clock.read(loss.item())


class HuggingFace:
    """transformers' Trainer on a Llama of the shape."""

    def __init__(self, precision: Literal["float32", "bfloat16"]) -> None:
        import transformers

        self.precision = precision
        self.how = f"Trainer of transformers {transformers.__version__}, Llama" + (
            ", bf16" if precision != "float32" else ""
        )

    def load(self, shape: Shape, threads: int, cache: str) -> None:
        import torch

        from benchmarks import hf_trainer

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        self._shape = shape
        self._model = hf_trainer.llama(shape, shape.window + 1)

    def train(self, steps: int) -> dict[str, Any]:
        from benchmarks import hf_trainer

        clock, shape = Clock(steps), self._shape
        rows = [row[:-1] for number in range(WARM + steps) for row in batch(shape, number)]
        options = {
            "bf16": self.precision == "bfloat16",
            "per_device_train_batch_size": shape.rows,
            "max_steps": WARM + steps,
            "learning_rate": RATE,
        }
        with tempfile.TemporaryDirectory() as folder:
            loss, _ = hf_trainer.train(self._model, rows, folder, clock.step, **options)
        return clock.read(loss)


# name: how it is made, the packages that it needs, and the shapes on which it is measured
CONTENDERS: dict[str, tuple[Callable[[], Trainer], tuple[str, ...], tuple[str, ...]]] = {
    "klype": (Klype, (), ("a", "b", "tiny")),
    "klype float32": (lambda: Klype("float32"), (), ("a", "tiny")),
    "nanoGPT bfloat16": (lambda: NanoGPT("bfloat16"), (), ("a", "b", "tiny")),
    "nanoGPT float32": (lambda: NanoGPT("float32"), (), ("a", "tiny")),
    "HF Trainer bfloat16": (lambda: HuggingFace("bfloat16"), ("transformers", "accelerate"), ("a", "b", "tiny")),
}
