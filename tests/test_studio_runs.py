"""Runs on a page: work that outlives its server, growing curves, the family tree, uploads; one browser for the form."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from klype.errors import UsageError
from klype.examine.say import Say
from klype.jsons import read_saved
from klype.runs.run_json import MEANING, parameters
from klype.studio.background_jobs import PROCESS, MetricsTail, Work, WorkPlan, begin, key_of, sample_answers, works
from klype.studio.fields import UploadedFile
from klype.studio.runs import RunRequest, start_run
from klype.studio.runs_detail import all_runs, family
from klype.studio.studio import Studio
from klype.words import percent, words
from tests.studio_toys import visiting
from tests.studio_work_toys import run_with_questions
from tests.test_studio_ranking import chromium, serving, slow, texts

pytestmark = pytest.mark.usefixtures("elsewhere")

COUNTS = """
import json, pathlib, signal, sys, time
file = pathlib.Path(sys.argv[1])
at = len(file.read_text()) if file.exists() else 0
try:
    for step in range(at, int(sys.argv[2])):
        # whole at any time: an interrupt may come in the middle of writing
        new = file.with_name(f"{file.name}.new")
        new.write_text("x" * (step + 1))
        new.replace(file)
        print(f"step {step}", file=sys.stderr, flush=True)
        time.sleep(0.05)
except KeyboardInterrupt:
    print(json.dumps({"error": {"message": "Interrupted.", "hint": ""}}))
    raise SystemExit(130)
print(json.dumps({"counted": len(file.read_text()), "from": at}))
"""
"""A step that goes on where it was, as klype's commands do."""


def until(met: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.03)


def counting(home: Path, to: int, steps: int = 1) -> WorkPlan:
    commands = [[sys.executable, "-c", COUNTS, str(home / f"count-{i}"), str(to)] for i in range(steps)]
    return WorkPlan("run", home / "runs" / "r", commands, {"planned_s": 5})


# work


@pytest.mark.slow
def test_steps_follow_one_another_and_their_documents_are_kept(tmp_path: Path) -> None:
    work = begin(tmp_path, counting(tmp_path, 3, steps=2))
    until(lambda: work.state == "done")
    assert read_saved(work.folder / "1.out") == read_saved(work.folder / "0.out") == {"counted": 3, "from": 0}
    assert work.step == 1
    assert work.seconds > 0
    assert [w.folder for w in works(tmp_path)] == [work.folder]
    work.go_on()
    assert work.state == "done"


@pytest.mark.slow
def test_cancelled_work_goes_on_where_it_was(tmp_path: Path) -> None:
    work = begin(tmp_path, counting(tmp_path, 60))
    until(lambda: (tmp_path / "count-0").exists())
    assert Work(work.folder).state == "running"
    work.cancel()
    until(lambda: work.state == "cancelled")
    done = len((tmp_path / "count-0").read_text())
    assert 0 < done < 60
    work.go_on()
    until(lambda: work.state == "done")
    document = read_saved(work.folder / "0.out")
    assert document is not None
    assert document == {"counted": 60, "from": done}


@pytest.mark.slow
def test_killed_work_is_stopped_and_its_orphan_does_not_work_beside_the_next(tmp_path: Path) -> None:
    work = begin(tmp_path, counting(tmp_path, 400))
    until(lambda: (tmp_path / "count-0").exists())
    pid = json.loads((work.folder / PROCESS).read_text())["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: work.state == "stopped")
    orphan = psutil.Process(json.loads((work.folder / "child.json").read_text())["pid"])
    work.go_on()
    assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
    assert work.state == "running"
    work.cancel()
    until(lambda: work.state == "cancelled")


@pytest.mark.slow
def test_failed_work_says_why(tmp_path: Path) -> None:
    told = json.dumps({"error": {"message": "There is no text.", "hint": "Give some."}})
    fails = [sys.executable, "-c", f"print({told!r}); raise SystemExit(2)"]
    work = begin(tmp_path, WorkPlan("run", tmp_path / "runs" / "r", [fails, fails], {}))
    until(lambda: work.state == "failed")
    assert (work.step, work.why()) == (0, "There is no text. Give some.")
    work = begin(tmp_path, WorkPlan("run", tmp_path / "runs" / "r", [[str(tmp_path / "nowhere")]], {}))
    until(lambda: work.state == "failed")
    assert "nowhere" in work.why()


def test_only_so_much_runs_at_once(tmp_path: Path) -> None:
    begun = [begin(tmp_path, WorkPlan("run", tmp_path / str(i), counting(tmp_path, 400).steps, {})) for i in range(2)]
    with pytest.raises(UsageError, match="already"):
        begin(tmp_path, counting(tmp_path, 1))
    for work in begun:
        work.cancel()
    until(lambda: all(work.state == "cancelled" for work in begun))


# curves


@pytest.mark.slow
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.data())
def test_a_tail_read_in_pieces_is_the_file_read_whole(tmp_path_factory: Any, values: list[float], data: Any) -> None:
    file = tmp_path_factory.mktemp("tail") / "metrics.jsonl"
    text = "".join(json.dumps({"step": i, "loss": v}) + "\n" for i, v in enumerate(values, 1)).encode()
    tail, at = MetricsTail(file), 0
    while at < len(text):
        at += data.draw(st.integers(1, len(text)))
        file.write_bytes(text[:at])
        tail.read()
    whole = MetricsTail(file)
    whole.read()
    assert tail.rows == whole.rows == [{"step": i, "loss": v} for i, v in enumerate(values, 1)]
    assert tail.curve("loss", most=1000) == [[float(i), v] for i, v in enumerate(values, 1)]
    thin = tail.curve("loss", most=7)
    assert len(thin) <= 7
    assert thin[-1][0] == len(values)


def test_a_tail_takes_resumed_steps_gaps_and_rubbish(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    rows = [
        {"step": 1, "a": 1},
        {"step": 2, "a": 2, "b": 5},
        {"step": 3, "a": 3},
        {"step": 2, "a": 9},
        [],
        {"step": "x"},
    ]
    file.write_text("\n".join([*map(json.dumps, rows), "{broken", '{"step": 4, "a": NaN, "b": 7}', ""]))
    tail = MetricsTail(file)
    assert tail.read()
    assert [row["step"] for row in tail.rows] == [1, 2, 4]
    assert tail.curve("a") == [[1.0, 1.0], [2.0, 9.0]]
    assert tail.curve("b") == [[4.0, 7.0]]
    assert (tail.last("b"), tail.rows[0].get("b"), tail.last("c"), tail.at) == (7.0, None, None, 4)
    file.write_text('{"step": 1, "a": 4}\n')
    assert tail.read()
    assert tail.curve("a") == [[1.0, 4.0]]


# runs


def test_runs_are_told_of_by_keys_and_stand_under_what_they_came_from(tmp_path: Path) -> None:
    parent = run_with_questions(tmp_path)
    for name, origin in (("child", parent), ("grandchild", tmp_path / "runs" / "child" / "finetune")):
        folder = tmp_path / "runs" / name
        folder.mkdir()
        about = {"recipe": "world", "asked": {"from_": str(origin)}, "state": "done", "seconds": {"total": 3}}
        (folder / "run.json").write_text(json.dumps(about))
    broken = {"recipe": "text", "asked": {}, "state": "failed", "failure": "Shards are damaged."}
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "run.json").write_text(json.dumps(broken))
    gone = {"recipe": "text", "asked": {}, "state": "running", "process": {"pid": 1, "created": 1.0}}
    (tmp_path / "runs" / "gone").mkdir()
    (tmp_path / "runs" / "gone" / "run.json").write_text(json.dumps(gone))
    (tmp_path / "runs" / "odd").mkdir()
    (tmp_path / "runs" / "odd" / "run.json").write_text("{")
    studio = Studio([], tmp_path, ["false"])
    runs = all_runs(studio)
    assert {run.name: depth for depth, run in family(runs)} == {
        "toy": 0,
        "child": 1,
        "grandchild": 2,
        "odd": 0,
        "broken": 0,
        "gone": 0,
    }
    states = {run.name: (run.state, run.why) for run in runs}
    assert states["odd"][0] == "unreadable"
    assert states["broken"] == ("failed", "Shards are damaged.")
    assert states["gone"] == ("stopped", "")  # of a run of the command line whose process has ended
    toy = {run.key: run for run in all_runs(studio)}[key_of(parent)]
    assert toy is not None
    assert (toy.stages, toy.parameters) == (("finetune", "rank"), parameters(parent / "finetune"))
    assert toy.parameters
    assert not {"", "../toy", str(parent)} & {run.key for run in runs}
    assert parent in studio.run_folders()


@pytest.mark.slow
def test_a_run_is_begun_on_text_under_our_own_names(tmp_path: Path) -> None:
    said = tmp_path / "said"
    studio = Studio(
        [], tmp_path, [sys.executable, "-c", f"import sys; open({str(said)!r}, 'w').write(repr(sys.argv[1:]))"]
    )
    with pytest.raises(UsageError, match="no text"):
        start_run(studio, RunRequest("text", 1, "nb"))
    (tmp_path / "uploads").mkdir()
    file = tmp_path / "uploads" / "0123.txt"
    file.write_text("en tekst")
    work = start_run(studio, RunRequest("text", 2, "nb", 7, [UploadedFile(file, "../../evil.txt", 8)]))
    until(lambda: work.state == "done")
    folder = work.plan.run
    assert folder.parent == tmp_path / "runs"
    assert [f.read_text() for f in (folder / "upload").iterdir()] == ["en tekst"]
    assert not file.exists()
    arguments = eval(said.read_text())
    assert arguments[arguments.index("--data") + 1] == str(folder / "upload")
    assert [f.name for f in (folder / "upload").iterdir()] == ["text-1.txt"]
    assert "evil" not in said.read_text()
    told = {run.key: run for run in all_runs(studio)}[key_of(folder)]
    assert told is not None
    assert told.work == work


def test_a_checkpoint_answers_the_same_with_its_own_weights_given_beside_it(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from klype.model import checkpoint

    folder = run_with_questions(tmp_path, 1) / "finetune"
    state = checkpoint.load(folder).model.state_dict()
    save_file({name: value.clone().contiguous() for name, value in state.items()}, tmp_path / "state.safetensors")
    asked = ["hvor gikk hun?", "hvor?"]
    plain = sample_answers(folder, None, asked, 8)
    assert plain == sample_answers(folder, tmp_path / "state.safetensors", asked, 8)
    assert len(plain) == 2


# the page


@pytest.mark.slow
@pytest.mark.parametrize("lang", ["en", "nb"])
def test_the_page_shows_curves_that_grow_and_work_that_runs(tmp_path: Path, lang: str) -> None:
    import asyncio

    parent = run_with_questions(tmp_path)
    w = words(lang, "studio_runs")
    studio = Studio([], tmp_path, ["false"])
    work = begin(tmp_path, counting(tmp_path, 400))
    with visiting(studio) as (run, user):
        user.http_client.headers["accept-language"] = lang
        run(user.open(f"/runs?run={key_of(parent)}"))
        assert w("stage_finetune") in texts(user)
        from nicegui import ElementFilter, ui

        with user:
            (chart,) = ElementFilter(kind=ui.echart)
        assert chart.options["series"][0]["data"][-1][0] == 399.0
        with (parent / "finetune" / "metrics.jsonl").open("a") as file:
            file.write('{"step": 400, "loss": 0.001}\n')

        async def grown() -> None:
            for _ in range(400):
                if chart.options["series"][0]["data"][-1][0] == 400.0:
                    return
                await asyncio.sleep(0.02)
            raise AssertionError("it did not grow")

        run(grown())
        until(lambda: "step" in "".join(work.last_lines()))
        run(user.open(f"/runs?run={key_of(work.plan.run)}&with=../x"))
        assert w("state_running") in texts(user)
        assert "step " in texts(user)
    work.cancel()
    until(lambda: work.state == "cancelled")


@pytest.mark.slow
@pytest.mark.parametrize("lang", ["en", "nb"])
def test_beside_a_newer_run_an_older_one_s_figures_that_meant_something_else_are_left_out(
    tmp_path: Path, lang: str
) -> None:
    w, keys = words(lang, "studio_runs"), {}
    for name, more in (("old", {}), ("new", {"meaning": MEANING})):
        place = tmp_path / "runs" / name
        place.mkdir(parents=True)
        figure = {"value": 0.31 if name == "old" else 0.93, "low": 0.3, "high": 0.94, "n": 400, "unit": "share"}
        about = {"settings": {"kind": "world"}, "state": "done", "figures": {"base": {"right": figure}}, **more}
        (place / "run.json").write_text(json.dumps(about), encoding="utf-8")
        keys[name] = key_of(place)
    with visiting(Studio([], tmp_path, ["false"])) as (run, user):
        user.http_client.headers["accept-language"] = lang
        run(user.open(f"/runs?run={keys['new']}&with={keys['old']}"))
        said = w("otherwise", run="old", measures=Say(lang).measure("right"))
        assert said in texts(user)
        assert percent(0.93, lang, 1) in texts(user)
        assert percent(0.31, lang, 1) not in texts(user)
        run(user.open(f"/runs?run={keys['old']}"))
        assert percent(0.31, lang, 1) in texts(user)
        assert said not in texts(user)


@pytest.mark.slow
@pytest.mark.parametrize("lang", ["en", "nb"])
def test_that_a_base_model_answers_next_to_nothing_is_explained_where_it_stands(tmp_path: Path, lang: str) -> None:
    say = Say(lang)
    for name, value in (("reads", 0.01), ("answers", 0.93)):
        place = tmp_path / "runs" / name
        place.mkdir(parents=True)
        figure = {"value": value, "low": value, "high": value, "n": 400, "unit": "share"}
        about = {"settings": {"kind": "world"}, "state": "done", "figures": {"base": {"right": figure}}}
        (place / "run.json").write_text(json.dumps(about), encoding="utf-8")
    with visiting(Studio([], tmp_path, ["false"])) as (run, user):
        user.http_client.headers["accept-language"] = lang
        for name, value, explained in (("reads", 0.01, True), ("answers", 0.93, False)):
            run(user.open(f"/runs?run={key_of(tmp_path / 'runs' / name)}"))
            assert percent(value, lang, 1) in texts(user)
            because = say("answers.base", right=percent(value, lang, 1))
            assert (because in texts(user)) == explained


alone = [*slow, pytest.mark.soak]  # a browser and a server want the machine to themselves


class TestBrowser:
    pytestmark = alone

    def test_a_text_is_uploaded_a_run_begun_and_cancelled_over_a_restart(self, tmp_path: Path) -> None:
        text = tmp_path / "tekst.txt"
        text.write_text("Det var en gang en konge som hadde tre sønner. " * 12_000)
        home = tmp_path / "home"
        run_with_questions(home)
        with chromium() as browser:
            with serving(home) as (process, base):
                port = int(base.rpartition(":")[2])
                context = browser.new_context(locale="nb-NO", viewport={"width": 390, "height": 844})
                page, complaints = context.new_page(), []
                page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
                page.on("pageerror", lambda error: complaints.append(str(error)))
                page.goto(f"{base}/runs")
                page.wait_for_selector(".k-chart svg")
                w = words("nb", "studio_runs")
                page.get_by_label(w("recipe")).select_option("text")
                page.locator("input[type=file]").set_input_files(text)
                page.get_by_text("tekst.txt (0,58 MB)").wait_for()
                assert page.evaluate("document.documentElement.scrollWidth") == 390
                page.get_by_role("button", name=w("start"), exact=True).click()
                page.wait_for_url("**/runs?run=*")
                page.locator(".w-state.running").first.wait_for()
                assert not complaints
                (work,) = works(home)
                (copied,) = (work.plan.run / "upload").iterdir()
                assert copied.read_bytes() == text.read_bytes()
                process.kill()
                process.wait()
            assert work.state == "running"
            with serving(home, port):
                page.reload()
                page.locator(".w-state.running").first.wait_for()
                page.get_by_role("button", name=words("nb", "studio_frame")("cancel")).click()
                until(lambda: work.state != "running", 120)
                page.locator(".w-state.cancelled").first.wait_for(timeout=10_000)
                page.get_by_role("button", name=w("resume")).wait_for()
