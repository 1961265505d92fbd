"""run.json: what a run is, what it planned, how far it has come. Written whole, after everything worth keeping."""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import psutil
from pydantic import TypeAdapter

from klype import durable
from klype.config import make
from klype.errors import Interrupted, KlypeError, UsageError
from klype.jsons import steps
from klype.option import spelled
from klype.runs.options import RunOptions, StageOptions
from klype.sources.opening import PATH, kind_of

Asked = TypeVar("Asked", RunOptions, StageOptions)
# Options that may differ when a run is resumed.
FREE = frozenset(["out", "device", "cache", "processes", "program", "resume", "lang", "force", "human", "functions"])
PLACES = frozenset(["text", "instructions", "preferences", "data", "from_"])

MEANING = 2  # of figures in a run.json; those without it are of before
# What meant something else before: right and polite were of stories and of what is always true together, a right answer
# of one word was polite, S and KL were of other documents, and the annotator's other ranking was free of errors.
OTHERWISE = ("right", "polite", "s", "kl", "ceiling")


def meant_otherwise(about: Mapping[str, Any]) -> tuple[str, ...]:
    """Measures of this run.json that mean something else than today's; outside the world only the annotator's own."""
    figures, settings = about.get("figures"), about.get("settings")
    stages = figures.values() if isinstance(figures, Mapping) else ()
    if about.get("meaning") == MEANING or any(isinstance(s, Mapping) and "right_fixed" in s for s in stages):
        return ()
    world = isinstance(settings, Mapping) and settings.get("kind") == "world"
    return OTHERWISE if world else ("ceiling",)


def incomparable(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Of each run.json, the measures that mean something else than in another of them."""
    found = [meant_otherwise(about) for about in runs]
    found = found if len(set(found)) > 1 else [()] * len(found)
    judges = {judge for about in runs if (judge := _judge_of_right(about))}
    return [(*names, "right") if len(judges) > 1 and "right" not in names else names for names in found]


def _judge_of_right(about: Mapping[str, Any]) -> str:
    """Who said which answers are right; "" where nobody did."""
    figures = about.get("figures")
    stages = figures.values() if isinstance(figures, Mapping) else ()
    rights = [stage.get("right") for stage in stages if isinstance(stage, Mapping)]
    return next((str(right["judge"]) for right in rights if isinstance(right, Mapping) and right.get("judge")), "")


class Record:
    """The contents of run.json, and the clock of the run (time of earlier starts included).

    ``writes``: of several processes that work together, the first.
    """

    def __init__(self, folder: Path, content: dict[str, Any], writes: bool = True) -> None:
        self.folder, self.content, self._writes = folder, content, writes
        self._began = time.perf_counter()
        self._earlier = float(content["seconds"].get("total", 0.0))
        self._whole: float | None = None

    @staticmethod
    def start(folder: Path, options: RunOptions | StageOptions, about: dict[str, Any]) -> Record:
        content = {"asked": asked(options), **about, "versions": versions(), "machine": machine()}
        content |= {"plan": {}, "done": {}, "seconds": {}, "figures": {}, "state": "running", "meaning": MEANING}
        return Record(folder, content)

    @property
    def elapsed(self) -> float:
        """Seconds, all starts together."""
        return self._whole if self._whole is not None else self._earlier + time.perf_counter() - self._began

    def stop_clock(self) -> None:
        """The run has taken this long: gate, report and run.json say the same, though the report is yet to come."""
        self._whole = self.elapsed

    def done(self, stage: str) -> bool:
        return stage in self.content["done"]

    def finish(self, stage: str, seconds: float, **about: Any) -> None:
        self.content["done"][stage] = about
        self.content["seconds"][stage] = round(self.content["seconds"].get(stage, 0.0) + seconds, 2)
        self.save()

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """run.json says which process is at work, and why it failed; an interruption is no failure."""
        self.content["process"] = process_of(os.getpid())
        self.content.pop("failure", None)
        self.content["state"] = "running"
        self.save()
        try:
            yield
        except Interrupted:
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
    """What tells a process from a later one with the same number."""
    try:
        return {"pid": pid, "created": psutil.Process(pid).create_time()}
    except psutil.Error:  # it has ended already
        return {"pid": pid, "created": time.time()}


def living(about: dict[str, Any]) -> psutil.Process | None:
    """That process, if it still lives."""
    try:
        process = psutil.Process(int(about["pid"]))
        same = abs(process.create_time() - float(about["created"])) < 1.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, KeyError, ValueError, TypeError):
        return None


def asked(options: RunOptions | StageOptions) -> dict[str, Any]:
    """What a resumed run must agree with."""
    content = TypeAdapter(type(options)).dump_python(options, mode="json", exclude=set(FREE))
    return {k: _from_anywhere(v) if k in PLACES else v for k, v in content.items()}


def _from_anywhere(place: Any) -> Any:
    """A path as it is from any folder, since a run is gone on with from another one; other names as they are."""
    if isinstance(place, list | tuple):
        return [_from_anywhere(one) for one in place]
    if not place or kind_of(str(place)) is not PATH:
        return place
    return os.path.abspath(os.path.expanduser(place))


def resumed_options(options: Asked, saved: dict[str, Any]) -> Asked:
    """What was asked then, for all that is not asked now. UsageError when the two differ."""
    kind = type(options)
    defaults = {field.name: list(field.default) if field.default == () else field.default for field in fields(kind)}
    for name, value in asked(options).items():
        if value not in (saved.get(name), defaults[name]):
            then, now = (_typed(spelled(kind, name), given) for given in (saved.get(name), value))
            raise UsageError(
                f"This run was started {then}, not {now}.",
                "Leave the option out to continue it, or choose another --out.",
            )
    return make(kind, {**saved, **{name: getattr(options, name) for name in FREE}})


def _typed(option: str, value: Any) -> str:
    """An option as it was given: "with --set a=1 --set b=2", "without --lora"."""
    if value is None or value is False or value in ("", [], ()):
        return f"without {option}"
    if value is True:
        return f"with {option}"
    values = value if isinstance(value, list | tuple) else [value]
    return "with " + " ".join(f"{option} {f'{v:g}' if isinstance(v, float) else v}" for v in values)


def write_json(path: Path, content: Any) -> None:
    """All of it or nothing (durable.py)."""
    durable.write(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def versions() -> dict[str, str]:
    import torch

    import klype

    return {"klype": klype.__version__, "torch": torch.__version__, "python": platform.python_version()}


def machine() -> dict[str, str]:
    from klype.device import processor, usable_cores

    memory = psutil.virtual_memory().total / 2**30
    return {
        "processor": processor(),
        "cores": str(usable_cores()),
        "memory": f"{memory:.0f} GiB",
        "system": platform.system(),
    }


# The metrics as TensorBoard's event files, which any TensorBoard shows; written anew from metrics.jsonl.


TENSORBOARD = "tensorboard"
NO_CURVES = ("step", "seconds")


def write_events(run: Path) -> dict[str, int]:
    """Event files under ``run``/tensorboard/STAGE; the steps of each stage. The time of a step is the run's own.

    UsageError for a folder without metrics, KlypeError where the package tensorboard is missing or cannot write.
    """
    files = sorted(run.glob("*/metrics.jsonl"))
    if not files:
        raise UsageError(f"{run} has no stage with metrics.", "Give the folder of a run.")
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise KlypeError(
            "TensorBoard's files are written by the package tensorboard, which is not installed.",
            "pip install 'klype[tensorboard]'.",
        ) from None
    steps: dict[str, int] = {}
    try:
        shutil.rmtree(run / TENSORBOARD, ignore_errors=True)
        for file in files:
            stage = file.parent.name
            with SummaryWriter(str(run / TENSORBOARD / stage)) as writer:
                steps[stage] = _write(writer, file)
    except OSError as error:
        raise KlypeError(f"{run / TENSORBOARD} cannot be written: {error.strerror or error}.", "Make room.") from error
    return steps


def _write(writer: Any, file: Path) -> int:
    last = 0
    ended = file.stat().st_mtime
    rows = list(steps(file.read_bytes().splitlines()))
    whole = rows[-1].get("seconds", 0.0) if rows else 0.0
    for row in rows:
        last = row["step"]
        for name, value in row.items():
            if name not in NO_CURVES:
                when = ended - whole + row.get("seconds", 0.0)
                writer.add_scalar(name, value, last, walltime=when)
    return last
