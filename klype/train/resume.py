"""Training states, written atomically (to a draft folder, synced, then renamed) and checked by hash when read.

``FOLDER/resume/step-000123/`` holds model.safetensors, optimizer.safetensors, state.json and, written last,
manifest.json with the SHA-256 of the others. The last two states are kept; a damaged one is reported and skipped.
Several processes write one state together: it has ``shards/`` with a file of each instead of optimizer.safetensors,
which any number of processes can read (sharded.py), and an empty model.safetensors.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from klype import durable, jsons
from klype.durable import hash_file, sync_folder
from klype.errors import KlypeError
from klype.jsons import finite, parsed
from klype.model.atomic_folder import MANIFEST, seal
from klype.train import parallel

# so that a damaged state has one before it
KEPT = 2
MODEL, OPTIMIZER, ABOUT, SHARDS = "model.safetensors", "optimizer.safetensors", "state.json", "shards"


@dataclass(frozen=True, slots=True)
class State:
    """Everything needed to resume after ``step`` steps. ``about`` is JSON: batches, settings, seconds, skipped.

    ``optimizer`` holds the weights as well; ``model`` is for others who look at the model while it is trained.
    ``shards``: the folder with the optimizer's tensors, when several processes wrote them.
    """

    step: int
    model: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, torch.Tensor]
    about: dict[str, Any]
    shards: Path | None = field(default=None, compare=False)


def write_state(folder: Path, state: State) -> Path:
    """Writes a state under ``folder/resume`` and removes all but the last two. KlypeError when the disk fails.

    Every rank calls it, with its part of the optimizer's tensors.
    """
    place = _place(folder, state.step)
    draft = place.with_name(f".{place.name}{durable.DRAFT}")

    def begin() -> None:
        if parallel.is_first():  # which also removes drafts of a process that was killed while saving
            for abandoned in draft.parent.glob(f".step-*{durable.DRAFT}"):
                shutil.rmtree(abandoned, ignore_errors=True)
            draft.mkdir(parents=True)

    def finish() -> None:
        """Writes the files common to all ranks, then the manifest, and renames the folder."""
        if not parallel.is_first():
            return
        (draft / MODEL).write_bytes(save(_contiguous(state.model)))
        (draft / ABOUT).write_text(json.dumps({"step": state.step, **state.about}), encoding="utf-8")
        seal(draft, lambda hashes: json.dumps({"files": hashes}, indent=1).encode())
        if place.exists():
            shutil.rmtree(place)
        draft.rename(place)
        sync_folder(place.parent)
        # only now that the new state has its name
        for old in states(folder)[:-KEPT]:
            shutil.rmtree(old)

    try:
        parallel.together(begin)
        if parallel.ranks() == 1:
            (draft / OPTIMIZER).write_bytes(save(_contiguous(state.optimizer)))
        else:
            from klype.train.sharded import write_shards

            write_shards(draft / SHARDS, state.optimizer)
        parallel.together(finish)
    except OSError as error:
        if parallel.is_first():
            shutil.rmtree(draft, ignore_errors=True)
        raise KlypeError(
            f"The state of step {state.step} could not be written to {place.parent}: {error.strerror or error}.",
            "Earlier states are intact: make room or make the folder writable, then go on with --resume.",
        ) from error
    return place


def read_newest(folder: Path, say: Callable[[str], None]) -> State | None:
    """The newest intact state under ``folder/resume``; None when there are no states.

    A damaged one is named through ``say`` and the one before it is used; KlypeError when all are damaged. The first
    rank decides which one all ranks read.
    """
    step = parallel.from_first(newest_step(folder, say) if parallel.is_first() else None)
    if step >= 0:
        return _read(_place(folder, step))
    if states(folder):
        raise KlypeError(
            f"Every training state under {folder / 'resume'} is damaged.",
            "Remove that folder to start afresh.",
        )
    return None


def newest_step(folder: Path, say: Callable[[str], None] = lambda message: None) -> int:
    """Step of the newest intact state under ``folder/resume``, -1 if there is none; ``say`` names newer ones that are
    damaged."""
    for place in reversed(states(folder)):
        damage = _damage(place)
        if not damage:
            return int(place.name.removeprefix("step-"))
        say(f"{place.name} is damaged ({damage}): going on from an earlier state.")
    return -1


def states(folder: Path) -> list[Path]:
    """The states under ``folder/resume``, oldest first."""
    # by number: beyond a million steps names are not in that order
    return sorted((folder / "resume").glob("step-*"), key=lambda place: int(place.name.removeprefix("step-")))


def _place(folder: Path, step: int) -> Path:
    return folder / "resume" / f"step-{step:06d}"


def _damage(place: Path) -> str:
    """What is wrong with a state; "" when it has all of its files, with the hashes of its manifest."""
    try:
        hashes: dict[str, str] = finite((place / MANIFEST).read_bytes())["files"]
        sharded = any(name.startswith(f"{SHARDS}/") for name in hashes)
        for name in dict.fromkeys([MODEL, ABOUT, *([] if sharded else [OPTIMIZER]), *hashes]):
            if hash_file(place / name) != hashes[name]:
                return f"{name} does not match its hash"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _read(place: Path) -> State:
    about = parsed((place / ABOUT).read_bytes())  # a loss that was measured meanwhile may not be finite
    shards = place / SHARDS if (place / SHARDS).is_dir() else None
    optimizer = {} if shards else load((place / OPTIMIZER).read_bytes())
    return State(about.pop("step"), load((place / MODEL).read_bytes()), optimizer, about, shards)


def _contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


Metrics = dict[str, float]


class MetricsFile:
    """Appends rows to a JSON lines file. Rows after ``step`` (of a run that was killed), an incomplete last one and
    damaged ones are removed first."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        try:
            if path.exists():
                lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
                kept = (line for line in lines if any(row["step"] <= step for row in jsons.steps([line])))
                durable.write(path, b"".join(kept))
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._failed(error) from error

    def append(self, line: Mapping[str, Any]) -> None:
        """Writes one row. Numbers that are not finite are written as null: JSON has no NaN."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        try:
            self._file.write(json.dumps(clean) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error

    def sync(self) -> None:
        """Waits until all rows are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _failed(self, error: OSError) -> KlypeError:
        return KlypeError(
            f"{self.path} cannot be written: {error.strerror or error}.",
            "Make room or make the folder writable, then go on with --resume.",
        )
