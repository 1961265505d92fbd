"""What the training tests share: a tiny model, a bigram model of free logits, and endless seeded batches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from klype.model.atomic_folder import seal
from klype.model.attention import TORCH
from klype.model.config import ModelConfig
from klype.model.transformer import Transformer
from klype.train.optimizer import Optimizer
from klype.train.resume import State
from klype.values import Batch

VOCAB = 24
NARROW = ("model.width=16", "model.layers=1", "model.heads=2", "model.hidden=32", "model.window=64")
FEW = (
    "examine.temperatures=[0.7]",
    "rank.questions=8",
    "rank.held_out=6",
    "rank.limit=8",
    "align.limit=8",
    "align.rows=2",
    "reward.fit.steps=20",
    "reward.gate=0.5",
)
"""Settings of a recipe: a model of next to nothing, and little to do with it."""


def tiny_config() -> ModelConfig:
    return ModelConfig(vocab_size=VOCAB, width=16, layers=2, heads=2, kv_heads=1, hidden=32, window=32, conv=2)


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(tiny_config())
    nn.init.normal_(model.head.weight, std=0.3)
    return model.to(dtype)


def to_earlier_form(place: Path, optimizer: Optimizer) -> None:
    """Rewrites a state of one process, of a model like the optimizer's, as klype wrote it before 0.2.0: flat buffers,
    in a file beside the model's, and the count of tokens with the batches' position."""
    State(0, {}, place).read_into(optimizer.state_dict())
    names = ("master", "momentum", "moment", "square")
    flat = {name: getattr(optimizer, name) for name in names} | {"taken": optimizer.state_dict()["taken"].view(())}
    save_file(flat, place / "optimizer.safetensors")
    shutil.rmtree(place / "shards")
    about = json.loads((place / "state.json").read_text())
    about["batches"] = {"tokens": about.pop("tokens"), "batches": about["batches"]}
    (place / "state.json").write_text(json.dumps(about))
    (place / "manifest.json").unlink()
    seal(place, lambda hashes: json.dumps({"files": hashes}).encode())


class Bigram(nn.Module):
    """Logits of the next token are a row of a table: exact distributions, exact gradients."""

    backend = TORCH

    def __init__(self, vocab: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(vocab, vocab, generator=generator, dtype=dtype))

    def states_at(self, tokens_BT: torch.Tensor, wanted_BT: torch.Tensor, *_: object, **more: int) -> torch.Tensor:
        wanted = wanted_BT.flatten().nonzero()[:, 0]
        return self.table[tokens_BT.flatten()[torch.cat([wanted, wanted.new_zeros(more["spare"])])]]

    def unembed(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def random_batch(seed: int, rows: int = 4, length: int = 9, vocab: int = VOCAB) -> Batch:
    """Tokens that repeat (so that there is something to learn) and uneven masks."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.randint(0, vocab, (rows, length // 2 + 1), generator=generator)
    tokens = torch.cat([half, half], 1)[:, : length + 1]
    weights = (torch.rand(rows, length, generator=generator) < 0.6) * (
        1 + 4 * torch.rand(rows, length, generator=generator)
    )
    weights[:, 0] = 1
    return Batch(tokens[:, :-1], tokens[:, 1:], weights)


class Seeded:
    """Batch number i is ``make(i)``."""

    def __init__(self, make: Callable[[int], Batch] = random_batch) -> None:
        self.make, self.index = make, 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self.index += 1
        return self.make(self.index - 1)

    def state(self) -> dict[str, Any]:
        return {"index": self.index}

    def restore(self, state: dict[str, Any]) -> None:
        self.index = state["index"]


def rows_of(batch: Batch, rows: slice) -> Batch:
    return Batch(batch.tokens_BT[rows], batch.targets_BT[rows], batch.weights_BT[rows])


def part(step: int, rows: slice) -> Batch:
    """Some of the eight rows of a step, with some of the rows to rehearse, all with uneven masks."""
    main, again = rows_of(random_batch(step, rows=8), rows), rows_of(random_batch(step + 500, rows=8), rows)
    return Batch(main.tokens_BT, main.targets_BT, main.weights_BT, {"rehearsal": again})


def pieces(rows_each: int) -> Seeded:
    per_step = 8 // rows_each

    def make(index: int) -> Batch:
        step, at = divmod(index, per_step)
        return part(step, slice(at * rows_each, (at + 1) * rows_each))

    return Seeded(make)


def finite_differences(function: Callable[[], torch.Tensor], at: torch.Tensor, step: float = 1e-6) -> torch.Tensor:
    """Central differences of a scalar function with respect to every entry of ``at`` (float64)."""
    out = torch.zeros_like(at)
    with torch.no_grad():
        flat = at.view(-1)
        for i in range(flat.numel()):
            kept = flat[i].item()
            flat[i] = kept + step
            high = function().item()
            flat[i] = kept - step
            low = function().item()
            flat[i] = kept
            out.view(-1)[i] = (high - low) / (2 * step)
    return out
