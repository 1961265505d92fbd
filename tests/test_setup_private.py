"""What klype keeps for itself is read by its owner only: from the first byte, and where it was made before, too."""

from __future__ import annotations

import http.server
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from klype import durable
from klype.cli.exits import exit_code
from klype.cli.main import call
from klype.sources.http_client import ResponseCache

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such bits")
KLYPE = [sys.executable, "-m", "klype"]


def readable(folder: Path) -> list[str]:
    """What others may do something with."""
    return [str(p) for p in (folder, *folder.rglob("*")) if stat.S_IMODE(p.lstat().st_mode) & 0o077]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place that is not there yet, nor the folder that it lies in; new files are everyone's to read."""
    before = os.umask(0o022)
    monkeypatch.setenv("KLYPE_HOME", str(tmp_path / "state" / "klype"))
    yield tmp_path / "state" / "klype"
    os.umask(before)


def test_a_bugs_traceback_is_its_finders_alone(home: Path) -> None:
    def broken(argv: list[str]) -> None:
        raise RuntimeError("secret")

    assert exit_code(broken, []) == 1
    assert len(list((home / "errors").iterdir())) == 1
    assert readable(home.parent) == []


def test_answers_of_servers_are_private_while_and_after_they_are_written(home: Path) -> None:
    kept = ResponseCache(home / "answers.sqlite")
    kept.put("key", {"answer": "secret"})
    assert {p.name for p in home.iterdir()} == {"answers.sqlite", "answers.sqlite-wal", "answers.sqlite-shm"}
    assert readable(home.parent) == []
    kept._base.close()
    assert readable(home.parent) == []


def test_no_moment_in_which_a_file_could_be_opened(home: Path) -> None:
    """The mode is the one that the file is created with, whatever the umask allows."""
    home.mkdir(parents=True)
    os.umask(0)
    with open(home / "a.txt", "w", opener=durable.private) as out:
        assert readable(home) == [str(home)]
        out.write("secret")
    durable.private_folder(home / "b" / "c")
    assert readable(home) == [str(home)]


@pytest.mark.slow
def test_a_command_tightens_what_an_older_klype_left_and_nothing_else(home: Path, tmp_path: Path) -> None:
    (home / "errors").mkdir(parents=True)
    (home / "runs" / "mine").mkdir(parents=True)
    outside = tmp_path / "mine.txt"
    outside.write_text("mine")
    (home / "link.txt").symlink_to(outside)
    for name in ("answers.sqlite", "answers.sqlite-wal", "annotators.json", "errors/2026.txt", "runs/mine/run.json"):
        (home / name).write_text("secret")
        (home / name).chmod(0o664)
    home.chmod(0o755)
    ran = subprocess.run([*KLYPE, "--version"], env={**os.environ, "KLYPE_HOME": str(home)}, check=False)
    assert ran.returncode == 0
    found = {Path(p).relative_to(home).as_posix() for p in readable(home)}
    assert found == {"errors", "link.txt", "runs", "runs/mine", "runs/mine/run.json"}  # behind a door that is shut now
    assert stat.S_IMODE(outside.stat().st_mode) == 0o644


def test_what_is_not_klype_s_stays_as_it_is(home: Path) -> None:
    """Somebody may call his project's folder klype's home."""
    home.mkdir(parents=True)
    for name in ("notes.txt", "data.sqlite", "annotators.json", "stores.toml"):
        (home / name).write_text("")
        (home / name).chmod(0o644)
    durable.restrict_access(home)
    assert readable(home) == [str(home / "data.sqlite"), str(home / "notes.txt")]


@pytest.mark.slow
def test_who_has_no_home_is_served_all_the_same() -> None:
    """A container's user without an entry among the system's."""
    lost = "import pwd, sys; pwd.getpwuid = lambda user: {}[user]; sys.argv = ['klype', '--version']"
    environ = {
        name: value for name, value in os.environ.items() if name not in ("HOME", "KLYPE_HOME", "XDG_STATE_HOME")
    }
    started = [sys.executable, "-c", f"{lost}; from klype.cli.main import main; main()"]
    ran = subprocess.run(started, env=environ, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_studio_needs_no_place_to_write(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home.parent.write_text("")
    assert exit_code(call, ["studio", "nowhere", "--no-open", "--port", "0"]) == 2
    assert "There is no model nowhere" in capsys.readouterr().err


def test_a_place_that_is_meant_for_all_stays_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "a.txt").chmod(0o644)
    durable.restrict_access(tmp_path)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o1777
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o644
    durable.restrict_access(tmp_path / "none")


def test_a_user_s_home_and_what_it_lies_in_stay_as_they_are(tmp_path: Path) -> None:
    """Somebody may call his home klype's: the door of it stays as it was."""
    user = tmp_path / "homes" / "kari"
    (user / "klype").mkdir(parents=True)
    code = "import sys; from pathlib import Path; from klype import durable; durable.private_folder(Path(sys.argv[1]))"
    for folder, mode in ((user.parent, 0o755), (user, 0o755), (user / "klype", 0o700)):
        folder.chmod(0o755)
        subprocess.run([sys.executable, "-c", code, str(folder)], env=os.environ | {"HOME": str(user)}, check=True)
        assert stat.S_IMODE(folder.stat().st_mode) == mode


class SilentListener(http.server.BaseHTTPRequestHandler):
    """A server that has nothing to offer."""

    def do_GET(self) -> None:
        self.send_error(404)

    do_POST = do_GET

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


@pytest.mark.slow
def test_a_real_command_that_asks_a_server_leaves_nothing_readable(home: Path) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), SilentListener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/v1"
        environ = {**os.environ, "KLYPE_HOME": str(home)}
        subprocess.run([*KLYPE, "ask", address, "Hei"], env=environ, capture_output=True, check=False, timeout=120)
    finally:
        server.shutdown()
        server.server_close()
    assert (home / "answers.sqlite").is_file()
    assert readable(home.parent) == []
