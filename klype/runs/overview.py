"""What a list of runs says of each: how it stands, how far it came, from what, what it reached, how large it is."""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from klype.errors import KlypeError
from klype.jsons import finite, steps
from klype.runs.folder import read_run
from klype.runs.options import STAGES
from klype.runs.record import living

FIGURES = ("right", "bits_per_byte", "s", "kl")  # those that a list shows: the first two that the newest model has
QUIET_S = 90.0  # A run without a process of its own that has not written for so long was stopped
State = Literal["done", "running", "stopped", "failed"]


def overview(run: Path) -> dict[str, Any]:
    """One run; a run.json that cannot be read says why."""
    try:
        about = read_run(run)
    except KlypeError as error:
        return {"run": str(run), "why": error.message}
    plan, done = _table(about, "plan"), _table(about, "done")
    begun = [name for name in STAGES if name in plan or name in done or (run / name / "metrics.jsonl").is_file()]
    stage = begun[-1] if begun else None
    rows = {name: _last_row(run / name / "metrics.jsonl") for name in STAGES}
    gates = [gate for gate in about.get("gates") or [] if isinstance(gate, dict)]
    trained = [float(row["seconds"]) for row in rows.values() if isinstance(row.get("seconds"), int | float)]
    figures = _table(about, "figures")
    newest: dict[str, Any] = next((figures[name] for name in ("aligned", "finetuned", "base") if figures.get(name)), {})
    told = [k for k in FIGURES if isinstance(newest.get(k), dict) and newest[k].get("value") is not None]
    return {
        "run": str(run),
        "recipe": about.get("recipe"),
        "state": state_of(run, about),
        "stage": stage,
        "step": rows[stage].get("step") if stage else None,
        "steps": planned_steps(about, stage) if stage else None,
        "seconds": _table(about, "seconds").get("total"),
        "trained_s": round(sum(trained), 2),
        "parent": _table(about, "asked").get("from_") or about.get("parent") or None,
        "stages": [name for name in STAGES if (run / name / "config.json").is_file()],
        "figures": {name: newest[name] for name in told[:2]},
        "parameters": next(filter(None, (parameters(run / name) for name in reversed(STAGES))), None),
        "bytes": sum(_size(file) for file in run.rglob("*")),
        "gates_passed": sum(bool(gate.get("passed")) for gate in gates),
        "gates": len(gates),
        **({"failure": about["failure"]} if about.get("state") == "failed" and about.get("failure") else {}),
    }


def state_of(run: Path, about: Mapping[str, Any]) -> State:
    """How a run stands: by what its run.json says, and by whether its process lives."""
    if about.get("state") == "done":
        return "done"
    if about.get("state") == "failed":
        return "failed"
    if "process" in about:
        return "running" if living(_table(about, "process")) else "stopped"
    written = [file.stat().st_mtime for file in run.glob("*/metrics.jsonl")]
    return "running" if written and time.time() - max(written) < QUIET_S else "stopped"


def planned_steps(about: Mapping[str, Any], stage: str) -> int | None:
    """How many steps a stage will take, when it is planned."""
    planned = _table(about, "plan").get(stage)
    if not isinstance(planned, dict):
        return None
    then = planned.get("then")
    steps = then.get("steps") if isinstance(then, dict) else planned.get("steps")
    return steps if isinstance(steps, int) else None


def _last_row(file: Path) -> dict[str, Any]:
    """The newest whole line of a metrics.jsonl that may be growing."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - (1 << 14)))
            lines = opened.read().split(b"\n")
    except OSError:
        return {}
    return next(steps(reversed(lines)), {})


def parameters(folder: Path) -> int | None:
    """Numbers in a checkpoint, from its header (which this room reads without torch)."""
    try:
        with (folder / "model.safetensors").open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = finite(file.read(min(length, 100_000_000)))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__") or None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None


def _size(file: Path) -> int:
    with suppress(OSError):
        return file.stat().st_size if file.is_file() and not file.is_symlink() else 0
    return 0


def _table(about: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = about.get(key)
    return found if isinstance(found, dict) else {}
