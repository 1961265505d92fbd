"""Compiles C code once per machine, caches it where nobody else can write, and calls it with tensors."""

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
from typing import Any

import torch
from torch import Tensor

from klype import durable
from klype.durable import hash_file

COMPILERS = ("cc", "gcc", "clang")
# flags for the processor's own instructions and threads, tried in this order until the compiler accepts some
TUNED = (("-march=native", "-fopenmp"), ("-mcpu=native", "-fopenmp"), ("-fopenmp",), ("-march=native",), ())
FLAGS = ("-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
# inside a container, the owner shown for files that belong to users outside it
NOBODY = 65534
# of a struct's fields
POINTER, COUNT = ctypes.c_void_p, ctypes.c_int64


class Struct(ctypes.Structure):
    """A C struct. Pointers are set from tensors, which the caller keeps alive."""

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        self.put(**fields)

    def put(self, **fields: Any) -> None:
        for name, value in fields.items():
            setattr(self, name, address(value) if isinstance(value, Tensor) else value)


def struct_fields(kind: Any, *names: str) -> tuple[tuple[str, Any], ...]:
    """Several fields of one type, for ``Struct._fields_``."""
    return tuple((name, kind) for name in names)


def address(tensor: Tensor) -> int:
    """The address of a contiguous tensor's data."""
    assert tensor.is_contiguous()
    return tensor.data_ptr()


def call(library: ctypes.CDLL, name: str, *arguments: Tensor | Struct | bool | int | None) -> None:
    """Call a function of the library. Tensors and structs are passed as pointers, integers as ``int64_t``, booleans as
    ``int``, then the number of threads. MemoryError if it returns anything but 0."""
    given: list[Any] = []
    for one in arguments:
        if isinstance(one, Tensor):
            given.append(ctypes.c_void_p(address(one)))
        elif isinstance(one, int):
            given.append(ctypes.c_int(one) if isinstance(one, bool) else ctypes.c_int64(one))
        else:
            given.append(None if one is None else ctypes.byref(one))
    if getattr(library, name)(*given, ctypes.c_int(torch.get_num_threads())):
        raise MemoryError


def library(
    sources: Sequence[Path],
    folder: Path,
    announce: Callable[[], None] = lambda: None,
    compilers: Sequence[str] = COMPILERS,
) -> ctypes.CDLL | None:
    """The library of these sources, compiled now or taken from ``folder``, where it is kept by processor and source.

    None where there is no C compiler, or ``folder`` is not the user's alone. ``announce`` is called before compiling.
    """
    compiler = next((found for name in compilers if (found := shutil.which(name))), None)
    if compiler is None or sys.platform == "win32":
        return None
    texts = [source.read_text(encoding="utf-8") for source in sources]
    instructions = platform.processor()  # part of the name, since machines may share a home folder
    if sys.platform == "linux":
        cpus = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        instructions = next((line for line in cpus if line.startswith(("flags", "Features"))), "")
    made_from = (*texts, compiler, *FLAGS, platform.platform(), instructions)
    name = f"{sources[-1].stem}-{hashlib.sha256(repr(made_from).encode()).hexdigest()[:16]}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = folder.resolve()
        if not _mine(folder):
            return None
        for about in (parent.stat() for parent in folder.parents):
            # whoever may write in a parent can replace the folder: its owner, or anybody where it is world-writable
            # (inside a container, what belongs to NOBODY is the system's)
            anybody = about.st_mode & stat.S_IWOTH and not about.st_mode & stat.S_ISVTX
            if anybody or about.st_uid not in (0, os.getuid(), NOBODY):
                return None
        for file in folder.glob(f"{name}-*.so"):
            if not file.is_symlink() and _mine(file):
                if file.stem == f"{name}-{hash_file(file)}":
                    return ctypes.CDLL(str(file))
                file.unlink()  # damaged
        announce()
        return ctypes.CDLL(str(_compile([compiler, *FLAGS], [s for s in sources if s.suffix == ".c"], folder / name)))
    except (OSError, subprocess.SubprocessError):
        return None


def _compile(command: list[str], sources: Sequence[Path], place: Path) -> Path:
    """The compiled library, its hash in its name: the loader would end the process at a file that is incomplete."""
    with tempfile.TemporaryDirectory(dir=place.parent) as beside:
        new = Path(beside) / "new.so"
        for tuned in TUNED:
            tried = [*command, *tuned, *map(str, sources), "-o", str(new), "-lm"]
            if subprocess.run(tried, capture_output=True, timeout=120, check=False).returncode == 0:
                break
        else:
            raise subprocess.SubprocessError
        file = place.with_name(f"{place.name}-{hash_file(new)}.so")
        durable.write(file, new.read_bytes())
        file.chmod(0o700)
    return file


def _mine(path: Path) -> bool:
    """Whether nobody but this user can have written it."""
    about = path.stat()
    return about.st_uid == os.getuid() and not about.st_mode & 0o022
