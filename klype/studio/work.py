"""Long work in processes of their own, begun and read through files: it outlives the server that began it.

A piece of work is a folder: ``work.json`` says what is to be done, ``process.json`` who does it, ``ended.json`` how it
ended; ``N.out`` and ``N.err`` are what its steps said. Nothing of it is kept in the server's memory.
"""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any, Literal

import psutil

from klype import jsons
from klype.errors import KlypeError, UsageError
from klype.examine.charts import thin
from klype.jsons import steps
from klype.runs.record import living, process_of, write_json

State = Literal["running", "done", "failed", "cancelled", "stopped"]
WORK, PROCESS, CHILD, ENDED = "work.json", "process.json", "child.json", "ended.json"
SAMPLES, CANCEL = "samples.jsonl", "cancel"
INTERRUPTED = 130
AT_ONCE = 2
"""Pieces of work that train may run at the same time in one home."""


@dataclass(frozen=True, slots=True)
class WorkPlan:
    """``steps`` are commands, one after the other, each of which goes on where it was when it is run again.

    ``run`` is the folder that comes of it. ``about``: whatever the page wants to know of it later.
    """

    kind: Literal["run", "align", "bias", "examine"]
    run: Path
    steps: Sequence[Sequence[str]]
    about: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Work:
    """A piece of work by its folder; what it says is read anew every time."""

    folder: Path

    @property
    def plan(self) -> WorkPlan:
        found = _read(self.folder / WORK)
        return WorkPlan(found["kind"], Path(found["run"]), found["steps"], found["about"])

    @property
    def began(self) -> str:
        return str(_read(self.folder / WORK).get("began", ""))

    @property
    def state(self) -> State:
        """``stopped``: its process is gone and did not say how it ended (killed, or the machine went down)."""
        if (self.folder / ENDED).is_file():
            ended = _read(self.folder / ENDED)
            if ended.get("code") == 0:
                return "done"
            return "cancelled" if ended.get("cancelled") or ended.get("code") == INTERRUPTED else "failed"
        if self._process() is not None:
            return "running"
        return "cancelled" if (self.folder / CANCEL).exists() else "stopped"

    @property
    def step(self) -> int:
        """Which step is at work, or was last."""
        return max((int(file.stem) for file in self.folder.glob("*.err") if file.stem.isdecimal()), default=0)

    @property
    def seconds(self) -> float:
        """How long it has run, its earlier starts included."""
        before = float(_read(self.folder / ENDED).get("seconds", 0.0)) if (self.folder / ENDED).is_file() else None
        if before is not None:
            return before
        about, process = _read(self.folder / PROCESS), self._process()
        earlier = float(about.get("earlier", 0.0))
        return earlier + (0.0 if process is None else max(0.0, _now() - process.create_time()))

    def why(self) -> str:
        """Why it failed, in the command's own sentences, but for what they say of its options: who reads this is at a
        page."""
        for file in (self.folder / f"{self.step}.out", self.folder / ENDED):
            error = _read(file).get("error")
            if isinstance(error, dict):
                return without_options(f"{error.get('message', '')} {error.get('hint', '')}")
            if isinstance(error, str):
                return error
        lines = tail(self.folder / f"{self.step}.err", 1)
        return lines[-1] if lines else ""

    def told(self, lines: int = 12, most: int = 1 << 14) -> list[str]:
        """The last lines of its progress, of so many bytes."""
        return tail(self.folder / f"{self.step}.err", lines, most)

    def samples(self) -> list[dict[str, Any]]:
        """What the model in the making answered, oldest first: ``step`` and ``answers`` (see work_chain)."""
        return [row for row in rows_of(self.folder / SAMPLES) if isinstance(row.get("answers"), list)]

    def cancel(self) -> None:
        """As Ctrl-C does: what was saved stays, and it can be gone on with."""
        process = self._process()
        if process is not None:
            (self.folder / CANCEL).touch()  # a chain that has only begun does not hear signals yet
            with suppress(psutil.Error):
                process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)

    def go_on(self) -> None:
        """Begins again where it stopped; nothing happens when it runs or is done."""
        if self.state in ("running", "done"):
            return
        earlier, orphan = self.seconds, self._process(CHILD)
        if orphan is not None:  # the chain was killed, and its step lives on
            with suppress(psutil.Error):
                orphan.terminate()
                orphan.wait(30)
        for file in (ENDED, CANCEL):
            (self.folder / file).unlink(missing_ok=True)
        _launch(self.folder, earlier)

    def _process(self, file: str = PROCESS) -> psutil.Process | None:
        return living(_read(self.folder / file))


def begin(home: Path, plan: WorkPlan, name: str = "") -> Work:
    """Starts the work. UsageError when as much as may run at once does so already."""
    training = [w for w in works(home) if w.state == "running" and _read(w.folder / WORK).get("kind") != "examine"]
    if plan.kind != "examine" and len(training) >= AT_ONCE:
        raise UsageError(f"{AT_ONCE} pieces of work run already.", "Wait for one, or cancel it.")
    folder = home / "work" / (name or new_name(plan.kind))
    try:
        folder.mkdir(parents=True)
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        content = {"kind": plan.kind, "run": str(plan.run), "steps": [list(map(str, s)) for s in plan.steps]}
        write_json(folder / WORK, {**content, "about": plan.about, "began": stamp})
    except OSError as error:
        raise KlypeError(f"{folder} cannot be written: {error.strerror or error}.") from error
    _launch(folder, 0.0)
    return Work(folder)


def works(home: Path) -> list[Work]:
    """All pieces of work begun in this home, newest first."""
    found = [Work(file.parent) for file in (home / "work").glob(f"*/{WORK}")]
    return sorted(found, key=lambda work: (work.began, work.folder.name), reverse=True)


def new_name(kind: str) -> str:
    """A folder's name that nobody else has chosen; nothing of it comes from a browser."""
    return f"{kind}-{datetime.now():%Y-%m-%d-%H%M%S}-{token_hex(2)}"


def rows_of(file: Path) -> list[dict[str, Any]]:
    """The whole rows of a JSONL file that may be growing."""
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError:
        return []
    return list(jsons.rows(lines))


def tail(file: Path, lines: int, most: int = 1 << 14) -> list[str]:
    """The last lines of a text that may be growing; blank ones are left out."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - most))
            text = opened.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]


def without_options(text: str) -> str:
    """The text without its sentences, or parts behind a semicolon, that name an option of the command line."""
    left = re.sub(r"[;:]?[^.;:!?]*(?<!\S)--[a-z][^.;!?]*", "", text)
    return re.sub(r"(?<=[.!?])\s*\.", "", left).strip()


def _launch(folder: Path, earlier: float) -> None:
    """In a session of its own, so that neither the server's end nor its Ctrl-C takes it along."""
    with (folder / "chain.err").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "klype.studio.work_chain", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
    write_json(folder / PROCESS, {**process_of(process.pid), "earlier": earlier})
    threading.Thread(target=process.wait, name="klype work", daemon=True).start()


def _read(file: Path) -> dict[str, Any]:
    return jsons.saved(file) or {}


def _now() -> float:
    return datetime.now(UTC).timestamp()


CURVE_POINTS = 240
"""Points of a curve: more cannot be told apart on a screen."""


@dataclass
class MetricsTail:
    """``columns`` hold the numbers of every row by name, NaN where a row has none; ``steps`` are the rows' steps."""

    file: Path
    steps: list[int] = field(default_factory=list)
    columns: dict[str, list[float]] = field(default_factory=dict)
    _at: int = 0
    _rest: bytes = b""

    def read(self) -> bool:
        """Whether anything is new. A file that was begun anew is read anew; half a row waits for its other half."""
        try:
            size = self.file.stat().st_size
            if size < self._at:
                self.steps, self.columns, self._at, self._rest = [], {}, 0, b""
            if size == self._at:
                return False
            with self.file.open("rb") as file:
                file.seek(self._at)
                data = file.read()
        except OSError:
            return False
        self._at += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for row in steps(lines):
            self._add(row)
        return bool(lines)

    def last(self, name: str) -> float | None:
        """The newest number of this name."""
        column = self.columns.get(name, [])
        return next((value for value in reversed(column) if not math.isnan(value)), None)

    def at(self, name: str, place: int) -> float | None:
        """The number of this name in a row; None where it has none."""
        column = self.columns.get(name, [])
        return column[place] if place < len(column) and not math.isnan(column[place]) else None

    def curve(self, name: str, most: int = CURVE_POINTS) -> list[list[float]]:
        """(step, value), each the mean of as many neighbours as it takes to be ``most`` points."""
        column = self.columns.get(name, [])
        return thin([(float(s), v) for s, v in zip(self.steps, column, strict=False) if not math.isnan(v)], most)

    def _add(self, row: dict[str, float]) -> None:
        """Resumed training writes steps again that it had lost: the later row holds."""
        step = int(row["step"])
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            for column in self.columns.values():
                del column[len(self.steps) :]
        for name, value in row.items():
            if name != "step":
                column = self.columns.setdefault(name, [])
                column.extend([math.nan] * (len(self.steps) - len(column)))
                column.append(float(value))
        self.steps.append(step)
