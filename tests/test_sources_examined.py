"""A whole examination through klype's own server: the model's figures lie within the bounds of what is told of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from klype.answers import distribution_bounds
from klype.cli import exits
from klype.cli.main import call
from klype.cli.terminal import pass_budget
from klype.errors import UsageError
from klype.sources.http_client import ResponseCache
from klype.sources.opening import open_model
from klype.values import Distribution
from tests.test_cli_models import Captured, document, question, run, world
from tests.test_sources_remote import serving

__all__ = ["question", "run", "world"]
COUNTED = ("survival", "would_survive")
"""Shares of answers that were seen to stay right, where S is not whole: another estimate of what S gives exactly."""
SMALL = ("--temperatures", "1", "-n", "2", "--limit", "4", "--seed", "3", "--most", "2", "--raw")


@pytest.mark.parametrize("temperature", [0.0, 0.5, 0.8, 1.0, 1.3, 2.0])
def test_a_part_bounds_the_whole(temperature: float) -> None:
    rng = np.random.default_rng(5)
    for size, k in ((12, 3), (40, 20), (300, 20)):
        logp_V = -np.sort(-rng.normal(scale=2.0, size=size))
        logp_V -= np.log(np.exp(logp_V).sum())
        p_V = np.exp(logp_V / temperature) if temperature else (np.arange(size) == 0).astype(float)
        p_V /= p_V.sum()
        part = Distribution(np.arange(k), logp_V[:k], 1 - float(np.exp(logp_V[:k]).sum()))
        some = p_V[p_V > 0]
        low, high = distribution_bounds.entropy_at(part, temperature, size)
        assert low - 1e-6 <= -(some * np.log(some)).sum() <= high + 1e-6
        for chosen in ({0, 1}, {1, size - 1}, set(range(size))):
            low, high = distribution_bounds.mass_at(part, temperature, size, chosen)
            assert low - 1e-6 <= p_V[list(chosen)].sum() <= high + 1e-6


@pytest.mark.slow
def test_examined_through_the_server_as_it_is_here(run: Path, capsys: Captured, tmp_path: Path) -> None:
    from klype.serve.app import app
    from klype.serve.guard import ServeSettings
    from klype.serve.served_model import ServedModel

    questions = str(run / "questions.jsonl")
    mine = document(capsys, "examine", str(run), "--questions", questions, *SMALL, "--out", str(tmp_path / "here"))
    guarded_app = app([ServedModel("toy", open_model(str(run)).source)], ServeSettings(completion_top=20))  # type: ignore[arg-type]
    with serving(guarded_app) as address:
        argv = ["examine", address, "--questions", questions, *SMALL, "--out", str(tmp_path / "there"), "--json"]
        assert exits.exit_code(call, [*argv, "--budget", "1requests"]) == 1
        assert "budget is used up" in capsys.readouterr().out
        assert exits.exit_code(call, argv) == 0
        said = capsys.readouterr()
    assert "requests" in said.err
    theirs = json.loads(said.out)
    for name in ("right", "tokens"):
        assert theirs["figures"]["1"][name]["value"] == mine["figures"]["1"][name]["value"]
    here, there = mine["figures"]["1"]["answer_entropy"], theirs["figures"]["1"]["answer_entropy"]
    assert there["low"] <= here["value"] <= there["high"]


@pytest.mark.slow
def test_every_figure_is_the_models_own_or_bounds_it(run: Path, capsys: Captured, tmp_path: Path) -> None:
    """In chat, on the world's questions: judged by its grammar, beside its truth."""
    from klype.serve.app import app
    from klype.serve.guard import ServeSettings
    from klype.serve.served_model import ServedModel

    asked = ("--questions", str(run / "questions.jsonl"), "--temperatures", "0.8,1", "-n", "4", "--limit", "8")
    mine = document(capsys, "examine", str(run), *asked, "--out", str(tmp_path / "here"))
    guarded_app = app([ServedModel("toy", open_model(str(run)).source)], ServeSettings(completion_top=20))  # type: ignore[arg-type]
    with serving(guarded_app) as address:
        theirs = document(capsys, "examine", address, *asked, "--out", str(tmp_path / "there"))
    same = set()
    for t, figures in mine["figures"].items():
        for name, figure in figures.items():
            other = theirs["figures"][t].get(name)
            if other is None or figure["value"] is None or name == "unexplored":
                continue  # what a part cannot tell is left out, never guessed; a tree of a part explores less
            if name in COUNTED:
                share = other["value"] * other["n"]
                assert share == pytest.approx(round(share))
            elif other["value"] != pytest.approx(figure["value"], abs=1e-5):
                assert other["low"] - 1e-6 <= figure["value"] <= other["high"] + 1e-6, (t, name)
            else:
                same.add(name)
    assert {"right", "word_for_word", "annotator", "polite", "concise", "repetition", "distinct", "tokens"} <= same
    assert {"s", "answer_entropy", "tree_entropy"} <= theirs["figures"]["1"].keys()


def test_a_budget_is_of_passes_or_of_a_server() -> None:
    assert pass_budget("300") == (300, "")
    assert pass_budget("500requests,20000tokens") == (None, "500requests,20000tokens")
    assert pass_budget("300, 5requests") == (300, "5requests")
    for wrong in ("0", "-3", "1.5", "many", "5eggs"):
        with pytest.raises(UsageError, match="budget"):
            pass_budget(wrong)


def test_a_killed_process_loses_no_answer_that_it_had(tmp_path: Path) -> None:
    code = (
        "import itertools, sys; from pathlib import Path; from klype.sources.http_client import ResponseCache\n"
        "kept = ResponseCache(Path(sys.argv[1]))\n"
        "for i in itertools.count():\n"
        "    kept.put(str(i), {'said': i}); print(i, flush=True)"
    )
    file = tmp_path / "kept.sqlite"
    process = subprocess.Popen([sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = [int(process.stdout.readline()) for _ in range(40)]
    process.kill()
    told += [int(line) for line in process.stdout.read().split("\n")[:-1] if line]
    process.wait()
    again = ResponseCache(file)
    assert [again.get(str(i)) for i in told] == [{"said": i} for i in told]
    again.put("after", {"said": -1})
    assert again.get("after") == {"said": -1}
