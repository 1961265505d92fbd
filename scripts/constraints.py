"""Prints the pinned versions of everything that klype and its extras need, as installed in this environment.

Usage: .venv/bin/python scripts/constraints.py dev hf data > constraints.txt   (or: make constraints)
"""

from __future__ import annotations

import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def closure(wanted: list[Requirement]) -> dict[str, str]:
    """Every distribution reached from these requirements, with its public version (no local build tag)."""
    pins: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            pins[name] = Version(metadata.version(name)).public
            needs = (Requirement(line) for line in metadata.requires(name) or ())
            wanted += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    return pins


def main(extras: list[str]) -> None:
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))
    lines = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for extra in extras:
        lines += project["project"]["optional-dependencies"][extra]
    print("# Written by `make constraints`. Versions that are tested together.")
    for name, version in sorted(closure([Requirement(line) for line in lines]).items()):
        print(f"{name}=={version}")


if __name__ == "__main__":
    main(sys.argv[1:])
