"""``klype``: the commands, put together."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated

import typer

from klype import __version__, durable
from klype.cli import environment
from klype.cli.commands import (
    ask,
    chat,
    doctor,
    examine,
    experiments,
    export,
    judge,
    look,
    pull,
    rank,
    runs,
    serve,
    studio,
    train,
)
from klype.cli.guard import guarded
from klype.cli.help import HELP, spoken
from klype.cli.options import expanded
from klype.cli.terminal import Terminal, any_character
from klype.device import memory_policy, thread_policy
from klype.environment import state_folder
from klype.words import LANGUAGES
from klype.words.plain import harmless_log, tell


def main() -> None:
    """The console script."""
    start(call)


def start(command: Callable[[list[str]], object], name: str = "klype") -> None:
    """Set the thread policy before torch is loaded, run a command on this process's arguments, and exit with its code.

    ``name`` is what the user typed, for the hint at its --help.
    """
    thread_policy()
    memory_policy()
    gc.set_threshold(10_000)  # what is imported stays: at Python's own 700 a fifth of a start is looking for garbage
    any_character()
    harmless_log()
    environment.speak(environment.speech(environment.arguments()))
    with suppress(RuntimeError):  # a user who has no home has nothing there
        durable.tighten(state_folder())
    sys.exit(guarded(command, environment.arguments(), name))


def call(argv: list[str]) -> object:
    """One command; its exceptions come out, and typer's own exits are returned as a number."""
    return spoken(app(), environment.speech(argv))(argv, prog_name="klype", standalone_mode=False)


def app() -> typer.Typer:
    """All commands, in the order in which a newcomer meets them."""
    klype = typer.Typer(
        name="klype",
        help="Train a small language model through all its stages, and see and reduce the divergence of its answers.",
        add_completion=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": HELP},
    )
    klype.callback(invoke_without_command=True)(_options)
    klype.command("run")(expanded(train.run_command))
    klype.command("chat")(expanded(chat.command))
    klype.command("ask")(expanded(ask.command))
    klype.command("next")(expanded(look.next_command))
    klype.command("tree")(expanded(look.tree_command))
    klype.command("forks")(expanded(look.forks_command))
    klype.command("examine")(expanded(examine.command))
    klype.command("article")(expanded(examine.article_command))
    klype.command("judge")(expanded(judge.command))
    klype.command("bias")(expanded(experiments.bias_command))
    klype.command("mistakes")(expanded(experiments.mistakes_command))
    klype.command("train")(expanded(train.train_command))
    klype.command("rank")(expanded(rank.command))
    klype.command("align")(expanded(train.align_command))
    klype.add_typer(runs.app(), name="runs")
    klype.command("serve")(expanded(serve.command))
    klype.command("studio")(expanded(studio.command))
    klype.command("pull")(expanded(pull.command))
    klype.command("export")(expanded(export.command))
    klype.add_typer(doctor.config_app(), name="config")
    klype.command("doctor")(expanded(doctor.command))
    return klype


def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=lambda v: _version(v))
    ] = False,
    lang: Annotated[
        str | None,
        typer.Option("--lang", help=f"{' or '.join(LANGUAGES)}.", show_default="by the locale"),
    ] = None,
) -> None:
    """Train a small language model through all its stages, and see and reduce the divergence of its answers."""
    terminal = Terminal(lang=lang) if lang or context.invoked_subcommand is None else None
    if terminal and context.invoked_subcommand is None:
        tell(terminal.words("first.steps", program=environment.program()))


def _version(asked: bool) -> None:
    if asked:
        tell(f"klype {__version__}")
        raise typer.Exit
