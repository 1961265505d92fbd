"""``klype config``: what can be set."""

from __future__ import annotations

import typer

from klype.cli import options as o
from klype.cli.terminal import Terminal, to_json
from klype.words import plain


def app() -> typer.Typer:
    config = typer.Typer(help="What can be set.", no_args_is_help=True, pretty_exceptions_enable=False)
    config.callback()(_group)
    config.command("schema")(o.expanded(schema_command))
    return config


def _group() -> None:
    """What can be set."""


def schema_command(out: o.OutFile = None, as_json: o.Json = False) -> None:
    """Print the JSON schema of recipes (klype run --recipe FILE.toml, --set KEY=VALUE)."""
    from klype.config import schema
    from klype.runs.recipe import Recipe

    terminal = Terminal(as_json)
    document = schema(Recipe)
    if not terminal.as_json:
        plain.tell(to_json(document))
    terminal.document(document, out)
