"""run.json: a run's options, recipe, plans, progress and figures. Written atomically; read without torch."""

import json
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import psutil
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open

from klype import durable
from klype.config import make
from klype.errors import KlypeError, TrainingInterrupted, UsageError, writing_to
from klype.jsons import steps, tail
from klype.option import flag_of
from klype.runs.folder import read_run
from klype.runs.run_options import STAGES, RunOptions, StageOptions
from klype.sources.opening import PATH, kind_of

AnyOptions = TypeVar("AnyOptions", RunOptions, StageOptions)
# options that may differ when a run is resumed
FREE = frozenset(["out", "device", "cache", "processes", "program", "resume", "lang", "force", "human", "functions"])
PLACES = frozenset(["text", "instructions", "preferences", "data", "from_"])

MEANING = 2  # version of the measures' definitions in a run.json; older ones have none
# measures defined otherwise before: right and polite covered stories and fixed facts together, a right answer of one
# word was polite, S and KL covered other documents, and the annotator's second ranking was free of errors
REDEFINED = ("right", "polite", "s", "kl", "ceiling")


def redefined_measures(about: Mapping[str, Any]) -> tuple[str, ...]:
    """The measures of a run.json whose definition has changed since; outside the demo world only the ceiling."""
    stages = about.get("figures", {}).values()
    if about.get("meaning") == MEANING or any("right_fixed" in (stage or {}) for stage in stages):
        return ()
    return REDEFINED if about.get("settings", {}).get("kind") == "world" else ("ceiling",)


def incomparable(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """For each run.json, the measures that are defined otherwise in another of them, or judged by another judge."""
    found = [redefined_measures(about) for about in runs]
    found = found if len(set(found)) > 1 else [()] * len(found)
    rights = [[(s or {}).get("right", {}).get("judge") for s in about.get("figures", {}).values()] for about in runs]
    judges = {str(judge) for of_run in rights if (judge := next(filter(None, of_run), None))}
    return [(*names, "right") if len(judges) > 1 and "right" not in names else names for names in found]


class Record:
    """The contents of run.json, and the run's clock, which includes earlier starts.

    ``writes``: True on the first of several processes only.
    """

    def __init__(self, folder: Path, content: dict[str, Any], writes: bool = True) -> None:
        self.folder, self.content, self._writes = folder, content, writes
        self._began = time.perf_counter() - float(content["seconds"].get("total", 0.0))
        self._whole: float | None = None

    @staticmethod
    def start(folder: Path, options: RunOptions | StageOptions, about: dict[str, Any]) -> "Record":
        import torch

        import klype
        from klype.device import memory_gib, processor, usable_cores

        versions = {"klype": klype.__version__, "torch": torch.__version__, "python": platform.python_version()}
        machine = {"processor": processor(), "cores": str(usable_cores()), "memory": f"{memory_gib()[0]:.0f} GiB"}
        content = {"asked": recorded_options(options), **about, "versions": versions}
        content |= {"machine": {**machine, "system": platform.system()}, "plan": {}, "done": {}, "seconds": {}}
        return Record(folder, {**content, "figures": {}, "state": "running", "meaning": MEANING})

    @property
    def elapsed(self) -> float:
        """Seconds over all starts."""
        return self._whole if self._whole is not None else time.perf_counter() - self._began

    def stop_clock(self) -> None:
        """Stops the clock, so that time gate, report and run.json agree although the report is still to be written."""
        self._whole = self.elapsed

    def done(self, stage: str) -> bool:
        return stage in self.content["done"]

    def finish(self, stage: str, seconds: float, **about: Any) -> None:
        self.content["done"][stage] = about
        self.add_seconds(stage, seconds)
        self.save()

    def add_seconds(self, part: str, seconds: float) -> None:
        self.content["seconds"][part] = round(self.content["seconds"].get(part, 0.0) + seconds, 2)

    @contextmanager
    def time_stage(self, stage: str) -> Iterator[None]:
        """Times the block, and records the stage as done when it ends without an exception."""
        began = time.perf_counter()
        yield
        self.finish(stage, time.perf_counter() - began)

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Records the process while the block runs, and why it failed if it does. An interruption is no failure."""
        self.content["process"] = process_of(os.getpid())
        self.content.pop("failure", None)
        self.content["state"] = "running"
        self.save()
        try:
            yield
        except TrainingInterrupted:
            raise
        except Exception as error:
            self.content["state"], self.content["failure"] = "failed", getattr(error, "message", str(error))
            with suppress(OSError):
                self.save()
            raise

    def save(self) -> None:
        self.content["seconds"]["total"] = round(self.elapsed, 2)
        if self._writes:
            write_json(self.folder / "run.json", self.content)


def process_of(pid: int) -> dict[str, Any]:
    """A process by its number and start time, since numbers are used again."""
    try:
        return {"pid": pid, "created": psutil.Process(pid).create_time()}
    except psutil.Error:  # it has ended already
        return {"pid": pid, "created": time.time()}


def live_process(about: dict[str, Any]) -> psutil.Process | None:
    """The process described by ``process_of``, if it is still alive."""
    try:
        process = psutil.Process(int(about["pid"]))
        same = abs(process.create_time() - float(about["created"])) < 1.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, KeyError, ValueError, TypeError):
        return None


def recorded_options(options: RunOptions | StageOptions) -> dict[str, Any]:
    """The options as recorded in run.json, with which a resumed run must agree."""
    content: dict[str, Any] = TypeAdapter(type(options)).dump_python(options, mode="json", exclude=set(FREE))

    def from_anywhere(place: Any) -> Any:
        """Paths made absolute, since a run may be resumed from another folder; other names as they are."""
        if isinstance(place, list):
            return [from_anywhere(one) for one in place]
        is_path = place and kind_of(str(place)) is PATH
        return os.path.abspath(os.path.expanduser(place)) if is_path else place

    return {k: from_anywhere(v) if k in PLACES else v for k, v in content.items()}


def resumed_options(options: AnyOptions, saved: dict[str, Any]) -> AnyOptions:
    """The saved options, with those of this start that may differ. UsageError when others are given and differ."""
    kind = type(options)
    defaults = {field.name: list(field.default) if field.default == () else field.default for field in fields(kind)}

    def typed(name: str, value: Any) -> str:
        """An option as it was typed: "with --set a=1 --set b=2", "without --lora"."""
        option = flag_of(kind, name)
        if value is None or value is False or value in ("", []):
            return f"without {option}"
        values = value if isinstance(value, list) else [value]
        given = [option if v is True else f"{option} {f'{v:g}' if isinstance(v, float) else v}" for v in values]
        return f"with {' '.join(given)}"

    for name, value in recorded_options(options).items():
        if value not in (saved.get(name), defaults[name]):
            then, now = (typed(name, given) for given in (saved.get(name), value))
            raise UsageError(
                f"This run was started {then}, not {now}.",
                "Leave the option out to continue it, or choose another --out.",
            )
    return make(kind, {**saved, **{name: getattr(options, name) for name in FREE}})


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically."""
    durable.write(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


# the list of runs (klype runs list)

FIGURES = ("right", "bits_per_byte", "s", "kl")  # the list shows the first two that the newest model has
QUIET_S = 90.0  # a run of unknown process that has not written for this long counts as stopped
State = Literal["done", "running", "stopped", "failed"]


def overview(run: Path) -> dict[str, Any]:
    """One run's row of the list: state, stage, steps, seconds, figures, size; {run, why} if run.json is unreadable."""
    try:
        about = read_run(run)
    except KlypeError as error:
        return {"run": str(run), "why": error.message}
    rows = {name: next(steps(reversed(tail(run / name / "metrics.jsonl").split(b"\n"))), {}) for name in STAGES}
    known = {*about.get("plan", {}), *about.get("done", {})}
    begun = [name for name in STAGES if name in known or (run / name / "metrics.jsonl").is_file()]
    stage = begun[-1] if begun else None
    gates, figures = about.get("gates", []), about.get("figures", {})
    newest: dict[str, Any] = next((figures[name] for name in ("aligned", "finetuned", "base") if figures.get(name)), {})
    told = [name for name in FIGURES if newest.get(name, {}).get("value") is not None]
    size = 0
    for file in run.rglob("*"):
        with suppress(OSError):  # deleted meanwhile
            size += file.stat().st_size if file.is_file() and not file.is_symlink() else 0
    return {
        "run": str(run),
        "recipe": about.get("recipe"),
        "state": state_of(run, about),
        "stage": stage,
        "step": rows[stage].get("step") if stage else None,
        "steps": planned_steps(about, stage) if stage else None,
        "seconds": about.get("seconds", {}).get("total"),
        "trained_s": round(sum(row.get("seconds", 0.0) for row in rows.values()), 2),
        "parent": about.get("asked", {}).get("from_") or about.get("parent") or None,
        "stages": [name for name in STAGES if (run / name / "config.json").is_file()],
        "figures": {name: newest[name] for name in told[:2]},
        "parameters": next(filter(None, (parameters(run / name) for name in reversed(STAGES))), None),
        "bytes": size,
        "gates_passed": sum(bool(gate.get("passed")) for gate in gates),
        "gates": len(gates),
        **({"failure": about["failure"]} if about.get("state") == "failed" and about.get("failure") else {}),
    }


def state_of(run: Path, about: Mapping[str, Any]) -> State:
    """The state of a run, by its run.json and whether its process is alive."""
    state = about.get("state")
    if state in ("done", "failed"):
        return "done" if state == "done" else "failed"
    if "process" in about:
        return "running" if live_process(about["process"]) else "stopped"
    written = [file.stat().st_mtime for file in run.glob("*/metrics.jsonl")]
    return "running" if written and time.time() - max(written) < QUIET_S else "stopped"


def planned_steps(about: Mapping[str, Any], stage: str) -> int | None:
    """The number of steps in a stage's plan, as corrected; None before it is planned."""
    planned = about.get("plan", {}).get(stage, {})
    then = planned.get("then")
    found = (then if isinstance(then, dict) else planned).get("steps")
    return found if isinstance(found, int) else None


def parameters(folder: Path) -> int | None:
    """The number of parameters in a checkpoint, read from its header without torch; None if there is none."""
    with suppress(OSError, SafetensorError), safe_open(folder / "model.safetensors", "numpy") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys()) or None  # noqa: SIM118
    return None


# metrics as TensorBoard event files


TENSORBOARD = "tensorboard"


def write_events(run: Path) -> dict[str, int]:
    """Writes the metrics of each stage as event files under ``run``/tensorboard/STAGE. Returns {stage: last step}.

    UsageError for a folder without metrics, KlypeError where the package tensorboard is missing or cannot write.
    """
    if not (files := sorted(run.glob("*/metrics.jsonl"))):
        raise UsageError(f"{run} has no stage with metrics.", "Give the folder of a run.")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise KlypeError(
            "TensorBoard's files are written by the package tensorboard, which is not installed.",
            "pip install 'klype[tensorboard]'.",
        ) from None
    last: dict[str, int] = {}
    with writing_to(run / TENSORBOARD, "Make room."):
        shutil.rmtree(run / TENSORBOARD, ignore_errors=True)
        for file in files:
            stage = file.parent.name
            rows = list(steps(file.read_bytes().splitlines()))
            # rows have seconds since the start; the file's modification time is that of its last row
            began = file.stat().st_mtime - (rows[-1].get("seconds", 0.0) if rows else 0.0)
            with SummaryWriter(str(run / TENSORBOARD / stage)) as writer:
                for row in rows:
                    for name in sorted(row.keys() - {"step", "seconds"}):
                        writer.add_scalar(name, row[name], row["step"], walltime=began + row.get("seconds", 0.0))
            last[stage] = rows[-1]["step"] if rows else 0
    return last
