"""The command line's help in the reader's language."""

from __future__ import annotations

from typing import Any

import typer

from klype.samplers import SAMPLERS
from klype.words.sentences import Sentences

HELP = ["-h", "--help"]


def spoken(app: typer.Typer, lang: str) -> Any:
    """The commands, with all that their help says in this language."""
    command = typer.main.get_command(app)
    _name_arguments(command)
    if lang != "en":
        from typer import rich_utils

        said = Sentences(lang)
        rich_utils.DEFAULT_STRING = said(rich_utils.DEFAULT_STRING)
        rich_utils.REQUIRED_LONG_STRING = said(rich_utils.REQUIRED_LONG_STRING)
        _translate(command, said, {row.help["en"]: row.help.get(lang, "") for row in SAMPLERS.values()})
    return command


def _name_arguments(command: Any) -> None:
    """In usage lines and lists arguments are called as they say themselves: [MODEL] may be left out."""
    for param in command.params:
        if param.param_type_name == "argument":
            param.get_usage_pieces = lambda ctx, name=param.metavar: [name]
            param.display_type_rich = lambda ctx: None
    for inner in getattr(command, "commands", {}).values():
        _name_arguments(inner)


def _translate(command: Any, said: Sentences, samplers: dict[str, str]) -> None:
    command.help, command.options_metavar = said(command.help or ""), said(command.options_metavar)
    command.rich_help_panel = said("Commands")
    command.get_usage = lambda context, usage=command.get_usage: usage(context).replace("Usage:", said("Usage:"), 1)
    for param in (*command.params, command.get_help_option(command.context_class(command, help_option_names=HELP))):
        kind = "Arguments" if param.param_type_name == "argument" else "Options"
        param.help = samplers.get(param.help or "") or said(param.help or "")
        param.rich_help_panel = said(param.rich_help_panel or kind)
        if isinstance(param.show_default, str):
            param.show_default = said(param.show_default)
    if isinstance(command, typer.core.TyperGroup):
        command.subcommand_metavar = said(command.subcommand_metavar)
        for inner in command.commands.values():
            _translate(inner, said, samplers)
