"""Held-out loss during training, and the best weights so far, to go back to when training overfits."""

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
from klype.errors import KlypeError, writing_to
from klype.train import parallel
from klype.train.flat_parameters import weights_of
from klype.train.loop import Measure, Weights
from klype.train.objectives import cross_entropy
from klype.values import Batch, Batches, end

FILES = "best-*.safetensors"  # numbered by step


class BestWeights:
    """The best weights so far, in memory (of the first process, when the model is sharded). Saved to disk only with a
    resume state, which needs them; the last two are kept, as the last two states are.

    ``weights()`` returns the weights of ``model``, gathered from all processes while it is sharded.
    """

    def __init__(self, model: nn.Module, folder: Path) -> None:
        self._model, self._folder = model, folder
        self.weights: Weights = partial(weights_of, model)
        self._kept: dict[str, torch.Tensor] | None = None

    def keep(self) -> None:
        """Keeps the model's current weights."""
        self._kept = self.weights()

    def save(self, step: int) -> None:
        """Writes the weights kept at this step to disk, once. KlypeError when that fails."""
        kept, file = self._kept, self._file(step)

        def write() -> None:
            if kept is None or not parallel.is_first() or file.exists():
                return
            self._folder.mkdir(parents=True, exist_ok=True)
            durable.write(file, save({k: v.contiguous() for k, v in kept.items()}))
            by_step = lambda file: int(file.stem.removeprefix("best-"))  # after a million, names are not in this order
            for old in sorted(self._folder.glob(FILES), key=by_step)[:-2]:
                old.unlink()

        with writing_to(file, "Make room, then --resume."):
            parallel.on_all_ranks(write)

    def restore(self, step: int, again: str) -> None:
        """Puts the weights kept at this step back into the model, on every process. KlypeError with the hint ``again``
        when a resumed run's are gone.
        """
        file = self._file(step)
        try:
            kept = load(file.read_bytes()) if self._kept is None else self._kept
            if kept:
                self._model.load_state_dict(kept)
        except (OSError, SafetensorError) as error:
            raise KlypeError(f"{file}, the best weights so far, is missing or damaged.", again) from error
        parallel.broadcast_(self._model.state_dict().values())

    def forget(self) -> None:
        """Removes the files, when nothing is left to resume."""
        for file in self._folder.glob(FILES):
            file.unlink()

    def _file(self, step: int) -> Path:
        return self._folder / FILES.replace("*", f"{step:06d}")


LOOKS, SECONDS = 10, 6.0  # checks in all; seconds of training between two, at least


class ValidatedBatches(Batches):
    """Batches that measure the loss of ``model`` on ``held_out`` every ``every`` batches; the best weights are kept in
    ``best``. Each batch has the newest loss as metric ``validation`` (nats per token).
    """

    def __init__(self, batches: Batches, held_out: Sequence[Batch], model: nn.Module, every: int, folder: Path) -> None:
        self._batches, self._held_out, self._model, self._every, self._drawn = batches, held_out, model, every, 0
        self.seen: list[tuple[int, float]] = []  # (batches drawn, loss)
        self.kept: tuple[int, float] | None = None  # the one with the lowest loss, the last of equals
        self.best = BestWeights(model, folder)
        self.set_measure(partial(cross_entropy, model), self.best.weights)

    def set_measure(self, measure: Measure, weights: Weights) -> None:
        """Sets how the loss is computed and the weights are gathered; called by the training loop, which may have
        sharded the model."""
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
        """Measures the current model, once per batch number; keeps its weights if they are the best so far."""
        if self.seen and self.seen[-1][0] == self._drawn:
            return
        with torch.no_grad():
            losses = [self._measure(batch) for batch in self._held_out]
        loss = float(sum(loss.total for loss in losses) / sum(loss.count for loss in losses))
        loss = parallel.broadcast(loss)  # all processes must agree on what is kept
        self.seen.append((self._drawn, loss))
        if self.kept is None or loss <= self.kept[1] or not math.isfinite(self.kept[1]):
            self.best.keep()
            self.kept = self.seen[-1]

    def finish(self) -> bool:
        """Measures the trained model, no longer sharded, and goes back to the best weights if those were better.
        Returns whether it did."""
        self.set_measure(partial(cross_entropy, self._model), partial(weights_of, self._model))
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
        """Goes on from a state. Early versions kept no weights on several processes (``kept`` None): the best is then
        that of later checks."""
        self._drawn, self.seen = state["drawn"], [(drawn, loss) for drawn, loss in state["seen"]]
        self.kept = tuple(state["kept"]) if state["kept"] else None
        self._batches.restore(state["batches"])

    def close(self) -> None:
        end(self._batches)


def validation_interval(steps: int, seconds: float) -> int:
    """Steps between two checks in a training of ``steps`` steps that takes ``seconds`` (0: unknown)."""
    looks = min(LOOKS, max(2, int(seconds / SECONDS))) if seconds else LOOKS
    return max(1, steps // looks)
