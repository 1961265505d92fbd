"""``--device``: on every command that computes; what is not there is one sentence and exit code 2."""

from __future__ import annotations

import pytest
import torch
import typer

import klype
from klype.cli.exits import exit_code
from klype.cli.main import app, call
from klype.device import pick_device
from klype.errors import UsageError

WITHOUT = {"config", "doctor", "export", "pull", "runs"}
"""Commands that compute nothing with a model."""


def commands() -> dict[str, set[str]]:
    group = typer.main.get_command(app())
    found: dict[str, typer.core.TyperCommand] = group.commands  # type: ignore[attr-defined]
    return {name: {opt for p in command.params for opt in p.opts} for name, command in found.items()}


def test_every_command_that_computes_has_it() -> None:
    assert {name for name, options in commands().items() if "--device" not in options} - WITHOUT == set()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
@pytest.mark.parametrize(
    "line",
    ["ask {m} Hei", "next {m} Hei", "tree {m} Hei", "forks {m} Hei", "chat {m}", "serve {m}", "studio {m}",
     "examine {m}", "run --minutes 0.1", "train pretrain", "align {m}", "rank {m}", "article {m}", "bias", "mistakes"],
)  # fmt: skip
def test_what_is_not_there_is_refused(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = exit_code(call, [*line.format(m="nowhere").split(), "--device", "cuda"])
    told = capsys.readouterr().err
    assert code == 2
    assert "cuda" in told
    assert "Traceback" not in told
    assert "nowhere" not in told  # nothing was looked for before


def test_no_such_kind_of_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(call, ["next", "nowhere", "Hei", "--device", "abacus"]) == 2
    assert "abacus" in capsys.readouterr().err
    with pytest.raises(UsageError, match="abacus"):
        klype.load("nowhere", device="abacus")


def test_auto_is_what_is_there() -> None:
    there = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert pick_device("auto").type == there
