"""What only the command line reads from the environment: launchers' variables, the key of its server, arguments."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from klype.environment import language
from klype.errors import UsageError
from klype.words import LANGUAGES

if TYPE_CHECKING:
    from klype.train.parallel import ProcessRank


def team(environ: Mapping[str, str] = os.environ) -> ProcessRank | None:
    """The processes among which torchrun, or a launcher that sets the same, started this one; None: it is alone."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= environ.keys() or environ["WORLD_SIZE"] == "1":
        return None
    from klype.train.parallel import ProcessRank

    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    defaults = {"LOCAL_RANK": environ["RANK"], "LOCAL_WORLD_SIZE": environ["WORLD_SIZE"]}
    try:
        return ProcessRank(*(int(environ.get(name, defaults.get(name, "0"))) for name in names))
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


def speech(argv: list[str]) -> str:
    """The language of --lang where there is one that klype speaks, also when the rest cannot be understood; else the
    environment's."""
    options = argv[: argv.index("--")] if "--" in argv else argv
    pairs = [*pairwise(options), *(option.split("=", 1) for option in options if "=" in option)]
    given = [value for name, value in pairs if name == "--lang" and value in LANGUAGES]
    return given[-1] if given else language()


def speak(lang: str) -> None:
    """This process and those that it starts speak it, whatever the locale says."""
    os.environ["KLYPE_LANG"] = lang


def wants_json(argv: list[str]) -> bool:
    """Whether --json is among the options (before a lone ``--``), also when the rest cannot be understood."""
    options = argv[: argv.index("--")] if "--" in argv else argv
    return "--json" in options


def program(environ: Mapping[str, str] = os.environ, python: str = sys.executable) -> str:
    """How this klype is called from the user's shell: ``klype`` where the shell finds it, else by its path."""
    script = Path(python).with_name("klype.exe" if sys.platform == "win32" else "klype")
    if not script.is_file():
        return f"{shlex.quote(python)} -m klype"
    found = shutil.which("klype", path=environ.get("PATH", ""))
    if found is not None and Path(found).samefile(script):
        return "klype"
    return shlex.quote(str(script.relative_to(Path.cwd()) if script.is_relative_to(Path.cwd()) else script))


def arguments() -> list[str]:
    return sys.argv[1:]
