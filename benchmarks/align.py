"""``python -m benchmarks align``: training and alignment compared with TRL, on the same weights, token ids, sizes and
threads.

Each trainer runs in a process of its own. They take turns, and ratios are computed within a round. Threads of both
sleep while they wait (klype's policy): spinning would slow down whichever of them shares a core with another program.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.align_task import TASKS, Given, Sizes, prepare, versions
from benchmarks.align_trainers import TRAINERS
from benchmarks.contenders import package_version
from benchmarks.figures import median
from benchmarks.load import busy_cores, elsewhere
from benchmarks.process import Say, Team, Worker
from klype.device import processor, usable_cores
from klype.errors import UsageError
from klype.values import Figure

# floor and goal of each ratio: klype's tokens per second relative to TRL's
BOUNDS: dict[str, tuple[float, float | None]] = {
    "sft": (1.5, 3.0),
    "reward": (1.5, None),
    "dpo": (1.5, None),
    "grpo": (2.0, 4.0),
}
ROUNDS = 9  # at most
MODULE = "benchmarks.align_worker"


@dataclass
class Results:
    """Results by (trainer, task), one entry per round, and the reason why a trainer has none."""

    runs: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)
    elsewhere: float = 0.0  # share of the cores that other programs had meanwhile


def align(minutes: float, say: Say, sizes: Sizes | None = None, only: Sequence[str] = TASKS) -> dict[str, Any]:
    """Runs the comparison and returns the command's JSON document. It ends within ``minutes``, except for the last
    order.

    ``only``: the tasks, of ``sft``, ``reward``, ``dpo`` and ``grpo``. Raises UsageError for others, and for minutes out
    of range.
    """
    if not 0 < minutes <= 600:
        raise UsageError(f"--minutes should be above 0 and at most 600 (it is {minutes}).")
    unknown = next((name for name in only if name not in TASKS), None)
    if unknown is not None:
        raise UsageError(f"There is no task '{unknown}' to compare.", f"There are: {', '.join(TASKS)}.")
    deadline, results, sizes = time.monotonic() + 60 * minutes, Results(), sizes or Sizes()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="klype-bench-")))
        say("preparing")
        given = prepare(folder, sizes, usable_cores())
        given.write(folder / "given.json")
        log = stack.enter_context((folder / "log").open("w+", encoding="utf-8"))
        team = Team(_start(results, log), results.why, say, deadline)
        stack.callback(team.end)
        _load(team, folder)
        before, mine = busy_cores(), team.core_seconds
        _measure(team, results, [task for task in TASKS if task in only], folder)
        results.elsewhere = elsewhere(before, team.core_seconds - mine)
        results.peak = team.peaks()
    return _document(given, results, only)


def _start(results: Results, log: Any) -> dict[str, Worker]:
    """Starts a process for every trainer that is installed; tells why the others have none."""
    workers = {}
    for name, (_, package) in TRAINERS.items():
        if package != "klype" and package_version(package) is None:
            results.why[name] = f"{package} is not installed"
        else:
            workers[name] = Worker.start(name, log, MODULE, as_built=False)
    return workers


def _load(team: Team, folder: Path) -> None:
    for name in team.workers:
        answer = team.order(name, do="load", given=str(folder / "given.json"))
        if answer is not None:
            team.say(f"{name}: loaded in {answer['seconds']:.1f} s")


def _measure(team: Team, results: Results, tasks: Sequence[str], folder: Path) -> None:
    """Measures as many rounds of all tasks as fit. The first round of each trainer and task is a warm-up, and not
    counted if there is time for a second one."""
    took = 0.0
    for number in range(ROUNDS + 1):
        begun = time.monotonic()
        if number > 1 and begun + took > team.deadline:
            break
        for task in tasks:
            for name in team.workers:
                answer = team.order(name, task, do="train", task=task, folder=str(folder / f"{name}-{task}"))
                if answer is not None:
                    results.runs.setdefault((name, task), []).append(answer)
        took = time.monotonic() - begun
        team.say(f"round {number + 1} in {took:.0f} s")
    for runs in results.runs.values():
        if len(runs) > 1:
            del runs[0]


def _document(given: Given, results: Results, only: Sequence[str]) -> dict[str, Any]:
    tasks = [task for task in TASKS if task in only]
    found = {f"{task}_vs_trl": ratio(results.runs, task, "seconds", results.why) for task in tasks}
    per_core = {f"{task}_vs_trl": ratio(results.runs, task, "core_seconds", results.why) for task in tasks}
    return {
        "bench": "align",
        "machine": {
            "processor": processor(),
            "system": platform.platform(),
            "threads": given.threads,
            "load": [round(x, 2) for x in psutil.getloadavg()],
            "busy_elsewhere": results.elsewhere,
            "versions": versions(),
        },
        "task": {
            **asdict(given.sizes),
            "mean_tokens": given.mean_lengths,
            "optimizer": "AdamW",
            "precision": "float32",
        },
        "rows": [_row(name, task, runs) for (name, task), runs in results.runs.items()],
        "peak_bytes": results.peak,
        "missing": results.why,
        "ratios": {name: figure.json() for name, figure in found.items()},
        "ratios_per_core": {name: figure.json() for name, figure in per_core.items()},
        "bounds": {f"{task}_vs_trl": dict(zip(("floor", "goal"), BOUNDS[task], strict=True)) for task in tasks},
    }


def _row(name: str, task: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row of the document: one trainer at one task, with the median, minimum and maximum of the rounds."""

    def rate(what: str, over: str) -> dict[str, Any]:
        unit = f"{what}/{'s' if over == 'seconds' else 'core-second'}"
        return median([run[what] / run[over] for run in runs if run[over]], unit).json()

    return {
        "trainer": name,
        "version": package_version(TRAINERS[name][1]),
        "task": task,
        "tokens_per_second": rate("tokens", "seconds"),
        "completions_per_second": rate("completions", "seconds"),
        "tokens_per_core_second": rate("tokens", "core_seconds"),
        "tokens": runs[-1]["tokens"],
        "loss": runs[-1]["loss"],
        "how": runs[-1]["how"],
    }


def ratio(
    runs: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]], task: str, over: str, why: Mapping[str, str]
) -> Figure:
    """klype's tokens per second relative to TRL's, paired within rounds."""
    mine, theirs = runs.get(("klype", task), ()), runs.get(("TRL", task), ())
    if not mine or not theirs:
        return Figure(None, why="; ".join(f"{k}: {v}" for k, v in why.items()) or "not measured")
    pairs = zip(mine, theirs, strict=False)
    rates = [(a["tokens"] / a[over]) / (b["tokens"] / b[over]) for a, b in pairs if a[over] and b[over]]
    return median(rates, "times")
