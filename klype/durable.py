"""Atomic writes of files and folders (written beside, flushed to disk, renamed), and locks on them."""

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

from klype.errors import KlypeError, writing_to

# the suffix of files and folders that are being written
DRAFT = ".klype"
# klype's own files in its home folder; other files there are not touched
OWN = ("answers.sqlite*", "annotators.json", "stores.toml", "errors/*.txt")


def write(file: Path, content: str | bytes | memoryview | Iterator[bytes]) -> None:
    """Writes or replaces a file atomically; an iterator is written as it goes. Raises OSError, with the old file
    still in place."""
    beside = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}{DRAFT}")
    try:
        with beside.open("wb") as stream:
            lock(stream.fileno())
            whole = content.encode() if isinstance(content, str) else content
            stream.writelines(whole if isinstance(whole, Iterator) else [whole])
            stream.flush()
            os.fsync(stream.fileno())
            if os.name == "posix":  # while it is locked; other systems cannot rename an open file
                beside.replace(file)
        if os.name != "posix":
            beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


def write_out(file: Path, content: str | bytes, kind: type[KlypeError] = KlypeError) -> Path:
    """Writes a file of a command's --out atomically. An error of this ``kind`` if it cannot be written."""
    with writing_to(file, "Choose another --out.", kind):
        write(file, content)
    return file


def private(path: str | Path, flags: int) -> int:
    """An opener for ``open`` that creates files with mode 0600."""
    return os.open(path, flags, 0o600)


def private_folder(folder: Path) -> None:
    """Creates a folder and its missing parents with mode 0700. Raises OSError."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(mode=0o700, exist_ok=True)
    restrict_access(folder)


def restrict_access(folder: Path) -> None:
    """Removes other users' access to the folder and to klype's own files in it.

    Left alone are other users' folders and files, shared places such as /tmp, and the user's home and its parents,
    which others may have to traverse.
    """
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
            continue  # deleted meanwhile, or on a file system without modes


@contextmanager
def draft_folder(name: str, place: Path) -> Iterator[Path]:
    """A new folder in ``place``, to be filled and renamed by the caller; removed on exit if it was not renamed."""
    draft = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=DRAFT, dir=place))
    handle = os.open(draft, os.O_RDONLY) if os.name == "posix" else None
    try:
        if handle is not None:
            lock(handle)
        draft.chmod(0o755)
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def remove_drafts(folder: Path) -> None:
    """Removes drafts in a folder whose writers were killed; those of running processes are left alone."""
    if sys.platform == "win32":  # without locks, which of them are running is unknown
        return
    for draft in folder.glob(f".*{DRAFT}"):
        with suppress(OSError):  # another process has locked or removed it
            handle = os.open(draft, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)  # non-blocking: it may be a pipe
            try:
                # an empty one may be so new that its writer has not locked it yet
                if lock(handle, wait=False):
                    if not draft.is_dir():
                        draft.unlink() if draft.stat().st_size else None
                    elif any(draft.iterdir()):
                        shutil.rmtree(draft)
            finally:
                os.close(handle)


def lock(handle: int, wait: bool = True) -> bool:
    """Locks an open file or folder until this process closes it. Returns whether it is locked: some systems and file
    systems have no locks. With ``wait`` False, raises BlockingIOError if another process holds the lock."""
    if sys.platform == "win32":
        return False
    import fcntl  # not on Windows

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries (new and renamed files) to disk, on systems that can open a folder."""
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
