"""One optimizer for all stages: Muon for the matrices inside the model, AdamW for the rest.

Parameters and gradients are views of flat buffers, so that zeroing, clipping, the momentum, AdamW and the exchange
between processes are one kernel each, whatever the number of parameters: for a tiny model that is the difference
between an optimizer that is noticed and one that is not.

With ``dtype`` bfloat16 the model computes with rounded weights while a float32 master is what is updated and saved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import nn
from torch.autograd.graph import increment_version

from klype import config
from klype.errors import KlypeError
from klype.model.config import ModelConfig
from klype.train.muon import Group, grouped, orthogonalise_

# Not the inside of the model: a matrix by shape, but a table of vectors by use.
TABLES = ("embed", "head", "taps", "norm")
ALIGN = 16  # parameters start at multiples of 64 bytes, where vector instructions like them

Parts = Mapping[str, Sequence[int]]


class OptimizerSettings(config.Settings):
    """Learning rates and their like. ``matrix_rate`` is Muon's (unused when ``kind`` is adamw), ``rate`` AdamW's.

    ``coarse`` runs Muon's iteration in bfloat16: 1.7 to 3.5 times as fast where the processor has instructions for it.
    """

    kind: Literal["muon", "adamw"] = "muon"
    matrix_rate: float = Field(default=0.02, gt=0)
    rate: float = Field(default=1e-2, gt=0)
    momentum: float = Field(default=0.95, ge=0, lt=1)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    decay: float = Field(default=0.0, ge=0)
    coarse: bool = False


class Home:
    """Where a model's parameters live: views of flat weights, and of a flat ``gradient`` that ``backward`` adds to."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        weights: Sequence[torch.Tensor],
        gradient: torch.Tensor,
        views: Callable[[torch.Tensor], list[torch.Tensor]],
    ) -> None:
        self.gradient = gradient
        self._owned = list(zip(parameters, views(gradient), strict=True))
        for (parameter, own), weight in zip(self._owned, weights, strict=True):
            parameter.data, parameter.grad = weight, own

    def backward(self, total: torch.Tensor) -> None:
        """Adds the gradient of ``total``; of a constant there is none."""
        if total.requires_grad:
            total.backward()  # type: ignore[no-untyped-call]
        for parameter, own in self._owned:
            if parameter.grad is not own:  # somebody cleared or replaced it
                if parameter.grad is not None:
                    own.copy_(parameter.grad)
                parameter.grad = own


class Optimizer:
    """``zero_grad()`` → ``home.backward(total)`` → ``collect(home)``, for every micro-batch → ``step(factor)``.

    ``parts`` gives the rows of fused matrices by the end of their name, for example
    ``{"qkv.weight": (64, 32, 32), "gate_up.weight": (128, 128)}``: each part is made orthogonal apart.
    ``master`` and ``gradient`` are the flat float32 buffers.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: OptimizerSettings,
        parts: Parts | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise KlypeError("Nothing can be trained: every parameter of the model is frozen.")
        matrices = [(n, p) for n, p in named if settings.kind == "muon" and is_matrix(n, p)]
        inside = {n for n, _ in matrices}
        decayed = [(n, p) for n, p in named if n not in inside and p.ndim >= 2]
        others = [(n, p) for n, p in named if n not in inside and p.ndim < 2]
        self.settings = settings
        self._buffers = _round_buffers(model, dtype)
        self._names = [n for n, _ in (*matrices, *decayed, *others)]
        self._parameters = [p for _, p in (*matrices, *decayed, *others)]
        self._offsets, ends = _layout([matrices, decayed, others])
        self._muon_end = ends[0]
        self._bind(ends[-1], dtype)
        self.momentum = torch.zeros_like(self.master[: ends[0]])
        self._update = torch.zeros_like(self.momentum)
        self._groups = _groups(matrices, self._offsets, self._update, parts or {})
        self.moment, self.square = (torch.zeros_like(self.master[ends[0] :]) for _ in range(2))
        self._taken = torch.zeros((), dtype=torch.float32, device=self.master.device)
        self._adamw = [(ends[0], ends[1], settings.decay), (ends[1], ends[2], 0.0)]

    def zero_grad(self) -> None:
        self.gradient.zero_()
        self.home.gradient.zero_()

    def collect(self, home: Home) -> None:
        """Adds what ``backward`` left there to the gradient. Needed after every backward."""
        if home.gradient is not self.gradient:
            self.gradient.add_(home.gradient)
            home.gradient.zero_()

    def settle(self, twin: nn.Module) -> Home:
        """Lets a copy of the model use the same weights, with a buffer for gradients of its own."""
        named = dict(twin.named_parameters())
        parameters = [named[name] for name in self._names]
        return Home(parameters, self._views(self._low), torch.zeros_like(self._low), self._views)

    @torch.no_grad()
    def clip(self, limit: float) -> torch.Tensor:
        """The gradient's norm over all parameters (a scalar tensor); scales it down to ``limit`` when it is longer."""
        norm: torch.Tensor = torch.linalg.vector_norm(self.gradient)
        if limit > 0:
            self.gradient.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
        return norm

    @torch.no_grad()
    def step(self, factor: float = 1.0) -> None:
        """One update with both learning rates times ``factor``."""
        if self._muon_end:
            self._muon_step(factor)
        self._adamw_step(factor)
        self._publish()

    def release(self) -> None:
        """Gives the model float32 weights of its own, so that it outlives the optimizer, and its buffers back."""
        for module, name, buffer in self._buffers:
            setattr(module, name, buffer)
        for parameter, view in zip(self._parameters, self._views(self.master), strict=True):
            parameter.grad = None
            parameter.data = view.clone()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Flat tensors: master weights, momentum, AdamW's moments and step count."""
        return {
            "master": self.master,
            "momentum": self.momentum,
            "moment": self.moment,
            "square": self.square,
            "taken": self._taken,
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Puts everything back, weights included. KlypeError when it was saved for a model of another shape."""
        own = self.state_dict()
        if {k: v.shape for k, v in own.items()} != {k: v.shape for k, v in state.items()}:
            raise KlypeError("The saved optimizer state belongs to a model of another shape; start in another folder.")
        for key, tensor in own.items():
            tensor.copy_(state[key])
        self._publish()

    def _muon_step(self, factor: float) -> None:
        settings, master = self.settings, self.master[: self._muon_end]
        gradient, rate = self.gradient[: self._muon_end], self.settings.matrix_rate * factor
        self.momentum.lerp_(gradient, 1 - settings.momentum)
        torch.lerp(gradient, self.momentum, settings.momentum, out=self._update)  # Nesterov's look ahead
        orthogonalise_(self._groups, torch.bfloat16 if settings.coarse else torch.float32)
        if settings.decay:
            master.mul_(1 - rate * settings.decay)
        master.add_(self._update, alpha=-rate)

    def _adamw_step(self, factor: float) -> None:
        """As torch.optim.AdamW(fused=True), whose import alone takes longer than a tiny model's first hundred steps."""
        settings, first = self.settings, self._muon_end
        self._taken += 1
        for start, end, decay in self._adamw:
            if end > start:
                torch._fused_adamw_(
                    [self.master[start:end]],
                    [self.gradient[start:end]],
                    [self.moment[start - first : end - first]],
                    [self.square[start - first : end - first]],
                    [],
                    [self._taken],
                    lr=settings.rate * factor,
                    beta1=settings.betas[0],
                    beta2=settings.betas[1],
                    weight_decay=decay,
                    eps=settings.eps,
                    amsgrad=False,
                    maximize=False,
                )

    def _bind(self, size: int, dtype: torch.dtype) -> None:
        device = self._parameters[0].device
        self.master = torch.zeros(size, dtype=torch.float32, device=device)
        for parameter, view in zip(self._parameters, self._views(self.master), strict=True):
            view.copy_(parameter.data)
        self.gradient = torch.zeros_like(self.master)
        whole = dtype == torch.float32
        self._low = self.master if whole else self.master.to(dtype)
        gradient = self.gradient if whole else torch.zeros_like(self._low)
        self.home = Home(self._parameters, self._views(self._low), gradient, self._views)

    def _views(self, flat: torch.Tensor) -> list[torch.Tensor]:
        return [
            flat[start : start + p.numel()].view(p.shape)
            for p, start in zip(self._parameters, self._offsets, strict=True)
        ]

    def _publish(self) -> None:
        """Lets the model have the new weights, and torch know that they changed (whoever caches can tell)."""
        if self._low is not self.master:
            self._low.copy_(self.master)
        increment_version(self._parameters)


def fused_parts(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The rows of klype's own fused matrices: queries, keys, values; gate, up."""
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    return {"qkv.weight": (queries, keys, keys), "gate_up.weight": (config.hidden, config.hidden)}


def is_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether Muon takes it: two-dimensional and not a table of vectors (embedding, head, convolution, norm)."""
    return parameter.ndim == 2 and not any(word in name for word in TABLES)


def _round_buffers(model: nn.Module, dtype: torch.dtype) -> list[tuple[nn.Module, str, torch.Tensor]]:
    """Gives the model buffers (masks, rotations) of the dtype it computes in; returns the ones it had."""
    if dtype == torch.float32:
        return []
    own = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point()
    ]
    for module, name, buffer in own:
        setattr(module, name, buffer.to(dtype))
    return own


def _layout(regions: Sequence[Sequence[tuple[str, torch.Tensor]]]) -> tuple[list[int], list[int]]:
    """Where each parameter starts in the flat buffer, and where each region ends."""
    offsets, ends, position = [], [], 0
    for region in regions:
        for _, parameter in region:
            offsets.append(position)
            position += -(-parameter.numel() // ALIGN) * ALIGN
        ends.append(position)
    return offsets, ends


def _groups(
    matrices: Sequence[tuple[str, torch.Tensor]], offsets: Sequence[int], update: torch.Tensor, parts: Parts
) -> list[Group]:
    views: list[torch.Tensor] = []
    for (name, parameter), start in zip(matrices, offsets, strict=False):
        view = update[start : start + parameter.numel()].view(parameter.shape)
        rows = next((tuple(sizes) for end, sizes in parts.items() if name.endswith(end)), (parameter.shape[0],))
        if sum(rows) != parameter.shape[0]:
            raise KlypeError(f"The parts {rows} of {name} do not add up to its {parameter.shape[0]} rows.")
        views += torch.split(view, list(rows))
    return grouped(views)
