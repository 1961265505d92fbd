"""Targets on a page: begun once in a process of its own, seen while it trains, kept when it is done."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from nicegui import ElementFilter, ui

from klype.errors import KlypeError, UsageError
from klype.experiments.bias import BiasBoard
from klype.studio.background_jobs import INTERRUPTED
from klype.studio.runs_detail import all_runs
from klype.studio.studio import Studio
from klype.studio.targets import experiments, found_pictures, so_far, start_experiment
from klype.words import words
from tests.studio_targets_toys import KINDS, board
from tests.studio_toys import visiting
from tests.test_studio_ranking import texts, until
from tests.test_studio_runs import until as wait

pytestmark = pytest.mark.usefixtures("elsewhere")

WAITS = """
import pathlib, sys, time
said = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
said.mkdir(parents=True, exist_ok=True)
(said / "arguments").write_text(" ".join(sys.argv[1:]))
try:
    time.sleep(60)
except KeyboardInterrupt:
    raise SystemExit(130)
"""


def left_behind(folder: Path, done: bool = True) -> Path:
    """As the command line leaves it."""
    folder.mkdir(parents=True)
    board(done).write(folder)
    return folder


@pytest.mark.slow
def test_one_is_begun_at_a_time_cancelled_and_gone_on_with(tmp_path: Path) -> None:
    studio = Studio([], tmp_path, [sys.executable, "-c", WAITS])
    one = start_experiment(studio, 12.5, 7, "nb")
    wait(lambda: (one.folder / "arguments").is_file())
    arguments = (one.folder / "arguments").read_text()
    assert arguments == f"bias --minutes 12.5 --seed 7 --lang nb --out {one.folder} --resume --json"
    with pytest.raises(UsageError, match="already"):
        start_experiment(studio, 1)
    assert all_runs(studio) == []  # it is no run
    assert one.work is not None
    one.work.cancel()
    wait(lambda: one.state == "cancelled")
    assert INTERRUPTED == 130
    one.work.go_on()
    assert experiments(Studio([], tmp_path, ["false"]))[0].state == "running"  # another server finds it
    one.work.cancel()
    wait(lambda: one.state == "cancelled")


def test_those_of_the_command_line_are_found_and_what_runs_stands_first(tmp_path: Path) -> None:
    studio = Studio([], tmp_path / "home", [sys.executable, "-c", WAITS], runs=tmp_path / "runs")
    assert experiments(studio) == []
    old = left_behind(tmp_path / "runs" / "bias-1", done=False)
    left_behind(tmp_path / "runs" / "bias-2")
    assert {(e.folder.name, e.state) for e in experiments(studio)} == {("bias-1", "running"), ("bias-2", "done")}
    os.utime(old / BiasBoard.FILE, (1, 1))  # nothing was written for long
    assert {(e.folder.name, e.state) for e in experiments(studio)} == {("bias-1", "stopped"), ("bias-2", "done")}
    begun = start_experiment(studio, 1)
    assert experiments(studio)[0].key == begun.key
    assert begun.work is not None
    begun.work.cancel()
    wait(lambda: begun.state == "cancelled")
    (tmp_path / "runs" / "bias-2" / BiasBoard.FILE).write_text("{")
    broken = next(e for e in experiments(studio) if e.folder.name == "bias-2")
    with pytest.raises(KlypeError, match="damaged"):
        BiasBoard.read(broken.folder)
    assert broken.state == "failed"


def test_of_half_an_experiment_the_most_documents_so_far_are_shown(tmp_path: Path) -> None:
    from klype.examine.say import Say

    own, say = words("en", "bias"), Say("en")
    half = board(done=False)
    pictures = {picture.id: picture for picture in found_pictures(half, say, own)}
    assert list(pictures) == ["bars", "training", "gap", "compute"]
    assert [len(row) for row in pictures["training"].rows[:1]] == [4]
    assert {row[0] for row in pictures["training"].rows} == {own("target.one-hot")}  # of the 100 documents
    assert pictures["gap"].rows[0][0] == own("target.ensemble")
    assert so_far(half, []) is None
    assert found_pictures(half.model_copy(update={"rows": [], "curves": [], "bars": None}), say, own) == []


@pytest.mark.slow
@pytest.mark.parametrize("lang", ["en", "nb"])
def test_the_page_shows_what_there_is_and_grows(tmp_path: Path, lang: str) -> None:
    w, own = words(lang, "studio_targets"), words(lang, "bias")
    studio = Studio([], tmp_path / "home", ["false"], runs=tmp_path / "runs")
    with visiting(studio) as (run, user):
        user.http_client.headers["accept-language"] = lang
        run(user.open("/targets"))
        assert w("nothing_yet") in texts(user)
        folder = left_behind(tmp_path / "runs" / "bias-1", done=False)
        run(until(lambda: w("found_so_far") in texts(user)))
        said = texts(user)
        assert "Jeg gikk en tur på" in said
        assert all(own(f"target.{name}") in said and own(f"what.{name}") in said for name in KINDS)
        training = chart(user, own("picture.training"))
        assert len(training.options["series"][0]["data"]) == 4
        board(done=False, epochs=6).write(folder)
        run(until(lambda: len(training.options["series"][0]["data"]) == 6))
        board().write(folder)
        run(until(lambda: w("found") in texts(user).splitlines()))
        assert "50" in texts(user)
        (folder / BiasBoard.FILE).write_text("{")
        damaged = "skadet" if lang == "nb" else "damaged"
        run(until(lambda: damaged in texts(user)))


def chart(user: Any, label: str) -> ui.echart:
    with user:
        return next(one for one in ElementFilter(kind=ui.echart) if one.props["aria-label"] == label)
