"""The client side of a worker process: start it, send orders, read answers, and end it reliably."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

import psutil

from klype.child_processes import bind_to_parent
from klype.device import POLICY

Say = Callable[[str], None]
# seconds that an order may take even if less is left of the minutes, so that an engine which other programs slow down
# is measured, not ended
MIN_S = 90.0


def without_thread_policy(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a program that should wait for its threads in its own way."""
    left_out = {name for name, _ in POLICY}
    return {name: value for name, value in environ.items() if name not in left_out}


@dataclass(frozen=True)
class Failed:
    """The reason why an engine has no figures."""

    why: str


@dataclass
class Worker:
    """The process of an engine. Orders are answered in turn; one that takes too long ends the process."""

    name: str
    process: subprocess.Popen[str]
    log: IO[str]
    failed: str = ""
    # core-seconds that the process used up to the last answer
    core_seconds: float = 0.0
    _timed_out: bool = field(default=False, init=False)

    @staticmethod
    def start(name: str, log: IO[str], module: str = "benchmarks.worker", as_built: bool = True) -> Worker:
        """Starts the process. ``as_built``: it waits for its threads in its own way, without klype's thread policy,
        which is meant for cores that other programs use, too."""
        command, pipe = bind_to_parent([sys.executable, "-m", module, name]), subprocess.PIPE
        environ = without_thread_policy() if as_built else None
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=environ)
        return Worker(name, process, log)

    def order(self, timeout: float, **order: Any) -> dict[str, Any] | Failed:
        """Sends an order and returns the answer, or the reason why there is none; after a failure the worker is
        unusable."""
        if self.failed:
            return Failed(self.failed)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        watch = threading.Timer(timeout, self._expire)
        watch.start()
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            line = ""
        finally:
            watch.cancel()
            self._account()
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._ending(timeout)}
        if "error" in answer:
            self.failed = str(answer["error"])
            self.end()
            return Failed(self.failed)
        return answer

    def end(self) -> None:
        if self.process.poll() is None:
            self._account()
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None and not stream.closed:
                try:
                    stream.close()
                except OSError:
                    continue

    def _account(self) -> None:
        """Updates the core-seconds; those of a process that has ended stay as they were."""
        try:
            times = psutil.Process(self.process.pid).cpu_times()
        except psutil.Error:
            return
        self.core_seconds = max(self.core_seconds, times.user + times.system)

    def _expire(self) -> None:
        self._timed_out = True
        self._account()
        self.process.kill()

    def _ending(self, timeout: float) -> str:
        if self._timed_out:
            return f"no answer within {timeout:.0f} s"
        return f"its process ended with code {self.process.wait()}"


@dataclass
class Team:
    """Workers that take turns until ``deadline`` (of ``time.monotonic``). ``why``: the reasons of those without
    figures."""

    workers: dict[str, Worker]
    why: dict[str, str]
    say: Say
    deadline: float

    @property
    def core_seconds(self) -> float:
        """Core-seconds that all of them used so far."""
        return sum(worker.core_seconds for worker in self.workers.values())

    @property
    def left(self) -> float:
        """The seconds that an order given now may take."""
        return max(MIN_S, self.deadline - time.monotonic())

    def order(self, name: str, about: str = "", **order: Any) -> dict[str, Any] | None:
        """The worker's answer, None if it fails or has failed before. ``about``: description of the order, for
        ``why``."""
        worker = self.workers[name]
        if worker.failed:
            return None
        answer = worker.order(self.left, **order)
        if isinstance(answer, Failed):
            self.why[name] = f"{about}: {answer.why}" if about else answer.why
            self.say(f"{name}: {self.why[name]}")
            return None
        return answer

    def peaks(self) -> dict[str, int]:
        """Peak memory of each, where it is known."""
        found = {name: self.order(name, do="peak") for name in self.workers}
        return {name: answer["bytes"] for name, answer in found.items() if answer is not None and answer["bytes"]}

    def end(self) -> None:
        for worker in self.workers.values():
            worker.end()
