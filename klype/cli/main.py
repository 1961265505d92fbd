"""The ``klype`` command: all subcommands, their help in the user's language, and the process around them."""

import atexit
import gc
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any

import typer

from klype import __version__, durable
from klype.cli import ask, chat, doctor, examine, next_tree_forks, pull_export, rank, runs, serve, train
from klype.cli.exits import exit_code, is_launched, speech
from klype.cli.options import as_typer
from klype.cli.terminal import Terminal, any_character, program
from klype.device import memory_policy, thread_policy
from klype.environment import state_folder
from klype.words import LANGUAGES
from klype.words.plain import harmless_log, tell
from klype.words.sentences import Sentences

HELP = ["-h", "--help"]

# objects allocated before the first garbage collection: more than the start of any command allocates
FIRST_COLLECTION = 2_000_000


def main() -> None:
    """The console script."""
    start(call)


def start(command: Callable[[list[str]], object], name: str = "klype") -> None:
    """Set the thread policy before torch is loaded, run a command on this process's arguments, and exit with its code.

    ``name`` is what the user typed, for the hint at its --help.
    """

    def collect_as_usual(phase: str, info: object) -> None:
        gc.set_threshold(10_000)
        gc.callbacks.remove(collect_as_usual)

    def end_at_once() -> None:
        sys.stdout.flush()
        os._exit(code)

    code = 1
    if is_launched(sys.argv[1:]):
        # PyTorch's caches keep the process group and its threads; one that releases a tensor while the interpreter ends
        # is aborted, and the process with it (4 of 20 runs of two processes). Registered first, this is called last.
        atexit.register(end_at_once)
    thread_policy()
    memory_policy()
    # importing allocates a million objects and no garbage; collecting meanwhile would take 0.17 s
    gc.set_threshold(FIRST_COLLECTION)
    gc.callbacks.append(collect_as_usual)
    any_character()
    harmless_log()
    os.environ["KLYPE_LANG"] = speech(sys.argv[1:])  # child processes speak the same language
    with suppress(RuntimeError):  # the user has no home folder
        durable.restrict_access(state_folder())
    code = exit_code(command, sys.argv[1:], name)
    gc.freeze()  # else the interpreter collects twice at exit, through all of torch's objects: 0.45 s
    sys.exit(code)


def call(argv: list[str]) -> object:
    """Runs one command. Its exceptions propagate; an exit of typer's is returned as its code."""
    return in_language(app(), speech(argv))(argv, prog_name="klype", standalone_mode=False)


def app() -> typer.Typer:
    """The typer application; --help lists the commands in the order in which a newcomer needs them."""
    klype = typer.Typer(name="klype", pretty_exceptions_enable=False, context_settings={"help_option_names": HELP})
    klype.callback(invoke_without_command=True)(common_options)
    of_runs = {"list": runs.list_runs, "compare": runs.compare, "tensorboard": runs.tensorboard}
    commands: dict[str, Any] = {
        "run": train.run_command, "chat": chat.command, "ask": ask.command, "next": next_tree_forks.next_command,
        "tree": next_tree_forks.tree_command, "forks": next_tree_forks.forks_command, "examine": examine.command,
        "article": examine.article_command, "judge": examine.judge_command, "bias": train.bias_command,
        "mistakes": train.mistakes_command, "train": train.train_command, "rank": rank.command,
        "align": train.align_command, "runs": ("List runs, or compare them.", of_runs), "serve": serve.serve_command,
        "studio": serve.studio_command, "pull": pull_export.pull_command, "export": pull_export.export_command,
        "config": ("What can be set.", {"schema": doctor.schema_command}), "doctor": doctor.command,
    }  # fmt: skip
    for name, command in commands.items():
        if not isinstance(command, tuple):
            klype.command(name)(as_typer(command))
            continue
        group = typer.Typer(help=command[0], no_args_is_help=True, pretty_exceptions_enable=False)
        group.callback()(lambda: None)  # without it typer would turn a group of one command into that command
        for inner, one in command[1].items():
            group.command(inner)(as_typer(one))
        klype.add_typer(group, name=name)
    return klype


def common_options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    lang: Annotated[
        str | None, typer.Option("--lang", help=f"{' or '.join(LANGUAGES)}.", show_default="by the locale")
    ] = None,
) -> None:
    """Train a small language model through all its stages, and see and reduce the divergence of its answers."""
    if version:
        tell(f"klype {__version__}")
        raise typer.Exit
    if lang or context.invoked_subcommand is None:
        terminal = Terminal(lang=lang)  # raises for a language that klype does not speak
        if context.invoked_subcommand is None:
            tell(terminal.words("first.steps", program=program()))


def in_language(app: typer.Typer, lang: str) -> Any:
    """The application as a click command whose --help is in this language."""
    whole: Any = typer.main.get_command(app)
    commands = [whole]
    for command in commands:  # the list grows: the commands of groups
        commands += getattr(command, "commands", {}).values()
    for param in (param for command in commands for param in command.params):
        if param.param_type_name == "argument":  # its metavar says already whether it is optional: [MODEL]
            param.get_usage_pieces = lambda ctx, name=param.metavar: [name]
            param.display_type_rich = lambda ctx: None
    if lang == "en":
        return whole
    from typer import rich_utils  # imported here because rich is slow to import

    said = Sentences(lang)
    rich_utils.DEFAULT_STRING = said(rich_utils.DEFAULT_STRING)
    rich_utils.REQUIRED_LONG_STRING = said(rich_utils.REQUIRED_LONG_STRING)
    for command in commands:
        command.help, command.options_metavar = said(command.help or ""), said(command.options_metavar)
        command.rich_help_panel = said("Commands")
        command.get_usage = lambda context, usage=command.get_usage: usage(context).replace("Usage:", said("Usage:"), 1)
        for param in (*command.params, command.get_help_option(command.context_class(command, help_option_names=HELP))):
            kind = "Arguments" if param.param_type_name == "argument" else "Options"
            param.help = said(param.help or "")
            param.rich_help_panel = said(param.rich_help_panel or kind)
            if isinstance(param.show_default, str):
                param.show_default = said(param.show_default)
        if isinstance(command, typer.core.TyperGroup):
            command.subcommand_metavar = said(command.subcommand_metavar)
    return whole
