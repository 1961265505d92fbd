"""Options once: a field of a settings class is the command's option, with its help, its default and its bounds."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, get_type_hints

import pytest
import typer
from annotated_types import Le

from klype.api.model import Model
from klype.cli.ask import AskOptions
from klype.cli.examine import ArticleOptions, ExaminationOptions
from klype.cli.exits import exit_code
from klype.cli.main import app
from klype.cli.next_tree_forks import ForkOptions, NextOptions, TreeOptions
from klype.cli.options import as_typer
from klype.cli.rank import RankOptions
from klype.cli.terminal import Terminal
from klype.cli.train import AlignmentOptions, BiasOptions, MistakesOptions
from klype.config import make
from klype.errors import UsageError
from klype.examine.settings import ArticleSettings, ExamSettings
from klype.option import Option, Options, flag_of, option_in, options_of
from klype.runs.run_options import RunOptions, StageOptions
from klype.samplers import SAMPLERS, TEMPERATURE

Captured = pytest.CaptureFixture[str]
Parameters = dict[str, Any]
KINDS = [("run", RunOptions), ("train", StageOptions), ("align", AlignmentOptions), ("rank", RankOptions)]


def parameters(typed: typer.Typer, command: str = "") -> Parameters:
    """typer's own declarations, by how they are typed."""
    found: Any = typer.main.get_command(typed)
    params = (found.commands[command] if command else found).params
    return {one.opts[0] if one.opts[0].startswith("-") else one.opts[0].upper(): one for one in params}


@dataclass(frozen=True, kw_only=True)
class More(RunOptions):
    """What a run may be asked, and one thing more."""

    cups_of_tea: Annotated[int, Option("How many while it trains."), Le(9)] = 2


def test_a_new_option_is_one_field(capsys: Captured) -> None:
    seen: list[More] = []

    def command(terminal: Terminal, asked: More) -> None:
        """Train, with tea."""
        seen.append(asked)

    typed = typer.Typer(pretty_exceptions_enable=False)
    typed.command()(as_typer(command))
    call: Callable[[list[str]], object] = lambda argv: typed(argv, standalone_mode=False)
    option = parameters(typed)["--cups-of-tea"]
    assert (option.help, option.default) == ("How many while it trains.", 2)
    assert next(iter(parameters(typed))) == "--cups-of-tea"  # what is the class's own stands first
    for argv in ([], ["--cups-of-tea", "7", "--minutes", "2", "--text", "a", "--text", "b"]):
        assert exit_code(call, argv) == 0
    assert seen == [More(), More(cups_of_tea=7, minutes=2.0, text=("a", "b"))]
    assert exit_code(call, ["--cups-of-tea", "10"]) == 2
    assert capsys.readouterr().err == "klype: --cups-of-tea should be less than or equal to 9 (it is 10).\n"
    with pytest.raises(UsageError, match=r"^There is no setting cup_of_tea\.") as unknown:
        make(More, {"cup_of_tea": 1})
    assert unknown.value.hint == "Did you mean --cups-of-tea?"


@pytest.mark.parametrize(
    ("command", "kinds"),
    [
        ("run", (RunOptions,)),
        ("train", (StageOptions,)),
        ("align", (AlignmentOptions,)),
        ("rank", (RankOptions,)),
        ("examine", (ExamSettings, ExaminationOptions)),
        ("article", (ArticleSettings, ArticleOptions)),
        ("bias", (BiasOptions,)),
        ("mistakes", (MistakesOptions,)),
        ("ask", (AskOptions,)),
        ("next", (NextOptions,)),
        ("tree", (TreeOptions,)),
        ("forks", (ForkOptions,)),
    ],
)
def test_settings_and_commands_agree(command: str, kinds: tuple[type[Options], ...]) -> None:
    """Every field with a help text is an option of that name, help and default, and the command has no others."""
    declared, beside = parameters(app(), command), {"--lang", "--json", *(["--reward"] if command == "run" else [])}
    if command in ("ask", "next", "tree", "forks"):
        beside |= {f"--{name.replace('_', '-')}" for name in SAMPLERS}
    names = {flag_of(kind, name).split("/")[0]: (kind, name) for kind in kinds for name in options_of(kind)}
    assert declared.keys() == names.keys() | beside
    for flag, (kind, name) in names.items():
        option, default = option_in(options_of(kind)[name]), {field.name: field.default for field in fields(kind)}[name]
        assert option is not None
        assert declared[flag].help.startswith(option.help)
        assert declared[flag].required == (default is MISSING)
        if option.commas:
            assert declared[flag].default == ",".join(f"{value:g}" for value in default)
        else:
            assert declared[flag].default in (None, default)


@pytest.mark.parametrize(
    ("kind", "method"),
    [(AskOptions, Model.ask), (NextOptions, Model.next), (TreeOptions, Model.tree), (ForkOptions, Model.forks)],
)
def test_commands_and_methods_agree(kind: type[Options], method: Callable[..., object]) -> None:
    """A method's argument is the command's option of that name, with its type and default; ``n`` answers are wanted
    only of a method."""
    typed, fields_of = get_type_hints(method), {field.name: field for field in fields(kind)}
    hints = get_type_hints(kind)
    for name, parameter in inspect.signature(method).parameters.items():
        if name in ("self", "n", "sampling"):
            continue
        if name == "temperature":
            assert parameter.default == TEMPERATURE
        elif name == "text":
            assert parameter.default is parameter.empty
        elif name in ("budget", "judge"):  # typed as a text, whatever it stands for
            assert parameter.default is None
            assert not fields_of[name].default
        elif name == "top":  # a terminal shows a dozen, a notebook ten
            assert (parameter.default, fields_of[name].default) == (10, 12)
        else:
            assert parameter.default == fields_of[name].default
            assert name == "until" or typed[name] == hints[name]


def test_a_list_with_commas_is_one_option() -> None:
    seen: list[tuple[float, ...]] = []

    def command(terminal: Terminal, asked: ExamSettings) -> None:
        """Ask."""
        seen.append(asked.temperatures)

    typed = typer.Typer()
    typed.command()(as_typer(command))
    for argv in ([], ["--temperatures", " 1, 0.5,"]):
        typed(argv, standalone_mode=False)
    assert seen == [ExamSettings().temperatures, (1.0, 0.5)]


@pytest.mark.parametrize("kind", [RunOptions, StageOptions])
def test_what_is_wrong_is_named_as_it_is_typed(kind: type[Options]) -> None:
    """The same sentence for whoever calls from Python and for whoever types."""
    given = {"stage": "align"} if kind is StageOptions else {}
    for name in options_of(kind):
        if name not in given:
            with pytest.raises(UsageError) as error:
                make(kind, {**given, name: object()})
            assert error.value.message.startswith(f"{flag_of(kind, name)} ")
