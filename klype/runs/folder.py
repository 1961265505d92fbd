"""A run's folder: chosen once, locked by one process at a time, never overwritten; and its run.json, read."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from klype import durable
from klype.errors import KlypeError, UsageError, writing_to
from klype.examine.run_facts import FigureFacts
from klype.jsons import parse_finite
from klype.model.atomic_folder import is_whole
from klype.sources.model_files import DEMO, NEWEST_FIRST, RUNS, resolve
from klype.words import words
from klype.words.plain import aside

LOCK = ".lock"
MEND = "Bring it back from a copy."


class RunFields(TypedDict, total=False):
    """The fields of run.json that are checked when it is read; others are ignored."""

    recipe: str | None
    state: str
    failure: str
    planned_s: float
    asked: dict[str, Any]
    settings: dict[str, Any]
    inputs: dict[str, Any]
    plan: dict[str, dict[str, Any]]
    done: dict[str, dict[str, Any]]
    seconds: dict[str, float]
    figures: dict[str, dict[str, FigureFacts] | None]
    gates: list[dict[str, Any]]
    process: dict[str, Any]
    reward: dict[str, Any]
    aligned: dict[str, Any]
    scores: dict[str, list[float]]
    judged: dict[str, dict[str, list[float | None]]]
    versions: dict[str, Any]
    machine: dict[str, Any]


@contextmanager
def claim(recipe: str, out: Path | None, resume: bool, today: date) -> Iterator[Path]:
    """Chooses the folder of a run (see ``plan``) and locks it for this process; afterwards removes the folders that it
    created if they are still empty. UsageError when it cannot be written or another process holds it."""
    place = folder_path(recipe, out, resume, today)
    new = [folder for folder in (place, *place.parents) if not folder.exists()]
    try:
        with locked_folder(place):
            for part in (place, *place.glob("*"), *place.glob("*/resume")):
                durable.remove_drafts(part)
            yield place
    finally:
        with suppress(OSError):  # up to the first folder that is not empty
            for folder in new:
                folder.rmdir()


def folder_path(recipe: str, out: Path | None, resume: bool, today: date, base: Path = RUNS) -> Path:
    """The path of a run's folder: ``out``, or ``base/<recipe>-<date>-<n>`` (of a recipe file: its name without suffix).

    With ``resume``: ``out``, or the newest folder of this recipe if there is one. Without: UsageError for a folder that
    is not empty.
    """
    recipe = Path(recipe).stem
    if resume and out is None:
        name = re.compile(rf"{re.escape(recipe)}-(\d{{4}}-\d\d-\d\d)-(\d+)")
        named = ((name.fullmatch(folder.name), folder) for folder in base.glob("*") if folder.is_dir())
        made = [(found[1], int(found[2]), folder) for found, folder in named if found]
        out = max(made)[-1] if made else None
    folder = out or next(new for n in count(1) if not (new := base / f"{recipe}-{today.isoformat()}-{n}").exists())
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, not a folder for a run.", "Choose another --out.")
    if not resume and folder.is_dir() and any(file.name != LOCK for file in folder.iterdir()):
        raise UsageError(f"{folder} exists already.", "Add --resume to continue it, or choose another --out.")
    return folder


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Creates the folder and locks it with a file lock, which the system releases when the process ends. UsageError
    when another process holds it or it cannot be written; on file systems without locks it is not protected."""
    file = folder / LOCK
    while True:
        with writing_to(folder, "Choose another --out.", UsageError):
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            locked = durable.lock(handle, wait=False)
        except BlockingIOError:
            owner = os.read(handle, 20).decode("ascii", "replace")
            os.close(handle)
            who = f"process {owner}" if owner.isdecimal() else "another process"
            raise UsageError(
                f"{folder} is being trained by {who}.", "Wait for it or stop it, or choose another --out."
            ) from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(file), os.fstat(handle)):
                break
        os.close(handle)  # its former holder has deleted the file meanwhile: try again
    try:
        with suppress(OSError):
            os.ftruncate(handle, 0)
            os.write(handle, str(os.getpid()).encode())
        yield
    finally:
        if not locked:  # where there are no locks, an open file may not be deletable
            os.close(handle)
        with suppress(OSError):
            file.unlink()
        if locked:
            os.close(handle)


def default_model(lang: str, *bases: Path, stage: str = "") -> str:
    """The MODEL to use when none is named, announced on standard error: the run in ``bases`` (default: runs) with a
    finished stage that was written last, else the demo model. ``stage``: that stage of it, if there."""
    w, files = words(lang), (file for base in bases or (RUNS,) for file in base.glob("*/run.json"))
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True):
        if any(is_whole(file.parent / name) for name in NEWEST_FIRST):
            found = file.parent / stage if stage and is_whole(file.parent / stage) else file.parent
            aside(w("model.newest", name=found))
            return str(found)
    name = f"{DEMO}/{stage}".removesuffix("/")
    aside(w("model.demo", name=name))
    return resolve(name)


def read_run(folder: Path) -> dict[str, Any]:
    """The contents of run.json. UsageError for a folder without one, KlypeError for a damaged one."""
    file = folder / "run.json"
    try:
        about = parse_finite(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{folder} is not a run: it has no run.json.") from None
    except (OSError, ValueError) as error:
        raise KlypeError(f"{file} cannot be read: {error}.") from None
    if not isinstance(about, dict):
        raise KlypeError(f"{file} does not hold a JSON object.")
    try:
        TypeAdapter(RunFields).validate_python(about, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:100]
        raise KlypeError(f"{file} is damaged at {where}: {first['msg'].lower()}.", MEND) from None
    return about
