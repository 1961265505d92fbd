"""Where a run lives: its folder is chosen once, is one process's at a time, and is never written over."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from klype import durable
from klype.errors import KlypeError, UsageError
from klype.jsons import finite
from klype.model.atomic_folder import is_whole
from klype.sources.find_model import DEMO, NEWEST_FIRST, located
from klype.sources.find_model import RUNS as RUNS
from klype.words import words
from klype.words.plain import aside

LOCK = ".lock"
MEND = "Bring it back from a copy."


class Measured(TypedDict, total=False):
    """The fields of a figure that are read from run.json."""

    value: float | None
    low: float | None
    high: float | None


class About(TypedDict, total=False):
    """The fields that are read from run.json; whatever else it has is left alone."""

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
    figures: dict[str, dict[str, Measured] | None]
    gates: list[dict[str, Any]]
    process: dict[str, Any]
    reward: dict[str, Any]
    aligned: dict[str, Any]
    scores: dict[str, list[float]]
    judged: dict[str, dict[str, list[float | None]]]
    versions: dict[str, Any]
    machine: dict[str, Any]


@contextmanager
def chosen(recipe: str, out: Path | None, resume: bool, today: date) -> Iterator[Path]:
    """The folder of a run, this process's alone for as long as the run lasts; what was made for it and stayed empty
    goes afterwards. UsageError when another process is at work in it."""
    place = plan(recipe, out, resume, today)
    new = [folder for folder in (place, *place.parents) if not folder.exists()]
    try:
        with _held(_writable(place)):
            for part in (place, *place.glob("*"), *place.glob("*/resume")):
                durable.clear(part)
            yield place
    finally:
        with suppress(OSError):  # the first one that holds something ends this
            for folder in new:
                folder.rmdir()


def choose(recipe: str, out: Path | None, resume: bool, today: date, base: Path = RUNS) -> Path:
    """The folder of a run, made and writable (see ``plan``)."""
    return _writable(plan(recipe, out, resume, today, base))


def plan(recipe: str, out: Path | None, resume: bool, today: date, base: Path = RUNS) -> Path:
    """The folder that a run is to have: ``out``, or ``base/<recipe>-<date>-<n>``.

    A recipe that is a file gives its bare name. With ``resume`` it is ``out`` or the newest folder of this recipe,
    if there is one; without, an existing folder that holds anything is refused.
    """
    recipe = Path(recipe).stem
    if out is not None:
        folder = out
    elif resume and (old := _numbered(base, recipe)):
        folder = old[-1]
    else:
        folder = next(new for n in count(1) if not (new := base / f"{recipe}-{today.isoformat()}-{n}").exists())
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file, not a folder for a run.", "Choose another --out.")
    if not resume and folder.is_dir() and any(file.name != LOCK for file in folder.iterdir()):
        raise UsageError(f"{folder} exists already.", "Add --resume to continue it, or choose another --out.")
    return folder


def default_model(lang: str, *bases: Path, stage: str = "") -> str:
    """The MODEL where none is named, which is told: the run in these folders (in ``runs``) that was written to last, of
    those that have a finished stage; else the demo model that comes with klype. ``stage``: of it, where it has that."""
    w, files = words(lang), (file for base in bases or (RUNS,) for file in base.glob("*/run.json"))
    for file in sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True):
        if any(is_whole(file.parent / name) for name in NEWEST_FIRST):
            found = file.parent / stage if stage and is_whole(file.parent / stage) else file.parent
            aside(w("model.newest", name=found))
            return str(found)
    name = f"{DEMO}/{stage}".removesuffix("/")
    aside(w("model.demo", name=name))
    return located(name)


def read_run(folder: Path) -> dict[str, Any]:
    """The contents of a run's run.json."""
    file = folder / "run.json"
    try:
        about = finite(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{folder} is not a run: it has no run.json.") from None
    except (OSError, ValueError) as error:
        raise KlypeError(f"{file} cannot be read: {error}.") from None
    if not isinstance(about, dict):
        raise KlypeError(f"{file} does not hold a JSON object.")
    try:
        TypeAdapter(About).validate_python(about, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:100]
        raise KlypeError(f"{file} is damaged at {where}: {first['msg'].lower()}.", MEND) from None
    return about


def _numbered(base: Path, recipe: str) -> list[Path]:
    """Folders ``<recipe>-YYYY-MM-DD-<n>``, oldest first."""
    name = re.compile(rf"{re.escape(recipe)}-(\d{{4}}-\d\d-\d\d)-(\d+)")
    named = ((name.fullmatch(folder.name), folder) for folder in base.glob("*") if folder.is_dir())
    return [folder for *_, folder in sorted((found[1], int(found[2]), folder) for found, folder in named if found)]


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}.", "Choose another --out.") from None
    return folder


# One process at a time: a lock of the system, which goes with the process however it ends.


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The folder is this process's within it. UsageError when it is another's; without locks here, it is anybody's."""
    file = folder / LOCK
    handle = _taken(file)
    try:
        yield
    finally:
        if handle is not None:
            with suppress(OSError):
                file.unlink()
            os.close(handle)


def _taken(file: Path) -> int | None:
    """The open, locked file; None where the system or its disk has no locks."""
    if sys.platform == "win32":
        return None
    import fcntl  # which Windows lacks

    while True:
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, handle):
                with suppress(OSError):
                    os.ftruncate(handle, 0)
                    os.write(handle, str(os.getpid()).encode())
                return handle
        except BlockingIOError:
            owner = os.read(handle, 20).decode("ascii", "replace")
            os.close(handle)
            who = f"process {owner}" if owner.isdecimal() else "another process"
            raise UsageError(
                f"{file.parent} is being trained by {who}.", "Wait for it or stop it, or choose another --out."
            ) from None
        except OSError:
            file.unlink(missing_ok=True)
            os.close(handle)
            return None
        os.close(handle)  # whoever held it has taken the file away meanwhile: the next one is looked for


def _is_at(file: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(handle))
    except FileNotFoundError:
        return False
