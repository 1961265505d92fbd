"""``klype.examine`` and ``klype.load()``: what the command prints, of every kind of model and of questions."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import klype
from klype.api.examination import questions_of
from klype.cli import exits
from klype.cli.main import call
from klype.data.rows import questions_from, read_questions
from klype.examine.examination_report import verdict
from klype.examine.say import Say
from klype.values import Figure
from tests.test_cli_models import Captured, document, question, run, world
from tests.test_examine_served import address

__all__ = ["address", "question", "run", "world"]
ROWS: list[dict[str, Any]] = [
    {"question": "Hvem gikk?", "answers": ["Kari gikk."], "context": "Kari gikk hjem."},
    {"question": "Er det så?", "choices": ["ja", "nei"], "answers": ["ja"], "id": "b"},
]
SMALL: dict[str, Any] = {"minutes": 0.01, "n": 2, "limit": 4}


def timeless(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in ("time", "report")}


def as_file(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.mark.slow
def test_the_command_prints_what_is_returned(run: Path, capsys: Captured, tmp_path: Path) -> None:
    """Of the run's own questions, whose truth is known; and every figure is the same as in the JSON document."""
    argv = ["--temperatures", "0.7,1", "-n", "3", "--limit", "5", "--seed", "3", "--minutes", "0"]
    printed = document(capsys, "examine", str(run), *argv, "--out", str(tmp_path / "out"))
    found = klype.examine(str(run), minutes=0, n=3, seed=3, temperatures=(0.7, 1), limit=5)
    made = json.loads(json.dumps(found.to_json(), allow_nan=False))
    for t in ("0.7", "1"):
        for name in printed["figures"][t]:
            assert made["figures"][t].get(name) == printed["figures"][t][name], name
    assert timeless(made) == timeless(printed)
    assert made.keys() == printed.keys()
    assert {name: figure.json() for name, figure in found.figures.items()} == found.to_json()["figures"]["0.7"]
    assert found.at(1).keys() == printed["figures"]["1"].keys()
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert len(page) == pytest.approx(len(found.to_html()), rel=0.01)
    frame = found.to_pandas()
    assert len(frame) == sum(len(figures) for figures in printed["figures"].values())
    assert set(frame.columns) == {"temperature", "measure", "value", "low", "high", "n", "unit"}


@pytest.mark.slow
def test_an_examination_is_pickled_as_what_it_found(run: Path) -> None:
    found = klype.examine(run, ROWS, temperatures=[0.7, 1], device="cpu", **SMALL)
    for again in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
        assert (again.to_json(), again.figures, again.found) == (found.to_json(), found.figures, None)
        assert (again.to_html(), again._repr_html_(), repr(again)) == (
            found.to_html(),
            found._repr_html_(),
            repr(found),
        )
    for wrong in (3, "0.7", None):
        with pytest.raises(klype.KlypeError, match="emperature"):
            found.at(wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_questions_are_a_file_or_rows_or_texts(run: Path, tmp_path: Path) -> None:
    model = klype.load(run)
    file = as_file(tmp_path / "q.jsonl", ROWS)
    by_file, by_rows = (klype.examine(model, asked, **SMALL) for asked in (str(file), ROWS))
    assert timeless(by_file.to_json()) == timeless(by_rows.to_json())
    alone = klype.examine(model, ["<b>Hvem</b> gikk?"], temperatures=[0.7], **SMALL)
    assert alone.to_json()["questions"] == 1
    assert "right" not in alone.figures  # nobody knows what is right
    assert "<b>Hvem" not in alone._repr_html_() + alone.to_html().split("<script")[0]


@pytest.mark.slow
def test_a_server_is_examined_as_the_model_itself(address: str, run: Path) -> None:
    """``klype serve`` in a process of its own draws the same answers: all that is counted over them is the same."""
    here, there = (klype.examine(name, ROWS, seed=2, **SMALL) for name in (str(run), address))
    for t in (0.7, 1.0):
        for name in ("right", "word_for_word", "same_meaning"):
            assert here.at(t).get(name) == there.at(t).get(name)
        drawn = [
            [one.target.source.codec.decode(trace.tokens) for group in one.traces[t] for trace in group]
            for one in (here.found, there.found)
        ]
        assert drawn[0] == drawn[1]


@pytest.mark.slow
def test_a_model_of_transformers_is_examined(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.test_sources_hf import folder_of

    found = klype.examine(str(folder_of("gpt2", tmp_path)), ROWS, temperatures=(0.7,), **SMALL)
    assert found.found.target.shape is None
    assert (found.figures["right"].n, found.figures["right"].unit) == (4, "share")


def test_rows_in_a_list_are_read_as_in_a_file(tmp_path: Path) -> None:
    file = as_file(tmp_path / "q.jsonl", ROWS)
    assert questions_from(ROWS) == read_questions([file])
    assert questions_from(("Hvem?",))[0].question == "Hvem?"
    for rows, said in (([], "no questions in the list"), (["Hvem?", " "], "Question 2 has no question")):
        with pytest.raises(klype.KlypeError, match=said):
            questions_from(rows)
    with pytest.raises(klype.KlypeError, match="Question 1 has answers or choices that are not lists of text"):
        questions_from([{"question": "Hvem?", "answers": [3]}])


def test_what_cannot_be_examined_is_one_sentence(run: Path, tmp_path: Path) -> None:
    model = klype.load(run)
    for given, options, said in (
        (tmp_path / "none.jsonl", {}, "no file"),
        (["Hvem? " * 300], {}, "leaves room"),
        (ROWS, {"temperatures": ()}, "temperatures"),
        (ROWS, {"n": 0}, "n should be greater than or equal to 1"),
        (ROWS, {"budget": 1}, "too small"),
        (ROWS, {"judge": str(tmp_path / "none")}, "no model"),
    ):
        with pytest.raises(klype.KlypeError, match=said):
            klype.examine(model, given, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"most": -1}, "most should be"),
        ({"minutes": float("nan")}, "minutes should be"),
        ({"minutes": -1}, "minutes should be"),
        ({"n": "2"}, "n should be a whole number"),
        ({"temperature": [0.7]}, "no option temperature"),
        ({"temperatures": "0.7"}, "temperatures should be"),
        ({"temperatures": 0.7}, "temperatures should be"),
        ({"questions": [1]}, "Question 1"),
        ({"questions": 5}, "questions should be"),
        ({"questions": {"question": "Hvem?"}}, "questions should be"),
        ({"minutes": "5"}, "minutes should be"),
        ({"most": "5"}, "most should be"),
        ({"budget": "5"}, "budget should be"),
        ({"judge": 5}, "judge should be"),
        ({"training": "text"}, "training must be"),
        ({"training": [5]}, "training must be"),
        ({"device": "abacus"}, "no kind of device 'abacus'"),
        ({"limit": 0}, "^limit should be greater than or equal to 1"),
        ({"seed": -1}, "seed should be greater than or equal to 0"),
    ],
)
def test_wrong_options_are_one_sentence(run: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(klype.KlypeError, match=said):
        klype.examine(run, **{"questions": ROWS, **options})


def test_what_has_no_interval_reads_as_a_sentence() -> None:
    why = "one question only: nothing is known about others"
    figures = {
        "right": Figure(1.0, unit="share of answers", why=why),
        "same_meaning": Figure(0.5, unit="share of pairs", why=why),
        "fork": Figure(1.0, 0.02, 1.0, 1, "share of answers"),
        "fork_word": Figure(8.0, n=1, unit="word", why=why),
    }
    asked = {"figures": {"0.7": {name: figure.json() for name, figure in figures.items()}}, "main": "0.7"}
    said = " ".join(verdict({**asked, "questions": 1, "judge": "match"}, Say("en")))
    assert said.startswith("Asked one question at temperature 0.7, 100% of its answers are right")
    assert "on average it is word 8." in said
    assert "mean the same 50% of the time" in said
    assert said.count(why) == 1
    assert "8.00" not in said


def test_a_package_of_the_same_name_does_not_hide_the_function() -> None:
    code = "import klype, klype.examine.say, klype.train; print(klype.examine.__module__, klype.load.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["klype.api.examination", "klype.api.model"]


def test_modules_of_a_package_of_the_same_name_are_found() -> None:
    code = """
import importlib, pickle, unittest.mock
import klype.train.loop as loop, klype.examine.say
assert importlib.import_module("klype.train.loop") is loop is klype.train.loop and klype.examine.say.Say
with unittest.mock.patch("klype.train.loop.train", 1):
    assert loop.train == 1
assert importlib.reload(klype).train is pickle.loads(pickle.dumps(klype.train)) and callable(klype.train)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_a_name_the_newest_run_with_a_model_is_opened(run: Path, elsewhere: Path, capsys: Captured) -> None:
    (elsewhere / "runs").mkdir()
    for name, at in (("b", 2), ("a", 5), ("c", 1)):
        (elsewhere / "runs" / name).mkdir()
        for file in run.iterdir():
            (elsewhere / "runs" / name / file.name).symlink_to(file)
        (elsewhere / "runs" / name / "run.json").unlink()
        (elsewhere / "runs" / name / "run.json").write_bytes((run / "run.json").read_bytes())
        os.utime(elsewhere / "runs" / name / "run.json", (at, at))
    (elsewhere / "runs" / "begun").mkdir()
    (elsewhere / "runs" / "begun" / "run.json").write_text("{}")
    assert klype.load().name == str(Path("runs/a"))
    assert capsys.readouterr().err == f"Model: {Path('runs/a')} (the newest run).\n"
    assert document(capsys, "ask", "Hvem?", "--limit", "5") | {"seconds": 0, "joules": 0} == document(
        capsys, "ask", "runs/a", "Hvem?", "--limit", "5"
    ) | {"seconds": 0, "joules": 0}
    for alone in ("runs/b", "hf:owner/name", "http://127.0.0.1:9/v1"):
        assert exits.exit_code(call, ["ask", alone, "--json"]) == 2
        assert "is a model; what should it be asked?" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert questions_of(klype.load().opened, None, "", 1)[0].prompt
