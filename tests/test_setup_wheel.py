"""The wheel holds the whole package and works where only it is installed; the Makefile says what is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, so that nothing is left in the working tree."""
    source, out = tmp_path_factory.mktemp("source") / "klype", tmp_path_factory.mktemp("dist")
    source.mkdir()
    shutil.copytree(ROOT / "klype", source / "klype", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source / name)
    built = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, cwd=source)
    assert built.returncode == 0, built.stderr + built.stdout
    (file,) = out.glob("klype-*.whl")
    return file


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    files = {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "klype").rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in inside if ".dist-info/" not in name} == files
    assert {"klype/py.typed", "klype/words/cli_nb.toml"} <= inside
    assert any(name.endswith("licenses/LICENSE") for name in inside)
    assert any(name.endswith("licenses/NOTICE") for name in inside)


@pytest.mark.slow
def test_the_wheel_works_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    """The dependencies are lent by this environment: its folder is on the path, its .pth files are not read."""
    assert run(sys.executable, "-m", "venv", "--without-pip", "own", cwd=tmp_path).returncode == 0
    python = tmp_path / "own" / "bin" / "python"
    site = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).stdout.strip()
    )
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    pip = run(
        sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path
    )
    assert pip.returncode == 0, pip.stderr
    where = run(python, "-c", "import klype; print(klype.__file__)", cwd=tmp_path).stdout
    assert where.startswith(str(site))
    klype = tmp_path / "own" / "bin" / "klype"
    assert run(klype, "--version", cwd=tmp_path).stdout.startswith("klype 0.")
    schema = run(klype, "config", "schema", cwd=tmp_path)
    assert schema.returncode == 0, schema.stderr
    assert json.loads(schema.stdout)["additionalProperties"] is False
    listed = run(klype, "runs", "list", "--lang", "nb", cwd=tmp_path)
    assert "Lag en med klype run." in listed.stdout


@pytest.mark.parametrize(
    ("python", "sentence"),
    [
        ("no-such-python", "there is no 'no-such-python' here. Install Python 3.11 or newer"),
        ("old-python", "Python 3.11 or newer is needed, and 'old-python' is Python 3.8.1."),
    ],
)
def test_a_python_that_will_not_do_is_named(python: str, sentence: str, tmp_path: Path) -> None:
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.1" && exit 0\nexit 1\n', encoding="ascii")
    old.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = run("bash", ROOT / "scripts" / "python-ready.sh", python, cwd=tmp_path, PATH=path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"klype: {sentence}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / ".venv").exists()


def test_every_dependency_is_pinned_with_hashes_and_without_a_host() -> None:
    """name==version and SHA-256, one for each requirement of the project and of the extras that tests need."""
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name
    from packaging.version import Version

    pins: dict[str, Version] = {}
    for name in ("constraints.txt", "constraints-cpu.txt"):
        text = (ROOT / name).read_text(encoding="utf-8").replace(" \\\n", " ")
        for line in (line for line in text.splitlines() if not line.startswith("#")):
            found = re.fullmatch(r"([a-z0-9-]+)==(\S+)((?: +--hash=sha256:[0-9a-f]{64})+)", line)
            assert found is not None, line
            pins[found[1]] = Version(found[2])
    assert pins.pop("torch") == Version("2.13.0+cpu")
    assert all(version.local is None for version in pins.values())
    pins["torch"] = Version("2.13.0")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = list(project["dependencies"])
    for extra in ("dev", "hf", "data"):
        wanted += project["optional-dependencies"][extra]
    for requirement in map(Requirement, wanted):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement.name
    cuda = (ROOT / "constraints-cuda.txt").read_text(encoding="utf-8")
    assert re.search(r"(?m)^torch==2\.13\.0 \\\n    --hash=sha256:[0-9a-f]{64}$", cuda)
