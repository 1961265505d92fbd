"""The two trainers with a common interface. A peer is imported when its trainer is made, never before."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.align_task import BETA, LEASH, RATE, TASKS, WARM, Given, Trainer, reward
from klype.values import Batch, Batches, Question


@dataclass
class Clock:
    """Reads the time after the warm-up steps, and after the last step."""

    warm: int
    steps: int
    marks: list[tuple[float, float]] = field(default_factory=list)

    def step(self, number: int) -> None:
        """Called after step ``number`` (from 1)."""
        if number in (self.warm, self.warm + self.steps):
            self.marks.append((time.perf_counter(), time.process_time()))

    def read(self) -> dict[str, float]:
        (wall, busy), (wall_end, busy_end) = self.marks
        return {"seconds": wall_end - wall, "core_seconds": busy_end - busy}


class Klype:
    """klype's training loop. It uses threads in the faster of two ways (all in each product, or a micro-batch per
    core), as its own plan would; a few steps of each are timed when it loads."""

    def load(self, given: Given) -> None:
        from klype.device import memory_policy, set_threads
        from klype.model import checkpoint
        from klype.model.compiled import compiled_backend

        memory_policy()
        set_threads(given.threads)
        self.given = given
        loaded = checkpoint.load(Path(given.folder))
        backend = compiled_backend(Path(given.folder).parent / "compiled")  # as in a run; copies have it too
        self.loaded = replace(loaded, model=loaded.model.with_backend(backend))
        self.thread_configs: dict[str, bool] = {}
        self.scratch = Path(given.folder).parent / "thread_configs"
        for task in TASKS:
            if task != "reward" and given.threads > 1:
                took = {apart: self._run(task, self.scratch, apart, 5)["seconds"] for apart in (False, True)}
                self.thread_configs[task] = took[True] < took[False]

    def train(self, task: str, folder: Path) -> dict[str, Any]:
        if task == "reward":
            return self._reward(folder)
        return self._run(task, folder, self.thread_configs.get(task, False), self.given.sizes.steps)

    def _run(self, task: str, folder: Path, apart: bool, steps: int) -> dict[str, Any]:
        import torch

        from klype.train.loop import TrainSession, TrainSettings, train
        from klype.train.optimizer import OptimizerSettings, Schedule

        shutil.rmtree(folder, ignore_errors=True)
        crew = self.given.threads if apart else 1
        torch.set_num_threads(self.given.threads // crew)
        model = copy.deepcopy(self.loaded.model)
        objective, batches = getattr(self, f"_{task}")(model, crew)
        counted = _TokenCounter(batches, WARM * crew)
        settings = TrainSettings(
            steps=WARM + steps,
            optimizer=OptimizerSettings(kind="adamw", rate=RATE),
            schedule=Schedule(warmup=0.0, flat=1.0),
            micro_batches=crew,
            save_seconds=0.0,
        )
        clock, losses = Clock(WARM, steps), []

        def on_step(number: int, metrics: dict[str, float]) -> None:
            clock.step(number)
            losses.append(metrics["loss"])

        train(model, objective, counted, settings, folder, TrainSession(on_step=on_step, workers=crew))
        how = f"{crew} micro-batches side by side" if crew > 1 else f"{self.given.threads} threads"
        tokens, completions = counted.tokens, counted.rows
        return {**clock.read(), "tokens": tokens, "completions": completions, "loss": _mean(losses), "how": how}

    def _sft(self, model: Any, crew: int) -> tuple[Any, Batches]:
        from klype.data.batches import PaddedBatches
        from klype.data.example_batches import PoolSettings
        from klype.train.objectives import cross_entropy

        texts = [(ids, [float(x) for x in learnt]) for ids, learnt in self.given.conversations]
        pools = PoolSettings(
            self.given.sizes.rows // crew, batches=8 * crew, pieces=crew, pad=self.loaded.tokenizer.pad
        )
        return cross_entropy, PaddedBatches(lambda i: texts[i % len(texts)], pools)

    def _dpo(self, model: Any, crew: int) -> tuple[Any, Batches]:
        from functools import partial

        from klype.train.preference import PreferenceSettings, RankingBatches, RankingSettings, preference

        settings = RankingSettings(questions=self.given.sizes.rows // crew)
        batches = RankingBatches(self._ranked(), self.loaded.model, settings)
        return partial(preference, settings=PreferenceSettings(beta=BETA)), batches

    def _grpo(self, model: Any, crew: int) -> tuple[Any, Batches]:
        from functools import partial

        from klype.engine.engine import Engine
        from klype.train.policy import PolicySettings, grpo
        from klype.train.rewards import QuestionPrompt, by_text
        from klype.train.rollout import RolloutBatches, RolloutSettings

        sizes, prompts = self.given.sizes, self.given.prompts
        each = sizes.questions // crew

        def ask(step: int) -> list[QuestionPrompt]:
            chosen = [prompts[(step * each + i) % len(prompts)] for i in range(each)]
            return [QuestionPrompt(tuple(ids), Question(text, text)) for text, ids in chosen]

        scored = by_text(lambda questions, answers: reward(list(answers)), self.loaded.tokenizer.decode)
        settings = RolloutSettings(answers=sizes.answers, limit=sizes.limit, unfinished=0.0, beta=LEASH)
        return partial(grpo, settings=PolicySettings(beta=LEASH)), RolloutBatches(
            settings, ask, Engine(model), scored, self.loaded.model
        )

    def _reward(self, folder: Path) -> dict[str, Any]:
        """A reward model: a frozen trunk and a trained head. Every pair is read once; all of it is timed."""
        from klype.device import set_threads
        from klype.train.reward_model import RewardSettings, fit_reward

        shutil.rmtree(folder, ignore_errors=True)
        set_threads(self.given.threads)
        rows, ranked = self.given.sizes.rows, self._ranked()
        clock = Clock(0, 1)
        clock.step(0)
        settings = RewardSettings(steps=len(ranked) // rows, questions=rows, save_seconds=0.0)
        fit_reward(self.loaded.model, ranked, settings, folder)
        clock.step(1)
        tokens = sum(len(r.prompt) + len(a) for r in ranked for a in r.answers)
        how = f"{self.given.threads} threads, frozen trunk"
        return {**clock.read(), "tokens": tokens, "completions": 2 * len(ranked), "loss": None, "how": how}

    def _ranked(self) -> list[Any]:
        from klype.train.preference import RankedAnswers

        return [RankedAnswers(tuple(p), (tuple(c), tuple(r)), (0, 1)) for p, c, r in self.given.pairs]


class Trl:
    """TRL's trainers: float32, no gradient checkpointing (which costs a pass), texts grouped by length."""

    def load(self, given: Given) -> None:
        import datasets
        import torch
        import transformers

        torch.set_num_threads(given.threads)
        logging: Any = transformers.logging
        logging.set_verbosity_error()
        datasets.disable_progress_bars()
        self.given = given
        self.trl: Any = import_module("trl")
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(given.folder)

    def train(self, task: str, folder: Path) -> dict[str, Any]:
        import torch
        from transformers import TrainerCallback

        shutil.rmtree(folder, ignore_errors=True)
        torch.manual_seed(0)
        sizes, counts = self.given.sizes, {"tokens": 0, "completions": 0}
        clock = Clock(WARM, sizes.steps)

        class Watch(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
                clock.step(state.global_step)

        trainer = getattr(self, f"_{task}")(folder)
        trainer.add_callback(Watch())
        inner: Callable[..., Any] = trainer.training_step

        def training_step(model: Any, inputs: Any, *more: Any) -> Any:
            if trainer.state.global_step >= WARM and task != "grpo":
                counts["tokens"] += int(inputs["attention_mask"].sum())
                counts["completions"] += len(inputs["input_ids"])
            return inner(model, inputs, *more)

        trainer.training_step = training_step
        done = trainer.train()
        if task == "grpo":
            counts = self._generated(clock)
        return {**clock.read(), **counts, "loss": done.training_loss, "how": f"{self.given.threads} threads"}

    def _generated(self, clock: Clock) -> dict[str, int]:
        """The tokens of answers of exactly ``limit`` tokens each; a prompt counts once per answer, as it is trained
        on."""
        sizes = self.given.sizes
        number = clock.steps * sizes.questions * sizes.answers
        mean = self.given.mean_lengths["question"]
        return {"tokens": round(number * (sizes.limit + mean)), "completions": number}

    def _common(self, folder: Path) -> dict[str, Any]:
        sizes = self.given.sizes
        return {
            "output_dir": str(folder),
            "per_device_train_batch_size": sizes.rows,
            "max_steps": WARM + sizes.steps,
            "learning_rate": RATE,
            "lr_scheduler_type": "constant",
            "gradient_checkpointing": False,
            "bf16": False,
            "use_cpu": True,
            "report_to": "none",
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }

    def _model(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self.given.folder, dtype="float32")

    def _sft(self, folder: Path) -> Any:

        rows = [{"input_ids": ids, "completion_mask": learnt} for ids, learnt in self.given.conversations]
        config = self.trl.SFTConfig(
            **self._common(folder),
            max_length=None,
            completion_only_loss=True,
            train_sampling_strategy="group_by_length",
        )
        return self.trl.SFTTrainer(self._model(), config, train_dataset=_dataset(rows), processing_class=self.tokenizer)

    def _reward(self, folder: Path) -> Any:
        """A reward model with a frozen trunk, as klype's: the same work."""
        from transformers import AutoModelForSequenceClassification

        model = AutoModelForSequenceClassification.from_pretrained(self.given.folder, num_labels=1, dtype="float32")
        model.base_model.requires_grad_(False)
        rows = [{"chosen_ids": p + c, "rejected_ids": p + r} for p, c, r in self.given.pairs]
        config = self.trl.RewardConfig(**self._common(folder), max_length=None)
        return self.trl.RewardTrainer(model, config, train_dataset=_dataset(rows), processing_class=self.tokenizer)

    def _dpo(self, folder: Path) -> Any:

        rows = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in self.given.pair_texts]
        config = self.trl.DPOConfig(**self._common(folder), max_length=None, beta=BETA)
        return self.trl.DPOTrainer(
            self._model(), None, config, train_dataset=_dataset(rows), processing_class=self.tokenizer
        )

    def _grpo(self, folder: Path) -> Any:

        sizes = self.given.sizes
        config = self.trl.GRPOConfig(
            **{**self._common(folder), "per_device_train_batch_size": sizes.questions * sizes.answers},
            num_generations=sizes.answers,
            max_completion_length=sizes.limit,
            generation_kwargs={"min_new_tokens": sizes.limit},
            beta=LEASH,
            epsilon_high=0.28,
            temperature=1.0,
            scale_rewards="batch",
        )

        def rewarded(completions: list[str], **rest: Any) -> list[float]:
            return reward(completions)

        rows = [{"prompt": text} for text, _ in self.given.prompts]
        return self.trl.GRPOTrainer(
            self._model(), rewarded, args=config, train_dataset=_dataset(rows), processing_class=self.tokenizer
        )


# name: how it is made, and its package
TRAINERS: dict[str, tuple[Callable[[], Trainer], str]] = {"klype": (Klype, "klype"), "TRL": (Trl, "trl")}


class _TokenCounter:
    """Batches that count the tokens (without padding) and rows after the first ``warm`` batches."""

    def __init__(self, batches: Batches, warm: int) -> None:
        self._batches, self._warm = batches, warm
        self.tokens = self.rows = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        if self._warm:
            self._warm -= 1
        else:
            self.tokens += _tokens(batch)
            self.rows += len(batch.tokens_BT)
        return batch

    def state(self) -> dict[str, Any]:
        return self._batches.state()

    def restore(self, state: dict[str, Any]) -> None:
        self._batches.restore(state)


def _tokens(batch: Batch) -> int:
    """The number of tokens up to and including each row's last target with a loss weight."""
    import torch

    at_T = torch.arange(1, batch.weights_BT.shape[1] + 1)
    return int((torch.where(batch.weights_BT != 0, at_T, 0).max(1).values + 1).sum())


def _dataset(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
