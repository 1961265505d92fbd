"""Builds the wheel and the source archive in dist/, checks them, and tries the wheel in an empty environment.

Usage: .venv/bin/python scripts/release.py   (or: make release)

twine reads the metadata. A new environment gets the wheel and what it asks for, in the versions of constraints.txt, and
does a life-cycle of two minutes outside the checkout. What is installed there, with versions and licences, is listed
beside the archives: klype-VERSION.cdx.json (CycloneDX) and licences.md. The tools have an environment of their own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from install import LOCK, ROOT, torch_lock

DIST = ROOT / "dist"
TOOLS = ("build>=1.2", "hatchling>=1.27", "twine>=6", "cyclonedx-bom>=7")


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    """Ends this where the command fails, which has said why."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    print("+", *(Path(word).name if isinstance(word, Path) else word for word in command), flush=True)
    if (code := subprocess.run([*map(str, command)], cwd=cwd, env=environ, check=False).returncode) != 0:
        sys.exit(code)


def environment(folder: Path, *wanted: str | Path) -> Path:
    """A new one with these packages; its programs' folder."""
    run(sys.executable, "-m", "venv", folder)
    programs = folder / ("Scripts" if sys.platform == "win32" else "bin")
    run(programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted)
    return programs


def pins(folder: Path) -> Path:
    """The versions that tests are run with, without the hashes, which pip would ask of the wheel, too."""
    locks = LOCK.read_text(encoding="utf-8") + torch_lock().read_text(encoding="utf-8")
    file = folder / "pins.txt"
    file.write_text("\n".join(re.findall(r"(?m)^[^#\s][^ ]*==[^ ]+", locks)) + "\n", encoding="utf-8")
    return file


def licences(bill: Path) -> str:
    """A table of what is installed with the wheel."""
    rows = ["| package | version | licence |", "|---|---|---|"]
    for part in sorted(json.loads(bill.read_bytes())["components"], key=lambda part: str(part["name"]).lower()):
        told = [one.get("expression") or one["license"].get("id") or one["license"]["name"]
                for one in part.get("licenses", ())]  # fmt: skip
        short = dict.fromkeys(" ".join(name.rpartition(":: ")[2].split())[:300] for name in told)
        rows.append(f"| {part['name']} | {part['version']} | {'; '.join(short) or 'not said'} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    shutil.rmtree(DIST, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="klype-release-") as place:
        folder = Path(place)
        tools = environment(folder / "tools", *TOOLS)
        run(tools / "python", "-m", "build", "--no-isolation")
        run(tools / "twine", "check", "--strict", *sorted(DIST.iterdir()))
        (wheel,) = DIST.glob("*.whl")
        own = environment(folder / "own", "--constraint", pins(folder), wheel)
        elsewhere = folder / "elsewhere"
        elsewhere.mkdir()
        run(own / "klype", "ask", "Kari er i hagen. Hvor er Kari?", cwd=elsewhere)
        run(own / "klype", "run", "--minutes", "2", cwd=elsewhere)
        bill = DIST / f"{'-'.join(wheel.name.split('-')[:2])}.cdx.json"
        run(tools / "cyclonedx-py", "environment", "--pyproject", ROOT / "pyproject.toml", "--output-reproducible",
            "--output-file", bill, own / "python")  # fmt: skip
        (DIST / "licences.md").write_text(licences(bill), encoding="utf-8")
    for file in sorted(DIST.iterdir()):
        print(f"{file.stat().st_size:12,}  {file.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
