"""From what a user calls a MODEL to what it is: its kind, by how the name begins, and the files that are meant.

A new kind is a row of KINDS and the function that opens it. Nothing heavy is imported: the command line reads the table
before anything is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from klype.errors import KlypeError, UsageError
from klype.sources.bundled import DEMO

if TYPE_CHECKING:
    from klype.sources.opening import Opened

RUNS = Path("runs")
NEWEST_FIRST = ("align", "finetune", "pretrain")
REWARD = "reward.json"  # lies in a reward model's folder, beside the weights of a language model


@dataclass(frozen=True, slots=True)
class Found:
    """A model's folder (or GGUF file); ``run`` and ``stage`` are those it belongs to, when it belongs to any."""

    folder: Path
    run: Path | None = None
    stage: str = ""


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """How a MODEL is opened, as ``open_model`` explains it."""

    precision: str = "float32"
    measured: bool = False
    budget: str = ""
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class ModelKind:
    """A name that begins so is of this kind. ``help`` writes such a name.

    ``short(name)``: what the studio calls the model. ``find(name)``: its files; None where it has none here, of which
    errors say that it is ``where``.
    """

    begins: tuple[str, ...]
    help: str
    short: Callable[[str], str]
    open: Callable[[str, OpenOptions], Opened]
    find: Callable[[str], Found] | None = None
    where: str = "elsewhere"


def kind_of(name: str) -> ModelKind:
    """By how the name begins; any other is a path."""
    return next((kind for kind in KINDS if name.startswith(kind.begins)), PATH)


def spelled(files: bool = False) -> str:
    """The names of all kinds, or of those that have ``files``, for help."""
    *first, last = (kind.help for kind in (PATH, *KINDS) if kind.find is not None or not files)
    return f"{', '.join(first)} or {last}"


def find_model(name: str) -> Found:
    """The files of a MODEL; the hub's are fetched. Errors: there are none, or it has none here."""
    kind = kind_of(name)
    if kind.find is None:
        raise UsageError(f"{name} is {kind.where}, and this needs the model's own files.", "Give its folder.")
    return kind.find(name)


def find_path(name: str) -> Found:
    """Of a run's folder (its newest stage), ``RUN/STAGE``, a checkpoint or Hugging Face folder, or a GGUF file."""
    from klype.model.manifest import is_whole

    try:
        folder = Path(name).expanduser()
        there = folder.exists()
    except (OSError, RuntimeError):  # a name that is too long, or of a user who has no home
        there = False
    if not name or not there:
        raise UsageError(f"There is no model {name[:200]}.", _what_exists(name))
    if folder.is_file() and folder.suffix.lower() == ".gguf":
        return Found(folder)
    if not folder.is_dir():
        raise UsageError(f"{name} is a file, not a model's folder.")
    if (folder / REWARD).is_file():
        raise UsageError(
            f"{name} is a reward model, which weighs answers and writes none.",
            "Name its run: klype ask RUN --best-of 8 and klype align RUN use it.",
        )
    if holds_weights(folder) or is_whole(folder):
        return _with_run(folder)
    if (folder / "run.json").exists():
        for stage in NEWEST_FIRST:
            if is_whole(folder / stage):
                return Found(folder / stage, folder, stage)
        raise KlypeError(f"The run {name} has no finished stage yet.", f"Resume it: klype run --out {name} --resume")
    raise UsageError(f"{name} is not a model: it has no config.json with model.safetensors, and no run.json.")


def holds_weights(folder: Path) -> bool:
    """Whether a model lies here, of any maker: configuration and weights (one file, or shards with their index)."""
    weights = ("model.safetensors", "model.safetensors.index.json")
    return (folder / "config.json").is_file() and any((folder / w).is_file() for w in weights)


def _with_run(folder: Path) -> Found:
    parent = folder.resolve().parent
    if folder.resolve().name in NEWEST_FIRST and (parent / "run.json").exists():
        return Found(folder, parent, folder.resolve().name)
    return Found(folder)


def is_aligned(folder: Path) -> bool:
    """Whether alignment was the last to teach the model that lies here, whatever its folder is called."""
    from klype.model.checkpoint import read_about

    return read_about(folder).get("stage") == "align"


def is_bare(name: str) -> bool:
    """Whether the name is a word, or several, rather than a path."""
    return " " in name or not (set("/\\") & {*name} or name.lower().endswith((".gguf", ".safetensors")))


def near(name: str) -> str:
    """The MODEL that is here and whose name this one resembles; "" where none does."""
    from difflib import get_close_matches

    from klype.sources.names import models_here

    runs = [run.parent for run in RUNS.glob("*/run.json")]
    known = {path: path for run in (DEMO, *map(str, runs)) for path in (run, *(f"{run}/{s}" for s in NEWEST_FIRST))}
    known |= {run.name: str(run) for run in runs} | {stage: f"{DEMO}/{stage}" for stage in NEWEST_FIRST}
    known |= {model.lower(): model for model in models_here()}
    found = get_close_matches(name.rstrip("/").lower(), known, n=1, cutoff=0.75)
    return known[found[0]] if found else ""


def _what_exists(name: str) -> str:
    """What to do about a MODEL that is not there."""
    from klype.model.manifest import is_whole
    from klype.sources.names import to_fetch

    parent = Path(name).parent
    if (parent / "run.json").exists():
        stages = [stage for stage in NEWEST_FIRST if is_whole(parent / stage)]
        return f"The run has: {', '.join(stages) or 'no finished stage'}."
    if (fetched := to_fetch(name)) == name:
        return f"Fetch it: klype pull {name}"
    if meant := near(name):
        return f"Did you mean {meant}?"
    if fetched:
        return f"Did you mean {fetched}? Fetch it: klype pull {fetched}"
    return "Make one with 'klype run', or list what there is with 'klype runs list'."


def _open_files(name: str, how: OpenOptions) -> Opened:
    from klype.sources.opening import open_files

    return open_files(name, how)


def _short_path(name: str) -> str:
    path = Path(name)
    return f"{path.resolve().parent.name}/{path.name}" if path.name in NEWEST_FIRST else path.name


def _fetch(name: str) -> Found:
    from klype.sources.hub import fetch

    return Found(fetch(name.removeprefix("hf:")))


def _open_server(name: str, how: OpenOptions) -> Opened:
    from klype.sources.capabilities import open_remote

    return open_remote(name, how.budget)


PATH = ModelKind(
    (),
    "a run, one of its stages (RUN/finetune), a model's folder, a GGUF file",
    short=_short_path,
    open=_open_files,
    find=find_path,
)
SERVER = ModelKind(
    ("http://", "https://"),
    "a server's http://host:port/v1#name",
    short=lambda name: name.partition("#")[2] or name,
    open=_open_server,
    where="behind a server",
)
KINDS: tuple[ModelKind, ...] = (
    ModelKind(
        ("hf:",),
        "hf:owner/name",
        short=lambda name: name.rpartition("/")[2],
        open=_open_files,
        find=_fetch,
    ),
    SERVER,
)
