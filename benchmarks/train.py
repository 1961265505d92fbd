"""``python -m benchmarks train``: training speed side by side; every trainer has a process of its own, and they take
turns."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import psutil

from benchmarks.figures import median
from benchmarks.load import busy_cores, elsewhere
from benchmarks.process import Say, Team, Worker
from benchmarks.train_contenders import CONTENDERS
from benchmarks.train_task import SHAPES, WARM
from klype.device import gemm_gflops, processor, set_threads, usable_cores
from klype.errors import UsageError
from klype.values import Figure

ROUNDS = 5
# target duration in seconds of the timed steps of a turn, of which there are at least two
TURN_S = 2.0
# when the rounds of a shape must end, as a share of the minutes
SHARES = {"a": 0.45, "b": 0.8, "tiny": 1.0}
# name: (shape, ours, theirs, floor, goal)
SPEED: dict[str, tuple[str, str, str, float, float]] = {
    "a_vs_nanogpt_bf16": ("a", "klype", "nanoGPT bfloat16", 1.8, 2.3),
    "a_vs_hf_bf16": ("a", "klype", "HF Trainer bfloat16", 2.1, 2.8),
    "b_vs_nanogpt_bf16": ("b", "klype", "nanoGPT bfloat16", 1.5, 1.9),
    "b_vs_hf_bf16": ("b", "klype", "HF Trainer bfloat16", 1.6, 2.0),
    "a_vs_nanogpt_as_shipped": ("a", "klype", "nanoGPT float32", 3.5, 4.6),
    "a_float32_vs_nanogpt_float32": ("a", "klype float32", "nanoGPT float32", 1.0, 1.3),
    "tiny_vs_nanogpt_bf16": ("tiny", "klype", "nanoGPT bfloat16", 1.0, 3.0),
    "tiny_float32_vs_nanogpt_float32": ("tiny", "klype float32", "nanoGPT float32", 1.0, 3.0),
}
MFU, MEMORY = {"a_mfu": ("a", 0.6, 0.77)}, {f"{shape}_memory_vs_hf": (shape, 1.0, 0.8) for shape in ("a", "b")}


@dataclass
class Results:
    """Results by (trainer, shape): answers by round, precision and method, peak memory; and the matrix speed of each
    round, in GFLOP/s by precision."""

    runs: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)
    about: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    memory: dict[tuple[str, str], int] = field(default_factory=dict)
    gflops: dict[str, list[float]] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    elsewhere: float = 0.0


def train(minutes: float, say: Say, only: Sequence[str] = (), cache: Path | None = None) -> dict[str, Any]:
    """Runs the comparison and returns the command's JSON document: machine, rows, ratios, missing.

    ``only``: shapes to measure (empty: all). ``cache``: folder of klype's compiled code.
    """
    if not 0 < minutes <= 600:
        raise UsageError(f"--minutes should be above 0 and at most 600 (it is {minutes}).")
    unknown = next((name for name in only if name not in SHAPES), None)
    if unknown is not None:
        raise UsageError(f"There is no shape '{unknown}' to measure.", f"There are: {', '.join(SHAPES)}.")
    shapes, started, results = [s for s in SHAPES if not only or s in only], time.monotonic(), Results()
    set_threads(usable_cores())
    before, mine = busy_cores(), 0.0
    with tempfile.TemporaryDirectory(prefix="klype-bench-") as folder, (Path(folder) / "log").open("w") as log:
        for shape in shapes:
            share = SHARES[shape] if len(shapes) > 1 else 1.0
            deadline = started + 60 * minutes * share
            mine += _measure(shape, results, say, deadline, (log, cache or Path(folder)))
    results.elsewhere = elsewhere(before, mine + time.process_time())
    return _document(results, shapes)


def _measure(shape: str, results: Results, say: Say, deadline: float, where: tuple[IO[str], Path]) -> float:
    """Measures all trainers on one shape, in turns; returns the core-seconds that they used."""
    log, cache = where
    workers = {}
    for name, (_, packages, shapes) in CONTENDERS.items():
        missing = [package for package in packages if find_spec(package) is None]
        if missing:
            results.why[name] = f"{' and '.join(missing)} not installed (extra bench)"
        elif shape in shapes:
            workers[name] = Worker.start(name, log, "benchmarks.train_worker", as_built=not name.startswith("klype"))
    team, steps = Team(workers, results.why, say, deadline), dict[str, int]()
    try:
        for name in workers:
            about = team.order(name, shape, do="load", shape=shape, threads=usable_cores(), cache=str(cache))
            first = about and team.order(name, shape, do="train", steps=2)
            if about and first:
                results.about[name, shape] = about
                steps[name] = max(2, round(2 * TURN_S / first["seconds"]))
                say(f"{shape}: {name}: {about['how']}")
        for number in range(ROUNDS):
            begun = time.monotonic()
            for dtype in ("float32", "bfloat16"):
                results.gflops.setdefault(dtype, []).append(gemm_gflops(dtype, 2048, 0.2))
            for name, count in steps.items():
                answer = team.order(name, shape, do="train", steps=count)
                if answer is not None:
                    rate = count * SHAPES[shape].tokens / answer["seconds"]
                    results.runs.setdefault((name, shape), []).append({**answer, "rate": rate, "round": number})
            took = time.monotonic() - begun
            say(f"{shape}: round {number + 1} in {took:.0f} s")
            if time.monotonic() + took > deadline:
                break
        results.memory |= {(name, shape): size for name, size in team.peaks().items()}
    finally:
        team.end()
    return team.core_seconds


def _document(results: Results, shapes: Sequence[str]) -> dict[str, Any]:
    peaks = {dtype: median(found, "GFLOP/s") for dtype, found in results.gflops.items()}
    ratios: dict[str, Figure] = {}
    bounds: dict[str, tuple[float, float]] = {}
    for name, (shape, ours, theirs, *bound) in SPEED.items():
        if shape in shapes:
            ratios[name] = ratio(results.runs, (ours, shape), (theirs, shape), results.why)
            bounds[name] = (bound[0], bound[1])
    for name, (shape, *bound) in MFU.items():
        if shape in shapes:
            ratios[name] = mfu(results, ("klype", shape), peaks)
            bounds[name] = (bound[0], bound[1])
    for name, (shape, *bound) in MEMORY.items():
        own, peer = (results.memory.get((who, shape)) for who in ("klype", "HF Trainer bfloat16"))
        if shape in shapes:
            share = own / peer if own and peer else None
            ratios[name] = Figure(share, share, share, 1, "times", True, "" if share else "not measured")
            bounds[name] = (bound[0], bound[1])
    return {
        "bench": "train",
        "machine": {
            "processor": processor(),
            "system": platform.platform(),
            "threads": usable_cores(),
            "load": [round(x, 2) for x in psutil.getloadavg()],
            "busy_elsewhere": results.elsewhere,
            "gflops": {dtype: figure.json() for dtype, figure in peaks.items()},
        },
        "task": {"shapes": {name: asdict(SHAPES[name]) for name in shapes}, "warm": WARM, "optimizer": "AdamW"},
        "rows": [_row(results, key, peaks) for key in results.runs],
        "missing": results.why,
        "ratios": {name: figure.json() for name, figure in ratios.items()},
        "bounds": {name: {"floor": floor, "goal": goal} for name, (floor, goal) in bounds.items()},
    }


def _row(results: Results, key: tuple[str, str], peaks: Mapping[str, Figure]) -> dict[str, Any]:
    name, shape = key
    runs, about = results.runs[key], results.about[key]
    return {
        "trainer": name,
        "shape": shape,
        "precision": about["precision"],
        "how": about["how"],
        "tokens_per_second": median([run["rate"] for run in runs], "tokens/s").json(),
        "mfu": mfu(results, key, peaks).json(),
        "peak_bytes": results.memory.get(key),
        "loss": runs[-1]["loss"],
    }


def ratio(
    runs: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]],
    ours: tuple[str, str],
    theirs: tuple[str, str],
    why: Mapping[str, str],
) -> Figure:
    """klype's tokens per second relative to the peer's, paired within rounds."""
    mine, other = ({run["round"]: run["rate"] for run in runs.get(key, ())} for key in (ours, theirs))
    both = [mine[number] / other[number] for number in mine if number in other]
    return median(both, "times") if both else Figure(None, why=why.get(theirs[0], why.get(ours[0], "not measured")))


def mfu(results: Results, key: tuple[str, str], peaks: Mapping[str, Figure]) -> Figure:
    """Model FLOPs utilisation: the share of the measured matrix speed in the same precision."""
    runs = results.runs.get(key)
    peak = peaks[results.about[key]["precision"]].value if runs else None
    if not runs or not peak:
        return Figure(None, why=results.why.get(key[0], "not measured"))
    return median([run["rate"] * SHAPES[key[1]].flops / (peak * 1e9) for run in runs], "share")
