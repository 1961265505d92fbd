"""An accelerator that is not there: tensors that say they lie elsewhere, with numbers that the processor computes.

Strict where a real one is, or stricter: tensors of two devices do not mix (but for single numbers), there is no
float64, as on Apple's, and numbers come back only by ``.cpu()``. "lazy" is a type of device that torch knows and that
nothing here uses; its backward passes run on the calling thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

from klype.model.transformer import Transformer

DEVICE = torch.device("lazy", 0)
MIXES = ("aten::_to_copy", "aten::to", "aten::copy_", "aten::index")
"""What takes tensors of two devices everywhere: copies, and reading at indices that are on the CPU."""


class Elsewhere(torch.Tensor):
    """A tensor on the accelerator; ``inner`` has its numbers."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Elsewhere:
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
            requires_grad=False,
        )
        made.inner = inner
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Elsewhere({self.inner!r})"

    def tolist(self) -> Any:
        return self.inner.tolist()

    @property
    def data(self) -> torch.Tensor:
        return self.detach()

    @data.setter
    def data(self, other: Elsewhere) -> None:
        torch.Tensor.data.__set__(self, other)  # type: ignore[attr-defined]
        self.inner = other.inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


class Factories(TorchDispatchMode):
    """Makes tensors there, where a call names the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What the operation gives on the processor, put where a device would have it."""
    given = tree_flatten((args, kwargs))[0]
    tensors = [t for t in given if isinstance(t, torch.Tensor)]
    there = [t for t in tensors if isinstance(t, Elsewhere)]
    asked = next((one for one in given if isinstance(one, torch.device)), None)
    to_there = asked is not None and asked.type == DEVICE.type
    if not there and not to_there:
        return func(*args, **kwargs)
    name = func._schema.name
    if there and name not in MIXES and any(t.dim() and not isinstance(t, Elsewhere) for t in tensors):
        raise RuntimeError(f"{name}: tensors on {DEVICE} and on the processor")
    stays = isinstance(args[0], Elsewhere) if name == "aten::copy_" else to_there or (bool(there) and asked is None)
    inner_args, inner_kwargs = tree_map(_inner, (args, kwargs))
    with torch.inference_mode(False), torch.no_grad():  # views of what was made outside are not made inside
        out = func(*inner_args, **inner_kwargs)
        if not stays:
            return out
        if to_there and not there and tensors:
            out = out.clone()
        out = tree_map(wrapped, out)
        return return_and_correct_aliasing(func, args, kwargs, out) if there else out


def _inner(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return value.inner if isinstance(value, Elsewhere) else value


def wrapped(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    if value.dtype == torch.float64 and value.dim():
        raise TypeError("this device has no float64")
    return Elsewhere(value)


@contextmanager
def accelerator() -> Iterator[torch.device]:
    """Within it there is one."""
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor makes what it is given on the CPU, then moves it
    try:
        with Factories():
            yield DEVICE
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


@pytest.fixture(params=[str(DEVICE), *(kind for kind in ("cuda", "mps") if getattr(torch, kind).is_available())])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Every accelerator that is there, and the one that is not."""
    if request.param != str(DEVICE):
        yield torch.device(request.param)
        return
    with accelerator() as there:
        yield there


def moved(model: Transformer, device: torch.device) -> Transformer:
    """The model there; pretended parameters are new ones, of which a tied head must know."""
    model = model.to(device)
    if model.config.tie:
        model.head.weight = model.embed.weight
    return model
