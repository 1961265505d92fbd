"""Every command's ``--json`` keeps the contract that scripts rely on: keys, types, units, intervals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from klype.cli import exits
from klype.cli.main import call
from tests import contract
from tests.test_cli_models import SENTENCE, Captured, Typed, document, question, run, world

__all__ = ["question", "run", "world"]
SMALL = ("--limit", "6")
COMMANDS = [
    (contract.Ask, ["ask", "RUN", "Hvem?", *SMALL]),
    (contract.Ask, ["ask", "RUN", "Hvem?", *SMALL, "--speculate", "lookup"]),
    (contract.Ask, ["ask", "RUN", "Hvem?", *SMALL, "--sure"]),
    (contract.Chat, ["chat", "RUN", *SMALL]),
    (contract.Next, ["next", "RUN", SENTENCE, "--raw"]),
    (contract.Tree, ["tree", "RUN", "Hvem?", *SMALL, "--budget", "20"]),
    (contract.Forks, ["forks", "RUN", "Hvem?", *SMALL, "-n", "4"]),
]


@pytest.mark.parametrize(("kind", "argv"), COMMANDS, ids=lambda part: "-".join(part[::2]) if type(part) is list else "")
def test_what_is_asked_is_told_in_the_same_words(
    kind: type, argv: list[str], run: Path, capsys: Captured, typed: Typed
) -> None:
    typed("Hvem?\n")
    found = document(capsys, *[str(run) if part == "RUN" else part for part in argv])
    contract.holds(kind, found)
    if kind is contract.Next:
        assert {"token", "id", "p", "p_tempered", "truth"} == found["tokens"][0].keys()
    if kind is contract.Forks:
        assert {row["strength"]["unit"] for row in found["positions"]} == {"share of answers"}


@pytest.mark.slow
def test_an_examination_is_told_in_the_same_words(run: Path, capsys: Captured, tmp_path: Path) -> None:
    argv = ["--temperatures", "0.7", "-n", "2", *SMALL, "--minutes", "0.01", "--out", str(tmp_path)]
    found = document(capsys, "examine", str(run), *argv)
    contract.holds(contract.Examine, found)
    figures = found["figures"]["0.7"]
    units = {"right": "share", "s": "share a word", "tokens": "tokens", "answer_entropy": "nats"}
    assert {name: figures[name]["unit"] for name in units} == units
    assert [row["t"] for row in found["survival"]["0.7"]] == list(range(1, len(found["survival"]["0.7"]) + 1))
    assert [row["distance"] for row in found["feedback"]["0.7"]][:1] == [1]
    assert json.loads((tmp_path / "figures.json").read_text(encoding="utf-8")) == found


WRONG = [
    (["ask", "nowhere", "Hvem?"], 2),
    (["tree", "RUN", "Hvem?", "--eps", "2"], 2),
    (["run", "--minutes", "-1"], 2),
    (["train", "baking"], 2),
    (["train", "finetune"], 2),
    (["align", "nowhere"], 2),
    (["align", "RUN", "--rounds", "0"], 2),
    (["rank", "nowhere"], 2),
    (["rank", "RUN", "--noise", "5"], 2),
    (["bias", "--documents", "3"], 2),
    (["mistakes", "--methods", "prayer"], 2),
    (["article", "nowhere"], 2),
    (["export", "RUN"], 2),
    (["runs", "compare", "RUN"], 2),
    (["judge"], 2),
]


@pytest.mark.parametrize(("argv", "code"), WRONG, ids=lambda part: "-".join(part) if type(part) is list else "")
def test_what_went_wrong_is_told_in_the_same_words(
    argv: list[str], code: int, run: Path, capsys: Captured, elsewhere: Path
) -> None:
    assert exits.exit_code(call, [*[str(run) if part == "RUN" else part for part in argv], "--json"]) == code
    contract.holds(contract.Error, json.loads(capsys.readouterr().out))
    assert list(elsewhere.iterdir()) == []


@pytest.mark.slow
def test_a_stage_and_a_file_are_told_in_the_same_words(run: Path, capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(f"Hvem gikk? Kari gikk til skolen. {i}" for i in range(60)))
    given = ["--text", str(tmp_path / "text.txt"), "--steps", "1", "--set", "pretrain.rows=2"]
    argv = ["train", "pretrain", "--from", str(run), *given, "--out", str(tmp_path / "out")]
    contract.holds(contract.Trained, document(capsys, *argv))
    contract.holds(contract.Exported, document(capsys, "export", str(run), "--gguf", str(tmp_path / "m.gguf")))


@pytest.mark.slow
def test_runs_and_the_machine_are_told_in_the_same_words(run: Path, capsys: Captured) -> None:
    contract.holds(contract.Doctor, document(capsys, "doctor"))
    (one,) = document(capsys, "runs", "list", "--folder", str(run.parent))["runs"]
    assert {"run", "recipe", "state", "stage", "stages", "figures", "gates", "gates_passed"} <= one.keys()
    for row in document(capsys, "runs", "compare", str(run), str(run))["runs"]:
        assert {"run", "recipe", "stages"} <= row.keys()


@pytest.mark.parametrize(
    "figure",
    [
        {"value": 2.0, "low": 0.0, "high": 1.0, "n": 3, "unit": "share"},
        {"value": 0.5, "low": 0.0, "n": 3, "unit": "share"},
        {"value": 0.5, "low": 0.0, "high": 1.0, "n": 3, "unit": "share", "more": 1},
        {"value": float("nan"), "low": None, "high": None, "n": 3, "unit": "share"},
        {"value": None},
    ],
)
def test_a_figure_that_is_none_is_seen(figure: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        contract.holds(contract.Figure, figure)
