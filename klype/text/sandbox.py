"""Untrusted code, above all chat templates, is run in a process with limits on time and memory.

A template comes with a checkpoint and is an unknown person's program. Jinja's immutable sandbox denies it Python's
attributes; endless loops and giant strings are stopped by the process's limits, however they are made.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from klype.errors import KlypeError

# generous, for busy machines; the only limit on systems that have no others
WALL_SECONDS = 60


def apart(function: Callable[[Any], Any], job: Any, seconds: int, memory: int) -> Any:
    """Calls a module's function with ``job`` in another process; job and result are JSON. MemoryError when it takes
    more than ``seconds`` of processor time or ``memory`` bytes of address space, or ends the process; a KlypeError of
    the function is raised here."""
    start = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r}); "
        f"from {function.__module__} import {function.__name__} as f; "
        f"from klype.text.sandbox import answer; answer(f, {seconds}, {memory})"
    )
    try:
        command, asked = [sys.executable, "-I", "-c", start], json.dumps(job).encode()
        done = subprocess.run(command, input=asked, capture_output=True, timeout=WALL_SECONDS, check=False)
        found = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError, RecursionError) as error:
        raise MemoryError from error
    if "error" in found:
        raise KlypeError(found["error"])
    return found["value"]


def answer(function: Callable[[Any], Any], seconds: int, memory: int) -> None:
    """Reads a job as JSON from standard input and writes its result as JSON to standard output, after limiting this
    process as far as the system can; the parent has a timeout besides."""
    with suppress(ImportError):  # Windows
        import resource

        for what, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory)):
            _, hard = resource.getrlimit(what)
            with suppress(ValueError, OSError):  # macOS refuses some
                resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    job = json.load(sys.stdin)
    try:
        found = {"value": function(job)}
    except KlypeError as error:
        found = {"error": error.message}
    json.dump(found, sys.stdout)


SECONDS, MEMORY = 2, 512 * 2**20  # limits of a template
OUTPUT = 1_000_000  # characters that a template may write
SHOWN = 300  # characters of a template's error message that are shown


def render(job: dict[str, Any]) -> str:
    """The text of a job's ``template`` with its ``variables``; a template has no access to the time.

    Raises KlypeError when the template is invalid, refuses these messages or writes too much.
    """

    def refuse(message: str) -> None:
        raise KlypeError(f"The chat template refuses these messages: {message[:SHOWN]}", _HINT)

    extensions = [_Generation, loopcontrols]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals = {name: environment.globals[name] for name in ("range", "namespace", "dict")}
    environment.globals["raise_exception"] = refuse
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
    except Exception as error:  # the template is an unknown program: it may raise anything
        raise KlypeError(f"The chat template fails: {str(error)[:SHOWN].rstrip('.')}.", _HINT) from error


def render_apart(job: dict[str, Any]) -> str:
    """`render` in a process of its own, with limits on time and memory."""
    try:
        return str(apart(render, job, SECONDS, MEMORY))
    except MemoryError as error:
        raise KlypeError("The chat template asks for too much time or memory.", _HINT) from error
    except KlypeError as error:
        raise KlypeError(error.message, _HINT) from error


_HINT = "Use --raw to go without it."


class _Generation(Extension):
    """Hugging Face's ``{% generation %}…{% endgeneration %}``, which marks answers; its content is rendered."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own interface)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
