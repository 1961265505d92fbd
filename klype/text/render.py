"""Renders a chat template in a process of its own, with bounded time, memory and output.

A template comes with a checkpoint and is a stranger's program. Jinja's immutable sandbox keeps it from Python's
attributes; loops without end and giant strings are stopped by the process's limits, whatever trick makes them.
"""

from __future__ import annotations

import json
from datetime import date
from typing import Any

from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from klype.errors import KlypeError
from klype.text.apart import Limits, apart

LIMITS = Limits(seconds=2, memory=512 * 2**20)
OUTPUT = 1_000_000  # characters
SHOWN = 300  # of what a template says when it fails


def render(template: str, variables: dict[str, Any], today: date | None = None) -> str:
    """The text a template writes. ``today`` is what the template's clock shows (None: it has no clock).

    Raises KlypeError when the template is wrong, refuses these messages or asks for too much.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals = {"range": environment.globals["range"], "namespace": environment.globals["namespace"]}
    environment.globals |= {"dict": dict, "raise_exception": _refuse}
    if today is not None:
        environment.globals["strftime_now"] = today.strftime
    try:
        parts, length = [], 0
        for part in environment.from_string(template).generate(**variables):
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


def render_apart(template: str, variables: dict[str, Any], today: date | None = None) -> str:
    """`render` in a process of its own, ended when it takes too long."""
    job = {"template": template, "variables": variables, "today": today.isoformat() if today else None}
    try:
        return str(apart(render_job, job, LIMITS))
    except MemoryError as error:
        raise KlypeError("The chat template asks for too much time or memory.", _HINT) from error
    except KlypeError as error:
        raise KlypeError(error.message, _HINT) from error


def render_job(job: dict[str, Any]) -> str:
    """`render` of what was sent to a process."""
    return render(job["template"], job["variables"], date.fromisoformat(job["today"]) if job["today"] else None)


_HINT = "Use --raw to go without it."


def _refuse(message: str) -> None:
    raise KlypeError(f"The chat template refuses these messages: {message[:SHOWN]}", _HINT)


class _Generation(Extension):
    """Hugging Face's ``{% generation %}…{% endgeneration %}`` marks answers; for rendering it is transparent."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own interface)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
