"""``klype pull``: from a server in the hub's format, whole or not at all, gone on with; and models by short names."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from klype.cli.exits import exit_code
from klype.cli.main import call
from klype.environment import state_folder
from klype.model.checkpoint import save
from klype.sources.model_files import HUB, find_named
from klype.text.chat import TEMPLATE
from klype.text.tokenizer import Tokenizer
from tests.serve_toys import TEXTS
from tests.test_cli_models import Captured, document
from tests.toys import toy

pytest.importorskip("huggingface_hub")
COMMIT = "a" * 40
OFFLINE = {"HF_HUB_OFFLINE": "1"}


class Hub(ThreadingHTTPServer):
    """One repository, a folder, under any name but those of nobody. ``most``: bytes of a file after which it waits."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Repository)
        self.folder, self.most, self.sha = folder, 1 << 40, ""
        self.sent, self.ranges, self.waits = 0, list[str](), threading.Event()

    @property
    def environ(self) -> dict[str, str]:
        return {"HF_ENDPOINT": f"http://127.0.0.1:{self.server_address[1]}", "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}


class Repository(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if "nobody" in path:
            self.answer(b'{"error": "Repository not found"}', 404, {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("/api/models/"):
            rows = [self.row(file) for file in self.server.folder.iterdir()]
            rows += [{"rfilename": "onnx/model.safetensors", "size": 9}, {"rfilename": "evil.bin", "size": 9}]
            self.answer(json.dumps({"id": "x/y", "sha": COMMIT, "siblings": rows}).encode(), 200, {})
        elif found := re.search(r"/resolve/\w+/([\w.]+)$", path):
            data = (self.server.folder / found[1]).read_bytes()
            told = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
                self.server.ranges.append(found[1])
                told["Content-Range"] = f"bytes {asked[1]}-{len(data) - 1}/{len(data)}"
                self.answer(data[int(asked[1]) :], 206, told)
            else:
                self.answer(data, 200, told)
        else:
            self.answer(b"", 404, {})

    def row(self, file: Path) -> dict[str, Any]:
        size, sha = file.stat().st_size, self.server.sha or hashlib.sha256(file.read_bytes()).hexdigest()
        return {"rfilename": file.name, "size": size, "lfs": {"sha256": sha, "size": size, "pointerSize": 1}}

    def answer(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        part = data[: self.server.most]
        self.wfile.write(part)
        self.server.sent += len(part)
        if len(part) < len(data):
            self.server.waits.set()
            time.sleep(60)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Weights of 30 MB: the hub's client writes 10 MiB at a time."""
    tokenizer = Tokenizer.train(TEXTS, 300, TEMPLATE)
    folder = tmp_path_factory.mktemp("hub") / "model"
    save(folder, toy("llama", vocab_size=tokenizer.vocab_size, width=512, hidden=1536), tokenizer, {})
    server = Hub(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def pull(*argv: str, **environ: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "klype", "pull", *argv]
    return subprocess.Popen(
        command, env=os.environ | environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )


@pytest.mark.slow
def test_it_is_whole_or_not_there_and_goes_on_where_it_was_killed(hub: Hub, capsys: Captured) -> None:
    size = (hub.folder / "model.safetensors").stat().st_size
    hub.most = size - 1000
    first = pull("gpt2", **hub.environ)
    assert hub.waits.wait(60)
    draft = state_folder() / "models" / f".gpt2-{COMMIT[:12]}.part"
    until = time.monotonic() + 30
    while sum(file.stat().st_size for file in draft.glob("*.safetensors")) < 20 << 20:
        assert time.monotonic() < until
        time.sleep(0.05)
    first.kill()
    first.communicate()
    assert find_named("gpt2") is None
    assert exit_code(call, ["ask", "gpt2", "hei"]) == 2
    assert "Fetch it: klype pull gpt2" in capsys.readouterr().err
    hub.most, before = 1 << 40, hub.sent
    second = pull("gpt2", "--json", **hub.environ)
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    told = json.loads(out)
    assert (told["name"], Path(told["path"])) == ("gpt2", find_named("gpt2"))
    assert f"Fetching {HUB['gpt2'].repository} (" in err
    assert "model.safetensors" in hub.ranges
    assert hub.sent - before < size / 2
    here = Path(told["path"])
    assert not draft.exists()
    about = json.loads((here / "pulled.json").read_text())
    assert (about["repository"], about["revision"]) == (HUB["gpt2"].repository, COMMIT)
    names = {file.name for file in here.iterdir()}
    assert "evil.bin" not in names
    assert names <= {"pulled.json", *(file.name for file in hub.folder.iterdir())}
    assert all((hub.folder / name).read_bytes() == (here / name).read_bytes() for name in names - {"pulled.json"})
    # every command knows it by its short name now, and it is not fetched again
    assert document(capsys, "ask", "gpt2", "hvor gikk hun?", "--limit", "3")["tokens"]
    assert document(capsys, "pull", "gpt2")["path"] == str(here)
    rows = {row["name"]: row["path"] for row in document(capsys, "pull")["models"]}
    assert rows["gpt2"] == str(here)
    assert {*HUB} <= {*rows}


@pytest.mark.slow
def test_any_repository_by_its_own_name(hub: Hub, capsys: Captured) -> None:
    hub.most = 1 << 40
    fine = pull("someone/Tiny", **hub.environ)
    out, err = fine.communicate(timeout=120)
    assert fine.returncode == 0, err
    assert out.endswith(f"Tiny is here: {find_named('Tiny')}\n") or "Tiny is here" in out
    assert exit_code(call, ["pull", "other/Tiny"]) == 2
    assert "The name Tiny is taken by someone/Tiny." in capsys.readouterr().err
    assert exit_code(call, ["ask", "tinny", "hei"]) == 2
    assert "Did you mean Tiny?" in capsys.readouterr().err
    hub.sha = "0" * 64
    damaged = pull("someone/Else", **hub.environ)
    assert "of someone/Else came damaged. Fetch it again." in damaged.communicate(timeout=120)[1]
    assert (damaged.returncode, find_named("Else")) == (1, None)
    gone = pull("nobody/x", **hub.environ)
    assert "There is no model nobody/x on the hub, or it is private." in gone.communicate(timeout=60)[1]
    assert gone.returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize("lang", ["en", "nb"])
def test_offline_it_says_so_in_one_sentence(lang: str) -> None:
    asked = pull("gpt2", KLYPE_LANG=lang, **OFFLINE)
    said = asked.communicate(timeout=60)[1].strip()
    assert asked.returncode == 1
    assert "Traceback" not in said
    assert ("the hub cannot be reached" if lang == "en" else "huben kan ikke nås") in said


def test_names_that_there_are_not(capsys: Captured, elsewhere: Path) -> None:
    for name, told in (("smolm2", "Did you mean smollm2"), ("gtp2", "Did you mean gpt2? Fetch it: klype pull gpt2"),
                       ("dmeo", "Did you mean demo?"), ("xyzzy", "There is no model xyzzy. If it")):  # fmt: skip
        assert exit_code(call, ["ask", name, "hei"]) == 2
        assert told in capsys.readouterr().err
    assert exit_code(call, ["pull", "smolm2"]) == 2
    assert "There is no model called smolm2 to fetch. Did you mean smollm2" in capsys.readouterr().err
    assert exit_code(call, ["pull", "../x"]) == 2
    capsys.readouterr()
    for name in ("..", ".", "a/b", "x" * 300, "", "~"):
        assert find_named(name) is None


def test_a_package_brings_smollm2(smollm: Path, elsewhere: Path) -> None:
    from klype.sources.model_files import resolve

    assert resolve("smollm2") == str(smollm)
    (elsewhere / "smollm2").mkdir()  # what lies here goes first
    assert resolve("smollm2") == "smollm2"
