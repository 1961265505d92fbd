"""What takes a while says so on stderr, in the reader's language; --json has one document on stdout all the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from klype.cli.exits import exit_code
from klype.cli.main import call
from klype.cli.terminal import patiently
from klype.model import checkpoint
from klype.words import LANGUAGES, words


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="nothing is compiled on Windows")
@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_compiler_that_fails_is_told_once_and_klype_computes_without(tmp_path: Path, lang: str) -> None:
    (compiler := tmp_path / "cc").write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    compiler.chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "KLYPE_HOME": str(tmp_path / "home")}
    argv = ["ask", "demo", "Reven drakk vann. Hvem drakk vann?", "--json", "--lang", lang]
    done = subprocess.run(
        [sys.executable, "-m", "klype", *argv], env=environ, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["answer"]
    assert words(lang)("model.uncompiled") in done.stderr.splitlines()
    assert words(lang)("model.compiling", folder=tmp_path / "home" / "cache") in done.stderr.splitlines()


def test_what_takes_longer_than_a_moment_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with patiently("soon", seconds=60.0):
        pass
    assert capsys.readouterr().err == ""
    with patiently("later", seconds=0.0):
        while "later" not in (said := capsys.readouterr().err):
            time.sleep(0.001)
    assert said == "later\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "lang"), [("ask", "nb"), ("next", "en"), ("tree", "nb"), ("forks", "en"), ("chat", "nb")]
)
def test_a_model_that_opens_slowly_is_waited_for_with_a_word(
    command: str,
    lang: str,
    monkeypatch: pytest.MonkeyPatch,
    typed: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def slowly(*given: Any, **named: Any) -> checkpoint.LoadedModel:
        time.sleep(1.5)
        return opened(*given, **named)

    opened = checkpoint.load
    monkeypatch.setattr(checkpoint, "load", slowly)
    typed("")
    texts = [] if command == "chat" else ["Hvor er Kari?"]
    assert exit_code(call, [command, "demo", *texts, "--json", "--lang", lang]) == 0
    said = capsys.readouterr()
    assert said.err.splitlines()[0] == words(lang)("model.starting")
    json.loads(said.out)
