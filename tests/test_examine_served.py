"""``klype examine`` as it is typed, on servers that are processes or machines of their own."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from klype.cli import exits
from klype.cli.main import call
from klype.examine.examined_model import fork_tokens
from klype.values import Sampling, Step, Trace
from tests.test_cli_models import question, run, world

__all__ = ["question", "run", "world"]
PLAIN = [
    {"question": "What is the capital of Norway?", "answers": ["Oslo"]},
    {"question": "Hva er 2 + 2?", "answers": ["4"]},
]
FEW = ("-n", "2", "--limit", "4", "--minutes", "0.01")


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PLAIN), encoding="utf-8")
    return file


@pytest.fixture
def address(run: Path, home: Path) -> Iterator[str]:
    """``klype serve`` in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "klype", "serve", str(run), "--port", str(port)]
    process = subprocess.Popen(command, env=os.environ | {"KLYPE_HOME": str(home)}, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            assert process.poll() is None
            try:
                httpx.get(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def examined(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    code = exits.exit_code(call, ["examine", *argv, "--json"])
    said = capsys.readouterr()
    assert code == 0, said.out
    return dict(json.loads(said.out))


@pytest.mark.slow
def test_a_klype_server_is_examined_from_end_to_end(
    address: str, asked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the temperatures of the command itself, whose probabilities a server tells before temperature only."""
    made = examined(capsys, address, "--questions", str(asked), *FEW, "--out", str(tmp_path / "out"))
    assert list(made["figures"]) == ["0", "0.7", "1", "1.3"]
    assert all(figures["right"]["n"] for figures in made["figures"].values())
    assert (tmp_path / "out" / "report.html").is_file()


def test_the_cost_of_forks_is_a_number_whatever_is_told() -> None:
    """Of nothing, as if every draw left the answer; of probabilities before temperature, as of those; never less."""

    def trace(logp: float, drawn: float) -> Trace:
        return Trace((1,), (Step(5, logp, drawn, "drawn"),) * 3, Sampling(0.7), 0, 0, "m", "length", 3, 0.0)

    untold = fork_tokens([trace(math.nan, math.nan)])
    before = fork_tokens([trace(-0.7, math.nan)])
    assert before == fork_tokens([trace(-9.0, -0.7)])
    assert untold == pytest.approx(fork_tokens([trace(-50.0, -50.0)]))
    assert 0 < before < untold
