"""The task of both trainers: the same weights, token ids and sizes, in files that both read."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.contenders import package_version
from klype.model import checkpoint
from klype.model.config import ModelConfig
from klype.model.transformer import Transformer
from klype.runs.recipe import read
from klype.runs.world_task import ChatSamples, WorldTask
from klype.world.world import Manner

TASKS = ("sft", "reward", "dpo", "grpo")
WARM = 3  # steps before the clock starts, of each order
RATE, BETA = 1e-4, 0.1
LEASH = 0.02  # GRPO's
MANNERS: tuple[Manner, Manner] = ("polite", "wrong")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of the task: ``rows`` texts, or pairs, per step; for GRPO ``questions`` per step, and ``answers`` to each
    of exactly ``limit`` tokens. The model is a Llama of ``width``, ``layers``, ``heads`` and ``hidden``."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    hidden: int = 384
    rows: int = 16
    questions: int = 8
    answers: int = 8
    limit: int = 32
    steps: int = 16  # those that are timed


@dataclass(frozen=True, slots=True)
class Given:
    """The data as token ids. ``conversations``: (ids, loss weights); ``pairs``: (prompt, chosen, rejected), and the
    same as text (``pair_texts``), which one trainer needs; ``prompts``: texts and their ids."""

    folder: str
    threads: int
    sizes: Sizes
    conversations: list[tuple[list[int], list[int]]]
    pairs: list[tuple[list[int], list[int], list[int]]]
    pair_texts: list[tuple[str, str, str]]
    prompts: list[tuple[str, list[int]]]

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @staticmethod
    def read(file: Path) -> Given:
        content = json.loads(file.read_text(encoding="utf-8"))
        return Given(**{**content, "sizes": Sizes(**content["sizes"])})

    @property
    def mean_lengths(self) -> dict[str, float]:
        """Mean number of tokens of a text, of a prompt with an answer (of a pair), and of a question."""
        both = [len(p) + (len(c) + len(r)) / 2 for p, c, r in self.pairs]
        return {
            "conversation": sum(len(ids) for ids, _ in self.conversations) / len(self.conversations),
            "answered": sum(both) / len(both),
            "question": sum(len(ids) for _, ids in self.prompts) / len(self.prompts),
        }


class Trainer(Protocol):
    """A trainer that is measured, in a process of its own."""

    def load(self, given: Given) -> None: ...

    def train(self, task: str, folder: Path) -> dict[str, Any]:
        """One training run. Returns ``seconds`` and ``core_seconds`` of the timed steps, the ``tokens`` (without
        padding) and ``completions`` in them, the mean ``loss``, and ``how`` it was computed."""
        ...


def reward(answers: list[str]) -> list[float]:
    """A reward that costs nothing: the number of distinct words of an answer."""
    return [float(len(set(answer.split()))) for answer in answers]


def prepare(folder: Path, sizes: Sizes, threads: int) -> Given:
    """Writes a new model with the demo world's tokenizer, and conversations, pairs and questions of the world."""
    task = WorldTask(read("world"), 0)
    tokenizer = task.chat.tokenizer
    torch.manual_seed(0)
    shape = {"width": sizes.width, "layers": sizes.layers, "heads": sizes.heads, "hidden": sizes.hidden}
    model = Transformer(ModelConfig.parse({**shape, "vocab_size": tokenizer.vocab_size}))
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # a fresh block says nothing yet; a trained one does
                parameter.normal_(std=0.02)
    checkpoint.save(folder / "model", model, tokenizer, {})
    number = (WARM + sizes.steps) * sizes.rows
    turns, asked = ChatSamples(task.world, task.chat, 1), task.questions(2)
    conversations = [(list(ids), [int(w > 0) for w in learnt]) for ids, learnt in map(turns, range(number))]
    rng, pair_texts = random.Random(0), []
    for question in map(asked, range(number)):
        good, bad = (" " + task.world.answer(question, manner, rng) for manner in MANNERS)
        pair_texts.append((" " + question.prompt, good, bad))
    encode, end = tokenizer.encode, tokenizer.end
    pairs = [(list(encode(p)), [*encode(c), end], [*encode(r), end]) for p, c, r in pair_texts]
    texts = [" " + asked(i).prompt for i in range((WARM + sizes.steps) * sizes.questions)]
    prompts = [(text, list(encode(text))) for text in texts]
    return Given(str(folder / "model"), threads, sizes, conversations, pairs, pair_texts, prompts)


def versions() -> dict[str, str | None]:
    return {name: package_version(name) for name in ("klype", "trl", "transformers", "accelerate", "torch")}
