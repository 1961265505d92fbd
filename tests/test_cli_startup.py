"""Start-up: a command loads what it needs and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

UNNEEDED = ("torch._dynamo", "sympy", "scipy", "httpx", "transformers", "sqlalchemy", "pandas", "nicegui")
"""Each takes a tenth of a second of processor time or more; torch's compiler a whole one."""


@pytest.mark.slow
@pytest.mark.parametrize("argv", [["next", "demo", "Hei"], ["ask", "demo", "Hvor er Kari?", "--limit", "2"]])
def test_what_an_answer_does_not_need_is_not_loaded(argv: list[str]) -> None:
    script = (
        "import sys, klype.cli.main as m\n"
        f"code = m.exit_code(m.call, {argv!r})\n"
        f"print('LOADED', [name for name in {UNNEEDED!r} if name in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "LOADED [] 0"


@pytest.mark.parametrize("launcher", [{}, {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "here", "MASTER_PORT": "1"}])
@pytest.mark.parametrize(("option", "code"), [("--help", 0), ("--no-such", 2)])
def test_a_launched_process_ends_before_the_interpreter_does(launcher: dict[str, str], option: str, code: int) -> None:
    """All that it printed has arrived, other functions for the end have been called, and its exit code is the same."""
    script = (
        "import atexit, os, sys, klype.cli.main as m\n"
        "class Seen:\n    def __del__(self, write=os.write): write(1, b'INTERPRETER ENDS')\n"
        f"sys.seen, sys.argv = Seen(), ['klype', 'train', {option!r}]\n"
        "in_time = m.call\n"
        "m.start(lambda argv: (atexit.register(print, 'FUNCTIONS CALLED'), in_time(argv))[1])"
    )
    process = [sys.executable, "-c", script]
    done = subprocess.run(process, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80", **launcher})
    assert done.returncode == code, done.stderr
    assert ("--minutes" in done.stdout) == (code == 0)
    assert done.stdout.splitlines()[-1] == ("FUNCTIONS CALLED" if launcher else "INTERPRETER ENDS")
    assert "FUNCTIONS CALLED" in done.stdout
