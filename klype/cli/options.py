"""Options that several commands share: spelled, explained and typed once."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from klype.api.asking import not_empty
from klype.errors import UsageError
from klype.samplers import SAMPLERS, TEMPERATURE
from klype.samplers import Sampling as Sampling
from klype.words import LANGUAGES
from klype.words.plain import aside


def checked(name: str, value: Any) -> Any:
    """The value of the sampler ``name``, or one sentence about what is wrong with it."""
    row = SAMPLERS[name]
    if not row.supports(value):
        raise UsageError(f"--{name.replace('_', '-')} should be {row.range} (it is {value}).")
    return value


def _checks(name: str) -> Callable[[Any], Any]:
    return lambda value: checked(name, value)


def draws(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with an option for each sampler in place of its parameter ``sampling``."""
    signature = inspect.signature(command, eval_str=True)
    options = {}
    for name, row in SAMPLERS.items():
        option = typer.Option(
            f"--{name.replace('_', '-')}",
            help=row.help["en"],
            rich_help_panel="How tokens are drawn",
            callback=_checks(name),
        )
        default = TEMPERATURE if name == "temperature" else row.off
        kind: Any = Annotated[int if row.whole else float, option]
        options[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)

    @wraps(command)
    def drawing(**given: Any) -> None:
        command(sampling=Sampling(**{name: given.pop(name) for name in options}), **given)

    others = [
        one.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for one in signature.parameters.values()
        if one.name != "sampling"
    ]
    signed: Any = drawing
    signed.__signature__ = signature.replace(parameters=[*others, *options.values()])
    return drawing


def asked(model: str, text: str | None) -> tuple[str, str]:
    """MODEL and TEXT as they are meant: one argument alone is the text, for the newest run. Errors: it is a MODEL."""
    if text is not None:
        return model, not_empty(text)
    if os.path.exists(os.path.expanduser(model)) or model.startswith(("hf:", "http://", "https://")):
        not_empty("")
    return newest_run(), not_empty(model)


def newest_run() -> str:
    """The MODEL where none is named, which is told."""
    from klype.runs.folder import newest

    found = str(newest())
    aside(found)
    return found


def a_device(name: str) -> str:
    """What was asked to compute on. Errors: a device that is not there; torch is asked for no more than it must."""
    if name not in ("auto", "cpu"):
        from klype.device import pick_device

        pick_device(name)
    return name


def on_cores(name: str) -> str:
    """The only device of an experiment that trains many models at a time."""
    if name not in ("auto", "cpu"):
        raise UsageError(
            f"--device {name}: this experiment trains its models side by side, a core of the processor each.",
            "Leave out --device.",
        )
    return name


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; words go to stderr.")]
Seed = Annotated[int, typer.Option("--seed", help="Same seed, same result.")]
Out = Annotated[Path | None, typer.Option("--out", help="Where to write.", show_default="runs/RECIPE-DATE-N")]
OutFile = Annotated[Path | None, typer.Option("--out", help="Also write the JSON document to this file.")]
Lang = Annotated[str | None, typer.Option("--lang", help=f"{' or '.join(LANGUAGES)}.", show_default="by the locale")]
MODEL = "A run, one of its stages (RUN/finetune), a model's folder or GGUF file."
Model = Annotated[str, typer.Argument(help=MODEL)]
AnyModel = Annotated[str | None, typer.Argument(help=MODEL, show_default="the newest run")]
AskedModel = Annotated[str, typer.Argument(help=f"{MODEL} Left out: the newest run.")]
Text = Annotated[str | None, typer.Argument(help="The question, or the text to go on from.")]
Temperature = Annotated[float, typer.Option("--temperature", help="0: always the most probable token.")]
Limit = Annotated[int, typer.Option("--limit", help="Tokens of an answer at most.")]
Raw = Annotated[
    bool | None,
    typer.Option(
        "--raw/--chat-template", help="The text as it is, or as a user's message.", show_default="by the stage"
    ),
]
Precision = Annotated[str, typer.Option("--precision", help="float32, bfloat16, int8 or auto (what is fastest here).")]
Device = Annotated[
    str,
    typer.Option(
        "--device", help="auto (cuda or mps where there is one, else cpu), cpu, cuda, cuda:1 or mps.", callback=a_device
    ),
]
Cores = Annotated[
    str, typer.Option("--device", help="auto or cpu: models are trained side by side, a core each.", callback=on_cores)
]
Speculate = Annotated[
    str | None,
    typer.Option("--speculate", help="Guess ahead with lookup, ngram, ngram:FILE or a MODEL, beside plain decoding."),
]
SpeculateChat = Annotated[
    str | None, typer.Option("--speculate", help="Guess ahead with lookup, ngram, ngram:FILE or a MODEL.")
]
ServerBudget = Annotated[
    str, typer.Option("--budget", help="A server is asked for at most so much: 500requests,20000tokens.")
]
Budget = Annotated[
    str | None,
    typer.Option("--budget", help="Forward passes at most; of a server also 500requests,20000tokens."),
]
Sure = Annotated[
    bool,
    typer.Option("--sure", help="Say how sure it is of this answer: P(text), how many mean the same, what decided."),
]
TextFiles = Annotated[
    list[str] | None, typer.Option("--text", help="Files, folders or globs of text. May be repeated.")
]
Instructions = Annotated[
    Path | None, typer.Option("--instructions", help="JSONL: messages, or questions with answers.")
]
Preferences = Annotated[Path | None, typer.Option("--preferences", help="JSONL: chosen and rejected, or ranked lists.")]
Data = Annotated[
    Path | None, typer.Option("--data", help="A folder of texts, questions and rankings, or hf:OWNER/NAME.")
]
From = Annotated[
    str, typer.Option("--from", help="The MODEL to start from: a run, a folder (Hugging Face's too), a GGUF file.")
]
Lora = Annotated[
    int | None,
    typer.Option("--lora", help="Train adapters of this rank beside the model's frozen weights.", show_default="all"),
]
Size = Annotated[
    str | None,
    typer.Option(
        "--size",
        help="The model's shape: tiny (2 layers, 96 wide), mini (3, 128), small (4, 192), medium (5, 256), base "
        "(6, 384) or large (8, 512).",
        show_default="the recipe's, or what the time can teach",
    ),
]
Encoding = Annotated[str, typer.Option("--encoding", help="Of the text files.")]
TextField = Annotated[
    str, typer.Option("--text-field", help="The field of a row that holds the text.", show_default="found out")
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave broken rows out, name the first, and go on.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where it stopped (or start, if nothing is there).")]
Force = Annotated[bool, typer.Option("--force", help="Align even when the reward model is too weak.")]
Human = Annotated[bool, typer.Option("--human", help="You rank, in the terminal, instead of the simulated annotator.")]
Reward = Annotated[
    list[str] | None,
    typer.Option(
        "--reward",
        help="FILE.py:FUNCTION of questions and answers, in place of the reward model; =0.5 is its weight. Repeated, "
        "they are added; model is the reward model.",
    ),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="A setting of the recipe: pretrain.rows=32. May be repeated.")
]
