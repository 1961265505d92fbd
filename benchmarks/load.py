"""How much of the machine other programs used while a benchmark ran, and the peak memory of a process."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil

# share of the cores that other programs may use before the reader is warned
BUSY = 0.1


def busy_cores() -> tuple[float, float]:
    """Core-seconds since the machine started: those that were used, and the total."""
    times = psutil.cpu_times()._asdict()
    counted = sum(times.values()) - times.get("guest", 0.0) - times.get("guest_nice", 0.0)  # they are in user, too
    return counted - times["idle"] - times.get("iowait", 0.0), counted


def elsewhere(before: tuple[float, float], mine: float) -> float:
    """The share of the cores that other programs used since ``before``; ``mine``: core-seconds of our own."""
    after = busy_cores()
    used, whole = after[0] - before[0], after[1] - before[1]
    return min(1.0, max(0.0, used - mine) / whole) if whole else 0.0


def peak_bytes() -> int | None:
    """Peak resident memory of this process in bytes; None where the system does not report it."""
    if sys.platform != "linux":
        return None
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
