"""Files that are whole or not there, whenever the power fails: written beside, flushed to disk, renamed."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# How the names of files and folders end that are being written.
DRAFT = ".klype"
# What klype keeps in its home beside folders; other files there are somebody else's business.
OWN = ("answers.sqlite*", "annotators.json", "stores.toml", "errors/*.txt")


def write(file: Path, content: str | bytes | memoryview) -> None:
    """All of it or nothing, in place of what was there. Raises OSError; what was there is then still there."""
    beside = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}{DRAFT}")
    try:
        with beside.open("wb") as stream:
            hold(stream.fileno())
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
            if os.name == "posix":  # held until it has its name; elsewhere what is open cannot be renamed
                beside.replace(file)
        if os.name != "posix":
            beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def private(path: str | Path, flags: int) -> int:
    """An opener for ``open``: a file that it creates can be read by its owner only, from the first byte."""
    return os.open(path, flags, 0o600)


def private_folder(folder: Path) -> None:
    """Makes the folder, and the folders above it that are missing, for this user alone. Raises OSError."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(mode=0o700, exist_ok=True)
    tighten(folder)


def tighten(folder: Path) -> None:
    """Takes from all others what they may do with the folder and klype's own files in it, where they are this user's
    and not a place that is meant for all (such as /tmp), nor his home, which others may have to
    pass through."""
    home = Path(os.path.expanduser("~"))  # "~" where there is none
    if sys.platform == "win32" or home.resolve().is_relative_to(folder.resolve()):
        return
    for place in (folder, *(file for names in OWN for file in folder.glob(names))):
        try:
            about = place.lstat()
            shared = about.st_mode & stat.S_ISVTX or about.st_uid != os.getuid()
            if place == folder and (shared or not stat.S_ISDIR(about.st_mode)):
                return
            if not shared and not stat.S_ISLNK(about.st_mode) and about.st_mode & 0o077:
                place.chmod(about.st_mode & 0o700)
        except OSError:
            continue  # gone meanwhile, or on a disk that knows no such bits


@contextmanager
def draft_folder(name: str, place: Path) -> Iterator[Path]:
    """A new folder in ``place``, to be filled and renamed; it is removed if it was not."""
    draft = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=DRAFT, dir=place))
    handle = os.open(draft, os.O_RDONLY) if os.name == "posix" else None
    try:
        if handle is not None:
            hold(handle)
        draft.chmod(0o755)
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def clear(folder: Path) -> None:
    """Removes the drafts in a folder whose writers were killed; what a living process writes is left alone."""
    if sys.platform == "win32":  # where nobody can tell which live
        return
    for draft in folder.glob(f".*{DRAFT}"):
        with suppress(OSError):  # somebody holds it, or it is gone
            handle = os.open(draft, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)  # a pipe keeps nobody waiting
            try:
                # An empty one may be so new that its writer does not hold it yet.
                if hold(handle, wait=False):
                    if not draft.is_dir():
                        draft.unlink() if draft.stat().st_size else None
                    elif any(draft.iterdir()):
                        shutil.rmtree(draft)
            finally:
                os.close(handle)


def hold(handle: int, wait: bool = True) -> bool:
    """Locks what is open for as long as this process has it open; False where the system or the disk has no locks.
    BlockingIOError where it is another's, which is not waited for."""
    if sys.platform == "win32":
        return False
    import fcntl  # which Windows lacks

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Makes names in a folder (new, renamed) durable; systems that cannot open folders do it by themselves."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hash_file(file: Path) -> str:
    """SHA-256 of a file's content."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
