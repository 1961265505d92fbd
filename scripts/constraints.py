"""Pins everything that klype and its extras need, as installed here, with the SHA-256 of every file that may be taken.

Usage: .venv/bin/python scripts/constraints.py dev hf data   (or: make constraints)

Writes constraints.txt with all but torch, which is in constraints-cpu.txt (its CPU build) and in constraints-cuda.txt
(PyPI's, with what it needs of CUDA). pip says which files it would take for this system and this Python, once as it is
set up here (where it must find torch's CPU build) and once by itself, from PyPI; nothing large is fetched.
scripts/install.py installs by these files.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
EDITABLE = "editables>=0.5"  # hatchling asks for it when a project is installed as it lies
Files = dict[str, tuple[str, set[str]]]
"""Of each distribution its version and the hashes of its files."""


def wanted(extras: Iterable[str]) -> list[str]:
    """The requirements of the project, of building it, and of the extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    for extra in extras:
        lines += project["project"]["optional-dependencies"][extra]
    return lines


def closure(lines: Iterable[str]) -> dict[str, str]:
    """Every distribution reached from these requirements, with its public version (no local build tag)."""
    pins: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    left = [Requirement(line) for line in lines]
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            pins[name] = Version(metadata.version(name)).public
            needs = (Requirement(line) for line in metadata.requires(name) or ())
            left += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    return pins


def taken(pip: list[str], lines: list[str], pins: Path) -> Files:
    """What pip would install: a dry run, whose report has the hashes."""
    asked = ["install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-", "-c", str(pins), *lines]
    done = subprocess.run([*pip, *asked], stdout=subprocess.PIPE, check=True, text=True)
    return {
        canonicalize_name(one["metadata"]["name"]): (one["metadata"]["version"], {_digest(one["download_info"])})
        for one in json.loads(done.stdout)["install"]
    }


def _digest(info: dict[str, Any]) -> str:
    told = info.get("archive_info", {}).get("hashes", {}).get("sha256")
    if told is not None:
        return str(told)
    file = Path(info["url"].removeprefix("file://"))  # a folder of files tells no hashes
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def merged(name: str, here: Files, pypi: Files) -> tuple[str, set[str]]:
    version, digests = here[name]
    again, others = pypi.get(name, (version, digests))
    if again != version:
        sys.exit(f"{name} is {version} here and {again} on PyPI.")
    return version, digests | others


def write(file: Path, title: str, files: Files) -> None:
    lines = [f"# Written by `make constraints`. {title}"]
    for name, (version, digests) in sorted(files.items()):
        lines.append(" \\\n".join([f"{name}=={version}", *(f"    --hash=sha256:{d}" for d in sorted(digests))]))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(extras: list[str]) -> None:
    lines = wanted(extras)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)  # for a pip that reads metadata alone
        new = [str(folder / "bin" / "python"), "-m", "pip"]
        subprocess.run([*new, "install", "--quiet", "--upgrade", "pip"], check=True)
        pins = folder / "pins.txt"
        pins.write_text("".join(f"{name}=={version}\n" for name, version in closure(lines).items()), encoding="utf-8")
        pip = [*new, "--python", sys.executable]
        lines.append(EDITABLE)
        here, pypi = taken(pip, lines, pins), taken([*pip, "--isolated"], lines, pins)
    if not here["torch"][0].endswith("+cpu"):
        sys.exit("pip finds no CPU build of torch here, whose hash would be lost: point pip at torch's CPU builds.")
    cpu, cuda = here.pop("torch"), {name: found for name, found in pypi.items() if name not in here}
    covers = f"{platform.system()} {platform.machine()}, Python {sys.version_info[0]}.{sys.version_info[1]}"
    title = f"Tested together.\n# Extras: {' '.join(extras)}\n# Covers: {covers}"
    write(ROOT / "constraints.txt", title, {name: merged(name, here, pypi) for name in here})
    write(ROOT / "constraints-cpu.txt", "torch's CPU build.", {"torch": cpu})
    write(ROOT / "constraints-cuda.txt", "PyPI's torch for Linux, and what it needs of CUDA.", cuda)


if __name__ == "__main__":
    main(sys.argv[1:])
