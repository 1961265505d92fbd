"""What klype reads from the environment, all of it in one place."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from klype.errors import UsageError

if TYPE_CHECKING:
    from klype.train.parallel import Team


def state_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where klype keeps its own notes: KLYPE_HOME, or XDG_STATE_HOME/klype, or ~/.local/state/klype."""
    if environ.get("KLYPE_HOME"):
        return Path(environ["KLYPE_HOME"]).expanduser()
    base = environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "klype"


def server_key(host: str, environ: Mapping[str, str] = os.environ) -> str:
    """The key for a server: KLYPE_API_KEY; OPENAI_API_KEY goes to OpenAI's own address only."""
    if environ.get("KLYPE_API_KEY"):
        return environ["KLYPE_API_KEY"]
    return environ.get("OPENAI_API_KEY", "") if host == "api.openai.com" else ""


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where klype keeps what it can make again: KLYPE_HOME/cache, or XDG_CACHE_HOME/klype, or ~/.cache/klype."""
    if environ.get("KLYPE_HOME"):
        return Path(environ["KLYPE_HOME"]).expanduser() / "cache"
    base = environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "klype"


def language(environ: Mapping[str, str] = os.environ) -> Literal["nb", "en"]:
    """Norwegian where KLYPE_LANG or the locale says so, else English."""
    for name in ("KLYPE_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        value = environ.get(name, "")
        if value:
            return "nb" if value.lower().startswith(("nb", "nn", "no")) else "en"
    return "en"


def team(environ: Mapping[str, str] = os.environ) -> Team | None:
    """The processes among which torchrun, or a launcher that sets the same, started this one; None: it is alone."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= environ.keys() or environ["WORLD_SIZE"] == "1":
        return None
    from klype.train.parallel import Team

    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    defaults = {"LOCAL_RANK": environ["RANK"], "LOCAL_WORLD_SIZE": environ["WORLD_SIZE"]}
    try:
        return Team(*(int(environ.get(name, defaults.get(name, "0"))) for name in names))
    except ValueError:
        told = " ".join(f"{name}={environ[name]}" for name in names if name in environ)
        raise UsageError(f"The launcher's variables should be numbers ({told}).", "Start with torchrun.") from None


def is_launched(argv: list[str], environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher started this process to train together with others."""
    return argv[:1] in (["train"], ["run"]) and {"RANK", "MASTER_ADDR"} <= environ.keys()


def speaks(argv: list[str], environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is alone, or the one that speaks for all."""
    return not is_launched(argv, environ) or environ["RANK"] == "0"


def api_key(environ: Mapping[str, str] = os.environ) -> str | None:
    """What clients of klype's server must know: KLYPE_API_KEY; None when it is not set."""
    return environ.get("KLYPE_API_KEY")


def wants_json(argv: list[str]) -> bool:
    """Whether --json is among the options (before a lone ``--``), also when the rest cannot be understood."""
    options = argv[: argv.index("--")] if "--" in argv else argv
    return "--json" in options


def arguments() -> list[str]:
    return sys.argv[1:]
