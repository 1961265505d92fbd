"""Options: how a field of a settings class is spelled, explained and shown on the command line, and checks of values.

A settings class is a frozen dataclass of the base ``Options``; a field annotated with an ``Option`` is an option of
every command that takes the class (``klype.cli.options.as_typer``). pydantic checks the values (``klype.config.make``)
and is not imported here: the command line lists its options before anything is checked.
"""

from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from inspect import get_annotations
from pathlib import Path
from typing import Any, ClassVar, get_args, get_type_hints

from klype.errors import UsageError


@dataclass(frozen=True, slots=True)
class Option:
    """A command-line option, or with ``argument`` a positional argument.

    ``flag``: its spelling, by default --the-name of the field; ``also``: a second spelling. ``shown``: what --help
    prints instead of the default; ``panel``: the part of --help that lists it. ``commas``: several values are typed as
    one text, such as 1,2,3. ``least`` and ``most``: the bounds of a number, inclusive. ``check`` is called with the
    value before the command starts.
    """

    help: str
    flag: str = ""
    also: str = ""
    shown: str | None = None
    argument: bool = False
    commas: bool = False
    least: int | None = None
    most: int | None = None
    metavar: str | None = None
    panel: str | None = None
    check: Callable[[Any], Any] | None = None

    def flag_of(self, name: str) -> str:
        """How the field ``name`` is typed: skip_bad → --skip-bad; an argument in capital letters."""
        return name.upper() if self.argument else self.flag or f"--{name.rstrip('_').replace('_', '-')}"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The base of settings classes: an unknown name is an error, and numbers are finite."""

    __pydantic_config__: ClassVar = {"extra": "forbid", "allow_inf_nan": False}


def option_in(annotation: Any) -> Option | None:
    """The ``Option`` in an ``Annotated`` type, if there is one."""
    return next((part for part in get_args(annotation)[1:] if isinstance(part, Option)), None)


def options_of(kind: type[Options]) -> dict[str, Any]:
    """The annotation of every field that is an option, in the order of --help: a class's own, then inherited ones."""
    hints = get_type_hints(kind, include_extras=True)
    names = dict.fromkeys(name for one in kind.__mro__ if is_dataclass(one) for name in get_annotations(one))
    return {name: hints[name] for name in names if option_in(hints[name])}


def a_file(option: str, file: Path | None) -> None:
    """Raises UsageError for a file that does not exist, before anything is loaded."""
    if file is not None and not file.is_file():
        raise UsageError(f"{option}: there is no file {file}.")


def not_empty(text: str) -> str:
    """The text. Raises UsageError if it is empty or not a string."""
    if not isinstance(text, str):
        raise UsageError(f"The text should be a string (it is of type {type(text).__name__}).")
    if not text.strip():
        raise UsageError("There is no text.", "Give a question, or a text to continue.")
    return text


def suite_files(suite: str) -> list[Path]:
    """The JSONL files of a suite that is a path: of one file or of a folder. Raises UsageError if there are none."""
    place = Path(suite)
    files = [place] if place.is_file() else sorted(place.glob("*.jsonl"))
    if not files:
        raise UsageError(
            f"There is no suite {suite} here.", "Known: world; else the path of a JSONL file or of a folder of them."
        )
    return files


def flag_of(kind: type[Options], field: str) -> str:
    """How a field is typed; ``field`` may be a path into its value ("temperatures.0")."""
    field = field.partition(".")[0]
    return (option_in(options_of(kind).get(field)) or Option("")).flag_of(field)
