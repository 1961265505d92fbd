"""Whether ``klype run --minutes M`` takes M minutes: each recipe is timed from start to end, one at a time."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.load import busy_cores, elsewhere
from klype.device import processor, usable_cores
from klype.errors import UsageError
from klype.runs.recipe import names
from klype.values import Figure
from klype.world import World

WITHIN = 0.15  # of the minutes a run may be longer or shorter
CHARACTERS = 1_000_000  # of the text that recipes about one's own text are given
RECIPES = ("world", "text", "norsk", "english", "lora")
SET = {"lora": ("--lora", "8")}


def minutes(
    recipes: Sequence[str], sizes: Sequence[float], say: Callable[[str], None], seed: int = 0
) -> dict[str, Any]:
    """The document of ``python -m benchmarks minutes``: a row for each recipe and number of minutes.

    ``planned_s``: what the run planned, which is less than requested where a text would be memorised. ``taken_s``
    includes the start of klype, ``run_s`` does not. Adapters (lora) start from the shortest run on the same text.
    """
    wanted = recipes or RECIPES
    if unknown := [name for name in wanted if name not in names()]:
        raise UsageError(f"There is no recipe {unknown[0]}.", f"There are: {', '.join(names())}.")
    if not sizes or min(sizes) <= 0:
        raise UsageError("--minutes should be numbers above 0, such as 1,2,5.")
    rows: list[dict[str, Any]] = []
    before, own = busy_cores(), 0.0
    with tempfile.TemporaryDirectory(prefix="klype-minutes-") as place:
        text = Path(place) / "text.txt"
        text.write_text("\n\n".join(_stories(seed)), encoding="utf-8")
        for recipe in sorted(wanted, key=lambda name: name == "lora"):
            start = _start(Path(place), text, seed, min(sizes)) if recipe == "lora" else ""
            given = [] if recipe in ("world", "norsk") else ["--text", str(text), *SET.get(recipe, ())]
            for size in sizes:
                out = Path(place) / f"{recipe}-{size:g}"
                row = _timed([*given, *(["--from", start] if start else [])], recipe, size, out, seed)
                rows.append(row)
                own += row.get("core_seconds", 0.0)
                say(told(row))
    found = {f"{row['recipe']} {row['minutes']:g}": _ratio(row) for row in rows}
    return {
        "machine": {"processor": processor(), "cores": usable_cores(), "busy_elsewhere": elsewhere(before, own)},
        "rows": rows,
        "ratios": {name: figure.json() for name, figure in found.items()},
        "passed": all(row["within"] for row in rows),
    }


def told(row: dict[str, Any]) -> str:
    """A row as a line of text."""
    if "why" in row:
        return f"{row['recipe']}, {row['minutes']:g} minutes: {row['why']}"
    verdict = "passed" if row["within"] else "missed"
    took = f"planned {row['planned_s']:.0f} s, taken {row['taken_s']:.0f} s, ratio {row['ratio']:.2f}"
    early = ", alignment ended early" if row["early"] else ""
    return f"{verdict}  {row['recipe']}, {row['minutes']:g} minutes: {took}{early}"


def _ratio(row: dict[str, Any]) -> Figure:
    if "why" in row:
        return Figure(None, why=row["why"])
    return Figure(row["ratio"], row["ratio"], row["ratio"], 1, "taken a planned second", certain=True)


def _timed(given: Sequence[str], recipe: str, size: float, out: Path, seed: int) -> dict[str, Any]:
    """One run in a process of its own."""
    command = [sys.executable, "-m", "klype", "run", "--recipe", recipe, "--minutes", f"{size:g}", "--seed", str(seed)]
    began, cores = time.perf_counter(), _children_seconds()
    ran = subprocess.run([*command, *given, "--out", str(out), "--json"], capture_output=True, text=True, check=False)
    taken, spent = time.perf_counter() - began, _children_seconds() - cores
    row = {"recipe": recipe, "minutes": size, "taken_s": round(taken, 1), "core_seconds": round(spent, 1)}
    try:
        document = json.loads(ran.stdout)
    except ValueError:
        return {**row, "within": False, "why": ran.stderr[-300:].strip() or "klype run said nothing"}
    if "error" in document:
        return {**row, "within": False, "why": document["error"]["message"]}
    planned, seconds = document["planned_s"], document["seconds"]
    ratio = taken / planned
    figures = {"planned_s": planned, "run_s": seconds["total"], "ratio": round(ratio, 3), "seconds": seconds}
    kept = json.loads((out / "run.json").read_text(encoding="utf-8"))
    # an alignment that is stopped, for its reward rises while answers get worse, or refused leaves its time unused
    early = bool(kept.get("refused") or kept.get("watch", {}).get("stopped"))
    return {**row, **figures, "early": early, "within": ratio - 1 <= WITHIN and (early or ratio >= 1 - WITHIN)}


def _start(place: Path, text: Path, seed: int, size: float) -> str:
    """The model from which adapters start: of a run on the same text that exists, or of one that is made now."""
    made = sorted(place.glob("text-*/pretrain/model.safetensors"))
    if not made:
        _timed(["--text", str(text)], "text", size, place / "text-start", seed)
    return str(made[0].parent if made else place / "text-start" / "pretrain")


def _stories(seed: int) -> Iterator[str]:
    """Texts of the demo world, a megabyte of them."""
    world, rng, left = World("full"), Random(seed), CHARACTERS
    while left > 0:
        text = world.text(world.document(rng).words)
        left -= len(text)
        yield text


def _children_seconds() -> float:
    """Core-seconds of all child processes that have ended; 0 where the system does not report them."""
    if sys.platform == "win32":
        return 0.0
    import resource

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
