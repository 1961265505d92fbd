"""``klype train`` and ``klype run`` by several processes: the first writes and speaks; what comes of it is the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from run_toys import Heard
from test_train_parallel import team

from klype.config import make
from klype.errors import UsageError
from klype.model import checkpoint
from klype.runs import pipeline
from klype.runs.recipe import read
from klype.runs.run_options import RunOptions, StageOptions
from klype.runs.run_start import split_among_processes
from klype.train import parallel
from klype.train.resume import states
from tests.train_toys import FEW, NARROW

SMALL = (*NARROW, *FEW, "tokenizer.size=300", "pretrain.rows=4", "examine.questions=8", "examine.documents=2")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    stories = [f"Reven gikk over isen {i} ganger. Han så en fisk i vannet. «God dag,» sa reven." for i in range(60)]
    (tmp_path / "text.txt").write_text("\n\n".join(stories))
    return tmp_path / "text.txt"


def stage(folder: Path, text: Path, out: Path, **asked: Any) -> None:
    """One stage, on however many processes; what each is told in a file of its own."""
    options = make(
        StageOptions, {"stage": "pretrain", "text": (str(text),), "out": out, "steps": 4, "overrides": SMALL, **asked}
    )
    say = Heard()
    document = pipeline.train_stage(options, say)
    told = {"document": document, "notes": say.notes, "stages": say.stages}
    (folder / f"told-{parallel.rank()}.json").write_text(json.dumps(told))


def losses(out: Path, name: str = "loss") -> list[float]:
    rows = [json.loads(line) for line in (out / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


@pytest.mark.slow
def test_a_stage_by_two_is_the_stage_by_one_and_is_written_by_the_first(tmp_path: Path, text: Path) -> None:
    recipe = ("pretrain.training.micro_batches=2", *SMALL)  # what two processes make of it by themselves
    for n in (1, 2):
        out, overrides = tmp_path / f"run-{n}", recipe if n == 1 else SMALL
        team(n, partial(stage, tmp_path, text, out, overrides=overrides, processes=n), tmp_path)
    assert losses(tmp_path / "run-1") == pytest.approx(losses(tmp_path / "run-2"), rel=1e-4)
    held_out = losses(tmp_path / "run-1", "validation")
    assert len(set(held_out)) >= 3  # after each step but the last, which no batch comes after
    assert held_out == pytest.approx(losses(tmp_path / "run-2", "validation"), rel=1e-4)
    one, two = (checkpoint.load(tmp_path / f"run-{n}" / "pretrain").model.state_dict() for n in (1, 2))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4)
    told = [json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0]["document"]["figures"]["base"]["bits_per_byte"]["value"] > 0
    assert told[1]["document"] == {}
    names = {path.name for path in (tmp_path / "run-2").rglob("*")}
    assert names - {path.name for path in (tmp_path / "run-1").rglob("*")} == {
        f"shard-0000{i}-model-00001-of-00001.safetensors" for i in (1, 2)
    }


def _refused(folder: Path, text: Path) -> None:
    with pytest.raises(UsageError, match="is done by one process"):
        stage(folder, text, folder / "run", stage="align")
    with pytest.raises(UsageError, match="is done by one process"):
        pipeline.align_rounds(StageOptions(stage="align", from_="run", out=folder / "aligned"), 1, "", Heard())


@pytest.mark.slow
def test_what_several_cannot_do_is_said(tmp_path: Path, text: Path) -> None:
    team(2, partial(_refused, tmp_path, text), tmp_path)


def test_micro_batches_come_out_even_where_the_rows_allow_it() -> None:
    recipe = read("text", ("pretrain.rows=8", "finetune.rows=6", "finetune.training.micro_batches=3"))
    dealt = split_among_processes(recipe, 4)
    assert dealt.pretrain.training.micro_batches == 4
    assert dealt.finetune.training.micro_batches == 3  # 4 does not divide 6 rows
    assert split_among_processes(recipe, 1) == recipe


def _whole_run(folder: Path, text: Path, out: Path) -> None:
    overrides = (*SMALL, "rank.questions=40", "rank.limit=12")  # of fewer, shorter answers none may be the better one
    asked = {"text": (str(text),), "out": out, "minutes": 0.2, "overrides": overrides, "force": True, "processes": 2}
    document = pipeline.run(make(RunOptions, asked), Heard())
    (folder / f"told-{parallel.rank()}.json").write_text(json.dumps(document))


@pytest.mark.soak
def test_a_whole_run_begins_on_two_and_ends_on_one(tmp_path: Path, text: Path) -> None:
    team(2, partial(_whole_run, tmp_path, text, tmp_path / "run"), tmp_path)
    document = json.loads((tmp_path / "told-0.json").read_text())
    assert json.loads((tmp_path / "told-1.json").read_text()) == {}
    assert (tmp_path / "run" / "report.html").exists()
    assert document["stages"]["aligned"]
    shards = {path.parents[3].name for path in (tmp_path / "run").glob("*/resume/*/shards/shard-*")}
    assert shards == {"pretrain", "finetune"}


STEPS = 120
PATIENCE_S = 1200.0
"""What one start may take: a starved machine needs many times the half minute of an idle one."""


@contextmanager
def launched(out: Path, text: Path, ranks: int, *options: str) -> Iterator[subprocess.Popen[str]]:
    """``torchrun … -m klype train pretrain``; nothing of it outlives the test."""
    settings = [part for setting in (*SMALL, "pretrain.training.save_every=5") for part in ("--set", setting)]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--max-restarts", "3", "-m", "klype"]
    command = ["train", "pretrain", "--text", str(text), "--steps", str(STEPS), "--out", str(out), "--json", *options]
    environ = {**os.environ, "KLYPE_HOME": str(text.parent / "home"), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environ}
    process = subprocess.Popen([sys.executable, *launcher, *command, *settings], **pipes)
    try:
        yield process
    finally:
        process.terminate()  # which it passes on
        process.communicate(timeout=PATIENCE_S)


def workers(launcher: int) -> list[int]:
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(child) for child in children if b"klype" in Path(f"/proc/{child}/cmdline").read_bytes()]


def has_saved(out: Path, steps: int, process: subprocess.Popen[str]) -> None:
    while not any(int(place.name[5:]) >= steps for place in states(out / "pretrain")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it said when all went well."""
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    return out, err


@pytest.mark.soak
@pytest.mark.timeout(4 * PATIENCE_S)
@pytest.mark.skipif(sys.platform != "linux", reason="looks for the launcher's children in /proc")
def test_a_killed_worker_is_started_again_and_all_go_on_from_the_last_state(tmp_path: Path, text: Path) -> None:
    """No --resume is given: started again by torchrun, they know. What comes of it is what an unbroken run gives."""
    with launched(tmp_path / "straight", text, 2) as straight:
        assert json.loads(ended(straight)[0])["stage"] == "pretrain"
    with launched(tmp_path / "broken", text, 2) as broken:
        has_saved(tmp_path / "broken", 10, broken)
        os.kill(workers(broken.pid)[1], signal.SIGKILL)
        out, err = ended(broken)
    assert json.loads(out)["stage"] == "pretrain"  # one document, of the first
    assert "has lost another one" in err or "closing signal SIGTERM" in err  # the launcher may be faster
    assert "Traceback" not in err
    assert "bug" not in err
    one, other = (checkpoint.load(tmp_path / name / "pretrain").model.state_dict() for name in ("straight", "broken"))
    for name in one:
        assert torch.equal(one[name], other[name])
    assert losses(tmp_path / "broken") == losses(tmp_path / "straight")


@pytest.mark.soak
@pytest.mark.timeout(4 * PATIENCE_S)
@pytest.mark.skipif(sys.platform != "linux", reason="looks for the launcher's children in /proc")
def test_ctrl_c_at_the_launcher_saves_and_resume_goes_on(tmp_path: Path, text: Path) -> None:
    with launched(tmp_path / "run", text, 2) as process:
        has_saved(tmp_path / "run", 10, process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0
    assert err.count("everything is saved") == 1
    stopped = int(states(tmp_path / "run" / "pretrain")[-1].name[5:])
    assert 10 <= stopped < STEPS
    with launched(tmp_path / "run", text, 4, "--resume") as again:
        ended(again)
    assert len(losses(tmp_path / "run")) == STEPS
