"""What a user may ask of a run or of one stage: checked once, here, before anything is started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from klype.config import Settings

Stage = Literal["pretrain", "finetune", "rank", "reward", "align"]
STAGES: tuple[Stage, ...] = get_args(Stage)
Size = Literal["tiny", "mini", "small", "medium", "base", "large"]


class InputOptions(Settings):
    """Where the data come from and how strictly they are read; shared by whole runs and single stages.

    ``text``: files, folders or globs (.txt, .md, .jsonl, .arrow …); ``instructions`` and ``preferences``: JSONL files;
    ``data``: a folder of texts, questions with answers and rankings, sorted by what they are, or ``hf:owner/name``.
    ``text_field``: the field of a row that holds the text (empty: found out).
    ``skip_bad`` counts broken rows and goes on instead of stopping at the first. ``out``: the run's folder. ``device``:
    where it computes (see klype.device.pick_device). ``cache``: where what is compiled for this processor is kept
    (None: nothing is, and torch computes everything). ``processes``: how many that work together share this machine.
    ``program``: how klype is called from the user's shell. ``functions``: rewards that are functions of the calling
    program, by the names that the recipe knows them by.
    """

    text: tuple[str, ...] = ()
    instructions: Path | None = None
    preferences: Path | None = None
    data: Path | None = None
    encoding: str = "utf-8"
    text_field: str = ""
    skip_bad: bool = False
    out: Path | None = None
    device: str = "auto"
    cache: Path | None = None
    processes: int = Field(default=1, ge=1)
    program: str = "klype"
    seed: int = Field(default=0, ge=0, lt=2**32)
    functions: dict[str, Callable[..., Any]] = Field(default={}, exclude=True)


class RunOptions(InputOptions):
    """A whole life-cycle (``klype run``).

    ``recipe`` is a recipe's name or a TOML file; empty: "world", or "text" when text or data are given.
    ``out`` is the run's folder (see klype.runs.folder.choose); ``overrides`` are dotted recipe settings
    ("pretrain.rows=32"); ``human`` ranks in the terminal; ``force`` aligns even with a weak reward model.
    ``size``: the model's shape, in place of the recipe's (see recipe.SHAPES).
    ``from_``: a MODEL to go on from, whose stages are not done again; ``lora``: the rank of adapters that are trained
    in place of its weights.
    """

    minutes: float = Field(default=5.0, gt=0, le=60 * 24 * 30, allow_inf_nan=False)
    recipe: str = ""
    from_: str = ""
    lora: int | None = Field(default=None, ge=1, le=4096)
    size: Size | None = None
    resume: bool = False
    force: bool = False
    human: bool = False
    lang: str = "en"
    overrides: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_shape(self) -> RunOptions:
        _check_shape(self)
        return self

    @property
    def recipe_name(self) -> str:
        return self.recipe or recipe_for(self)


class StageOptions(InputOptions):
    """One stage (``klype train STAGE``). ``from_`` is the MODEL to start from; ``steps`` or ``minutes``: how long.

    ``lora`` and ``size``: see RunOptions.
    """

    stage: Stage
    from_: str = ""
    lora: int | None = Field(default=None, ge=1, le=4096)
    size: Size | None = None
    steps: int | None = Field(default=None, gt=0)
    minutes: float | None = Field(default=None, gt=0, le=60 * 24 * 30, allow_inf_nan=False)
    resume: bool = False
    force: bool = False
    human: bool = False
    lang: str = "en"
    overrides: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_length(self) -> StageOptions:
        if self.steps is not None and self.minutes is not None:
            raise ValueError("give either --steps or --minutes, not both")
        _check_shape(self)
        return self


def _check_shape(options: RunOptions | StageOptions) -> None:
    if options.size is not None and options.from_:
        raise ValueError("the model of --from has its shape already: leave out --size")


def recipe_for(options: RunOptions | StageOptions) -> str:
    """The recipe that suits what is given: the demo world where it is nothing."""
    if not (options.text or options.data or options.instructions):
        return "world"
    return "lora" if options.lora else "text"


def as_option(setting: str) -> str:
    """A setting's name as it is typed: skip_bad → --skip-bad; the stage is an argument."""
    if setting == "stage":
        return "STAGE"
    return "--set" if setting == "overrides" else f"--{setting.rstrip('_').replace('_', '-')}"
