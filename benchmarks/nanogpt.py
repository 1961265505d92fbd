"""A GPT-2-shaped decoder as in small training scripts: the peer with which klype's training speed is compared.

Learned positions, LayerNorm, torch's fused attention, GELU, and an output head tied to the embedding; the optimizer is
torch's AdamW. The architecture is that of github.com/karpathy/nanoGPT, reimplemented.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.train_task import Shape


class Block(nn.Module):
    """A pre-norm transformer block: attention and a two-matrix MLP, each with a residual connection."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        D = shape.width
        self.heads = shape.heads
        self.before_attention, self.before_mlp = nn.LayerNorm(D, bias=False), nn.LayerNorm(D, bias=False)
        self.qkv, self.out = nn.Linear(D, 3 * D, bias=False), nn.Linear(D, D, bias=False)
        inner = shape.hidden * 3 // 2
        self.mlp = nn.Sequential(nn.Linear(D, inner, bias=False), nn.GELU(), nn.Linear(inner, D, bias=False))

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        q, k, v = self.qkv(self.before_attention(x_BTD)).split(D, 2)
        q, k, v = (z.view(B, T, self.heads, -1).transpose(1, 2) for z in (q, k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + self.out(mixed.transpose(1, 2).reshape(B, T, D))
        added: Tensor = x_BTD + self.mlp(self.before_mlp(x_BTD))
        return added


class NanoGPT(nn.Module):
    """The model; calling it returns the mean cross-entropy of a batch in nats. Residual projections are initialised
    smaller in deeper models."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed = nn.Embedding(shape.vocab, shape.width)
        self.places = nn.Embedding(shape.window, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width, bias=False)
        self.head = nn.Linear(shape.width, shape.vocab, bias=False)
        self.head.weight = self.embed.weight
        ends = ("out.weight", "mlp.2.weight")
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                depth = 2 * shape.layers if name.endswith(ends) else 1
                nn.init.normal_(parameter, std=0.02 / math.sqrt(depth))

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        return functional.cross_entropy(self.logits(tokens_BT).flatten(0, 1), targets_BT.flatten())

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """Logits [B, T, V]."""
        x_BTD = self.embed(tokens_BT) + self.places.weight[: tokens_BT.shape[1]]
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits_BTV: Tensor = self.head(self.norm(x_BTD))
        return logits_BTV


def optimizer(model: nn.Module, rate: float, beta2: float = 0.95) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices only, as in the script on a CPU."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, beta2))
