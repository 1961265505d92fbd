"""Installs klype and what it needs into the environment that runs this: every file checked against its known hash.

Usage: .venv/bin/python scripts/install.py dev,hf,data   (or: make setup)

Only what constraints.txt covers can be checked: another system, another Python and further extras are installed by the
ranges in pyproject.toml, which is said. A file that differs from its hash is never installed.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK, CPU, CUDA = (ROOT / f"constraints{what}.txt" for what in ("", "-cpu", "-cuda"))


def pip(*words: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *map(str, words)]
    if (code := subprocess.run(command, cwd=ROOT, check=False).returncode) != 0:
        sys.exit(code)  # pip has said why


def told(lock: str, name: str) -> str:
    """A line of the lock's head."""
    found = re.search(rf"(?m)^# {name}: (.*)$", lock)
    assert found is not None, f"{LOCK} has no line {name}"
    return found[1]


def torch_lock() -> Path:
    """torch's CPU build where pip, as it is set up here, finds it; else PyPI's."""
    wanted = re.search(r"(?m)^torch==([^ ]+)", CPU.read_text(encoding="utf-8"))
    command = [sys.executable, "-m", "pip", "index", "versions", "torch", "--disable-pip-version-check"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return CPU if wanted is not None and wanted[1] in said else CUDA


def main(extras: list[str]) -> None:
    lock = LOCK.read_text(encoding="utf-8")
    covers, known = told(lock, "Covers"), told(lock, "Extras").split()
    here = f"{platform.system()} {platform.machine()}, Python {sys.version_info[0]}.{sys.version_info[1]}"
    project = f".[{','.join(extras)}]"
    if here != covers:
        print(f"klype: {LOCK.name} has the hashes of files for {covers}; this is {here}.", file=sys.stderr)
        print("klype: the packages are installed by the ranges in pyproject.toml, unchecked.", file=sys.stderr)
        pip("-e", project)
        return
    torch = torch_lock()
    pip("--require-hashes", "--no-deps", "-r", LOCK, "-r", torch)
    pip("--no-deps", "--no-build-isolation", "-e", ".")  # pip checks no hash of a folder
    pinned = {"klype", *re.findall(r"(?m)^([^#\s=\[]+)", lock + torch.read_text(encoding="utf-8"))}
    said = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False).stdout
    # of what tests install besides, without its needs, nothing is asked
    if missing := [line for line in said.splitlines() if line.split(" ")[0].lower() in pinned]:
        print("\n".join(missing), file=sys.stderr)
        sys.exit(f"klype: {LOCK.name} is not whole. Write it anew: make constraints")
    further = [extra for extra in extras if extra not in known]
    if further:
        print(f"klype: what {' and '.join(further)} needs besides is installed unchecked.", file=sys.stderr)
        with tempfile.TemporaryDirectory() as folder:
            pins = Path(folder) / "pins.txt"  # the versions alone: hashes would be asked of everything
            found = re.findall(r"(?m)^[^#\s][^ ]*==[^ ]+", lock + torch.read_text(encoding="utf-8"))
            pins.write_text("\n".join(found) + "\n", encoding="utf-8")
            pip("-c", pins, "-e", project)


if __name__ == "__main__":
    main(sys.argv[1].split(","))
