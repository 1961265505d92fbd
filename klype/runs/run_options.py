"""The options of runs and stages, each declared once with flag, help, default and bounds, and their checks."""

import glob
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge, Gt, Le, Lt

from klype.device import Device, a_device
from klype.errors import UsageError
from klype.option import Option, Options, a_file
from klype.sources.model_files import resolve

Stage = Literal["pretrain", "finetune", "rank", "reward", "align"]
STAGES: tuple[Stage, ...] = get_args(Stage)
Size = Literal["tiny", "mini", "small", "medium", "base", "large"]
MONTH = 60 * 24 * 30.0  # in minutes


@dataclass(frozen=True, kw_only=True)
class WorkOptions(Options):
    """Options of every run and stage.

    ``lang``: language of messages. ``cache``: folder for compiled code (None: none is compiled, and torch computes
    everything). ``processes``: number of cooperating processes on this machine. ``program``: the command by which the
    user calls klype. ``functions``: reward functions of the calling program, by their names in the recipe.
    """

    out: Annotated[Path | None, Option("Where to write.", shown="runs/RECIPE-DATE-N")] = None
    resume: Annotated[bool, Option("Resume where it stopped (or start, if nothing is there).")] = False
    device: Device = "auto"
    seed: Annotated[int, Option("Same seed, same result."), Ge(0), Lt(2**32)] = 0
    overrides: Annotated[
        tuple[str, ...], Option("A setting of the recipe: pretrain.rows=32. May be repeated.", "--set")
    ] = ()
    force: Annotated[bool, Option("Align even when the reward model is too weak.")] = False
    human: Annotated[bool, Option("You rank, in the terminal, instead of the simulated annotator.")] = False
    lang: str = "en"
    cache: Path | None = None
    processes: Annotated[int, Ge(1)] = 1
    program: str = "klype"
    functions: dict[str, Callable[..., Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class InputOptions(WorkOptions):
    """Options for the training data, how it is read, and the model to start from."""

    from_: Annotated[
        str,
        Option("The MODEL to start from: a run, a folder (Hugging Face's too), a GGUF file.", "--from", check=resolve),
    ] = ""
    lora: Annotated[
        int | None, Option("Train adapters of this rank beside frozen weights.", shown="full training"), Ge(1), Le(4096)
    ] = None
    size: Annotated[
        Size | None,
        Option(
            "The model's shape: tiny (2 layers, 96 wide), mini (3, 128), small (4, 192), medium (5, 256), base (6, "
            "384) or large (8, 512).",
            shown="the recipe's, or what the time can teach",
        ),
    ] = None
    text: Annotated[tuple[str, ...], Option("Files, folders or globs of text. May be repeated.")] = ()
    instructions: Annotated[Path | None, Option("JSONL: messages, or questions with answers.")] = None
    preferences: Annotated[Path | None, Option("JSONL: chosen and rejected, or ranked lists.")] = None
    data: Annotated[Path | None, Option("A folder of texts, questions and rankings, or hf:OWNER/NAME.")] = None
    encoding: Annotated[str, Option("The encoding of the text files.")] = "utf-8"
    text_field: Annotated[str, Option("The field of a row that holds the text.", shown="detected")] = ""
    skip_bad: Annotated[bool, Option("Skip bad rows, and name the first of them.")] = False

    def __post_init__(self) -> None:
        if self.size is not None and self.from_:
            raise ValueError("the model of --from has its shape already: leave out --size")

    def check(self) -> None:
        """Checks that all named files, folders, patterns, models and encodings exist. UsageError for the first that
        does not, before anything is created."""
        from klype.data.find_data import Dataset, is_hub  # slow to import, and not needed for --help
        from klype.data.readers import check_encoding
        from klype.sources.opening import find_model
        from klype.words import LANGUAGES

        a_device(self.device)
        if self.lang not in LANGUAGES:
            raise UsageError(f"There is no language '{self.lang}': use {' or '.join(LANGUAGES)}.")
        check_encoding(self.encoding)
        for name in self.text:
            if not Path(name).expanduser().exists() and not glob.glob(name, recursive=True):
                raise UsageError(f"--text: there is nothing at {name}.")
        for option, file in (("--instructions", self.instructions), ("--preferences", self.preferences)):
            a_file(option, file)
        if self.data is not None and is_hub(self.data):
            Dataset.parse(str(self.data))
        elif self.data is not None and not self.data.is_dir():
            raise UsageError(f"--data: there is no folder {self.data}.")
        if self.from_:
            find_model(self.from_)


@dataclass(frozen=True, kw_only=True)
class RunOptions(InputOptions):
    """Options of a whole life-cycle (``klype run``). Without a recipe: see ``recipe_for``."""

    minutes: Annotated[float, Option("Minutes that it may take in total."), Gt(0), Le(MONTH)] = 5.0
    recipe: Annotated[str, Option("A recipe's name or TOML file.", shown="world, or text")] = ""

    @property
    def recipe_name(self) -> str:
        return self.recipe or recipe_for(self)


@dataclass(frozen=True, kw_only=True)
class StageOptions(InputOptions):
    """Options of one stage (``klype train STAGE``)."""

    stage: Annotated[Stage, Option("pretrain, finetune, rank, reward or align.", argument=True)]
    steps: Annotated[int | None, Option("Number of steps."), Gt(0)] = None
    minutes: Annotated[float | None, Option("Minutes, instead of --steps."), Gt(0), Le(MONTH)] = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.minutes is not None:
            raise ValueError("give either --steps or --minutes, not both")
        super().__post_init__()


def recipe_for(options: InputOptions) -> str:
    """The default recipe for these inputs: "world" without any, "lora" with adapters, else "text"."""
    if not (options.text or options.data or options.instructions):
        return "world"
    return "lora" if options.lora else "text"
