"""From what a user calls a MODEL to its files: a run's stage, a folder, or a GGUF file.

Nothing heavy is imported: the command line looks before anything is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from klype.errors import KlypeError, UsageError
from klype.sources.names import DEMO, models_here, to_fetch

RUNS = Path("runs")
NEWEST_FIRST = ("align", "finetune", "pretrain")
REWARD = "reward.json"  # lies in a reward model's folder, beside the weights of a language model


@dataclass(frozen=True, slots=True)
class Found:
    """A model's folder (or GGUF file); ``run`` and ``stage`` are those it belongs to, when it belongs to any."""

    folder: Path
    run: Path | None = None
    stage: str = ""


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
        own = folder.resolve()
        in_run = own.name in NEWEST_FIRST and (own.parent / "run.json").exists()
        return Found(folder, own.parent, own.name) if in_run else Found(folder)
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


def is_aligned(folder: Path) -> bool:
    """Whether alignment was the last to teach the model that lies here, whatever its folder is called."""
    from klype.model.checkpoint import read_about

    return read_about(folder).get("stage") == "align"


def is_bare(name: str) -> bool:
    """Whether the name is a word, or several, rather than a path."""
    return " " in name or not (set("/\\") & {*name} or name.lower().endswith((".gguf", ".safetensors")))


def near(name: str) -> str:
    """The MODEL that is here and whose name this one resembles; "" where none does."""
    runs = [run.parent for run in RUNS.glob("*/run.json")]
    known = {path: path for run in (DEMO, *map(str, runs)) for path in (run, *(f"{run}/{s}" for s in NEWEST_FIRST))}
    known |= {run.name: str(run) for run in runs} | {stage: f"{DEMO}/{stage}" for stage in NEWEST_FIRST}
    known |= {model.lower(): model for model in models_here()}
    found = get_close_matches(name.rstrip("/").lower(), known, n=1, cutoff=0.75)
    return known[found[0]] if found else ""


def _what_exists(name: str) -> str:
    """What to do about a MODEL that is not there."""
    from klype.model.manifest import is_whole

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
