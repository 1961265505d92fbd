"""klype against servers of other makers, as they are: llama.cpp's and ``transformers serve``."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest

import klype
from klype.cli import exits
from klype.cli.main import call
from tests.foreign_server import foreign, free_port, send
from tests.test_cli_models import Captured, document

pytestmark = pytest.mark.slow
ASKED = "What is the capital of Norway?"
LLAMA_CPP = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_ctx, params.n_parallel = sys.argv[1], int(sys.argv[2]), 2048, 2
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
while True:
    time.sleep(60)
"""


@contextmanager
def started(command: list[str], port: int) -> Iterator[str]:
    """A server in a process of its own; yields its address once it answers."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < until, "the server did not start"
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def llama_cpp(smollm: Path) -> Iterator[str]:
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("the package xllamacpp (llama.cpp's server) is not installed")
    port = free_port()
    with started([sys.executable, "-c", LLAMA_CPP, str(smollm), str(port)], port) as address:
        yield address


@pytest.fixture(scope="module")
def hf_serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tiny model of random weights behind ``transformers serve``, which tells no probabilities."""
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate", reason="transformers serve needs it")
    from tests.test_sources_hf import folder_of

    folder = folder_of("gpt2", tmp_path_factory.mktemp("serve") / "tiny")
    port = free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--port", str(port),
               "--host", "127.0.0.1", "--device", "cpu"]  # fmt: skip
    with started(command, port) as address:
        yield address


def questions(folder: Path) -> str:
    rows = [{"question": ASKED, "answers": ["Oslo"]}, {"question": "What is 2 + 2?", "answers": ["4"]}]
    file = folder / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def test_llama_cpp_is_as_the_file_is_here(llama_cpp: str, smollm: Path, capsys: Captured) -> None:
    """The same file, read by klype: prompts have equal ids, and the likely next words nearly equal probabilities."""
    there, here = klype.load(llama_cpp), klype.load(smollm)
    for text in ("The capital of Norway is", "Hei, jeg heter", "2 + 2 ="):
        assert there.opened.encode_text(text) == here.opened.encode_text(text)
        likely = {token.token: token.p for token in there.next(text, top=8, raw=True).tokens}
        known = {token.token: token.p for token in here.next(text, top=40, raw=True).tokens}
        assert next(iter(likely)) == next(iter(known))
        assert all(abs(known[word] - p) < 0.03 for word, p in likely.items() if p > 0.02), (likely, known)
    assert there.opened.user_prompt(ASKED) == here.opened.user_prompt(ASKED)
    given = (ASKED, "The capital of Norway is Oslo.")
    told, own = there.score(*given).to_json(), here.score(*given).to_json()
    assert [token["id"] for token in told["tokens"]] == [token["id"] for token in own["tokens"]]
    assert all(abs(a["p"] - b["p"]) < 0.03 for a, b in zip(told["tokens"], own["tokens"], strict=True))
    assert abs(told["logprob"] - own["logprob"]) < 0.3


def test_llama_cpp_with_every_command(llama_cpp: str, capsys: Captured, tmp_path: Path) -> None:
    assert exits.exit_code(call, ["doctor", llama_cpp, "--json"]) == 0
    (offer,) = json.loads(capsys.readouterr().out)["endpoints"]
    assert (offer["kind"], offer["echo"], offer["ids"]) == ("llama.cpp", False, True)
    answer = document(capsys, "ask", llama_cpp, ASKED, "--limit", "8", "--temperature", "0", "--sure")
    assert "Oslo" in answer["answer"]
    assert document(capsys, "next", llama_cpp, "The capital of Norway is", "--raw")["tokens"]
    tree = document(capsys, "tree", llama_cpp, ASKED, "--budget", "30", "--limit", "8")
    assert tree
    assert document(capsys, "forks", llama_cpp, ASKED, "--limit", "6")
    argv = ("examine", llama_cpp, "--questions", questions(tmp_path), "--limit", "8", "-n", "2", "--temperatures", "1")
    found = document(capsys, *argv, "--out", str(tmp_path / "out"), "--budget", "150")
    assert found["questions"] == 2
    assert found["goes_on"] is True
    # in another folder every answer is known from before: nothing is asked twice
    again = document(capsys, *argv, "--out", str(tmp_path / "again"), "--budget", "150,1requests")
    assert again["figures"] == found["figures"]


class Proxy:
    """Before a server: ``answered`` are the bodies that it answered; more than ``most`` never reach it."""

    def __init__(self, address: str) -> None:
        self.address = address.removesuffix("/v1")
        self.answered: list[dict[str, Any]] = []
        self.most = 1 << 30
        self.turn = threading.Lock()

    def handle(self, request: BaseHTTPRequestHandler, path: str, body: dict[str, Any]) -> None:
        with self.turn:
            asks = request.command == "POST"
            if asks and len(self.answered) >= self.most:
                request.close_connection = True
                return
            got = httpx.request(request.command, self.address + path, json=body or None, timeout=60)
            if asks:
                self.answered.append(body)
        send(request, got.content, got.status_code, **{"content-type": got.headers["content-type"]})


def test_an_examination_killed_in_the_middle_asks_nothing_twice(llama_cpp: str, tmp_path: Path) -> None:
    proxy = Proxy(llama_cpp)
    asked = ["--questions", questions(tmp_path), "--limit", "4", "-n", "3", "--temperatures", "1", "--budget", "60"]
    with foreign(proxy.handle) as address:

        def begun(command: str, home: str, *argv: str) -> subprocess.Popen[str]:
            environ = os.environ | {"KLYPE_HOME": str(tmp_path / home)}
            line = [sys.executable, "-m", "klype", command, address, *argv, "--json"]
            return subprocess.Popen(line, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

        def examined(home: str) -> dict[str, Any]:
            process = begun("examine", home, *asked, "--out", str(tmp_path / home / "out"))
            found: dict[str, Any] = json.loads(process.communicate(timeout=300)[0])["figures"]
            return found

        def kept() -> int:
            with closing(sqlite3.connect(tmp_path / "cut" / "answers.sqlite")) as store:
                query = "SELECT count(*) FROM answers WHERE key NOT LIKE 'piece %'"
                return int(store.execute(query).fetchone()[0])

        assert begun("doctor", "whole").wait(120) == 0  # what the server offers is known from here on
        shutil.copytree(tmp_path / "whole", tmp_path / "cut")
        proxy.answered.clear()
        figures = examined("whole")
        expected = len(proxy.answered)
        assert expected > 4
        proxy.answered.clear()
        proxy.most = expected // 2
        before = kept()
        first = begun("examine", "cut", *asked, "--out", str(tmp_path / "cut" / "out"))
        until = time.monotonic() + 120
        while kept() < before + proxy.most:
            assert time.monotonic() < until
            assert first.poll() is None, "it ended before it could be killed"
            time.sleep(0.05)
        first.kill()
        first.wait()
        assert len(proxy.answered) == proxy.most
        proxy.most = 1 << 30
        assert examined("cut") == figures
    assert len(proxy.answered) == expected


def test_llama_cpp_within_a_character(llama_cpp: str, capsys: Captured) -> None:
    """It tells nothing of a token that leaves a character unfinished: what is untold stays open."""
    party = "Party: " + "\N{PARTY POPPER}" * 4
    for limit in ("1", "2", "4"):
        assert document(capsys, "ask", llama_cpp, party, "--raw", "--limit", limit, "--temperature", "0")["passes"]
    model = klype.load(llama_cpp)
    assert model.next(party, raw=True).rest == 1.0
    assert model.tree(party, raw=True, limit=3, budget=3).to_json()["unexplored"] == 1.0


def test_a_server_without_probabilities(hf_serve: str, capsys: Captured, tmp_path: Path) -> None:
    """What it offers is measured; the rest is refused in one sentence, or left out and named."""
    assert exits.exit_code(call, ["doctor", hf_serve, "--json"]) == 0
    measures = json.loads(capsys.readouterr().out)["endpoints"][0]["measures"]
    assert (measures["answers"], measures["next"], measures["tree"]) == ("whole", "unavailable", "unavailable")
    answer = document(capsys, "ask", hf_serve, "hvor?", "--limit", "4", "--sure")  # no [DONE] ends its stream
    assert answer["sure"]["why"] == "server"
    assert answer["sure"]["same"]["n"] == 32
    for command in ("next", "tree", "forks"):
        assert exits.exit_code(call, [command, hf_serve, "hvor?"]) == 1
        assert "See what it offers" in (said := capsys.readouterr().err) or "See: klype doctor" in said
    argv = ("examine", hf_serve, "--questions", questions(tmp_path), "--limit", "4", "-n", "2", "--temperatures", "1")
    found = document(capsys, *argv, "--out", str(tmp_path / "out"))
    assert found["goes_on"] is False
    assert found["settings"]["trees"] == found["settings"]["forks"] == 0
