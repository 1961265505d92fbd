"""Run folders: chosen, never written over, found again by name, listed and compared."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from klype.cli import exits
from klype.cli.main import call
from klype.errors import KlypeError, TrainingInterrupted, UsageError
from klype.model.atomic_folder import MANIFEST
from klype.runs import folder
from klype.runs.run_json import MEANING, Record, process_of, redefined_measures
from klype.sources.opening import find_model
from klype.words import number

DAY = date(2026, 11, 24)
Captured = pytest.CaptureFixture[str]


def checkpoint(place: Path) -> Path:
    place.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", MANIFEST):
        (place / name).write_text("{}", encoding="utf-8")
    return place


def run_of(place: Path, *stages: str, **about: object) -> Path:
    place.mkdir(parents=True)
    (place / "run.json").write_text(json.dumps(about), encoding="utf-8")
    for stage in stages:
        checkpoint(place / stage)
    return place


def choose(*asked: Any) -> Path:
    """The folder that a run would have, made."""
    place = folder.folder_path(*asked)
    place.mkdir(parents=True, exist_ok=True)
    return place


def test_folders_are_numbered_by_day_and_recipe(tmp_path: Path) -> None:
    made = [choose("world", None, False, DAY, tmp_path) for _ in range(3)]
    assert [m.name for m in made] == [f"world-2026-11-24-{n}" for n in (1, 2, 3)]
    assert choose("recipes/mine.toml", None, False, DAY, tmp_path).name == "mine-2026-11-24-1"
    assert all(m.is_dir() for m in made)


def test_resume_takes_the_newest_and_starts_fresh_where_there_is_none(tmp_path: Path) -> None:
    assert choose("world", None, True, DAY, tmp_path).name == "world-2026-11-24-1"
    for name in (
        "world-2026-11-25-2",
        "world-2026-11-25-10",
        "world-2026-11-24-11",
        "world-other-1",
        "text-2026-12-01-1",
    ):
        (tmp_path / name).mkdir()
    assert choose("world", None, True, DAY, tmp_path).name == "world-2026-11-25-10"
    assert choose("world", tmp_path / "mine", True, DAY).name == "mine"


def test_nothing_is_written_over(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    with pytest.raises(UsageError, match=r"exists already\. Add resume=True") as error:
        choose("world", run, False, DAY)
    assert error.value.exit_code == 2
    assert choose("world", run, True, DAY) == run
    (tmp_path / "empty").mkdir()
    assert choose("world", tmp_path / "empty", False, DAY) == tmp_path / "empty"
    with pytest.raises(UsageError, match="is a file"):
        choose("world", run / "run.json", True, DAY)
    with pytest.raises(UsageError, match="cannot be written"):
        folder.claim("world", run / "run.json" / "below", False, DAY).__enter__()


def test_a_folder_without_write_permission_is_refused(tmp_path: Path) -> None:
    closed = Path("/proc/1/klype") if os.geteuid() == 0 else tmp_path / "closed" / "run"
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UsageError, match=r"cannot be written: .*Choose another out"):
        folder.claim("world", closed, False, DAY).__enter__()


def test_a_folder_that_stays_empty_goes_away(tmp_path: Path) -> None:
    with folder.claim("world", tmp_path / "run", False, DAY) as place:
        assert place.is_dir()
    assert not (tmp_path / "run").exists()
    with folder.claim("world", tmp_path / "run", False, DAY) as place:
        (place / "run.json").write_text("{}", encoding="utf-8")
    assert (tmp_path / "run" / "run.json").exists()


HOLDING = (
    "import sys, pathlib, datetime; from klype.runs.folder import claim\n"
    "with claim('world', pathlib.Path(sys.argv[1]), True, datetime.date.today()): print(flush=True); sys.stdin.read()"
)


def test_a_folder_is_one_process_s_until_it_ends_however_it_ends(tmp_path: Path, capsys: Captured) -> None:
    run = run_of(tmp_path / "run")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as p:
        assert p.stdout is not None
        p.stdout.readline()
        for argv in (["run", "--resume"], ["train", "pretrain", "--steps", "1", "--resume"]):
            assert exits.exit_code(call, [*argv, "--out", str(run)]) == 2
            assert capsys.readouterr().err == (
                f"klype: {run} is being trained by process {p.pid}. Wait for it or stop it, or choose another --out.\n"
            )
        p.kill()
    assert (run / ".lock").exists()
    for _ in range(2):  # one after the other
        with folder.claim("world", run, True, DAY):
            pass
    assert [p.name for p in run.iterdir()] == ["run.json"]


def test_what_a_killed_process_left_of_its_lock_is_no_run(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("1", encoding="utf-8")
    with folder.claim("world", tmp_path, False, DAY) as place:
        second = folder.claim("world", place, False, DAY)
        with pytest.raises(UsageError, match=f"by process {os.getpid()}"):
            second.__enter__()


def test_a_disk_without_locks_is_no_hindrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with (
        folder.claim("world", tmp_path, True, DAY) as place,
        folder.claim("world", place, True, DAY) as again,
    ):
        assert again == tmp_path


def test_an_existing_run_stops_the_command(tmp_path: Path, capsys: Captured) -> None:
    run = run_of(tmp_path / "run")
    for argv in (["run", "--out", str(run)], ["train", "pretrain", "--steps", "1", "--text", ".", "--out", str(run)]):
        assert exits.exit_code(call, argv) == 2
        assert capsys.readouterr().err == (
            f"klype: {run} exists already. Add --resume to continue it, or choose another --out.\n"
        )
    assert [p.name for p in run.iterdir()] == ["run.json"]


def test_models_are_found_by_every_local_name(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "pretrain", "finetune")
    assert find_model(str(run)).folder == run / "finetune"
    checkpoint(run / "align")
    newest = find_model(str(run))
    assert (newest.folder, newest.run, newest.stage) == (run / "align", run, "align")
    earlier = find_model(str(run / "pretrain"))
    assert (earlier.folder, earlier.run, earlier.stage) == (run / "pretrain", run.resolve(), "pretrain")
    alone = find_model(str(checkpoint(tmp_path / "alone")))
    assert (alone.run, alone.stage) == (None, "")
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    for name in ("config.json", "model.safetensors.index.json"):
        (sharded / name).write_text("{}", encoding="utf-8")
    assert find_model(str(sharded)).folder == sharded


def test_a_half_written_stage_is_not_picked(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "pretrain")
    (run / "finetune" / "resume").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):  # no manifest: not finished
        (run / "finetune" / name).write_text("{}", encoding="utf-8")
    assert find_model(str(run)).stage == "pretrain"


def test_what_is_no_model_says_so(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", "pretrain")
    empty = run_of(tmp_path / "begun")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert find_model(str(tmp_path / "model.gguf")).folder == tmp_path / "model.gguf"
    (tmp_path / "nothing").mkdir()
    for name, sentence in (
        (str(tmp_path / "none"), "There is no model"),
        (str(run / "align"), r"There is no model .*The run has: pretrain\."),
        (str(empty), "has no finished stage yet"),
        (str(tmp_path / "nothing"), "is not a model"),
        (str(run / "run.json"), "is a file"),
        ("hf:owner/name", "not on this machine"),
        ("http://localhost:1/v1#m", "behind a server"),
    ):
        with pytest.raises(KlypeError, match=sentence):
            find_model(name)


def figures(right: float) -> dict[str, object]:
    return {
        "right": {"value": right, "low": right - 0.04, "high": right + 0.04, "n": 400, "unit": ""},
        "s": {"value": None},
    }


def test_runs_are_listed_also_when_one_is_broken(elsewhere: Path, capsys: Captured) -> None:
    gates = [{"name": "kl", "passed": True}, {"name": "s", "passed": False}]
    run_of(elsewhere / "runs" / "a", "pretrain", recipe="world", state="done", seconds={"total": 301.4}, gates=gates)
    run_of(elsewhere / "runs" / "b").joinpath("run.json").write_text("{", encoding="utf-8")
    assert exits.exit_code(call, ["runs", "list", "--json"]) == 0
    good, bad = json.loads(capsys.readouterr().out)["runs"]
    assert (
        good.items()
        >= {
            "run": "runs/a",
            "recipe": "world",
            "state": "done",
            "seconds": 301.4,
            "stages": ["pretrain"],
            "gates_passed": 1,
            "gates": 2,
        }.items()
    )
    assert bad["run"] == "runs/b"
    assert "cannot be read" in bad["why"]
    assert exits.exit_code(call, ["runs", "list", "--lang", "nb"]) == 0
    shown = capsys.readouterr().out
    assert "parametre" in shown
    assert "ferdig" in shown


def test_a_list_tells_how_runs_stand_and_what_they_are(tmp_path: Path, capsys: Captured) -> None:
    plan = {"pretrain": {"steps": 500}}
    gone = {"pid": os.getpid(), "created": 1.0}
    shared = {"recipe": "text", "state": "running", "plan": plan, "seconds": {"total": 1.0}, "asked": {"from_": "x/a"}}
    for name, process in (("gone", gone), ("alive", process_of(os.getpid()))):
        run = run_of(tmp_path / name, **shared, process=process, figures={"base": figures(0.5)})
        (run / "pretrain").mkdir()
        (run / "pretrain" / "metrics.jsonl").write_text('{"step": 200, "seconds": 41.5}\n{"st', encoding="utf-8")
        save_file({"w": np.zeros((3, 4), np.float32)}, run / "pretrain" / "model.safetensors")
    run_of(tmp_path / "failed", state="failed", failure="The disk is full.")
    assert exits.exit_code(call, ["runs", "list", "--folder", str(tmp_path), "--json"]) == 0
    alive, failed, gone_run = json.loads(capsys.readouterr().out)["runs"]
    assert (alive["state"], failed["state"], gone_run["state"]) == ("running", "failed", "stopped")
    assert failed["failure"] == "The disk is full."
    assert {k: gone_run[k] for k in ("stage", "step", "steps", "trained_s", "parent", "parameters")} == {
        "stage": "pretrain", "step": 200, "steps": 500, "trained_s": 41.5, "parent": "x/a", "parameters": 12
    }  # fmt: skip
    assert list(gone_run["figures"]) == ["right"]
    assert gone_run["bytes"] > 100
    assert exits.exit_code(call, ["runs", "list", "--folder", str(tmp_path), "--lang", "en"]) == 0
    assert "200/500" in "".join(capsys.readouterr().out.split())


def test_a_failed_run_says_so_and_an_interrupted_one_is_no_failure(tmp_path: Path) -> None:
    record = Record(tmp_path, {"seconds": {}, "state": "running"})
    with pytest.raises(KlypeError), record.under_way():
        raise KlypeError("No room.")
    assert (record.content["state"], record.content["failure"]) == ("failed", "No room.")
    with pytest.raises(TrainingInterrupted), record.under_way():
        raise TrainingInterrupted("Stopped.")
    assert (record.content["state"], "failure" in record.content) == ("running", False)


def test_runs_are_compared_stage_by_stage(tmp_path: Path, capsys: Captured) -> None:
    a = run_of(tmp_path / "a", recipe="world", figures={"base": figures(0.5), "aligned": None})
    b = run_of(tmp_path / "b", recipe="world", figures={"base": figures(0.8), "aligned": figures(0.9)})
    assert exits.exit_code(call, ["runs", "compare", str(a), str(b), "--json", "--out", str(tmp_path / "c.json")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "c.json").read_text(encoding="utf-8")) == document
    assert document["runs"][1]["stages"]["aligned"] == figures(0.9)
    assert document["runs"][0]["stages"]["finetuned"] is None
    assert exits.exit_code(call, ["runs", "compare", str(a), str(b)]) == 0
    shown = capsys.readouterr().out
    assert "0.50 [0.46, 0.54]" in shown
    assert "0.80 [0.76, 0.84]" in shown
    assert "finetuned" not in shown


@pytest.mark.parametrize(
    ("lang", "said"), [("en", "meant something else: left out"), ("nb", "betydde noe annet: utelatt")]
)
def test_what_meant_something_else_in_an_older_run_is_not_compared(
    tmp_path: Path, capsys: Captured, lang: str, said: str
) -> None:
    settings = {"kind": "world"}
    old = run_of(
        tmp_path / "old", settings=settings, figures={"aligned": {**figures(0.31), "concise": figures(0.42)["right"]}}
    )
    now = {"aligned": {**figures(0.93), "concise": figures(0.94)["right"]}}
    new = run_of(tmp_path / "new", settings=settings, figures=now, meaning=MEANING)
    text = run_of(tmp_path / "text", settings={"kind": "text"}, figures={"aligned": figures(0.75)})
    assert exits.exit_code(call, ["runs", "compare", str(old), str(new), str(text), "--lang", lang]) == 0
    both = capsys.readouterr()
    shown = " ".join((both.out + both.err).split())
    assert f"old {'was made' if lang == 'en' else 'er laget'}" in shown
    assert said in shown
    assert number(0.31, lang) not in shown
    assert all(number(value, lang) in shown for value in (0.42, 0.93, 0.94, 0.75))
    assert exits.exit_code(call, ["runs", "compare", str(old), str(old), "--lang", lang]) == 0
    alone = capsys.readouterr()
    assert number(0.31, lang) in alone.out
    assert said not in alone.out + alone.err


def test_a_run_with_facts_apart_means_what_is_meant_now() -> None:
    world = {"settings": {"kind": "world"}}
    assert "right" in redefined_measures({**world, "figures": {"base": figures(0.5), "aligned": None}})
    assert (
        redefined_measures({**world, "figures": {"base": {**figures(0.5), "right_fixed": figures(1.0)["right"]}}}) == ()
    )
    assert redefined_measures({**world, "meaning": MEANING, "figures": {}}) == ()
    assert redefined_measures({"figures": {}}) == ("ceiling",)


def test_a_document_is_written_whole_or_refused(tmp_path: Path, capsys: Captured) -> None:
    assert exits.exit_code(call, ["runs", "list", "--out", str(tmp_path / "none" / "x.json")]) == 2
    assert "cannot be written" in capsys.readouterr().err
