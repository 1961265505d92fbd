"""How much of the machine other programs had while a benchmark ran, and how much memory a process took."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil

BUSY = 0.1
"""Share of the cores that others may have before the reader is warned."""


def busy_cores() -> tuple[float, float]:
    """Core-seconds since the machine started: those that were used, and all."""
    times = psutil.cpu_times()._asdict()
    counted = sum(times.values()) - times.get("guest", 0.0) - times.get("guest_nice", 0.0)  # they are in user, too
    return counted - times["idle"] - times.get("iowait", 0.0), counted


def elsewhere(before: tuple[float, float], mine: float) -> float:
    """The share of the cores that others had since ``before``, of which ``mine`` core-seconds were our own."""
    after = busy_cores()
    used, whole = after[0] - before[0], after[1] - before[1]
    return min(1.0, max(0.0, used - mine) / whole) if whole else 0.0


def peak_bytes() -> int | None:
    """The most memory this process has had resident; None where the system does not tell."""
    if sys.platform != "linux":
        return None
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
