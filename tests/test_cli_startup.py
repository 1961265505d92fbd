"""Start-up: a command loads what it needs and nothing else."""

from __future__ import annotations

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
