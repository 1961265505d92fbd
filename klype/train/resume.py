"""Training states that survive anything: written beside, fsynced, named last, checked by hash when read.

``FOLDER/resume/step-000123/`` holds model.safetensors, optimizer.safetensors, state.json and, written last,
manifest.json with the SHA-256 of the others. The last two are kept; a torn one is skipped, and that is said.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from klype.errors import KlypeError

KEPT = 2
MANIFEST = "manifest.json"
CONTENTS = ("model.safetensors", "optimizer.safetensors", "state.json")


@dataclass(frozen=True, slots=True)
class State:
    """What training goes on from after ``step`` steps. ``about`` is JSON: batches, settings, seconds, skipped."""

    step: int
    model: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, torch.Tensor]
    about: dict[str, Any]


def write_state(folder: Path, state: State) -> Path:
    """Writes a state under ``folder/resume`` and drops all but the last two. KlypeError when the disk says no."""
    place = folder / "resume" / f"step-{state.step:06d}"
    draft = place.with_name(f".{place.name}.draft")
    files = {
        "model.safetensors": save(_contiguous(state.model)),
        "optimizer.safetensors": save(_contiguous(state.optimizer)),
        "state.json": json.dumps({"step": state.step, **state.about}).encode(),
    }
    manifest = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    files[MANIFEST] = json.dumps({"files": manifest}, indent=1).encode()
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for name, content in files.items():
            write_durably(draft / name, content)
        sync_folder(draft)
        if place.exists():
            shutil.rmtree(place)
        draft.rename(place)
        sync_folder(place.parent)
        _drop_old(place.parent)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise KlypeError(
            f"The state of step {state.step} could not be written to {place.parent}: {error.strerror or error}.",
            "Earlier states are intact: make room or make the folder writable, then go on with --resume.",
        ) from error
    return place


def read_newest(folder: Path, say: Callable[[str], None]) -> State | None:
    """The newest whole state under ``folder/resume``; None when there is none at all.

    A torn one is named through ``say`` and the one before it is used; KlypeError when all are torn.
    """
    places = states(folder)
    for place in reversed(places):
        try:
            return _read(place)
        except _TornError as torn:
            say(f"{place.name} is damaged ({torn}): going on from an earlier state.")
    if places:
        raise KlypeError(
            f"Every training state under {folder / 'resume'} is damaged.",
            "Remove that folder to start afresh.",
        )
    return None


def states(folder: Path) -> list[Path]:
    """The states under ``folder/resume``, oldest first."""
    return sorted((folder / "resume").glob("step-*"), key=lambda place: int(place.name.removeprefix("step-")))


def write_durably(path: Path, content: bytes) -> None:
    """Writes and waits until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes names (new, renamed) durable, where folders can be synced at all."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _TornError(Exception):
    """A state that is not what its manifest says."""


def _read(place: Path) -> State:
    try:
        manifest = json.loads((place / MANIFEST).read_bytes())["files"]
        contents = {
            name: (place / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors", "state.json")
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _TornError(f"{type(error).__name__}: {error}") from error
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != manifest.get(name):
            raise _TornError(f"{name} does not match its hash")
    about = json.loads(contents["state.json"])
    return State(about.pop("step"), load(contents["model.safetensors"]), load(contents["optimizer.safetensors"]), about)


def _contiguous(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _drop_old(parent: Path) -> None:
    for place in states(parent.parent)[:-KEPT]:
        shutil.rmtree(place)
