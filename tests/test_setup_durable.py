"""A file is whole or what it was, whatever happens while it is written."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import pytest
from full_disk import full_disk

from klype import durable
from klype.runs import folder


@pytest.mark.parametrize("content", ["blåbær på øya\n", b"\x00\xff", memoryview(b"12"), ""])
def test_what_was_written_is_there_and_nothing_else(tmp_path: Path, content: str | bytes | memoryview) -> None:
    file = tmp_path / "æøå.json"
    file.write_bytes(b"before")
    durable.write(file, content)
    assert file.read_bytes() == (content.encode() if isinstance(content, str) else bytes(content))
    assert os.listdir(tmp_path) == [file.name]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no file")
@pytest.mark.parametrize("room", range(len("after")))
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, room: int) -> None:
    file = tmp_path / "run.json"
    durable.write(file, "before")
    with full_disk(room), pytest.raises(OSError, match="File too large"):
        durable.write(file, "after")
    assert file.read_text() == "before"
    assert os.listdir(tmp_path) == [file.name]


def test_what_cannot_have_its_name_leaves_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "run.json"
    folder.mkdir()
    with pytest.raises(OSError, match=r"run\.json"):
        durable.write(folder, "after")
    assert os.listdir(tmp_path) == [folder.name]


def test_text_that_is_no_unicode_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    durable.write(file, "before")
    with pytest.raises(UnicodeEncodeError):
        durable.write(file, "\udc80")
    assert file.read_text() == "before"
    assert os.listdir(tmp_path) == [file.name]


def test_others_may_read_it_as_any_file(tmp_path: Path) -> None:
    plain, written = tmp_path / "plain", tmp_path / "written"
    plain.write_text("")
    durable.write(written, "")
    assert stat.S_IMODE(written.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


WRITES = {
    "file": "klype.durable.os.fsync = waits; durable.write(place / 'best.safetensors', bytes(1000))",
    "new": "atomic_folder.write_folder(place / 'fresh', fill)",
    "beside": "atomic_folder.write_folder(place, fill)",
}
WRITER = """
import sys, time
from pathlib import Path
import klype.durable
from klype import durable
from klype.runs import folder
from klype.model import atomic_folder

def waits(*about):
    print("half", flush=True)
    time.sleep(600)

def fill(draft):
    (draft / "model.safetensors").write_bytes(bytes(1000))
    waits()

place = Path(sys.argv[1])
"""


@contextmanager
def writer(place: Path, what: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has written half of it."""
    run = [sys.executable, "-c", WRITER + WRITES[what], str(place)]
    with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "half\n"
            yield process
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("what", WRITES)
def test_what_a_killed_process_had_begun_is_cleared_and_a_living_one_s_is_not(tmp_path: Path, what: str) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}")
    (tmp_path / ".mine").write_text("a hidden file of somebody else")
    with writer(tmp_path, what) as killed, writer(tmp_path, what) as living:
        killed.kill()
        killed.wait()
        assert len(list(tmp_path.iterdir())) == 4
        durable.remove_drafts(tmp_path)
        (draft,) = {*tmp_path.iterdir()} - {tmp_path / "metrics.jsonl", tmp_path / ".mine"}
        assert draft.name.startswith(".")
        living.kill()
        living.wait()
        durable.remove_drafts(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"metrics.jsonl", ".mine"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
def test_what_others_put_beside_drafts_is_left_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".pipe.klype")
    (tmp_path / "mine").write_text("mine")
    (tmp_path / ".link.klype").symlink_to(tmp_path / "mine")
    clears = "import sys; from pathlib import Path; from klype import durable; durable.remove_drafts(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", clears, str(tmp_path)], check=True, timeout=60)
    assert {file.name for file in tmp_path.iterdir()} == {".pipe.klype", "mine", ".link.klype"}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "finetune", "reward", "align"])
def test_a_run_that_is_gone_on_with_has_no_copy_of_weights_left_by_a_kill(tmp_path: Path, stage: str) -> None:
    (tmp_path / stage / "resume").mkdir(parents=True)
    (tmp_path / stage / "metrics.jsonl").write_text("{}")
    for place, what in ((tmp_path / stage, "beside"), (tmp_path, "new"), (tmp_path / stage / "resume", "file")):
        with writer(place, what):
            pass
    assert len(list(tmp_path.rglob(".*.klype"))) == 3
    with folder.claim("world", tmp_path, True, date(2026, 1, 1)):
        assert not list(tmp_path.rglob(".*.klype"))
    assert (tmp_path / stage / "metrics.jsonl").read_text() == "{}"


def test_threads_that_write_one_file_leave_one_of_their_contents(tmp_path: Path) -> None:
    file, contents = tmp_path / "file", [str(number) * 100_000 for number in range(8)]
    threads = [threading.Thread(target=durable.write, args=(file, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.read_text() in contents
    assert os.listdir(tmp_path) == [file.name]
