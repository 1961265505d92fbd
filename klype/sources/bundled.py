"""The demo model that comes with klype: a whole run of the demo world, whose files lie in the package."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from importlib import resources
from pathlib import Path

from klype import durable
from klype.environment import state_folder
from klype.errors import KlypeError
from klype.sources.names import find_named

DEMO = "demo"
FILES = "files.json"  # the SHA-256 of each


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
