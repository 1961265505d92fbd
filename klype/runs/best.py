"""The best weights so far of a model that is being trained."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from klype import durable
from klype.errors import KlypeError

FILES = "best-*.safetensors"  # the number is that of the step


class Best:
    """They are in memory; on the disk only beside a state to resume from, which would be of no use without them. The
    last two stay there, as the last two states do: the older state's best may be the older one.
    """

    def __init__(self, model: nn.Module, folder: Path) -> None:
        self._model, self._folder = model, folder
        self._kept: dict[str, torch.Tensor] = {}

    def keep(self) -> None:
        """The model's weights as they are now."""
        weights = self._model.state_dict().items()
        self._kept = {k: v.detach().to("cpu", torch.float32, copy=True) for k, v in weights}

    def save(self, step: int) -> None:
        """Makes what was kept at this step durable, once. KlypeError when the disk says no."""
        if not self._kept or (file := self._file(step)).exists():
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            durable.write(file, save({k: v.contiguous() for k, v in self._kept.items()}))
            for old in sorted(self._folder.glob(FILES), key=_step)[:-2]:
                old.unlink()
        except OSError as error:
            raise KlypeError(
                f"{file} cannot be written: {error.strerror or error}.", "Make room, then --resume."
            ) from error

    def restore(self, step: int, again: str) -> None:
        """The model is what it was at this step. KlypeError (with what to do then) when a resumed run's are gone."""
        if self._kept:
            self._model.load_state_dict(self._kept)
            return
        file = self._file(step)
        try:
            self._model.load_state_dict(load(file.read_bytes()))
        except (OSError, SafetensorError) as error:
            raise KlypeError(f"{file}, the best weights so far, is missing or damaged.", again) from error

    def forget(self) -> None:
        """Removes what was kept on the disk: nothing is left to resume."""
        for file in self._folder.glob(FILES):
            file.unlink()

    def _file(self, step: int) -> Path:
        return self._folder / FILES.replace("*", f"{step:06d}")


def _step(file: Path) -> int:
    """By number, for after a million steps names are not in that order."""
    return int(file.stem.removeprefix("best-"))
