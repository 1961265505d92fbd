"""Small models for tests: milliseconds each, with weights that make every part of them matter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from klype.judge.judge import Judge
from klype.model.config import ModelConfig
from klype.model.transformer import Transformer
from klype.values import Question

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "conv": {"rope_theta": 0.0, "conv": 5},
    "grouped": {"kv_heads": 2, "conv": 2},
    "qwen": {"kv_heads": 1, "qkv_bias": True, "qk_norm": True, "head_dim": 6, "tie": True},
    "llama3": {"rope_scaling": {"kind": "llama3", "factor": 4.0, "original_window": 32}},
}
"""The kinds of model that every law of cache and engine is tried on."""


def toy(shape: str = "llama", seed: int = 0, **changes: Any) -> Transformer:
    """A random model of two layers, width 16, 23 words; no weight is zero, so that a wrong part shows."""
    fields = {"vocab_size": 23, "width": 16, "layers": 2, "heads": 4, "hidden": 24, "window": 64}
    config = ModelConfig.parse({**fields, **SHAPES[shape], **changes})
    torch.manual_seed(seed)
    model = Transformer(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
            elif "taps" not in name and "embed" not in name and (config.tie is False or "head" not in name):
                weight.normal_(0, 0.8 / max(weight.shape[-1], 1) ** 0.5)
        model.head.weight.mul_(2.0)
    return model.eval()


def clusters(judge: Judge, question: Question, answers: Sequence[str]) -> list[int]:
    """Each answer's meaning, numbered as they appear."""
    found = list(map(judge.meaning(question), answers))
    return [list(dict.fromkeys(found)).index(value) for value in found]


def bigram(logits: list[list[float]] | torch.Tensor) -> Transformer:
    """A model whose next-token logits depend on the last token only: row ``i`` of ``logits`` after token ``i``.

    Exact up to float32: one-hot embeddings, layers that add nothing, a head that undoes the last norm's scale.
    """
    table_VV = torch.as_tensor(logits, dtype=torch.float32)
    size = table_VV.shape[0]
    width = size + size % 2
    fields = {"vocab_size": size, "width": width, "layers": 1, "heads": 1, "hidden": 1, "window": 512}
    model = Transformer(ModelConfig.parse({**fields, "rope_theta": 0.0, "norm_eps": 1e-12}))
    with torch.no_grad():
        model.embed.weight.zero_()
        model.embed.weight[:, :size] = torch.eye(size)
        model.head.weight.zero_()
        model.head.weight[:, :size] = table_VV.T / width**0.5
    return model.eval()
