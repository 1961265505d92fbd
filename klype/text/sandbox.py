"""Untrusted code, chat templates above all, run in a process with limits on time and memory.

A template comes with a checkpoint and is a stranger's program. Jinja's immutable sandbox keeps it from Python's
attributes; loops without end and giant strings are stopped by the process's limits, whatever trick makes them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from klype.errors import KlypeError

# generous, for busy machines; the only limit on systems without the others
WALL_SECONDS = 60


class ProcessLimits(NamedTuple):
    """``seconds`` of processor time, ``memory`` bytes of address space."""

    seconds: int
    memory: int


def apart(function: Callable[[Any], Any], job: Any, limits: ProcessLimits) -> Any:
    """What a module's function returns for a job, both as JSON. MemoryError when it took too much, or ended the
    process; what it raises is a KlypeError."""
    root = str(Path(__file__).resolve().parents[2])
    start = (
        f"import sys; sys.path.insert(0, {root!r}); from klype.text.sandbox import answer; "
        f"from {function.__module__} import {function.__name__} as f; answer(f, {limits.seconds}, {limits.memory})"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", start],
            input=json.dumps(job).encode(),
            capture_output=True,
            timeout=WALL_SECONDS,
            check=False,
        )
        found = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError, RecursionError) as error:
        raise MemoryError from error
    if "error" in found:
        raise KlypeError(found["error"])
    return found["value"]


def answer(function: Callable[[Any], Any], seconds: int, memory: int) -> None:
    """Read a job as JSON from standard input, write its result as JSON to standard output."""
    bound(ProcessLimits(seconds, memory))
    job = json.load(sys.stdin)
    try:
        found = {"value": function(job)}
    except KlypeError as error:
        found = {"error": error.message}
    json.dump(found, sys.stdout)


def bound(limits: ProcessLimits) -> None:
    """Bound this process; where the system has no such limits, the parent's clock remains."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for what, most in ((resource.RLIMIT_CPU, limits.seconds), (resource.RLIMIT_AS, limits.memory)):
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(what, (most, hard))
        except (ValueError, OSError):  # macOS refuses some; the parent's clock remains
            continue


LIMITS = ProcessLimits(seconds=2, memory=512 * 2**20)
OUTPUT = 1_000_000  # characters
SHOWN = 300  # of what a template says when it fails


def render(job: dict[str, Any]) -> str:
    """The text that a ``template`` writes with its ``variables``. ``today`` (in ISO format) is what the template's
    clock shows; None: it has no clock.

    Raises KlypeError when the template is wrong, refuses these messages or asks for too much.
    """

    def refuse(message: str) -> None:
        raise KlypeError(f"The chat template refuses these messages: {message[:SHOWN]}", _HINT)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals = {name: environment.globals[name] for name in ("range", "namespace", "dict")}
    environment.globals["raise_exception"] = refuse
    if job["today"]:
        environment.globals["strftime_now"] = date.fromisoformat(job["today"]).strftime
    try:
        parts, length = [], 0
        for part in environment.from_string(job["template"]).generate(**job["variables"]):
            parts.append(part)
            length += len(part)
            if length > OUTPUT:
                raise KlypeError(f"The chat template writes more than {OUTPUT:,} characters.", _HINT)
        return "".join(parts)
    except KlypeError:
        raise
    except MemoryError as error:
        raise KlypeError("The chat template needs too much memory.", _HINT) from error
    except RecursionError as error:
        raise KlypeError("The chat template calls itself without end.", _HINT) from error
    except Exception as error:  # the template is a stranger's program: it may raise anything
        raise KlypeError(f"The chat template fails: {str(error)[:SHOWN].rstrip('.')}.", _HINT) from error


def render_apart(job: dict[str, Any]) -> str:
    """`render` in a process of its own, ended when it takes too long."""
    try:
        return str(apart(render, job, LIMITS))
    except MemoryError as error:
        raise KlypeError("The chat template asks for too much time or memory.", _HINT) from error
    except KlypeError as error:
        raise KlypeError(error.message, _HINT) from error


_HINT = "Use --raw to go without it."


class _Generation(Extension):
    """Hugging Face's ``{% generation %}…{% endgeneration %}`` marks answers; for rendering it is transparent."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own interface)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
