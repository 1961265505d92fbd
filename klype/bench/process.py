"""The other end of a worker: start it, order, read, and end it for certain."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from typing import IO, Any

import psutil

from klype.device import without_thread_policy


@dataclass(frozen=True)
class Failed:
    """Why an engine gives no figures."""

    why: str


@dataclass
class Worker:
    """An engine's process. Orders are answered in turn; one that takes too long ends the process."""

    name: str
    process: subprocess.Popen[str]
    log: IO[str]
    failed: str = ""
    core_seconds: float = 0.0
    """What the process has used of the cores, up to the last answer."""
    _timed_out: bool = field(default=False, init=False)

    @staticmethod
    def start(name: str, log: IO[str], module: str = "klype.bench.worker", as_built: bool = True) -> Worker:
        """``as_built``: it waits for its threads in the way it was built to, and klype's own thread policy, made for
        cores that others use too, is not passed on."""
        command, pipe = [sys.executable, "-m", module, name], subprocess.PIPE
        environ = without_thread_policy() if as_built else None
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, text=True, env=environ)
        return Worker(name, process, log)

    def order(self, timeout: float, **order: Any) -> dict[str, Any] | Failed:
        """The answer, or why there is none; after a failure the worker answers nothing more."""
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
        """Nothing for a process that has ended: what it used is then what it had used before."""
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
