"""klype judge and klype.same: rows in, verdicts out, with the judge's name and how often it errs."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

import klype
from benchmarks import meaning
from klype.api.judging import judge_rows, open_judge
from klype.cli import exits
from klype.cli.main import call
from klype.errors import UsageError
from klype.judge.embedding import minilm
from klype.judge.judge import Judge
from klype.judge.rule_judge import RuleJudge
from klype.values import Question
from tests.test_api_model import run as run
from tests.test_cli_models import Captured, document

ROWS = [
    {"question": "What is the capital of France?", "a": "Paris", "b": "The capital of France is Paris."},
    {"question": "What is the capital of France?", "a": "Paris", "b": "Lyon"},
    {"question": "What is 12 times 4?", "answer": "12 * 4 = 48", "answers": ["48"]},
    {"question": "Which?", "answer": "It is lead.", "answers": ["lead"], "choices": ["lead", "feathers"]},
    {"question": "What is the capital of France?", "a": "", "b": "Paris"},
]


def test_rows_are_judged_in_order_and_the_judge_is_named() -> None:
    document = judge_rows(ROWS)
    assert [row.get("same", row.get("right")) for row in document["rows"]] == [True, False, True, True, None]
    assert [sorted(row) for row in document["rows"][1:3]] == [["judge", "same"], ["judge", "right"]]
    assert {row["judge"] for row in document["rows"]} == {document["judge"]} == {RuleJudge.name}
    assert document["error_rate"] is None  # pairs and references have each their own
    for rows in (ROWS[:2], ROWS[2:3]):
        error = judge_rows(rows)["error_rate"]
        assert error["low"] < error["value"] < error["high"]
    assert judge_rows(ROWS[3:4])["error_rate"] is None  # choices were not measured
    french = {"question": "Quelle est la capitale?", "a": "Paris", "b": "Lyon"}
    assert judge_rows([french])["error_rate"] is None
    both = judge_rows([ROWS[0], {"question": "Hva er hovedstaden i Norge?", "a": "Oslo", "b": "Det er Oslo."}])
    assert both["rows"][1]["same"] is True
    assert both["error_rate"] is None


class Longer(Judge):
    """One of a user's own: texts of equal length say the same."""

    name = "length"

    def compare(self, question: Question, a: str, b: str) -> bool | None:
        return len(a) == len(b)


def test_a_judge_of_ones_own_rules_on_pairs_and_references() -> None:
    document = judge_rows(ROWS[:3], Longer())
    assert [row.get("same", row.get("right")) for row in document["rows"]] == [False, False, False]
    assert judge_rows([{"question": "?", "answer": "Oslo", "answers": ["Roma"]}], Longer())["rows"][0]["right"] is True
    assert document["judge"] == "length"
    assert document["error_rate"] is None


@pytest.mark.slow
def test_the_error_that_is_told_is_what_the_benchmark_prints() -> None:
    judges: list[Judge] = [RuleJudge(), *([minilm()] if find_spec("all_minilm_l6_v2") else [])]
    document = meaning.run(others=judges[1:])
    pairs = [row for row in document["rows"] if row["kind"] == "all"]
    for judge in judges:
        for kind, rows in (("same", pairs), ("right", document["right"])):
            for row in (row for row in rows if row["judge"] == judge.name):
                told, printed = judge.error_rate(kind, row["language"]), row["wrongly"]  # type: ignore[arg-type]
                assert told is not None
                assert (told.value, told.low, told.high) == pytest.approx(
                    (printed["value"], printed["low"], printed["high"]), abs=1e-4
                )
                assert (told.n, told.unit, told.judge) == (printed["n"], printed["unit"], judge.name)


def test_same_is_public_and_says_who_judged() -> None:
    found = klype.same("Hvor er Kari?", "På skolen.", "Kari er på skolen")
    assert (found.same, found.judge, found.error_rate) == (True, RuleJudge.name, RuleJudge().error_rate("same", "nb"))
    with pytest.raises(UsageError, match="a must be a string"):
        klype.same("Where?", None, "there")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([], "no row"),
        ([{"question": "?", "a": "x"}], "Row 1 has neither"),
        ([{"question": "?", "a": 1, "b": "x"}], "Row 1: a must be a string"),
        ([{"question": "?", "answer": "x", "answers": "x"}], "Row 1: answers must be a list"),
        ([{"question": "?", "answer": "x", "answers": None}], "Row 1: answers must be a list"),
    ],
)
def test_rows_of_neither_kind_are_refused(rows: list[dict[str, object]], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        judge_rows(rows)


@pytest.mark.slow
@pytest.mark.parametrize("lang", ["en", "nb"])
def test_the_command_prints_verdicts_and_one_document(capsys: Captured, tmp_path: Path, lang: str) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    assert document(capsys, "judge", str(file)) == judge_rows(ROWS)
    assert exits.exit_code(call, ["judge", str(file), "--lang", lang]) == 0
    told = capsys.readouterr().out
    assert "Paris  =  The capital of France is Paris." in told
    assert "Paris  ≠  Lyon" in told
    assert ("undecided" if lang == "en" else "uavgjort") in told


def test_a_named_judge_groups_in_every_command(capsys: Captured, run: Path) -> None:
    """World's question or not: who is named decides, and is named."""
    at, asked = str(run), ["Kari er på skolen. Hvor er Kari?", "--limit", "4"]
    grammar = document(capsys, "ask", at, *asked, "--sure")["sure"]["same"]["judge"]
    named = document(capsys, "ask", at, *asked, "--sure", "--judge", "rules")["sure"]["same"]["judge"]
    assert (grammar, named) == ("the world's grammar", RuleJudge.name)
    model = klype.load(run)
    assert model.tree(asked[0], budget=5, limit=3).judge == "the world's grammar"
    assert model.tree(asked[0], budget=5, limit=3, judge=Longer()).judge == "length"
    assert model.forks(asked[0], samples=4, limit=2, judge="self").judge.startswith("judge model")
    for command in ("tree", "forks"):
        document(capsys, command, at, asked[0], "--limit", "2", "--judge", "self")
    assert document(capsys, "ask", at, *asked, "--decoder", "consensus", "--judge", "rules")["decoder"]["shares"]


def test_judges_have_names_and_what_is_none_is_one_sentence(tmp_path: Path) -> None:
    rules = open_judge("rules")
    assert isinstance(rules, RuleJudge)
    assert (open_judge(None), open_judge(""), open_judge(rules)) == (None, None, rules)
    assert klype.same("?", "ab", "cd", judge=Longer()) == klype.Same(True, "length", None)
    for name, why in (("self", "judge itself"), (str(tmp_path), "is not a model"), (5, "name or a Judge")):
        with pytest.raises(UsageError, match=why):
            open_judge(name)  # type: ignore[arg-type]
    if find_spec("all_minilm_l6_v2") is None:
        with pytest.raises(klype.KlypeError, match="needs the package"):
            klype.same("?", "ab", "cd", judge="minilm")
