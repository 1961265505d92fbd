"""The wheel holds the whole package and works where only it and what it asks for is installed, with and without a
compiler; the Makefile says what is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent


def alone(**environ: str) -> dict[str, str]:
    """Of no checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environ


def run(*command: str | Path, cwd: Path, typed: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=alone(**environ),
        input=typed,
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


def needed(name: str) -> set[str]:
    """The distributions that one asks for, with those that they ask for, on this machine and without extras."""
    found: set[str] = set()
    todo = [Requirement(name)]
    while todo:
        asked = todo.pop()
        for text in metadata.requires(asked.name) or []:
            one = Requirement(text)
            wanted = one.marker is None or any(one.marker.evaluate({"extra": e}) for e in asked.extras or {""})
            if wanted and f"{one.name}{sorted(one.extras)}" not in found:
                found.add(f"{one.name}{sorted(one.extras)}")
                todo.append(one)
    return {text.partition("[")[0] for text in found}


@pytest.fixture(scope="module")
def own(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs' folder of a new environment with the wheel and what it asks for, which this environment lends: pip
    is told of no index. There is no klype but the wheel's, and nothing of what tests and other extras need."""
    place = tmp_path_factory.mktemp("own")
    assert run(sys.executable, "-m", "venv", "--without-pip", "own", cwd=place).returncode == 0
    python = place / "own" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place).stdout.strip())
    for name in needed("klype"):
        lent = metadata.distribution(name)
        for part in {file.parts[0] for file in lent.files or ()} - {"..", "__pycache__"}:
            if not (site / part).exists():
                (site / part).symlink_to(lent.locate_file(part))
    pip = run(sys.executable, "-m", "pip", "--python", python, "install", "--no-index", wheel, cwd=place)
    assert pip.returncode == 0, pip.stderr
    assert run(python, "-c", "import klype; print(klype.__file__)", cwd=place).stdout.startswith(str(site))
    assert run(python, "-c", "import pytest", cwd=place).returncode == 1
    return python.parent


@pytest.mark.slow
def test_the_wheel_works_in_an_environment_of_its_own(own: Path, tmp_path: Path) -> None:
    klype = own / "klype"
    assert run(klype, "--version", cwd=tmp_path).stdout.startswith("klype 0.")
    schema = run(klype, "config", "schema", cwd=tmp_path)
    assert schema.returncode == 0, schema.stderr
    assert json.loads(schema.stdout)["additionalProperties"] is False
    listed = run(klype, "runs", "list", "--lang", "nb", cwd=tmp_path)
    assert "Lag en med klype run." in listed.stdout


@pytest.mark.slow
def test_the_first_minute_after_an_installation(own: Path, home: Path, tmp_path: Path) -> None:
    """What klype names when it is called alone, with the model that comes along; without a compiler, too."""
    klype, compiled = own / "klype", {"KLYPE_HOME": str(home / "own")}
    plain = {"KLYPE_HOME": str(home / "plain"), "PATH": str(own)}
    typed = "Kari er i hagen. Hvor er Kari?\n/probs\n/quit\n"
    chat = run(klype, "chat", "--temperature", "0", cwd=tmp_path, typed=typed, **compiled)
    assert (chat.returncode, "Traceback" in chat.stderr) == (0, False), chat.stderr
    assert "Gjerne! Kari er i hagen.\n" in chat.stdout
    assert re.search(r"hagen +\d+%", chat.stdout)
    assert chat.stderr.startswith("Model: demo (it comes with klype).\n")
    asked = run(klype, "ask", "Kari er i hagen. Hvor er Kari?", "--temperature", "0", "--json", cwd=tmp_path, **plain)
    assert json.loads(asked.stdout)["answer"] == "Gjerne! Kari er i hagen."
    assert any(home.glob("own/cache/*.so"))
    assert not any(home.glob("plain/cache/*.so"))
    shown = run(klype, "next", "Jeg gikk en tur på", cwd=tmp_path, **plain)
    assert re.search(r"stien +█", shown.stdout), shown.stderr
    row = {"question": "Hvor er Kari?", "a": "I hagen.", "b": "Hun er i hagen."}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    judged = run(klype, "judge", "pairs.jsonl", "--json", cwd=tmp_path, **plain)
    assert json.loads(judged.stdout)["rows"][0]["same"] is True


@pytest.mark.slow
def test_the_studio_of_an_installation_is_served_as_the_container_does(own: Path, tmp_path: Path) -> None:
    """Containerfile's command and health check, at another port."""
    steps = (ROOT / "Containerfile").read_text(encoding="utf-8").replace("\\\n", "")
    entry, command, health = (json.loads(re.findall(rf"(?m)^{name} (?:--.*CMD )?(\[.*\])$", steps)[0])
                              for name in ("ENTRYPOINT", "CMD", "HEALTHCHECK"))  # fmt: skip
    words = [str(own / entry[0]), *(word.replace("8080", "0") for word in command), "--json"]
    pipe, key = subprocess.PIPE, "of-the-container"
    studio = subprocess.Popen(words, cwd=tmp_path, env=alone(KLYPE_API_KEY=key), stdout=pipe, stderr=pipe, text=True)
    try:
        assert studio.stdout is not None
        document = json.loads("".join(iter(studio.stdout.readline, "}\n")) + "}")
        assert document["models"] == ["demo/pretrain", "demo/finetune", "demo/align"]
        url = document["url"].replace("0.0.0.0", "127.0.0.1")
        port = url.rstrip("/").rpartition(":")[2]
        assert run(own / health[0], *(word.replace("8080", port) for word in health[1:]), cwd=tmp_path).returncode == 0
        page = httpx.get(url, headers={"Authorization": f"Bearer {key}"}, timeout=120, trust_env=False)
        assert "demo/align" in page.text
        studio.send_signal(signal.SIGTERM)
        assert studio.wait(60) == 0
    finally:
        studio.kill()
        studio.communicate()


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
