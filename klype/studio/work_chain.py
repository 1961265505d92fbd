"""The process that does a piece of work: ``python -m klype.studio.work_chain FOLDER`` (see work.py).

It runs the steps one after the other, hands an interruption on to the one that runs, and has the model that is being
aligned answer a few questions whenever a new state of it lies on the disk.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from klype.child_processes import bound
from klype.jsons import finite
from klype.runs.record import process_of, write_json
from klype.studio.work import CANCEL, CHILD, ENDED, INTERRUPTED, PROCESS, SAMPLES, Work, rows_of
from klype.words.plain import aside

EVERY_S = 0.5
PATIENCE_S = 120.0
"""How long an interrupted step may take to save its state before it is ended."""
TEMPERATURE = 0.7
"""That of the figures of a run."""


def answers(folder: Path, weights: Path | None, questions: Sequence[str], limit: int) -> list[str]:
    """One answer of a checkpoint, or of one with the ``weights`` of a state that training saved, to each question: the
    same every time. Raises KlypeError and OSError for what cannot be read."""
    from safetensors.torch import load

    from klype.device import set_threads
    from klype.engine.engine import Engine
    from klype.model import checkpoint
    from klype.values import Request, Sampling

    set_threads(1)
    loaded = checkpoint.load(folder)
    if weights is not None:
        state = load(weights.read_bytes())
        loaded.model.load_state_dict({name: state[name] for name in loaded.model.state_dict()})
    tokenizer, out = loaded.tokenizer, []
    for seed, question in enumerate(questions):
        prompt = tuple(loaded.chat.prompt([{"role": "user", "content": question}]))
        room = min(limit, loaded.config.window - len(prompt))
        if room < 1:
            out.append("")
            continue
        request = Request(prompt, 1, room, Sampling(temperature=TEMPERATURE), seed, tokenizer.ends)
        ((trace,),) = Engine(loaded.model, decode_bytes=tokenizer.token_bytes).run([request])
        out.append(tokenizer.decode_answer(trace.tokens))
    return out


@dataclass
class StepRunner:
    """Runs the steps of a piece of work. ``sampled``: steps of the training at which the model was asked."""

    work: Work
    interrupted: bool = False
    child: subprocess.Popen[bytes] | None = None
    sampled: set[int] = field(default_factory=set)

    def run(self) -> int:
        self.interrupted = self.interrupted or (self.work.folder / CANCEL).exists()
        began, plan = time.monotonic(), self.work.plan
        earlier = float(finite((self.work.folder / PROCESS).read_bytes()).get("earlier", 0.0))
        self.sampled = {int(row["step"]) for row in self.work.samples()}
        code, step, error = 0, 0, ""
        for step, command in enumerate(plan.steps):
            if not self.interrupted and not (self.work.folder / f"{step}.done").exists():
                code, error = self._step(step, command, plan.about.get("ask"))
                if code == 0:
                    (self.work.folder / f"{step}.done").touch()
            if code or self.interrupted:
                break
        if self.interrupted and code == 0 and not (self.work.folder / f"{len(plan.steps) - 1}.done").exists():
            code = INTERRUPTED
        seconds = round(earlier + time.monotonic() - began, 2)
        said = {"code": code, "step": step, "seconds": seconds, "cancelled": self.interrupted and code != 0}
        write_json(self.work.folder / ENDED, said | ({"error": error} if error else {}))
        return code

    def stop(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)

    def _step(self, step: int, command: list[str] | Any, ask: dict[str, Any] | None) -> tuple[int, str]:
        """The step's exit code, and why it could not even be started."""
        with (self.work.folder / f"{step}.out").open("wb") as out, (self.work.folder / f"{step}.err").open("ab") as err:
            try:
                self.child = subprocess.Popen(bound(command), stdin=subprocess.DEVNULL, stdout=out, stderr=err)
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
        """Asks the model at the start, in each state that training saved, and at the end."""
        base, folder = Path(ask["before"]), Path(ask["after"])
        states = {int(f.parent.name.partition("-")[2]): f for f in folder.glob("resume/step-*/model.safetensors")}
        if 0 not in self.sampled and base.is_dir() and folder.parent.is_dir():
            self._answer(0, base, None, ask)
        newest = max(states, default=0)
        if final and (folder / "model.safetensors").is_file():
            rows = rows_of(folder / "metrics.jsonl")
            self._answer(int(rows[-1]["step"]) if rows else newest, folder, None, ask)
        elif newest and newest not in self.sampled:
            self._answer(newest, base, states[newest], ask)

    def _answer(self, step: int, folder: Path, weights: Path | None, ask: dict[str, Any]) -> None:
        """A state that is being replaced by a newer one is left out; the next one comes soon."""
        from safetensors import SafetensorError

        from klype.errors import KlypeError

        self.sampled.add(step)
        try:
            said = answers(folder, weights, ask["questions"], int(ask.get("limit", 60)))
        except (OSError, KlypeError, SafetensorError, RuntimeError, KeyError) as error:
            aside(f"step {step} was not asked: {error}")
            return
        with (self.work.folder / SAMPLES).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "answers": said}, ensure_ascii=False) + "\n")


def main() -> int:
    chain = StepRunner(Work(Path(sys.argv[1])))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, chain.stop)
    for _ in range(100):  # whoever began it writes down first who does it
        if (chain.work.folder / PROCESS).is_file():
            break
        time.sleep(0.05)
    return chain.run()


if __name__ == "__main__":
    sys.exit(main())
