"""Training states, written atomically (to a draft folder, synced, then renamed) and checked by hash when read.

``FOLDER/resume/step-000123/`` holds model.safetensors, state.json, the optimizer's tensors, weights included, in
``shards/`` and, written last, manifest.json with the SHA-256 of the others. The last two states are kept; a damaged one
is reported and skipped. Several processes write a state together, a file of ``shards/`` each and an empty
model.safetensors; any number of processes can read it (sharded.py). One process of an earlier klype wrote the
optimizer's flat buffers to optimizer.safetensors instead, which are still read.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from klype import durable, jsons
from klype.durable import hash_file, sync_folder
from klype.errors import KlypeError, writing_to
from klype.jsons import parse, parse_finite
from klype.model.atomic_folder import MANIFEST, seal
from klype.train import parallel
from klype.train.flat_parameters import FlatOffsets, check_shapes

# so that a damaged state has one before it
KEPT = 2
MAKE_ROOM = "Make room or make the folder writable, then go on with --resume."
MODEL, OPTIMIZER, ABOUT, SHARDS = "model.safetensors", "optimizer.safetensors", "state.json", "shards"


@dataclass(frozen=True, slots=True)
class State:
    """A saved state after ``step`` steps, in ``folder``. ``about`` is JSON: batches, settings, seconds, skipped."""

    step: int
    about: dict[str, Any]
    folder: Path

    def read_into(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Reads the optimizer's tensors, which must have the names and shapes of ``tensors``, or KlypeError is raised.
        Every rank calls it, with its part of them.
        """
        of_one = (self.folder / SHARDS / OPTIMIZER, self.folder / OPTIMIZER)
        file = next((file for file in of_one if file.exists()), None)
        if file is None:
            from klype.train.sharded import read_shards

            read_shards(self.folder / SHARDS, tensors)
            return
        saved = load(file.read_bytes())
        if "master" in saved:
            saved = _by_parameter(saved, tensors)
        check_shapes({name: tensor.shape for name, tensor in saved.items()}, tensors)
        if parallel.ranks() > 1:
            from klype.train.sharded import sharded_like

            saved = sharded_like(tensors, saved)
        for name, tensor in tensors.items():
            tensor.copy_(saved[name])


def _by_parameter(buffers: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors in the flat buffers that an earlier klype saved, without those of a buffer of another size."""
    named = {"taken": buffers["taken"].view(1)}
    for buffer, flat in buffers.items():
        inside = [name for name in tensors if name.startswith(f"{buffer}.")]
        places = FlatOffsets.of([[tensors[name] for name in inside]])
        if places.ends == (flat.numel(),):
            named |= zip(inside, places.views(flat), strict=True)
    return named


def write_state(
    folder: Path,
    step: int,
    about: Mapping[str, Any],
    model: Mapping[str, torch.Tensor],
    optimizer: Mapping[str, torch.Tensor],
) -> None:
    """Writes a state under ``folder/resume`` and removes all but the last two. KlypeError when the disk fails.

    Every rank calls it, with its part of the optimizer's tensors. ``model`` is for others who look at the model while
    it is trained.
    """
    place = folder / "resume" / f"step-{step:06d}"
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
        (draft / MODEL).write_bytes(save(_contiguous(model)))
        (draft / ABOUT).write_text(json.dumps(about), encoding="utf-8")
        seal(draft, lambda hashes: json.dumps({"files": hashes}, indent=1).encode())
        if place.exists():
            shutil.rmtree(place)
        draft.rename(place)
        sync_folder(place.parent)
        # only now that the new state has its name
        for old in states(folder)[:-KEPT]:
            shutil.rmtree(old)

    try:
        parallel.on_all_ranks(begin)
        if parallel.ranks() == 1:
            (draft / SHARDS).mkdir()
            (draft / SHARDS / OPTIMIZER).write_bytes(save(_contiguous(optimizer)))
        else:
            from klype.train.sharded import write_shards

            write_shards(draft / SHARDS, optimizer)
        parallel.on_all_ranks(finish)
    except OSError as error:
        if parallel.is_first():
            shutil.rmtree(draft, ignore_errors=True)
        raise KlypeError(
            f"The state of step {step} could not be written to {place.parent}: {error.strerror or error}.",
            "Earlier states are intact: make room or make the folder writable, then go on with --resume.",
        ) from error


def read_newest(folder: Path, say: Callable[[str], None]) -> State | None:
    """The newest intact state under ``folder/resume``; None when there are no states.

    A damaged one is named through ``say`` and the one before it is used; KlypeError when all are damaged. The first
    rank decides which one all ranks read.
    """
    step = parallel.broadcast(newest_step(folder, say) if parallel.is_first() else None)
    if step >= 0:
        place = folder / "resume" / f"step-{step:06d}"
        return State(step, parse((place / ABOUT).read_bytes()), place)  # a measured loss may not be finite
    if states(folder):
        raise KlypeError(
            f"Every training state under {folder / 'resume'} is damaged.", "Remove that folder to start afresh."
        )
    return None


def newest_step(folder: Path, say: Callable[[str], None] = lambda message: None) -> int:
    """Step of the newest intact state under ``folder/resume``, -1 if there is none; ``say`` names newer ones that are
    damaged."""
    for place in reversed(states(folder)):
        try:
            hashes: dict[str, str] = parse_finite((place / MANIFEST).read_bytes())["files"]
            names = dict.fromkeys([MODEL, ABOUT, *hashes])
            wrong = next((name for name in names if hash_file(place / name) != hashes[name]), None)
            if wrong is None:
                return int(place.name.removeprefix("step-"))
            damage = f"{wrong} does not match its hash"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            damage = f"{type(error).__name__}: {error}"
        say(f"{place.name} is damaged ({damage}): going on from an earlier state.")
    return -1


def states(folder: Path) -> list[Path]:
    """The states under ``folder/resume``, oldest first."""
    # by number: beyond a million steps names are not in that order
    return sorted((folder / "resume").glob("step-*"), key=lambda place: int(place.name.removeprefix("step-")))


def _contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


Metrics = dict[str, float]


class MetricsFile:
    """Appends rows to a JSON lines file. Rows after ``step`` (of a run that was killed), an incomplete last one and
    damaged ones are removed first."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        with writing_to(path, MAKE_ROOM):
            if path.exists():
                lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
                kept = (line for line in lines if any(row["step"] <= step for row in jsons.steps([line])))
                durable.write(path, b"".join(kept))
            self._file = path.open("a", encoding="utf-8")

    def append(self, line: Mapping[str, Any]) -> None:
        """Writes one row. Numbers that are not finite are written as null: JSON has no NaN."""
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
        with writing_to(self.path, MAKE_ROOM):
            self._file.write(json.dumps(clean) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """Waits until all rows are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()
