"""Examinations in the background: a process of its own for each, whose progress anybody may watch or cancel."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from klype.children import bound
from klype.jsons import finite, saved


@dataclass(frozen=True, slots=True)
class ExamRequest:
    """What is examined: so many questions, answers to each, at these temperatures; ``budget`` forward passes at most
    (what is examined becomes less until it keeps to that)."""

    address: str
    identity: str
    questions: int = 100
    samples: int = 8
    temperatures: tuple[float, ...] = (0.0, 0.7, 1.0)
    limit: int = 32
    budget: int = 200_000

    @property
    def key(self) -> str:
        """The same for the same weights and settings, so that nothing is computed twice."""
        about = json.dumps([self.identity, self.questions, self.samples, self.temperatures, self.limit, self.budget])
        return hashlib.sha256(about.encode()).hexdigest()[:20]

    @property
    def parts(self) -> list[str]:
        """The parts of an examination in their order, as its progress names them."""
        warm = [f"{t:g}" for t in self.temperatures if t > 0]
        answers = [f"answers {t:g}" for t in self.temperatures]
        return ["plan", *answers, *(f"feedback {t}" for t in warm), "trees", "forks"]


@dataclass
class Examination:
    """``state``: running, done, failed or cancelled. ``part`` is what it does now; ``share`` of its parts are done;
    ``plan``: what it costs, in the words of the command."""

    order: ExamRequest
    folder: Path
    lang: str = "en"
    state: Literal["running", "done", "failed", "cancelled"] = "running"
    part: str = "plan"
    plan: str = ""
    share: float = 0.0
    began: float = field(default_factory=time.monotonic)
    why: str = ""
    process: asyncio.subprocess.Process | None = None
    told: deque[str] = field(default_factory=lambda: deque(maxlen=20))
    _seen: set[str] = field(default_factory=set)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def hear(self, line: str) -> None:
        """A line of the command's progress."""
        self.plan = self.plan or line
        self.told.append(line)
        for part in self.order.parts:
            if line.startswith(f"{part}:") and part not in self._seen:
                self._seen.add(part)
                self.part = part
                self.share = max(self.share, self.order.parts.index(part) / len(self.order.parts))


class Examinations:
    """Kept in ``folder`` by what was asked; what is there is not computed again."""

    def __init__(self, folder: Path, command: Sequence[str]) -> None:
        self.folder, self.command = folder, tuple(command)
        self.running: dict[str, Examination] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def found(self, order: ExamRequest) -> dict[str, Any] | None:
        """The document of a finished examination."""
        document = saved(self.folder / order.key / "figures.json")
        return document if document is not None and "figures" in document else None

    def start(self, order: ExamRequest, lang: str = "en") -> Examination:
        """The one that runs already, or a new one: it goes on where an earlier one was stopped."""
        known = self.running.get(order.key)
        if known is not None and known.state == "running":
            return known
        made = Examination(order, self.folder / order.key, lang)
        self.running[order.key] = made
        task = asyncio.get_running_loop().create_task(self._run(made))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return made

    def cancel(self, examination: Examination) -> None:
        """What was drawn so far stays."""
        if examination.state == "running":
            examination.state = "cancelled"
            _end(examination)

    def stop(self) -> None:
        for examination in self.running.values():
            self.cancel(examination)

    def arguments(self, order: ExamRequest, lang: str = "en") -> list[str]:
        temperatures = ",".join(f"{t:g}" for t in order.temperatures)
        options = {
            "--most": order.questions,
            "-n": order.samples,
            "--temperatures": temperatures,
            "--limit": order.limit,
            "--budget": order.budget,
            "--lang": lang,
            "--out": self.folder / order.key,
        }
        given = [str(part) for option in options.items() for part in option]
        return [*bound(self.command), "examine", order.address, "--json", "--yes", *given]

    async def _run(self, examination: Examination) -> None:
        try:
            examination.folder.mkdir(parents=True, exist_ok=True)
            process = await asyncio.create_subprocess_exec(
                *self.arguments(examination.order, examination.lang),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=1 << 26,
            )
        except OSError as error:
            examination.state, examination.why = "failed", str(error.strerror or error)
            return
        examination.process = process
        if examination.state == "cancelled":
            _end(examination)
        assert process.stdout is not None
        assert process.stderr is not None
        said = asyncio.ensure_future(process.stdout.read())
        async for line in process.stderr:
            examination.hear(line.decode("utf-8", "replace").strip())
        out = await said
        code = await process.wait()
        if examination.state == "running":
            examination.state = "done" if code == 0 else "failed"
            examination.why = "" if code == 0 else _why(out, examination)
            examination.share = 1.0 if code == 0 else examination.share


def _end(examination: Examination) -> None:
    if examination.process is not None and examination.process.returncode is None:
        examination.process.terminate()


def _why(out: bytes, examination: Examination) -> str:
    try:
        error = finite(out)["error"]
        return f"{error['message']} {error['hint']}".strip()
    except (ValueError, KeyError, TypeError):
        return examination.told[-1] if examination.told else ""
