"""tree, forks and examine on a saved run of the demo world: contract, resuming, repeating, gates, what is refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from klype.cli import exits
from klype.cli.examine import agree
from klype.cli.main import call
from klype.errors import KlypeError
from klype.words import words
from tests.test_cli_models import Captured, document, question, run, world

__all__ = ["question", "run", "world"]
SMALL = ("--temperatures", "0.7,1", "-n", "3", "--limit", "5", "--seed", "3")


def text_of(run: Path) -> str:
    row = json.loads((run / "questions.jsonl").read_text(encoding="utf-8").splitlines()[0])
    return f"{row.get('context', '')} {row['question']}".strip()


def test_tree_keeps_its_contract(run: Path, capsys: Captured, tmp_path: Path) -> None:
    page = tmp_path / "tree.html"
    found = document(capsys, "tree", str(run), text_of(run), "--budget", "20", "--limit", "4", "--out", str(page))
    assert {"answers", "unexplored", "expansions"} <= set(found)
    assert found["expansions"] <= 20
    assert all({"text", "low", "high", "meaning"} <= set(row) for row in found["answers"])
    assert sum(row["low"] for row in found["answers"]) + found["unexplored"] == pytest.approx(1, abs=1e-3)
    assert "<script" in page.read_text(encoding="utf-8")
    assert exits.exit_code(call, ["tree", str(run), text_of(run), "--budget", "9", "--limit", "3", "--lang", "nb"]) == 0
    assert "ikke utforsket" in capsys.readouterr().out.replace("\n", " ")


def test_forks_keeps_its_contract(run: Path, capsys: Captured) -> None:
    found = document(capsys, "forks", str(run), text_of(run), "--limit", "5", "-n", "8")
    assert {"answer", "positions", "fork"} <= set(found)
    for row in found["positions"]:
        assert row["strength"]["low"] <= row["strength"]["value"] <= row["strength"]["high"]
    given = document(capsys, "forks", str(run), text_of(run), "--answer", "Kari.", "-n", "4", "--limit", "6")
    assert given["answer"] == "Kari."
    assert exits.exit_code(call, ["forks", str(run), text_of(run), "--limit", "4", "-n", "4"]) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    "argv",
    [
        ["tree", "RUN", " "],
        ["tree", "RUN", "Hvem?", "--until", "never"],
        ["tree", "RUN", "Hvem?", "--eps", "2"],
        ["forks", "RUN", "Hvem?", "-n", "2"],
        ["examine", "RUN", "--fail-if", "rigth<0.8"],
        ["examine", "RUN", "--fail-if", "right is low"],
        ["examine", "RUN", "--fail-if", "right@5<0.8"],
        ["examine", "RUN", "--judge", "none@0.7"],
        ["ask", "RUN", "Hvem?", "--judge", "rules"],
        ["examine", "RUN", "--temperatures", "warm"],
        ["examine", "RUN", "--temperatures", "1,1"],
        ["examine", "RUN", "--suite", "trivia"],
        ["examine", "RUN", "--questions", "nowhere.jsonl"],
        ["examine", "RUN", "RUN"],
        ["examine", "RUN", "--budget", "1"],
    ],
)
def test_what_cannot_be_is_one_sentence(argv: list[str], run: Path, capsys: Captured, tmp_path: Path) -> None:
    argv = [str(run) if part == "RUN" else part for part in argv]
    if argv[0] == "examine":
        argv += ["--out", str(tmp_path / "out")]
    assert exits.exit_code(call, [*argv, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["message"]


def test_a_place_that_cannot_be_is_refused_before_anything_is_asked(
    run: Path, capsys: Captured, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("")
    for out in (tmp_path / "taken", tmp_path / "taken" / "below"):
        assert exits.exit_code(call, ["examine", str(run), *SMALL, "--out", str(out), "--json"]) == 2
        assert "taken is a file, not a folder" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]


def examined(capsys: Captured, run: Path, out: Path, *more: str) -> dict[str, Any]:
    return document(capsys, "examine", str(run), *SMALL, "--out", str(out), *more)


def without_time(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key not in ("time", "report")}


@pytest.mark.slow
def test_examine_keeps_its_contract_repeats_and_goes_on(run: Path, capsys: Captured, tmp_path: Path) -> None:
    first = examined(capsys, run, tmp_path / "a")
    assert {"model", "questions", "figures", "survival", "independent", "feedback", "report"} <= set(first)
    assert list(first["figures"]) == ["0.7", "1"]
    assert {"right", "s", "answer_entropy", "unseen"} <= set(first["figures"]["0.7"])
    assert first["survival"]["1"][0]["t"] == 1
    assert (tmp_path / "a" / "report.html").is_file()
    second = examined(capsys, run, tmp_path / "b")
    assert without_time(second) == without_time(first)
    kept = sorted((tmp_path / "a" / "traces").glob("*.json"))
    kept[0].unlink()  # as if it had been killed there
    before = {file: file.stat().st_mtime_ns for file in kept[1:]}
    again = examined(capsys, run, tmp_path / "a")
    assert without_time(again) == without_time(first)
    assert before == {file: file.stat().st_mtime_ns for file in kept[1:]}
    assert kept[0].is_file()


@pytest.mark.slow
def test_a_condition_that_holds_is_exit_one(run: Path, capsys: Captured, tmp_path: Path) -> None:
    argv = ["examine", str(run), *SMALL, "--out", str(tmp_path / "a"), "--json"]
    assert exits.exit_code(call, [*argv, "--fail-if", "right<1.1", "--fail-if", "s@1>0"]) == 1
    failed = json.loads(capsys.readouterr().out)["failed"]
    assert len(failed) == 2
    assert exits.exit_code(call, [*argv, "--fail-if", "right>1.1"]) == 0
    assert json.loads(capsys.readouterr().out)["failed"] == []


@pytest.mark.slow
def test_two_stages_are_compared_on_the_same_questions(run: Path, capsys: Captured, tmp_path: Path) -> None:
    argv = [str(run / "finetune"), str(run / "finetune"), "--compare", *SMALL, "--out", str(tmp_path)]
    assert exits.exit_code(call, ["examine", *argv, "--fail-if", "right<1.1", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert len(found["failed"]) == 2
    assert all(why.startswith(f"{run / 'finetune'}: right is") for why in found["failed"])
    assert all((tmp_path / f"finetune-{number}" / "figures.json").is_file() for number in (1, 2))
    for figures in found["differences"].values():
        assert figures["right"]["value"] == 0
        assert figures["tokens"]["value"] == 0
        assert figures.get("feedback", {"value": 0})["value"] == 0


@pytest.mark.slow
def test_plain_questions_without_a_truth_are_examined_too(run: Path, capsys: Captured, tmp_path: Path) -> None:
    file = tmp_path / "asked.jsonl"
    rows = [
        {"question": "Hvem?", "answers": ["Kari"]},
        {"question": "Hvor?"},
        {"question": "A?", "choices": ["x", "y"]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = examined(capsys, run, tmp_path / "out", "--questions", str(file))
    assert found["questions"] == 3
    assert found["survival"] == {}
    assert "s" in found["missing"]
    figures = found["figures"]["1"]
    assert figures["decided"]["n"] == figures["undecided"]["n"] < figures["passes"]["n"]  # of what has a reference
    page = Path(found["report"]).read_text(encoding="utf-8")
    assert "Hvor?" in page


def test_a_wrong_row_is_named(run: Path, capsys: Captured, tmp_path: Path) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text('{"question": "Hvem?"}\n{"text": "no question"}\n', encoding="utf-8")
    assert exits.exit_code(call, ["examine", str(run), "--questions", str(file), "--out", str(tmp_path), "--json"]) == 2
    assert "line 2" in json.loads(capsys.readouterr().out)["error"]["message"]


def asked(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.mark.slow
def test_a_question_too_long_for_the_model_is_left_out_and_counted(run: Path, capsys: Captured, tmp_path: Path) -> None:
    long, short = {"question": "Hvem? " * 200}, {"question": "Hvem?", "answers": ["Kari"]}
    found = examined(capsys, run, tmp_path / "out", "--questions", str(asked(tmp_path / "q.jsonl", [long, short])))
    assert (found["questions"], found["skipped"]) == (1, 1)
    assert "1 questions were too long" in Path(found["report"]).read_text(encoding="utf-8")
    argv = ["examine", str(run), "--questions", str(asked(tmp_path / "l.jsonl", [long])), "--out", str(tmp_path)]
    assert exits.exit_code(call, [*argv, "--json"]) == 2
    assert "leaves room" in json.loads(capsys.readouterr().out)["error"]["message"]


@pytest.mark.slow
def test_a_suite_is_a_file_or_a_folder_of_them(run: Path, capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "suite").mkdir()
    asked(tmp_path / "suite" / "a.jsonl", [{"question": "Hvem?", "answers": ["Kari"]}])
    asked(tmp_path / "suite" / "b.jsonl", [{"question": "Hvor?", "answer": "Oslo"}])
    found = examined(capsys, run, tmp_path / "out", "--suite", str(tmp_path / "suite"))
    assert found["questions"] == 2
    alone = examined(capsys, run, tmp_path / "alone", "--suite", str(tmp_path / "suite" / "a.jsonl"))
    assert alone["questions"] == 1
    own = examined(capsys, run, tmp_path / "own", "--suite", "world")
    assert own["judge"] == "the world's grammar"


@pytest.mark.slow
def test_another_model_judges_and_is_named(run: Path, capsys: Captured, tmp_path: Path) -> None:
    file = asked(tmp_path / "q.jsonl", [{"question": "Hvem?", "answers": ["Kari"]}, {"question": "Hvor?"}])
    judge = str(run / "finetune")
    found = examined(
        capsys, run, tmp_path / "out", "--questions", str(file), "--judge", judge, "--limit", "3", "-n", "2"
    )
    assert found["judge"].startswith("judge model")
    assert found["figures"]["1"].get("undecided", {"value": 1})["value"] > 0  # weights at random decide nothing
    for wrong in (["--judge", str(tmp_path)], ["--judge", "no"]):
        argv = ["examine", str(run), "--questions", str(file), "--out", str(tmp_path / "x"), *wrong, "--json"]
        assert exits.exit_code(call, argv) in (1, 2)
        assert json.loads(capsys.readouterr().out)["error"]["message"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": 7}, "line 1"),
        ({"question": "Hvem?", "answers": [3]}, "line 1"),
        ({"question": "Hvem?", "choices": "x"}, "line 1"),
        ({"question": " "}, "line 1"),
    ],
)
def test_wrong_fields_are_named_with_their_row(
    row: dict[str, Any], says: str, run: Path, capsys: Captured, tmp_path: Path
) -> None:
    file = asked(tmp_path / "q.jsonl", [row])
    assert exits.exit_code(call, ["examine", str(run), "--questions", str(file), "--out", str(tmp_path), "--json"]) in (
        1,
        2,
    )
    assert says in json.loads(capsys.readouterr().out)["error"]["message"]


def without_clock(page: str, folder: Path) -> str:
    """The report but for its times and its own place."""
    page = re.sub(r'"time": ?\{.*?\}\}\}', "", page.replace(str(folder), ""))
    return re.sub(r"(took|tok) [^<]* (and|og) [^<]* (passes|gjennom)", "", page)


@pytest.mark.slow
def test_killed_and_gone_on_is_straight_to_the_byte(run: Path, tmp_path: Path) -> None:
    rows = [{"question": f"Hvem er {i}?", "answers": ["Kari"]} for i in range(60)]
    file = asked(tmp_path / "q.jsonl", rows)

    def start(out: Path) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "klype", "examine", str(run), "--questions", str(file), *SMALL, "--out", str(out)]
        return subprocess.Popen([*argv, "--lang", "en"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def finish(out: Path) -> tuple[dict[str, Any], str]:
        process = start(out)
        error = process.communicate(timeout=120)[1]
        assert process.returncode == 0, error.decode()
        figures = json.loads((out / "figures.json").read_text(encoding="utf-8"))
        return without_time(figures), without_clock((out / "report.html").read_text(encoding="utf-8"), out)

    straight = finish(tmp_path / "straight")
    again = finish(tmp_path / "again")
    assert again == straight
    killed = tmp_path / "killed"
    for least in (1, 4):
        process = start(killed)
        end = time.monotonic() + 60
        while len(list((killed / "traces").glob("*.json"))) < least and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.002)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert finish(killed) == straight


@pytest.mark.parametrize("lang", ["en", "nb"])
def test_a_long_examination_is_agreed_to_in_ones_own_language(lang: str, typed: Callable[[str], None]) -> None:
    w = words(lang, "examination")
    for answer in ("j", " Ja", "y", "YES"):
        typed(f"{answer}\n")
        agree(w)
    for answer in ("", "n", "nei"):
        typed(f"{answer}\n")
        with pytest.raises(KlypeError, match="Nothing was begun"):
            agree(w)
    assert w("examine.ask").endswith({"en": "[y/N]:", "nb": "[j/N]:"}[lang])
