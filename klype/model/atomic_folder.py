"""Atomic directory writes: files are written aside, hashed, fsynced, and renamed into place.

A new folder takes its place by one rename. Where other files stay (metrics, states to resume from), the new files first
become one sub-folder, by one rename, and then move up one by one, the manifest last; `finish` completes that after a
crash.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from klype.durable import draft_folder, hash_file, remove_drafts, sync_folder
from klype.errors import KlypeError, writing_to
from klype.jsons import parse
from klype.text.tokenizer_files import read_bounded

MANIFEST = "manifest.json"
_HINT = "Use an earlier checkpoint, or save it again."
_ARRIVED = ".arrived"


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a new folder, then put its files into ``folder``: all or none of them.

    Raises KlypeError when the disk is full or the folder cannot be written; what was there is then still there.
    """
    folder = folder.absolute()
    finish(folder)
    with writing_to(folder, "Make room, or choose another place with --out."):
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = folder.is_dir() and any(folder.iterdir())
        for place in (folder, folder.parent):
            remove_drafts(place)
        with draft_folder(folder.name, folder if beside else folder.parent) as draft:
            write(draft)
            seal(draft, _text)
            if beside:
                os.rename(draft, folder / _ARRIVED)
                sync_folder(folder)
                finish(folder)
            else:
                os.rename(draft, folder)
                sync_folder(folder.parent)


def seal(folder: Path, manifest: Callable[[dict[str, str]], bytes]) -> None:
    """Write the manifest of a folder's files, and fsync all of them."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    hashes = {file.relative_to(folder).as_posix(): hash_file(file) for file in files}
    (folder / MANIFEST).write_bytes(manifest(hashes))
    # on disk before any name points to them: a rename can outlive the data of what it renames
    for file in (*files, folder / MANIFEST):
        with open(file, "rb+") as stream:
            os.fsync(stream.fileno())
    sync_folder(folder)


def finish(folder: Path) -> None:
    """Move up the files of a complete sub-folder that a process left behind when it ended."""
    arrived = folder / _ARRIVED
    if not arrived.is_dir():
        return
    try:
        # while files of two checkpoints stand side by side, neither is whole
        if (arrived / MANIFEST).exists():
            (folder / MANIFEST).unlink(missing_ok=True)
        for file in sorted(arrived.iterdir(), key=lambda f: f.name == MANIFEST):
            os.replace(file, folder / file.name)
        sync_folder(folder)
        arrived.rmdir()
    except FileNotFoundError:  # another process finishes too
        return
    except OSError as error:
        raise KlypeError(
            f"{folder} holds a checkpoint that was not put in place, and cannot be written: {error.strerror}.",
            "Make it writable once.",
        ) from error


def is_whole(folder: Path) -> bool:
    """Whether the folder holds a finished checkpoint (hashes are not compared)."""
    return (folder / MANIFEST).is_file() or (folder / _ARRIVED / MANIFEST).is_file()


def verify(folder: Path) -> None:
    """Compare every file of the manifest with its hash. Raises KlypeError naming the first that differs."""
    file = folder / MANIFEST
    try:
        raw = read_bounded(file)
        hashes = parse(raw)["sha256"]
        sound = raw == _text(hashes) and isinstance(hashes, dict)
    except (KlypeError, ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        raise KlypeError(f"{file} is damaged.", _HINT)
    for name, digest in hashes.items():
        # a manifest names files of its own folder only, whoever wrote it
        if os.path.basename(name) != name or not (folder / name).is_file():
            raise KlypeError(f"{folder / name} is missing.", _HINT)
        if hash_file(folder / name) != digest:
            raise KlypeError(f"{folder / name} is damaged: its hash is not the one in {MANIFEST}.", _HINT)


def _text(hashes: dict[str, str]) -> bytes:
    """The manifest's only valid content for these hashes, with a hash of its own, so that any changed bit shows."""
    body = json.dumps(hashes, sort_keys=True)
    own = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({"of_this": own, "sha256": hashes}, sort_keys=True, indent=1).encode()
