"""The metrics of a run as TensorBoard's event files, which any TensorBoard shows; written anew from metrics.jsonl."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from klype.errors import KlypeError, UsageError
from klype.jsons import steps

FOLDER = "tensorboard"
NO_CURVES = ("step", "seconds")


def write_events(run: Path) -> dict[str, int]:
    """Event files under ``run``/tensorboard/STAGE; the steps of each stage. The time of a step is the run's own.

    UsageError for a folder without metrics, KlypeError where the package tensorboard is missing or cannot write.
    """
    files = sorted(run.glob("*/metrics.jsonl"))
    if not files:
        raise UsageError(f"{run} has no stage with metrics.", "Give the folder of a run.")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise KlypeError(
            "TensorBoard's files are written by the package tensorboard, which is not installed.",
            "pip install 'klype[tensorboard]'.",
        ) from None
    steps: dict[str, int] = {}
    try:
        shutil.rmtree(run / FOLDER, ignore_errors=True)
        for file in files:
            stage = file.parent.name
            with SummaryWriter(str(run / FOLDER / stage)) as writer:
                steps[stage] = _write(writer, file)
    except OSError as error:
        raise KlypeError(f"{run / FOLDER} cannot be written: {error.strerror or error}.", "Make room.") from error
    return steps


def _write(writer: Any, file: Path) -> int:
    last = 0
    ended = file.stat().st_mtime
    rows = list(steps(file.read_bytes().splitlines()))
    whole = rows[-1].get("seconds", 0.0) if rows else 0.0
    for row in rows:
        last = row["step"]
        for name, value in row.items():
            if name not in NO_CURVES:
                when = ended - whole + row.get("seconds", 0.0)
                writer.add_scalar(name, value, last, walltime=when)
    return last
