"""From settings classes to typer's options, and the options that several commands share."""

import inspect
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from klype.cli.terminal import Terminal, program
from klype.device import Device as Device
from klype.errors import UsageError
from klype.option import Option, Options, not_empty, option_in, options_of
from klype.samplers import SAMPLERS, TEMPERATURE
from klype.samplers import Sampling as Sampling
from klype.sources.model_files import DEMO, closest_here, closest_pull, find_path, is_bare, resolve
from klype.sources.opening import PATH, kind_of, kinds_in_words
from klype.words import LANGUAGES

if TYPE_CHECKING:
    from klype.api.model import Model
    from klype.api.prompt_context import PromptContext


def check_sampler(name: str, value: Any) -> Any:
    """The value of the sampler ``name``. Raises UsageError if it is out of range."""
    row = SAMPLERS[name]
    if not row.supports(value):
        given = f"{value:g}" if isinstance(value, float) else value
        raise UsageError(f"--{name.replace('_', '-')} should be {row.range} (it is {given}).")
    return value


def as_typer(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a signature that typer can read.

    A parameter whose type is a settings class, ``Sampling`` or ``Terminal`` is replaced by one parameter for each of
    its options; the instance is made and checked before the command is called.
    """
    signature = inspect.signature(command, eval_str=True)
    # --lang and --json come last in every --help
    asked = dict(sorted(signature.parameters.items(), key=lambda item: item[1].annotation is Terminal))
    parts = {name: _options(parameter) for name, parameter in asked.items()}

    @wraps(command)
    def expanding(**given: Any) -> None:
        # None: nothing was typed, and the default of the settings class applies
        known = {name: value for name, value in given.items() if value is not None}
        for name, parameter in signature.parameters.items():
            if not _is_made(kind := parameter.annotation):
                continue
            values = {part.name: known.pop(part.name) for part in parts[name] if part.name in known}
            # typer has checked the options of a prompt; importing pydantic as well would delay the answer
            if issubclass(kind, Options) and not issubclass(kind, PromptOptions):
                from klype.config import make

                known[name] = make(kind, values)
            else:
                known[name] = kind(**values)
        command(**known)

    signed: Any = expanding
    signed.__signature__ = signature.replace(parameters=[part for those in parts.values() for part in those])
    return expanding


def _is_made(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, (Options, Sampling, Terminal))


def _options(asked: inspect.Parameter) -> list[inspect.Parameter]:
    """The options from which a command's parameter is made; the parameter itself if it is an option."""
    kind = asked.annotation
    if kind is Terminal:
        return [_parameter("lang", Lang, None), _parameter("as_json", Json, False)]
    if kind is Sampling:
        starts = {name: TEMPERATURE if name == "temperature" else row.off for name, row in SAMPLERS.items()}
        return [_parameter(name, sampler_option(name), start) for name, start in starts.items()]
    if _is_made(kind):
        defaults = {field.name: field.default for field in fields(kind)}
        return [_parameter(name, annotation, defaults[name]) for name, annotation in options_of(kind).items()]
    return [_parameter(asked.name, kind, asked.default)]


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    """An option as a parameter for typer. A ``Literal`` becomes a string, which pydantic checks; the default of an
    empty list becomes None, so that --help shows no default."""
    option = option_in(annotation)
    kind: Any = get_args(annotation)[0]
    assert option is not None, f"{name} is a command's parameter without an Option"
    if option.commas:
        kind, default = str, ",".join(f"{value:g}" for value in default)
    elif get_origin(kind) is tuple:  # an option that may be repeated
        kind, default = list[get_args(kind)[0]] | None, default or None  # type: ignore[misc]
    elif any(get_origin(one) is Literal for one in (kind, *get_args(kind))):
        kind = str | None if type(None) in get_args(kind) else str
    about: dict[str, Any] = {
        "help": option.help,
        "show_default": True if option.shown is None else option.shown,
        "metavar": option.metavar or (name.upper() if option.argument else None),
        "min": option.least,
        "max": option.most,
        "callback": list_of if option.commas else option.check,
        "rich_help_panel": option.panel,
    }
    flags = () if option.argument else filter(None, (option.flag_of(name), option.also))
    declared = Annotated[kind, (typer.Argument if option.argument else typer.Option)(*flags, **about)]
    default = inspect.Parameter.empty if default is MISSING else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=declared)


def list_of(text: str) -> list[str]:
    """ "1, 2," → ["1", "2"]."""
    return [part.strip() for part in text.split(",") if part.strip()]


def sampler_option(name: str) -> Any:
    """The type of a sampler's value, annotated with its option."""
    row = SAMPLERS[name]
    option = Option(row.help, panel="How tokens are drawn", check=lambda value: check_sampler(name, value))
    return Annotated[type(row.off), option]


def model_and_text(terminal: Terminal, command: str, options: "PromptOptions", stage: str = "") -> tuple[str, str]:
    """The MODEL and the TEXT of ``klype command``. A single argument is the text, for ``stage`` of the default MODEL.

    Raises UsageError, with the line to type instead, where an argument is missing, swapped, misspelled or unquoted.
    """
    typed, model, text = f"{program()} {command}", options.model, options.text
    if model is None:
        line = f"{typed} {quote(terminal.words('example.text' if stage else 'example.question'))}"
        raise UsageError("There is no text.", f"For example: {line}")
    there = _is_model(model)
    meant = "" if there else closest_here(model)
    line = f"{typed} {quote(' '.join([model, *text]))}"
    if len(text) > 1:
        line = f"{typed} {model} {quote(' '.join(text))}" if there else line
        raise UsageError("The text should be in quotes.", f"Type: {line}")
    if text:
        if not there and _is_model(text[0]):
            line = f"{typed} {text[0]} {quote(model)}"
            raise UsageError("The model stands before the text.", f"Type: {line}")
        if not_empty(text[0]) and not there and (meant or is_bare(model)) and not closest_pull(model):
            whole = f"If it begins the text, put all of it in quotes: {line}"
            raise UsageError(f"There is no model {model[:200]}.", f"Did you mean {meant}?" if meant else whole)
        return a_model(model), text[0]
    if there:
        raise UsageError(f"{model} is a model; what should it be asked?", "Write the text behind it, in quotes.")
    if meant or not is_bare(model):
        line = f"{typed} {meant or DEMO} {quote(model)}"
        as_text = f"If it is the text: {line}"
        as_model = f"Did you mean {meant}? If it is the text: {line}"
        raise UsageError(f"There is no model {model[:200]}.", as_model if meant else as_text)
    return default_model(terminal, stage), not_empty(model)


def a_model(name: str) -> str:
    """A MODEL's path or address. Raises UsageError, without loading anything, if there is no such model here."""
    known = resolve(name)
    if kind_of(known) is PATH:
        find_path(known)
    return known


def _is_model(name: str) -> bool:
    known = resolve(name)
    return os.path.exists(os.path.expanduser(known)) or kind_of(known) is not PATH


def quote(text: str) -> str:
    """The text quoted for a shell: in double quotes, or single ones if a shell would expand it inside double ones."""
    return shlex.quote(text) if re.search(r'["$`\\!]', text) else f'"{text}"'


def default_model(terminal: Terminal, stage: str = "") -> str:
    """The MODEL where none is named; stderr says which it is. (Imports what ``klype --help`` must not wait for.)"""
    from klype.runs.folder import default_model

    return default_model(terminal.lang, stage=stage)


Json = Annotated[bool, Option("Print one JSON document on stdout; words go to stderr.", "--json")]
Seed = Annotated[int, Option("Same seed, same result.", least=0)]
OutFile = Annotated[Path | None, Option("Also write the JSON document to this file.")]
Lang = Annotated[str | None, Option(f"{' or '.join(LANGUAGES)}.", shown="by the locale")]
MODEL = f"A model: {kinds_in_words()}."
DEFAULT = "the newest run, or demo"
ModelName = Annotated[str, Option(f"A model: {kinds_in_words(files=True)}.", argument=True, check=a_model)]
AnyModel = Annotated[str | None, Option(MODEL, argument=True, metavar="[MODEL]", shown=DEFAULT)]


def models(help: str) -> Option:
    return Option(help, argument=True, metavar="[MODEL…]", shown=DEFAULT)


Text = Annotated[
    tuple[str, ...], Option("The question, or the text to continue, in quotes.", argument=True, metavar="TEXT")
]
Limit = Annotated[int, Option("Max tokens per answer.")]
Raw = Annotated[
    bool | None, Option("Text as it is, or in the chat template.", "--raw/--chat-template", shown="as trained")
]
Precision = Annotated[str, Option("float32, bfloat16, int8 or auto (what is fastest here).")]
Speculate = Annotated[str | None, Option("Speculative decoding with lookup or a MODEL, compared with plain decoding.")]
SpeculateChat = Annotated[str | None, Option("Speculative decoding with lookup or a MODEL.")]
ServerBudget = Annotated[str, Option("Limits for a server: 500requests,20000tokens.")]
Budget = Annotated[str | None, Option("Max forward passes; for a server also 500requests,20000tokens.")]
JudgeName = Annotated[
    str, Option("Who says what means the same: rules, minilm, self, a MODEL, an encoder (FOLDER@0.8).", metavar="NAME")
]
Sure = Annotated[
    bool,
    Option("Say how sure it is of this answer: its probability, how many others mean the same, which word decided."),
]
Reward = Annotated[
    tuple[str, ...],
    Option(
        "FILE.py:FUNCTION of questions and answers, in place of the reward model; =0.5 is its weight. Repeated, they "
        "are added; model is the reward model."
    ),
]


@dataclass(frozen=True, kw_only=True)
class PromptOptions(Options):
    """A MODEL, how it is opened, and a TEXT with how it is put to it."""

    model: AnyModel = None
    text: Text = ()
    raw: Raw = None
    precision: Precision = "float32"
    device: Device = "auto"
    seed: Seed = 0
    out: OutFile = None


@dataclass(frozen=True, kw_only=True)
class MeaningOptions(PromptOptions):
    """The same, for commands that compare the meanings of answers."""

    limit: Limit = 32
    judge: JudgeName = ""

    def open_prompt(self, name: str, text: str, server: str) -> "tuple[Model, PromptContext]":
        """Opens the MODEL ``name``, with ``server`` as its budget if it is a server's, and prepares the question."""
        from klype.api.model import load

        model = load(name, self.precision, server, self.device)
        return model, model.context(text, self.raw, self.judge)
