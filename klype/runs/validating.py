"""The loss on held-out text while a model learns: what it learns by heart is seen, and the best weights are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from klype.runs.best import Best
from klype.train import parallel
from klype.train.loop import Measure
from klype.train.objectives import cross_entropy
from klype.values import Batch, Batches, end

LOOKS, SECONDS = 10, 6.0  # looks in all; seconds of training between two, at least


class Validated:
    """A stage's batches; every so many steps the model is measured on ``held_out``, the same tokens each time, by
    ``measure``. The best weights are kept in ``best``, if there is one.

    Each batch brings the newest figure along (metric ``validation``, nats a token).
    """

    def __init__(self, batches: Batches, held_out: Batch, measure: Measure, every: int, best: Best | None) -> None:
        self._batches, self._held_out, self._every = batches, held_out, every
        self.seen: list[tuple[int, float]] = []  # (batches drawn, loss)
        self._best, self._drawn, self.measure = best, 0, measure

    def __iter__(self) -> Iterator[Batch]:
        return self

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
            loss = self.measure(self._held_out)
        self.seen.append((self._drawn, float(loss.total / loss.count)))
        if self._best is not None and self.best == self.seen[-1]:
            self._best.keep()

    @property
    def best(self) -> tuple[int, float]:
        """The look with the least loss, the last of equals."""
        return min(reversed(self.seen), key=lambda look: look[1] if math.isfinite(look[1]) else math.inf)

    def finish(self) -> bool:
        """A last look, at the trained model; it is put back to the best weights if those were better and are kept."""
        self.look()
        if self._best is None or self.best == self.seen[-1]:
            return False
        self._best.restore(self.best[0], "Train again.")
        return True

    def forget(self) -> None:
        """Removes what was kept on the disk: nothing is left to resume."""
        if self._best is not None:
            self._best.forget()

    def state(self) -> dict[str, Any]:
        if self._best is not None and self.seen:
            self._best.save(self.best[0])
        return {"drawn": self._drawn, "seen": self.seen, "batches": self._batches.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self._drawn, self.seen = state["drawn"], [(drawn, loss) for drawn, loss in state["seen"]]
        self._batches.restore(state["batches"])

    def close(self) -> None:
        end(self._batches)


class Looks:
    """The looks of one stage, from its first batch to its best weights; without held-out tokens, none.

    ``micro_batches``: of a step. Several processes look together; the best weights are kept by one that is alone.
    """

    def __init__(self, held_out: Batch | None, folder: Path, micro_batches: int) -> None:
        self._held_out, self._folder, self._micro_batches = held_out, folder, micro_batches
        self._validated: Validated | None = None

    def ready(self, measure: Measure) -> None:
        """How the loop measures the model that it trains."""
        if self._validated is not None:
            self._validated.measure = measure

    def along(self, batches: Batches, model: nn.Module, steps: int, seconds: float) -> Batches:
        """The batches of so many steps, with looks at the model between them."""
        if self._held_out is None:
            return batches
        often = self._micro_batches * every(steps, seconds)
        self._whole = partial(cross_entropy, model)
        best = Best(model, self._folder) if parallel.ranks() == 1 else None
        self._validated = Validated(batches, self._held_out, self._whole, often, best)
        return self._validated

    @contextmanager
    def finished(self, note: Callable[[str], None]) -> Iterator[dict[str, float]]:
        """The model has its best weights, which is told; within, they are to be kept. ``validation``: their loss."""
        if self._validated is None:
            yield {}
            return
        self._validated.measure = self._whole  # shards have been put together
        back = self._validated.finish()
        batches, loss = self._validated.best if back else self._validated.seen[-1]
        step = batches // self._micro_batches
        kept = f": the best was after step {step}, and those weights are kept" if back else ""
        note(f"On held-out text {loss:.3f} nats a token{kept}.")
        yield {"validation": loss}
        self._validated.forget()


def every(steps: int, seconds: float) -> int:
    """Steps between two looks of a training of so many steps that takes so many seconds (0: nobody knows)."""
    looks = min(LOOKS, max(2, int(seconds / SECONDS))) if seconds else LOOKS
    return max(1, steps // looks)
