"""A file is whole or what it was, whatever happens while it is written."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from klype import durable


@pytest.mark.parametrize("content", ["blåbær på øya\n", b"\x00\xff", memoryview(b"12"), ""])
def test_what_was_written_is_there_and_nothing_else(tmp_path: Path, content: str | bytes | memoryview) -> None:
    file = tmp_path / "æøå.json"
    file.write_bytes(b"before")
    durable.write(file, content)
    assert file.read_bytes() == (content.encode() if isinstance(content, str) else bytes(content))
    assert os.listdir(tmp_path) == [file.name]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    file = tmp_path / "run.json"
    durable.write(file, "before")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((Path, "replace") if failing == "replace" else (os, "fsync")), full)
    with pytest.raises(OSError, match="No space"):
        durable.write(file, "after")
    assert file.read_text() == "before"
    assert os.listdir(tmp_path) == [file.name]


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


def test_threads_that_write_one_file_leave_one_of_their_contents(tmp_path: Path) -> None:
    file, contents = tmp_path / "file", [str(number) * 100_000 for number in range(8)]
    threads = [threading.Thread(target=durable.write, args=(file, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.read_text() in contents
    assert os.listdir(tmp_path) == [file.name]
