"""From what a user calls a MODEL to the checkpoint folder that is meant."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from klype.errors import KlypeError, UsageError
from klype.model.checkpoint import read_about
from klype.model.manifest import is_whole
from klype.sources.kinds import kind_of

NEWEST_FIRST = ("align", "finetune", "pretrain")
REWARD = "reward.json"  # lies in a reward model's folder, beside the weights of a language model


@dataclass(frozen=True, slots=True)
class Found:
    """A model's folder (or GGUF file); ``run`` and ``stage`` are those it belongs to, when it belongs to any."""

    folder: Path
    run: Path | None = None
    stage: str = ""


def find_model(name: str) -> Found:
    """The files of a MODEL; the hub's are fetched. Errors: there are none, or it has none here."""
    kind = kind_of(name)
    if kind.find is None:
        raise UsageError(f"{name} is {kind.where}, and this needs the model's own files.", "Give its folder.")
    return kind.find(name)


def find_path(name: str) -> Found:
    """Of a run's folder (its newest stage), ``RUN/STAGE``, a checkpoint or Hugging Face folder, or a GGUF file."""
    try:
        folder = Path(name).expanduser()
        there = folder.exists()
    except (OSError, RuntimeError):  # a name that is too long, or of a user who has no home
        there = False
    if not name or not there:
        raise UsageError(f"There is no model {name[:200]}.", _what_exists(Path(name)))
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
        raise KlypeError(
            f"The run {name} has no finished stage yet.", f"Go on with it: klype run --out {name} --resume"
        )
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
    return read_about(folder).get("stage") == "align"


def _what_exists(folder: Path) -> str:
    parent = folder.parent
    if (parent / "run.json").exists():
        stages = [stage for stage in NEWEST_FIRST if is_whole(parent / stage)]
        return f"The run has: {', '.join(stages) or 'no finished stage'}."
    return "Make one with 'klype run', or list what there is with 'klype runs list'."
