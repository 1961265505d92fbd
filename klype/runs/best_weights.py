"""The loss on held-out text while a model learns: what it learns by heart is seen, and the best weights are kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from klype import durable
from klype.errors import KlypeError
from klype.train import parallel
from klype.train.flat_parameters import weights_of
from klype.train.loop import Measure, Weights
from klype.train.objectives import cross_entropy
from klype.values import Batch, Batches, end

FILES = "best-*.safetensors"  # the number is that of the step


class BestWeights:
    """The best weights so far: in memory (the first process's, when trained in shards), and on disk only next to a
    resume state, which would be of no use without them. The last two stay there, as the last two states do: the older
    state's best may be the older one.

    ``weights()`` gives those of ``model``, or, while it is trained in shards, of all processes together.
    """

    def __init__(self, model: nn.Module, folder: Path) -> None:
        self._model, self._folder = model, folder
        self.weights: Weights = partial(weights_of, model)
        self._kept: dict[str, torch.Tensor] | None = None

    def keep(self) -> None:
        """The model's weights as they are now."""
        self._kept = self.weights()

    def save(self, step: int) -> None:
        """Makes what was kept at this step durable, once. KlypeError when the disk says no."""
        kept, file = self._kept, self._file(step)

        def write() -> None:
            if kept is None or not parallel.is_first() or file.exists():
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            durable.write(file, save({k: v.contiguous() for k, v in kept.items()}))
            by_step = lambda file: int(file.stem.removeprefix("best-"))  # after a million, names are not in this order
            for old in sorted(self._folder.glob(FILES), key=by_step)[:-2]:
                old.unlink()

        try:
            parallel.together(write)
        except OSError as error:
            raise KlypeError(
                f"{file} cannot be written: {error.strerror or error}.", "Make room, then --resume."
            ) from error

    def restore(self, step: int, again: str) -> None:
        """The model is what it was at this step, on every process. KlypeError (with what to do then) when a resumed
        run's are gone.
        """
        file = self._file(step)
        try:
            kept = load(file.read_bytes()) if self._kept is None else self._kept
            if kept:
                self._model.load_state_dict(kept)
        except (OSError, SafetensorError) as error:
            raise KlypeError(f"{file}, the best weights so far, is missing or damaged.", again) from error
        parallel.share_(self._model.state_dict().values())

    def forget(self) -> None:
        """Removes what was kept on the disk: nothing is left to resume."""
        for file in self._folder.glob(FILES):
            file.unlink()

    def _file(self, step: int) -> Path:
        return self._folder / FILES.replace("*", f"{step:06d}")


LOOKS, SECONDS = 10, 6.0  # checks in all; seconds of training between two, at least


class ValidatedBatches(Batches):
    """A stage's batches; every few of them ``model`` is measured on ``held_out``, the same tokens each time. The best
    weights are kept in ``best``. ``measured_by`` is called where the loop trains the model in shards.

    Each batch brings the newest figure along (metric ``validation``, nats per token).
    """

    def __init__(self, batches: Batches, held_out: Sequence[Batch], model: nn.Module, every: int, folder: Path) -> None:
        self._batches, self._held_out, self._model, self._every, self._drawn = batches, held_out, model, every, 0
        self.seen: list[tuple[int, float]] = []  # (batches drawn, loss)
        self.kept: tuple[int, float] | None = None  # that with the least loss, the last of equals
        self.best = BestWeights(model, folder)
        self.measured_by(partial(cross_entropy, model), self.best.weights)

    def measured_by(self, measure: Measure, weights: Weights) -> None:
        """How the model is measured, and where its weights are."""
        self._measure, self.best.weights = measure, weights

    def __next__(self) -> Batch:
        if self._drawn and self._drawn % self._every == 0:
            self.look()
        batch = next(self._batches)
        self._drawn += 1
        if self.seen:
            batch.extra["metrics"] = {**batch.extra.get("metrics", {}), "validation": self.seen[-1][1]}
        return batch

    def look(self) -> None:
        """Measures the model as it is; the best so far is kept."""
        if self.seen and self.seen[-1][0] == self._drawn:
            return
        with torch.no_grad():
            losses = [self._measure(batch) for batch in self._held_out]
        loss = float(sum(loss.total for loss in losses) / sum(loss.count for loss in losses))
        loss = parallel.from_first(loss)  # what is kept is decided once for all
        self.seen.append((self._drawn, loss))
        if self.kept is None or loss <= self.kept[1] or not math.isfinite(self.kept[1]):
            self.best.keep()
            self.kept = self.seen[-1]

    def finish(self) -> bool:
        """A last check, of the trained model, which is whole again; it is put back to the best weights if those were
        better."""
        self.measured_by(partial(cross_entropy, self._model), partial(weights_of, self._model))
        self.look()
        if self.kept is None or self.kept[0] == self._drawn:
            return False
        self.best.restore(self.kept[0], "Train again.")
        return True

    def state(self) -> dict[str, Any]:
        if self.kept is not None:
            self.best.save(self.kept[0])
        return {"drawn": self._drawn, "seen": self.seen, "kept": self.kept, "batches": self._batches.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """A state that several processes saved before they kept weights has none: the best is that of later checks."""
        self._drawn, self.seen = state["drawn"], [(drawn, loss) for drawn, loss in state["seen"]]
        self.kept = tuple(state["kept"]) if state["kept"] else None
        self._batches.restore(state["batches"])

    def close(self) -> None:
        end(self._batches)


def every(steps: int, seconds: float) -> int:
    """Steps between two checks in a training of ``steps`` steps that takes ``seconds`` (0: unknown)."""
    looks = min(LOOKS, max(2, int(seconds / SECONDS))) if seconds else LOOKS
    return max(1, steps // looks)
