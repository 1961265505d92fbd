"""``klype studio``: which models it opens, what it begins with, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from klype.cli.main import call
from klype.errors import UsageError
from klype.studio.studio import Studio
from tests.studio_server import run_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose pre-training and fine-tuning are finished."""
    folder = tmp_path_factory.mktemp("place") / "runs" / "mine"
    folder.mkdir(parents=True)
    shutil.copytree(run_folder(folder), folder / "pretrain")
    return folder


def test_a_run_is_opened_with_all_its_stages(run: Path) -> None:
    studio = Studio([], run.parent, ["false"])
    models = [*studio.open(str(run)), *studio.open(f"other={run.parent / 'mine' / '.' / 'finetune'}/")]
    assert [(m.name, m.stage, m.raw) for m in models] == [
        ("mine/pretrain", "pretrain", True),
        ("mine/finetune", "finetune", False),
        ("other", "finetune", False),
    ]
    assert all(m.identity and m.worker is not None and m.source is not m.opened.source for m in models)
    assert models[1].identity == models[2].identity
    assert models[1].truth("hvor gikk hun 1?", ()) is None  # no world
    asked = models[1].context("hvor gikk hun 1?")
    assert asked.prompt[-1] == models[1].opened.user_prompt("x")[-1]
    assert all(text.startswith("hvor gikk hun") for text in studio.suggestions("en"))
    assert len(studio.suggestions("nb")) == 3
    assert studio.open(str(run)) == models[:2]  # nothing is opened twice
    assert studio.models == models
    with pytest.raises(UsageError, match="Two models are called 'other'"):
        studio.open(f"other={run / 'pretrain'}/")
    for nowhere in ("/nowhere", "x" * 5000, "a\0b", "~nobody-here/x", "x=" * 400):
        with pytest.raises(UsageError, match="There is no model"):
            studio.open(nowhere)
    studio.stop()


@pytest.mark.parametrize(
    ("words", "why"),
    [(["--host", "0.0.0.0"], "other machines"), (["/nowhere"], "no model"), (["--port", "70000"], "0 to 65535"),
     (["--key-file", "/nowhere"], "cannot be read"), (["--runs", "/dev/null"], "not a folder")],
)  # fmt: skip
def test_what_it_refuses(words: list[str], why: str) -> None:
    port = [] if "--port" in words else ["--port", "0"]
    with pytest.raises(UsageError, match=why):
        call(["studio", "--no-open", *port, *words])
