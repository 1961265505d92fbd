"""MODEL and TEXT as newcomers type them: what is missing, mistyped or not in quotes is told with the line to type."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from klype.cli.exits import exit_code
from klype.cli.main import call
from klype.cli.options import quote
from klype.cli.terminal import program
from klype.sources.model_files import NEWEST_FIRST, closest_here, demo_run, resolve
from klype.words import words

Captured = pytest.CaptureFixture[str]
ASKING = ("ask", "next", "tree", "forks")


def refused(capsys: Captured, *argv: str) -> str:
    assert exit_code(call, [*argv, "--lang", "en"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    return told.err


@pytest.mark.parametrize("command", ASKING)
@pytest.mark.parametrize("typed", ["dmeo/pretrain", "dmeo", "Demo", "pretrian", "runs/mien", "model.gguf", "a/b"])
def test_a_mistyped_model_is_no_text(command: str, typed: str, elsewhere: Path, capsys: Captured) -> None:
    (elsewhere / "runs" / "mine").mkdir(parents=True)
    (elsewhere / "runs" / "mine" / "run.json").write_text("{}", encoding="utf-8")
    told = refused(capsys, command, typed)
    assert f"There is no model {typed}." in told
    meant = {"dmeo": "demo", "Demo": "demo", "runs/mien": "runs/mine", "model.gguf": "", "a/b": ""}
    expected = meant.get(typed, "demo/pretrain")
    assert ("Did you mean" in told) == bool(expected)
    assert told.endswith(f'If it is the text: {program()} {command} {expected or "demo"} "{typed}"\n')


def test_a_model_is_meant_where_names_are_near(elsewhere: Path) -> None:
    for name in ("demo", *NEWEST_FIRST):
        assert closest_here(name) in (name, f"demo/{name}")
        assert closest_here(name[1] + name[0] + name[2:]) == closest_here(name)
    for text in ("Hello", "Why?", "Who", "Knut", "Jeg gikk en tur på", "president"):
        assert closest_here(text) == ""


@pytest.mark.parametrize(("lang", "missing"), [("en", "There is no text."), ("nb", "Det er ingen tekst.")])
@pytest.mark.parametrize("command", ASKING)
def test_without_a_text_an_example_is_given(command: str, lang: str, missing: str, capsys: Captured) -> None:
    assert exit_code(call, [command, "--lang", lang]) == 2
    told, example = capsys.readouterr().err, words(lang)("example.text" if command == "next" else "example.question")
    assert told.startswith(f"klype: {missing}")
    assert told.endswith(f'{program()} {command} "{example}"\n')


def test_a_text_without_quotes_is_told_how_to_be_typed(elsewhere: Path, capsys: Captured) -> None:
    for command in ASKING:
        for typed, line in (
            ("Jeg gikk en tur på", f'{command} "Jeg gikk en tur på"'),
            ("demo Jeg gikk en tur", f'{command} demo "Jeg gikk en tur"'),
            ("Jeg gikk", f'{command} "Jeg gikk"'),
            ("dmeo hi", "Did you mean demo?"),
            ("demo/pretrian hi", "Did you mean demo/pretrain?"),
        ):
            assert refused(capsys, command, *typed.split()).endswith(f"{line}\n")
        told = refused(capsys, command, "Jeg gikk en tur på", "demo/pretrain")
        assert told.endswith(f'Type: {program()} {command} demo/pretrain "Jeg gikk en tur på"\n')


@pytest.mark.parametrize("text", ['He said "no"', "it's", "costs $5 `x`", "back\\slash", "plain", "Oh!"])
def test_the_line_to_type_reaches_klype_as_it_was_meant(text: str) -> None:
    assert shlex.split(quote(text)) == [text]
    done = subprocess.run(["bash", "-c", f"printf %s {quote(text)}"], capture_output=True, text=True, check=True)
    assert done.stdout == text


def test_the_example_is_a_text_that_the_demo_model_answers(elsewhere: Path, capsys: Captured) -> None:
    assert exit_code(call, ["ask", words("nb")("example.question"), "--temperature", "0", "--lang", "nb"]) == 0
    assert "Kari er i hagen" in capsys.readouterr().out


@pytest.mark.slow
def test_help_says_what_may_be_left_out(capsys: Captured) -> None:
    shown = {
        "ask": "[MODEL] TEXT", "next": "[MODEL] TEXT", "tree": "[MODEL] TEXT", "forks": "[MODEL] TEXT",
        "chat": "[MODEL]", "studio": "[MODEL…]", "serve": "[MODEL…]", "examine": "[MODEL…]", "doctor": "[ADDRESS…]",
        "rank": "RUN", "align": "MODEL", "train": "STAGE", "judge": "FILE", "export": "MODEL", "runs compare": "RUN…",
    }  # fmt: skip
    for command, arguments in shown.items():
        for lang, options in (("en", "OPTIONS"), ("nb", "VALG")):
            assert exit_code(call, [*command.split(), "--help", "--lang", lang]) == 0
            lines = capsys.readouterr().out
            assert f" klype {command} [{options}] {arguments} " in lines
            assert ("│ *    " in lines) == (not arguments.startswith("["))


def test_the_first_steps_are_told_in_the_language_asked_for(capsys: Captured) -> None:
    for lang in ("en", "nb"):
        assert exit_code(call, ["--lang", lang]) == 0
        assert capsys.readouterr().out == words(lang)("first.steps", program=program()) + "\n"
    assert "There is no language 'fr'" in refused(capsys, "--lang", "fr", "doctor")


UNLOADED = """
import sys
from klype.cli.exits import exit_code
from klype.cli.main import call
for argv in (
    ["examine", "demo", "--questions", "missing"], ["examine", "demo", "--training", "missing"],
    ["examine", "demo", "--suite", "missing"], ["examine", "missing"], ["article", "demo", "--questions", "missing"],
    ["run", "--text", "missing/"], ["run", "--data", "missing"], ["run", "--instructions", "missing"],
    ["train", "finetune", "--from", "missing"], ["chat", "missing"], ["ask", "runs/missing", "hi"],
    ["export", "missing", "--gguf", "x"], ["judge", "missing"], ["align", "missing"],
    ["rank", "demo", "--import", "missing"],
):
    assert exit_code(call, argv) == 2, argv
    assert "torch" not in sys.modules, argv
"""


def test_what_is_missing_is_told_before_anything_heavy_is_loaded(elsewhere: Path) -> None:
    done = subprocess.run([sys.executable, "-c", UNLOADED], capture_output=True, text=True, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("missing") == done.stderr.count("\n")
    assert list(elsewhere.iterdir()) == []


@pytest.mark.slow
def test_a_run_without_rankings_is_told_what_to_do_and_nothing_is_made(elsewhere: Path, capsys: Captured) -> None:
    """The bundled model has none. What is left behind would be the newest run, and be taken for it."""
    for argv in (
        ["rank", "demo"],
        ["rank", "demo", "--simulate"],
        ["align", "demo"],
        ["train", "reward", "--from", "demo"],
    ):
        assert exit_code(call, [*argv, "--lang", "en"]) in (1, 2)
        told = capsys.readouterr().err.splitlines()[-1]
        assert told.startswith("klype: demo has no ")
        assert re.search(r"klype (train rank --from|align) demo", told)
        assert list(elsewhere.iterdir()) == []
    assert not (demo_run() / "rank").exists()


def test_what_lies_here_is_a_model_whatever_it_resembles(elsewhere: Path, capsys: Captured) -> None:
    (elsewhere / "dmeo").mkdir()
    assert "dmeo is a model; what should it be asked?" in refused(capsys, "ask", "dmeo")
    assert resolve("dmeo") == "dmeo"
