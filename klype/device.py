"""The machine: threads, devices, precision, memory, energy, and short measurements of its speed.

torch is imported inside the functions that compute, so that ``thread_policy`` can come before it.
"""

import ctypes
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

import psutil

from klype.errors import UsageError
from klype.option import Option

if TYPE_CHECKING:
    import torch

Computed = Literal["float32", "bfloat16", "int8"]
Precision = Literal[Computed, "auto"]
POLICY = (("OMP_WAIT_POLICY", "passive"), ("GOMP_SPINCOUNT", "1000"), ("KMP_BLOCKTIME", "0"))
POWERCAP = Path("/sys/class/powercap")
# float32 operations in a matrix product from which a second thread pays off (measured: docs/laboratory/log.md)
WAKING = 20e6
# glibc: malloc(3), mallopt(3)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def thread_policy(environ: MutableMapping[str, str] = os.environ) -> dict[str, str]:
    """Sets OpenMP's variables, where the user has not, so that waiting threads spin 1,000 times and then sleep; returns
    the variables in force. To be called before torch is imported.

    Longer spinning makes everything ten times as slow where several processes share the cores.
    """
    for name, value in POLICY:
        environ.setdefault(name, value)
    return {name: environ[name] for name, _ in POLICY}


def memory_policy() -> bool:
    """Makes glibc keep freed memory in the heap, so that a training step needs no new pages. Returns whether it did."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    wanted = {M_MMAP_THRESHOLD: 1 << 30, M_TRIM_THRESHOLD: (1 << 31) - 1, M_TOP_PAD: 64 << 20}
    return all([mallopt(parameter, value) == 1 for parameter, value in wanted.items()])


def trim_memory() -> None:
    """Returns the freed memory that `memory_policy` keeps to the system."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def usable_cores() -> int:
    """Number of physical cores that this process may use, by its affinity and the container's quota."""
    logical = len(os.sched_getaffinity(0)) if sys.platform == "linux" else psutil.cpu_count() or 1
    physical = psutil.cpu_count(logical=False) or logical
    return max(1, min(logical, physical, _quota() or logical))


def set_threads(threads: int | None = None) -> int:
    """Sets torch's number of threads (default: all usable cores) and returns it."""
    import torch

    if threads is not None and threads < 1:
        raise UsageError(f"The number of threads should be at least 1 (it is {threads}).")
    torch.set_num_threads(threads or usable_cores())
    return torch.get_num_threads()


@contextmanager
def threads_for(operations: float) -> Iterator[None]:
    """Computes with one thread in this block if its matrix products have fewer than ``WAKING`` operations each."""
    import torch

    threads = torch.get_num_threads()
    if threads == 1 or operations >= WAKING:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def a_device(name: str) -> str:
    """The name of a device. Raises UsageError if there is no such device; torch is not imported for auto and cpu."""
    if name not in ("auto", "cpu"):
        pick_device(name)
    return name


Device = Annotated[
    str, Option("auto (cuda or mps where there is one, else cpu), cpu, cuda, cuda:1 or mps.", check=a_device)
]


def pick_device(name: str = "auto") -> "torch.device":
    """ "auto", "cpu", "cuda", "cuda:1" or "mps" → a device that exists here."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"There is no kind of device '{name}': use auto, cpu, cuda or mps.") from None
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= counts.get(device.type, 0):
        raise UsageError(f"There is no device '{name}' on this machine.", "Use --device cpu, or leave it out.")
    return device


def rank_device(local_rank: int) -> "torch.device":
    """The device of one of several processes on a machine: its own GPU if there are GPUs, else the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = pick_device(f"cuda:{local_rank}")
    torch.cuda.set_device(device)
    return device


def pick_precision(name: str, device: "torch.device") -> Computed:
    """The precision of this name; "auto" is bfloat16 if a short measurement finds it 1.5 times as fast as float32."""
    if name in get_args(Computed):
        return cast(Computed, name)
    if name != "auto":
        raise UsageError(f"There is no precision '{name}': use float32, bfloat16, int8 or auto.")
    fast = gemm_gflops("bfloat16", 512, 0.1, device) > 1.5 * gemm_gflops("float32", 512, 0.1, device)
    return "bfloat16" if fast else "float32"


def gemm_gflops(dtype: str, size: int = 1024, seconds: float = 0.3, device: "torch.device | None" = None) -> float:
    """Measured speed of matrix products in GFLOP/s: the best of repeated size³ products (2·size³ FLOP each)."""
    import torch

    device = device or torch.device("cpu")
    a = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    b = torch.randn(size, size, device=device).to(getattr(torch, dtype))
    return 2 * size**3 / _best(lambda: torch.mm(a, b), seconds, device) / 1e9


def bandwidth_gbs(mebibytes: int = 256, seconds: float = 0.3) -> float:
    """Measured speed of reading memory in GB/s: the sum of a buffer that is larger than the caches."""
    import torch

    buffer = torch.ones(mebibytes << 18)
    return buffer.nbytes / _best(buffer.sum, seconds, buffer.device) / 1e9


def memory_gib() -> tuple[float, float]:
    """Main memory in GiB: (total, available now)."""
    memory = psutil.virtual_memory()
    return memory.total / 2**30, memory.available / 2**30


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


class EnergyMeter:
    """Measures the energy used by the CPU packages, where Linux's RAPL counters are readable."""

    def __init__(self, root: Path = POWERCAP) -> None:
        self._counters = [c for c in sorted(root.glob("*-rapl:?")) if _microjoules(c / "energy_uj") is not None]
        self._last = [_microjoules(c / "energy_uj") or 0 for c in self._counters]
        self._total = 0

    @property
    def available(self) -> bool:
        return bool(self._counters)

    def joules(self) -> float | None:
        """Joules since the meter was made; None if no counter is readable. Counters wrap: call it at least hourly."""
        for i, counter in enumerate(self._counters):
            now = _microjoules(counter / "energy_uj")
            if now is None:
                return None
            span = (_microjoules(counter / "max_energy_range_uj") or 0) + 1
            self._total += now - self._last[i] if now >= self._last[i] else now - self._last[i] + span
            self._last[i] = now
        return self._total / 1e6 if self._counters else None


def _best(work: Callable[[], object], seconds: float, device: "torch.device") -> float:
    """The shortest of repeated timings in seconds, after a warm-up."""
    import torch

    wait: Callable[[], None] = (lambda: None) if device.type == "cpu" else torch.accelerator.synchronize
    work()
    wait()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        work()
        wait()
        best = min(best, time.perf_counter() - start)
    return best


def _quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> int | None:
    """The container's CPU quota in cores (cgroup v2), rounded up; None if there is none."""
    try:
        quota, period = file.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else -(-int(quota) // int(period))


def _microjoules(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
