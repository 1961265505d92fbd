"""Files that are whole or not there, whenever the power fails: written beside, flushed to disk, renamed."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path


def write(file: Path, content: str | bytes | memoryview) -> None:
    """All of it or nothing, in place of what was there. Raises OSError; what was there is then still there."""
    beside = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        with beside.open("wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


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
