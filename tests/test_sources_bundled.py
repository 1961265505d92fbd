"""The demo model that comes with klype: its files are the listed ones, it is put into KLYPE_HOME whole, and it is what
commands take where no MODEL is named."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

import klype
from klype.api.examination import questions_of
from klype.cli import exits
from klype.cli.main import call
from klype.errors import KlypeError
from klype.runs.folder import default_model, read_run
from klype.serve.served_model import open_served
from klype.sources.model_files import FILES, demo_run, resolve
from klype.studio.studio import Studio

PACKAGE = Path(klype.__file__).parent
BUNDLED = PACKAGE / "bundled"
LISTED: dict[str, str] = json.loads((BUNDLED / FILES).read_bytes())["sha256"]
PUT = "from klype.sources.model_files import demo_run; print(demo_run())"
Captured = pytest.CaptureFixture[str]


def files_in(folder: Path) -> dict[str, str]:
    """The SHA-256 of each, by its path."""
    found = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def put(package: Path, home: Path) -> subprocess.Popen[str]:
    """Another process that puts the demo model of ``package`` into ``home``."""
    environ = {**os.environ, "PYTHONPATH": str(package), "KLYPE_HOME": str(home)}
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", PUT]
    return subprocess.Popen(command, cwd=home.parent, env=environ, stdout=pipe, stderr=pipe, text=True)


def zipped(file: Path, damaged: str = "") -> Path:
    """The package as one file, from which Python imports; a byte of ``damaged`` is another one."""
    with zipfile.ZipFile(file, "w") as archive:
        for path in PACKAGE.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                name, content = path.relative_to(PACKAGE.parent).as_posix(), path.read_bytes()
                archive.writestr(name, content[:-1] + b"?" if damaged and name.endswith(damaged) else content)
    return file


def test_what_ships_is_what_is_listed_and_is_small() -> None:
    assert files_in(BUNDLED / "demo") == LISTED
    assert sum(len(zlib.compress((BUNDLED / "demo" / name).read_bytes())) for name in LISTED) <= 4_000_000
    for name in ("pretrain", "finetune", "align", "reward"):
        weights = load_file(BUNDLED / "demo" / name / "model.safetensors")
        assert {str(w.dtype) for w in weights.values()} == {"torch.float16"}
        config = json.loads((BUNDLED / "demo" / name / "config.json").read_bytes())
        assert config["torch_dtype"] == "float16"


def test_rounding_moved_no_figure_beyond_its_interval() -> None:
    about = read_run(BUNDLED / "demo")
    assert all(gate["passed"] for gate in about["gates"])
    measured = about["bundled"]["measured_again"]
    assert measured.keys() == about["figures"].keys()
    for stage, figures in about["figures"].items():
        assert {"right", "s", "kl"} <= measured[stage].keys()
        known = {name: f for name, f in figures.items() if name in measured[stage] and f["value"] is not None}
        assert {name for name, f in known.items() if not f["low"] <= measured[stage][name] <= f["high"]} == set()


def test_the_weights_are_those_of_the_runs_figures() -> None:
    base = klype.load("demo/pretrain")
    for shown in json.loads((BUNDLED / "demo" / "figures.json").read_bytes())["next"]:
        found = {token.id: token.p for token in base.next(shown["prompt"], 50, raw=True, temperature=1).tokens}
        for token in shown["tokens"]:
            assert found[token["id"]] == pytest.approx(token["p"], abs=0.005)


def test_it_is_put_into_the_home_once_and_is_ones_own(home: Path) -> None:
    run = demo_run()
    assert run.is_relative_to(home)
    assert files_in(run) == LISTED
    assert stat.S_IMODE(run.parent.stat().st_mode) == 0o700
    (run / "mine").write_text("kept", encoding="utf-8")
    assert demo_run() == run
    assert (run / "mine").read_text(encoding="utf-8") == "kept"
    assert [p.name for p in run.parent.iterdir()] == ["demo"]


@pytest.mark.slow
def test_several_processes_put_it_there_at_once(tmp_path: Path) -> None:
    others = [put(PACKAGE.parent, tmp_path / "home") for _ in range(4)]
    said = [other.communicate(timeout=120) for other in others]
    assert [other.returncode for other in others] == [0] * 4, said
    (run,) = {Path(out.strip()) for out, _ in said}
    assert files_in(run) == LISTED
    assert [p.name for p in run.parent.iterdir()] == ["demo"]


@pytest.mark.slow
def test_it_comes_out_of_a_zipped_package_and_only_whole(tmp_path: Path) -> None:
    whole = put(zipped(tmp_path / "whole.zip"), tmp_path / "home")
    out, err = whole.communicate(timeout=120)
    assert whole.returncode == 0, err
    assert files_in(Path(out.strip())) == LISTED
    broken = put(zipped(tmp_path / "broken.zip", "demo/align/model.safetensors"), tmp_path / "other")
    _, err = broken.communicate(timeout=120)
    assert "The demo model that came with klype is damaged: align/model.safetensors." in err.splitlines()[-1]
    assert [p for p in (tmp_path / "other").rglob("*") if p.is_file()] == []


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("KLYPE_HOME", str(tmp_path / "file"))
    with pytest.raises(KlypeError, match=r"cannot be put into .*file") as error:
        demo_run()
    assert "KLYPE_HOME" in error.value.hint


def test_demo_is_a_name_unless_such_a_path_lies_here(elsewhere: Path) -> None:
    assert resolve("demo/finetune") == str(demo_run() / "finetune")
    for name in ("demonstrate it", "runs/demo", "http://demo/v1", ""):
        assert resolve(name) == name
    (elsewhere / "demo").mkdir()
    assert resolve("demo/finetune") == "demo/finetune"


def test_where_no_model_is_named_it_is_the_newest_run_else_the_demo(elsewhere: Path, capsys: Captured) -> None:
    assert default_model("en") == str(demo_run())
    assert default_model("nb") == str(demo_run())
    assert capsys.readouterr().err.splitlines() == [
        "Model: demo (it comes with klype).",
        "Modell: demo (den følger med klype).",
    ]
    for number, name in enumerate(("runs/old", "runs/new", "runs/begun")):
        if name == "runs/begun":
            (elsewhere / name).mkdir()
            (elsewhere / name / "run.json").write_text("{}", encoding="utf-8")
        else:
            shutil.copytree(demo_run(), elsewhere / name)
        os.utime(elsewhere / name / "run.json", (number, number))
    assert default_model("en") == str(Path("runs/new"))
    assert default_model("en", Path("nowhere")) == str(demo_run())


@pytest.mark.slow
def test_commands_take_it_where_no_model_is_named(
    elsewhere: Path, capsys: Captured, typed: Callable[[str], None]
) -> None:
    question = "Kari er i hagen. Ola er på skolen. Hvor er Kari?"
    typed(f"{question}\n/quit\n")
    for argv in (
        ["ask", question, "--temperature", "0", "--best-of", "2"],
        ["next", question],
        ["tree", question, "--budget", "50"],
        ["forks", question, "-n", "4", "--limit", "8"],
        ["chat"],
    ):
        assert exits.exit_code(call, [*argv, "--json"]) == 0
        told = capsys.readouterr()
        taken = "demo/pretrain" if argv[0] == "next" else "demo"  # what continues a text
        assert told.err.startswith(f"Model: {taken} (it comes with klype).\n")
        assert argv[0] == "next" or "i hagen" in told.out
        assert json.loads(told.out)
    for name in ("demo", "demo/pretrain"):
        assert exits.exit_code(call, ["ask", name]) == 2
        assert f"{name} is a model; what should it be asked?" in capsys.readouterr().err


@pytest.mark.slow
def test_what_takes_a_run_takes_it(home: Path, elsewhere: Path, capsys: Captured) -> None:
    """Studio and server know it by its name."""
    studio = Studio([], home, ["false"])
    assert [model.name for model in studio.open("demo")] == ["demo/pretrain", "demo/finetune", "demo/align"]
    assert studio.suggestions("nb")
    studio.stop()
    assert open_served("demo").name == "demo"
    assert open_served("mine=demo/finetune").name == "mine"
    assert len(questions_of(klype.load("demo").opened, None, "", 50)) == 50
    assert exits.exit_code(call, ["rank", "demo", "--simulate"]) == 1
    assert "demo has no answers to rank" in capsys.readouterr().err
    assert files_in(BUNDLED / "demo") == LISTED
