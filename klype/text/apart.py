"""What a stranger wrote, run in a process of its own that has a limit of time and of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from klype.errors import KlypeError

WALL_SECONDS = 60
"""For machines that are busy, and for systems without the other limits."""


@dataclass(frozen=True, slots=True)
class Limits:
    """``seconds`` of processor time, ``memory`` bytes of address space."""

    seconds: int
    memory: int


def apart(function: Callable[[Any], Any], job: Any, limits: Limits) -> Any:
    """What a module's function returns for a job, both as JSON. MemoryError when it took too much, or ended the
    process; what it raises is a KlypeError."""
    root = str(Path(__file__).resolve().parents[2])
    start = (
        f"import sys; sys.path.insert(0, {root!r}); from klype.text.apart import answer; "
        f"from {function.__module__} import {function.__name__} as f; answer(f, {limits.seconds}, {limits.memory})"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", start],
            input=json.dumps(job).encode(),
            capture_output=True,
            timeout=WALL_SECONDS,
            check=False,
        )
        found = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError, RecursionError) as error:
        raise MemoryError from error
    if "error" in found:
        raise KlypeError(found["error"])
    return found["value"]


def answer(function: Callable[[Any], Any], seconds: int, memory: int) -> None:
    """Read a job as JSON from standard input, write its result as JSON to standard output."""
    bound(Limits(seconds, memory))
    job = json.load(sys.stdin)
    try:
        found = {"value": function(job)}
    except KlypeError as error:
        found = {"error": error.message}
    json.dump(found, sys.stdout)


def bound(limits: Limits) -> None:
    """Bound this process; where the system has no such limits, the parent's clock remains."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for what, most in ((resource.RLIMIT_CPU, limits.seconds), (resource.RLIMIT_AS, limits.memory)):
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(what, (most, hard))
        except (ValueError, OSError):  # macOS refuses some; the parent's clock remains
            continue
