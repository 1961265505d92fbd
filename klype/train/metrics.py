"""metrics.jsonl: one line a step, only ever appended to; cut back to the step that a resumed run goes on from."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from klype import durable, jsons
from klype.errors import KlypeError
from klype.train import parallel

Metrics = dict[str, float]


class MetricsFile:
    """Appends lines to ``path``; lines after ``step`` (of a run that was killed) and a torn last one are cut off, and
    lines that the disk has damaged left out."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        try:
            if path.exists():
                _cut_back(path, step)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._failed(error) from error

    def append(self, line: Mapping[str, Any]) -> None:
        """Writes one line. What is not finite is written as null: there is no NaN in JSON."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        try:
            self._file.write(json.dumps(clean) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error

    def sync(self) -> None:
        """Waits until the disk has all lines."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _failed(self, error: OSError) -> KlypeError:
        return KlypeError(
            f"{self.path} cannot be written: {error.strerror or error}.",
            "Make room or make the folder writable, then go on with --resume.",
        )


def _cut_back(path: Path, step: int) -> None:
    content = path.read_bytes()
    lines = [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]
    kept = b"".join(line for line in lines if any(row["step"] <= step for row in jsons.steps([line])))
    if content.startswith(kept):
        os.truncate(path, len(kept))
    else:
        durable.write(path, kept)


def over_ranks(sums: Metrics) -> Metrics:
    """The sums of all ranks together."""
    if parallel.ranks() == 1:
        return sums
    values = torch.tensor(list(sums.values()), dtype=torch.float64)
    parallel.sum_over_ranks_(values)
    return dict(zip(sums, values.tolist(), strict=True))


def means(sums: Metrics, count: float) -> Metrics:
    """Each sum over its own ``NAME_count`` where there is one, else over ``count``; NaN over nothing."""
    found = {}
    for name, value in sums.items():
        if name.endswith("_count"):
            continue
        divisor = sums.get(f"{name}_count", count)
        found[name] = value / divisor if divisor else math.nan
    return found


def add(sums: Metrics, more: Metrics, times: float) -> None:
    """Adds ``more`` to ``sums``, in place."""
    for name, value in more.items():
        sums[name] = sums.get(name, 0.0) + value * times
