"""Low-rank adapters (LoRA): a few weights are trained beside a model's frozen ones (Hu et al. 2021, arXiv:2106.09685).

    y = W x + (alpha / rank) · B A x        A [rank, in] drawn, B [out, rank] zero: at first the model is what it was

Only A and B are parameters, so that gradients, optimizer and training states hold nothing else. The frozen weights are
non-persistent buffers that share the model's memory.
"""

import copy
import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from klype import config
from klype.model.transformer import MATRICES, Transformer


class LoraSettings(config.Settings):
    """``rank`` 0: no adapters. ``alpha`` / rank scales what they add, so that one learning rate suits every rank."""

    rank: int = Field(default=0, ge=0, le=4096)
    alpha: float = Field(default=32.0, gt=0)


class AdaptedLinear(nn.Module):
    """A frozen linear layer with an adapter beside it."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, frozen: nn.Linear, settings: LoraSettings) -> None:
        super().__init__()
        for name, tensor in (("weight", frozen.weight), ("bias", frozen.bias)):
            self.register_buffer(name, None if tensor is None else tensor.detach(), persistent=False)
        device, rank = frozen.weight.device, settings.rank
        drawn = nn.init.uniform_(torch.empty(rank, frozen.in_features), -1, 1) / math.sqrt(frozen.in_features)
        self.a = nn.Parameter(drawn.to(device))  # the same numbers on every device
        self.b = nn.Parameter(torch.zeros(frozen.out_features, rank, device=device))
        self.scale = settings.alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        low = linear(x, self.a.to(x.dtype)) * self.scale
        return linear(x, self.weight, self.bias) + linear(low, self.b.to(x.dtype))


class AdaptedTransformer(Transformer):
    """``model`` with adapters beside the matrices of its layers; its own weights are shared and never changed.

    A is drawn from torch's global generator: seed it first. Copies share the frozen weights.
    """

    def __init__(self, model: Transformer, settings: LoraSettings) -> None:
        super(Transformer, self).__init__()
        # everything but the tensors is copied
        shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
        self.__dict__.update(copy.deepcopy(model, shared).__dict__)
        self.decoder = None  # it reads matrices by their addresses, and knows of no adapter
        for layer in self.layers:
            # with all four LoRA learns as well as full training, with attention's matrices alone it does not
            for name in MATRICES:
                setattr(layer, name, AdaptedLinear(getattr(layer, name), settings))
        frozen: dict[int, Tensor] = {}  # a parameter that two modules share becomes one buffer of both
        for module in self.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None and not isinstance(module, AdaptedLinear):
                    del module._parameters[name]
                    tensor = frozen.setdefault(id(parameter), parameter.detach())
                    module.register_buffer(name, tensor, persistent=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "AdaptedTransformer":
        memo |= {id(buffer): buffer for buffer in self.buffers()}
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    @torch.no_grad()
    def merge(self, model: Transformer) -> Transformer:
        """A copy of ``model``, which the adapters were trained for, with them merged into its matrices."""
        whole = copy.deepcopy(model)
        for own, layer in zip(self.layers, whole.layers, strict=True):
            for name in MATRICES:
                adapted: AdaptedLinear = getattr(own, name)
                weight: Tensor = getattr(layer, name).weight
                weight.add_((adapted.b.float() @ adapted.a.float()).to(weight.dtype), alpha=adapted.scale)
        return whole.requires_grad_(True)


def frozen_model(model: Transformer, dtype: torch.dtype) -> Transformer:
    """``model`` in ``dtype`` without gradients: itself where it has that dtype already, else a copy."""
    own = model if next(model.parameters()).dtype == dtype else copy.deepcopy(model).to(dtype)
    return own.requires_grad_(False)
