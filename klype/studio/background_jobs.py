"""Background work in processes of its own, which outlive the server that started them.

A piece of work is a folder: ``work.json`` holds the plan, ``process.json`` the process, ``ended.json`` how it ended;
``N.out`` and ``N.err`` are the output of step N. The server keeps nothing of it in memory.

The process (``python -m klype.studio.background_jobs FOLDER``) runs the steps one after the other, passes an interrupt
on to the step that runs, and has a model in training answer a few questions whenever a new state of it is saved.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from types import FrameType
from typing import Any, Literal

import psutil

from klype import jsons
from klype.child_processes import bind_to_parent
from klype.errors import KlypeError, UsageError, writing_to
from klype.examine.charts import thin
from klype.runs.run_json import live_process, process_of, write_json
from klype.words.plain import aside

State = Literal["running", "done", "failed", "cancelled", "stopped"]
WORK, PROCESS, CHILD, ENDED = "work.json", "process.json", "child.json", "ended.json"
SAMPLES, CANCEL = "samples.jsonl", "cancel"
MAX_SAMPLES_BYTES = 16 << 20  # bytes of samples.jsonl that are read
INTERRUPTED = 130
AT_ONCE = 2  # trainings that may run at the same time in one home
MAX_KEY = 20  # characters of a key from a browser that are read
CURVE_POINTS = 240  # points of a curve: more cannot be told apart on a screen
EVERY_S = 0.5
PATIENCE_S = 120.0  # how long an interrupted step may take to save its state before it is killed
TEMPERATURE = 0.7  # as of the figures of a run


@dataclass(frozen=True, slots=True)
class WorkPlan:
    """What is to be done. ``steps``: commands, one after the other, each of which resumes when it is run again;
    ``run``: the folder that they write; ``about``: whatever the page needs to know later."""

    kind: Literal["run", "align", "bias", "examine"]
    run: Path
    steps: Sequence[Sequence[str]]
    about: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Work:
    """A piece of work in its folder, whose files every property reads anew."""

    folder: Path

    @property
    def plan(self) -> WorkPlan:
        found = _read(self.folder / WORK)
        return WorkPlan(found["kind"], Path(found["run"]), found["steps"], found["about"])

    @property
    def state(self) -> State:
        """``stopped``: the process is gone without having written how it ended (killed, or the machine went down)."""
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
        """The number of the step that runs, or ran last."""
        return max((int(file.stem) for file in self.folder.glob("*.err") if file.stem.isdecimal()), default=0)

    @property
    def seconds(self) -> float:
        """Seconds that it has run, earlier starts included."""
        if (self.folder / ENDED).is_file():
            return float(_read(self.folder / ENDED).get("seconds", 0.0))
        earlier, process = float(_read(self.folder / PROCESS).get("earlier", 0.0)), self._process()
        return earlier + (0.0 if process is None else max(0.0, time.time() - process.create_time()))

    def why(self) -> str:
        """Why it failed, in the command's own sentences, without those that name an option of the command line."""
        for file in (self.folder / f"{self.step}.out", self.folder / ENDED):
            error = _read(file).get("error")
            if isinstance(error, dict):
                return without_options(f"{error.get('message', '')} {error.get('hint', '')}")
            if isinstance(error, str):
                return error
        return next(iter(self.last_lines(1)), "")

    def last_lines(self, lines: int = 12, most: int = 1 << 14) -> list[str]:
        """The last ``lines`` of the progress that are not blank, from its last ``most`` bytes."""
        text = jsons.tail(self.folder / f"{self.step}.err", most).decode("utf-8", "replace")
        return [line.rstrip() for line in text.splitlines() if line.strip()][-lines:]

    def samples(self) -> list[dict[str, Any]]:
        """What the model answered during training, oldest first: rows with ``step`` and ``answers``."""
        lines = jsons.tail(self.folder / SAMPLES, MAX_SAMPLES_BYTES).split(b"\n")
        return [row for row in jsons.rows(lines) if isinstance(row.get("answers"), list)]

    def cancel(self) -> None:
        """Interrupts it, as Ctrl-C does: what was saved stays, and it can be resumed."""
        process = self._process()
        if process is not None:
            (self.folder / CANCEL).touch()  # a process that has only started does not handle signals yet
            with suppress(psutil.Error):  # Windows has no SIGINT to send
                process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)

    def go_on(self) -> None:
        """Resumes it, unless it runs or is done."""
        if self.state in ("running", "done"):
            return
        earlier, orphan = self.seconds, self._process(CHILD)
        if orphan is not None:  # the process was killed, and its step lives on
            with suppress(psutil.Error):
                orphan.terminate()
                orphan.wait(30)
        for file in (ENDED, CANCEL):
            (self.folder / file).unlink(missing_ok=True)
        _launch(self.folder, earlier)

    def _process(self, file: str = PROCESS) -> psutil.Process | None:
        return live_process(_read(self.folder / file))


def begin(home: Path, plan: WorkPlan, name: str = "") -> Work:
    """Starts the work. UsageError when ``AT_ONCE`` trainings run already."""
    # an examination only reads a model: it may run beside any training
    training = [w for w in works(home) if w.state == "running" and _read(w.folder / WORK).get("kind") != "examine"]
    if plan.kind != "examine" and len(training) >= AT_ONCE:
        raise UsageError(f"{AT_ONCE} pieces of work run already.", "Wait for one, or cancel it.")
    folder = home / "work" / (name or new_name(plan.kind))
    with writing_to(folder):
        folder.mkdir(parents=True)
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(folder / WORK, {**asdict(plan), "run": str(plan.run), "began": stamp})
    _launch(folder, 0.0)
    return Work(folder)


def works(home: Path) -> list[Work]:
    """All work started in this home, newest first."""
    files = (home / "work").glob(f"*/{WORK}")
    begun = sorted(((str(_read(file).get("began", "")), file.parent) for file in files), reverse=True)
    return [Work(folder) for _, folder in begun]


def works_by_run(home: Path, *kinds: str) -> dict[Path, Work]:
    """The newest work of these kinds by the folder that it writes, links resolved."""
    found: dict[Path, Work] = {}
    for work in works(home):
        with suppress(KeyError, TypeError):  # a damaged work.json
            if (plan := work.plan).kind in kinds:
                found.setdefault(plan.run.resolve(), work)
    return found


def new_name(kind: str) -> str:
    """A new name for a folder; nothing in it comes from a browser."""
    return f"{kind}-{datetime.now():%Y-%m-%d-%H%M%S}-{token_hex(2)}"


def key_of(folder: Path) -> str:
    """The key by which a browser names a folder; it cannot name any other way."""
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]


def without_options(text: str) -> str:
    """Returns the text without the sentences (or parts after a semicolon) that name an option of the command line."""
    left = re.sub(r"[;:]?[^.;:!?]*(?<!\S)--[a-z][^.;!?]*", "", text)
    return re.sub(r"(?<=[.!?])\s*\.", "", left).strip()


def _launch(folder: Path, earlier: float) -> None:
    """Starts the process in a session of its own, so that neither the server's end nor its Ctrl-C ends it."""
    with (folder / "chain.err").open("ab") as log:
        command, none = [sys.executable, "-m", "klype.studio.background_jobs", str(folder)], subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=none, stdout=none, stderr=log, start_new_session=True)
    write_json(folder / PROCESS, {**process_of(process.pid), "earlier": earlier})
    # wait for it in a thread, or it would stay a zombie until the server ends
    threading.Thread(target=process.wait, name="klype work", daemon=True).start()


def _read(file: Path) -> dict[str, Any]:
    return jsons.read_saved(file) or {}


@dataclass
class MetricsTail:
    """The ``rows`` of a metrics.jsonl that may be growing: ``step`` and the finite numbers, by name."""

    file: Path
    rows: list[dict[str, float]] = field(default_factory=list)
    _read: int = 0

    @property
    def at(self) -> int:
        """The last step; 0 before the first."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    def read(self) -> bool:
        """Reads what was appended and returns whether there was anything. A file that was started over is read from the
        start; an incomplete last row is left for the next time."""
        try:
            with self.file.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._read:
                    self.rows, self._read = [], 0
                file.seek(self._read)
                data = file.read()
        except OSError:
            return False
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for row in jsons.steps(whole.split(b"\n")):
            # a resumed training repeats the steps since its last save: the later row counts
            while self.rows and self.at >= row["step"]:
                self.rows.pop()
            self.rows.append(row)
        return bool(whole)

    def last(self, name: str) -> float | None:
        """The last number of this name."""
        return next((row[name] for row in reversed(self.rows) if name in row), None)

    def curve(self, name: str, most: int = CURVE_POINTS) -> list[list[float]]:
        """[step, value] pairs, at most ``most``: neighbours are averaged."""
        return thin([(float(row["step"]), float(row[name])) for row in self.rows if name in row], most)


def sample_answers(folder: Path, weights: Path | None, questions: Sequence[str], limit: int) -> list[str]:
    """One answer to each question, the same every time: by a checkpoint, or with the ``weights`` that its training
    saved. Raises KlypeError and OSError for what cannot be read."""
    from safetensors.torch import load

    from klype.device import set_threads
    from klype.model import checkpoint
    from klype.sources.source import NativeSource, answers
    from klype.values import Request, Sampling

    set_threads(1)  # the training needs the other cores
    loaded = checkpoint.load(folder)
    if weights is not None:
        state = load(weights.read_bytes())
        loaded.model.load_state_dict({name: state[name] for name in loaded.model.state_dict()})
    source, drawn = NativeSource.of(loaded.model, loaded.tokenizer, loaded.chat), Sampling(TEMPERATURE)
    said = []
    for seed, question in enumerate(questions):
        prompt = tuple(source.codec.prompt([{"role": "user", "content": question}]))
        # the same seed for every state, so that they differ only by what they have learnt
        room = min(limit, loaded.config.window - len(prompt))
        request = Request(prompt, 1, room, drawn, seed, source.codec.stop)
        said.append(source.codec.decode(answers(source, [request])[0][0].tokens) if room > 0 else "")
    return said


@dataclass
class StepRunner:
    """Runs the steps of a piece of work. ``sampled``: training steps at which the model has answered the questions."""

    work: Work
    interrupted: bool = False
    child: subprocess.Popen[bytes] | None = None
    sampled: set[int] = field(default_factory=set)

    def run(self) -> int:
        folder, plan = self.work.folder, self.work.plan
        self.interrupted = self.interrupted or (folder / CANCEL).exists()
        self.sampled = {int(row["step"]) for row in self.work.samples()}
        code, step, error = 0, 0, ""
        for step, command in enumerate(plan.steps):
            if not self.interrupted and not (folder / f"{step}.done").exists():
                code, error = self._step(step, command, plan.about.get("ask"))
                if code == 0:
                    (folder / f"{step}.done").touch()
            if code or self.interrupted:
                break
        # the last step may have ended well before the interrupt reached it
        if self.interrupted and code == 0 and not (folder / f"{len(plan.steps) - 1}.done").exists():
            code = INTERRUPTED
        cancelled = self.interrupted and code != 0
        said = {"code": code, "step": step, "seconds": round(self.work.seconds, 2), "cancelled": cancelled}
        write_json(folder / ENDED, said | ({"error": error} if error else {}))
        return code

    def stop(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)

    def _step(self, step: int, command: Sequence[str], ask: dict[str, Any] | None) -> tuple[int, str]:
        """Returns the step's exit code, and why it could not be started."""
        with (self.work.folder / f"{step}.out").open("wb") as out, (self.work.folder / f"{step}.err").open("ab") as err:
            try:
                self.child = subprocess.Popen(bind_to_parent(command), stdin=subprocess.DEVNULL, stdout=out, stderr=err)
            except OSError as error:
                return 1, f"{command[0]}: {error.strerror or error}."
            write_json(self.work.folder / CHILD, process_of(self.child.pid))
            given_up = 0.0
            while self.child.poll() is None:
                time.sleep(EVERY_S)
                if self.interrupted:
                    given_up = given_up or time.monotonic() + PATIENCE_S
                    if time.monotonic() > given_up:
                        self.child.kill()
                elif ask:
                    self._sample(ask)
            code = self.child.wait()
        if ask and code == 0:
            self._sample(ask, final=True)
        return (code if code >= 0 else INTERRUPTED if self.interrupted else 1), ""

    def _sample(self, ask: dict[str, Any], final: bool = False) -> None:
        """Asks the model before the training, at each state that is saved, and after it."""
        base, folder = Path(ask["before"]), Path(ask["after"])
        states = {int(f.parent.name.partition("-")[2]): f for f in folder.glob("resume/step-*/model.safetensors")}
        if 0 not in self.sampled and base.is_dir() and folder.parent.is_dir():
            self._answer(0, base, None, ask)
        newest = max(states, default=0)
        if final and (folder / "model.safetensors").is_file():
            last = next(jsons.steps(reversed(jsons.tail(folder / "metrics.jsonl").split(b"\n"))), {"step": newest})
            self._answer(int(last["step"]), folder, None, ask)
        elif newest and newest not in self.sampled:
            self._answer(newest, base, states[newest], ask)

    def _answer(self, step: int, folder: Path, weights: Path | None, ask: dict[str, Any]) -> None:
        """Writes one row of samples; none for a state that is just being replaced by a newer one."""
        from safetensors import SafetensorError

        self.sampled.add(step)
        try:
            said = sample_answers(folder, weights, ask["questions"], int(ask.get("limit", 60)))
        except (OSError, KlypeError, SafetensorError, RuntimeError, KeyError) as error:
            aside(f"step {step} was not asked: {error}")
            return
        with (self.work.folder / SAMPLES).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "answers": said}, ensure_ascii=False) + "\n")


def main() -> int:
    chain = StepRunner(Work(Path(sys.argv[1])))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, chain.stop)
    for _ in range(100):  # the parent writes process.json first
        if (chain.work.folder / PROCESS).is_file():
            break
        time.sleep(0.05)
    return chain.run()


if __name__ == "__main__":
    sys.exit(main())
