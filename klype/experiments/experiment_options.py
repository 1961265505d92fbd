"""The options of the experiments' commands, each with its flag, help, default and bounds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Gt

from klype.errors import UsageError
from klype.option import Option, Options

MINUTES = "Plans the documents and seeds that fit."


@dataclass(frozen=True, kw_only=True)
class ExperimentOptions(Options):
    """Options of all experiments."""

    seeds: Annotated[int, Option("Instead: number of seeds (0: as many as fit).", least=0)] = 0
    text: Annotated[tuple[str, ...], Option("Files, folders or globs of text. May be repeated.")] = ()
    encoding: Annotated[str, Option("The encoding of the text files.")] = "utf-8"
    resume: Annotated[bool, Option("Resume where it stopped (or start, if nothing is there).")] = False
    device: Annotated[str, Option("auto or cpu: models are trained side by side, a core each.")] = "auto"
    seed: Annotated[int, Option("Same seed, same result.")] = 0

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu"):
            raise UsageError(
                f"--device {self.device}: this experiment trains its models side by side, "
                "a core of the processor each.",
                "Leave out --device.",
            )


@dataclass(frozen=True, kw_only=True)
class BiasOptions(ExperimentOptions):
    """Options of ``klype bias``."""

    minutes: Annotated[float, Option(MINUTES), Gt(0)] = 10.0
    documents: Annotated[tuple[int, ...], Option("Instead: numbers of documents, 300,600,1200.", commas=True)] = ()
    targets: Annotated[tuple[str, ...], Option("Only these, with one-hot: ensemble,oracle.", commas=True)] = ()
    overrides: Annotated[
        tuple[str, ...], Option("A setting of the training: width=64, epochs=16. May be repeated.", "--set")
    ] = ()
    out: Annotated[Path | None, Option("Folder.", shown="runs/bias-DATE-N")] = None


@dataclass(frozen=True, kw_only=True)
class MistakesOptions(ExperimentOptions):
    """Options of ``klype mistakes``."""

    minutes: Annotated[float, Option(MINUTES), Gt(0)] = 20.0
    documents: Annotated[int, Option("Instead: number of documents.", least=0)] = 0
    methods: Annotated[tuple[str, ...], Option("Only these, with the control: own-truth,backspace.", commas=True)] = ()
    overrides: Annotated[
        tuple[str, ...], Option("A setting of the training: steps=300, rounds=8. May be repeated.", "--set")
    ] = ()
    out: Annotated[Path | None, Option("Folder.", shown="runs/mistakes-DATE-N")] = None
