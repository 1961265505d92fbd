"""C code compiled once per machine, and cached where nobody else can write."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from klype import durable
from klype.durable import hash_file

COMPILERS = ("cc", "gcc", "clang")
# flags for the processor's own instructions and threads, tried in this order until the compiler accepts some
TUNED = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-fopenmp",), ("-march=native",), ())
FLAGS = ("-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
# inside a container, the owner shown for files that belong to users outside it
NOBODY = 65534


def library(
    sources: Sequence[Path],
    folder: Path,
    announce: Callable[[], None] = lambda: None,
    compilers: Sequence[str] = COMPILERS,
) -> ctypes.CDLL | None:
    """Compiled now, or before: it is kept in ``folder``, for these instructions of the processor and this source.

    None where there is no C compiler, or no place to keep it that is the user's alone. ``announce`` is called before
    a compilation.
    """
    compiler = next((found for name in compilers if (found := shutil.which(name))), None)
    if compiler is None or sys.platform == "win32":
        return None
    texts = [source.read_text(encoding="utf-8") for source in sources]
    instructions = platform.processor()  # what it can do: a home folder may be shared by machines
    if sys.platform == "linux":
        cpus = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        instructions = next((line for line in cpus if line.startswith(("flags", "Features"))), "")
    about = (*texts, compiler, *FLAGS, platform.platform(), instructions)
    name = f"{sources[-1].stem}-{hashlib.sha256(repr(about).encode()).hexdigest()[:16]}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = folder.resolve()
        if not _mine(folder) or any(_open_to_others(parent) for parent in folder.parents):
            return None
        file = _kept(folder, name)
        if file is None:
            announce()
            file = _compile(compiler, [str(source) for source in sources if source.suffix == ".c"], folder / name)
        return ctypes.CDLL(str(file))
    except (OSError, subprocess.SubprocessError):
        return None


def _kept(folder: Path, name: str) -> Path | None:
    """The cached library if its hash is still the one in its name; damaged files are removed."""
    for file in folder.glob(f"{name}-*.so"):
        if file.is_symlink() or not _mine(file):
            continue
        if file.stem == f"{name}-{hash_file(file)}":
            return file
        file.unlink()
    return None


def _compile(compiler: str, sources: list[str], place: Path) -> Path:
    """The library, named for its hash: a loader maps a file as it is, and ends the process where half is missing."""
    with tempfile.TemporaryDirectory(dir=place.parent) as beside:
        new = Path(beside) / "new.so"
        for tuned in TUNED:
            command = [compiler, *FLAGS, *tuned, *sources, "-o", str(new), "-lm"]
            if subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0:
                break
        else:
            raise subprocess.SubprocessError
        file = place.with_name(f"{place.name}-{hash_file(new)}.so")
        durable.write(file, new.read_bytes())
        file.chmod(0o700)
    return file


def _mine(path: Path) -> bool:
    """Whether nobody else can have written it."""
    about = path.stat()
    return about.st_uid == os.getuid() and not about.st_mode & 0o022


def _open_to_others(folder: Path) -> bool:
    """Whether somebody else may put another folder in the place of one that lies in it: its owner, or anybody. (Inside
    a container, what belongs to nobody there is the system's.)"""
    about = folder.stat()
    anybody = about.st_mode & stat.S_IWOTH and not about.st_mode & stat.S_ISVTX
    return bool(anybody) or about.st_uid not in (0, os.getuid(), NOBODY)
