"""Every way a command can end: its exit code, one sentence, and never a traceback."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from klype.cli import exits
from klype.cli.main import app, call
from klype.config import load
from klype.errors import KlypeError, UsageError
from klype.experiments.mistakes_methods import MistakesSettings
from klype.experiments.training import LabSettings
from klype.runs import recipe
from klype.text.chat import TEMPLATE
from klype.text.tokenizer import Tokenizer
from tests.test_cli_models import save

Captured = pytest.CaptureFixture[str]


def klype(*argv: str) -> int:
    return exits.exit_code(call, list(argv))


def raising(error: BaseException) -> Callable[[list[str]], object]:
    def command(argv: list[str]) -> object:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (KlypeError("It broke.", "Fix it."), 1, "klype: It broke. Fix it."),
        (UsageError("That is wrong."), 2, "klype: That is wrong."),
        (KeyboardInterrupt(), 130, "klype: Interrupted. What was saved stays; --resume goes on from there."),
        (typer.Abort(), 130, "klype: Interrupted."),
        (OSError(errno.ENOSPC, "No space left", "a/b"), 1, "klype: The disk is full (a/b)."),
        (PermissionError(errno.EACCES, "denied", "a/b"), 1, "klype: This may not be read or written here (a/b)."),
        (OSError(errno.EIO, "Input/output error", "a"), 1, "klype: The system refused: Input/output error (a)."),
        (MemoryError(), 1, "klype: There is not enough memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 1, "klype: There is not enough memory"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), 1, "klype: There is not enough memory"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), 1, "klype: There is not enough memory"),
        (
            ImportError("libtorch_cpu.so: failed to map segment from shared object"),
            1,
            "klype: There is not enough memory",
        ),
        (OSError("DLL load failed: The paging file is too small"), 1, "klype: There is not enough memory"),
        (RuntimeError("could not create a primitive"), 1, "klype: There is not enough memory"),
        (ImportError("no module named x"), 1, "klype: This is a bug in klype (ImportError: no module named x)."),
        (RuntimeError("shapes differ"), 1, "klype: This is a bug in klype (RuntimeError: shapes differ)."),
        (ValueError("odd\nand long"), 1, "klype: This is a bug in klype (ValueError: odd)."),
    ],
)
def test_each_error_is_one_line_and_its_code(error: BaseException, code: int, sentence: str, capsys: Captured) -> None:
    assert exits.exit_code(raising(error), []) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(sentence)
    assert said.err.count("\n") == 1
    assert exits.exit_code(raising(error), ["--json"]) == code
    said = capsys.readouterr()
    assert said.err == ""
    document = json.loads(said.out)
    assert set(document) == {"error"}
    assert set(document["error"]) == {"message", "hint"}


@pytest.mark.slow
def test_torch_without_memory_is_no_bug() -> None:
    script = (
        "import resource, sys, torch\n"
        "from klype.cli.exits import exit_code\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33))\n"
        "sys.exit(exit_code(lambda argv: torch.empty(1 << 34), []))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    hint = "This process may use 8.6 GB (ulimit -v), which is too little: raise that limit."
    assert (done.returncode, done.stderr) == (1, f"klype: There is not enough memory for this. {hint}\n")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit is not on what is mapped")
@pytest.mark.parametrize("gigabytes", [0.3, 0.5, 0.6, 0.7])
def test_too_little_memory_to_start_is_said(gigabytes: float, tmp_path: Path) -> None:
    """Whichever library is the first that finds no room, in the real command."""
    start = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv.pop(1)),) * 2); "
    start += "runpy.run_module('klype', run_name='__main__')"
    command = [sys.executable, "-c", start, str(int(gigabytes * 1e9)), "doctor"]
    environ = {**os.environ, "KLYPE_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    limit = f"This process may use {gigabytes:.1f} GB (ulimit -v), which is too little: raise that limit."
    assert (done.returncode, done.stderr) == (1, f"klype: There is not enough memory for this. {limit}\n")


def test_alone_it_names_what_can_be_done_now(capsys: Captured) -> None:
    for lang, begun in (("en", "klype trains"), ("nb", "klype trener")):
        assert klype("--lang", lang) == 0
        said = capsys.readouterr()
        assert said.out.startswith(begun)
        named = ("next", "chat", "studio", "run", "--help")
        assert [name for name in named if f" {name} " not in said.out] == []
        assert said.err == ""


@pytest.mark.parametrize("argv", [["runs"], ["config"]])
def test_without_a_command_there_is_help_and_nothing_else(argv: list[str], capsys: Captured) -> None:
    assert klype(*argv) == 2
    said = capsys.readouterr()
    assert "Commands" in said.out
    assert said.err == ""


@pytest.mark.parametrize(
    ("command", "read"),
    [
        ("run", lambda given: recipe.read("world", given)),
        ("train", lambda given: recipe.read("text", given)),
        ("bias", lambda given: load(LabSettings, overrides=given)),
        ("mistakes", lambda given: load(MistakesSettings, overrides=given)),
    ],
)
def test_examples_of_settings_work(command: str, read: Callable[[tuple[str, ...]], object]) -> None:
    commands: dict[str, typer.core.TyperCommand] = typer.main.get_command(app()).commands  # type: ignore[attr-defined]
    (shown,) = (p.help for p in commands[command].params if isinstance(p, typer.core.TyperOption) and "--set" in p.opts)
    assert shown is not None
    examples = tuple(re.findall(r"[\w.]+=\w+", shown))
    assert examples
    read(examples)


def test_a_bug_leaves_its_traceback_in_a_file(home: Path, capsys: Captured) -> None:
    assert exits.exit_code(raising(ValueError("odd")), ["run", "--seed", "3"]) == 1
    (file,) = (home / "errors").iterdir()
    assert str(file) in capsys.readouterr().err
    text = file.read_text(encoding="utf-8")
    assert text.startswith("klype run --seed 3\n")
    assert "Traceback" in text
    assert "ValueError: odd" in text


def test_a_bug_is_told_even_where_no_file_can_be_written(home: Path, capsys: Captured) -> None:
    (home / "errors").write_text("", encoding="utf-8")
    assert exits.exit_code(raising(ValueError("odd")), []) == 1
    assert "could not be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["run", "--minutes", "0"], "--minutes should be greater than 0 (it is 0)."),
        (["run", "--minutes", "-1"], "--minutes should be greater than 0 (it is -1)."),
        (["run", "--minutes", "nan"], "--minutes should be a finite number"),
        (["run", "--minutes", "soon"], "Invalid value for '--minutes'"),
        (["run", "--seed", "-1"], "--seed should be greater than or equal to 0"),
        (["run", "--text", "no/such/*.txt"], "--text: there is nothing at no/such/*.txt."),
        (["run", "--text", ".", "--instructions", "none.jsonl"], "--instructions: there is no file none.jsonl."),
        (["run", "--text", ".", "--preferences", "none.jsonl"], "--preferences: there is no file none.jsonl."),
        (["run", "--data", "none"], "--data: there is no folder none."),
        (["run", "--recipe", "wrold"], "There is no recipe wrold."),
        (["run", "--recipe", "none.toml"], "There is no file none.toml."),
        (["run", "--set", "pretrain.shaer=1"], "There is no setting 'pretrain.shaer'."),
        (["run", "--set", "pretrain"], "'pretrain' is not of the form key=value"),
        (["run", "--text", ".", "--encoding", "utf-88"], "--encoding: there is no encoding 'utf-88'."),
        (["run", "--text", ".", "--encoding", "rot13"], "--encoding: there is no encoding 'rot13'."),
        (["run", "--lang", "fr"], "There is no language 'fr': use en or nb."),
        (["run", "--minuts", "3"], "No such option: --minuts"),
        (["train", "pretrian"], "STAGE should be 'pretrain', 'finetune', 'rank', 'reward' or 'align'"),
        (["train", "pretrain", "--size", "huge"], "--size should be 'tiny', 'mini', 'small', 'medium', 'base' or"),
        (["train", "pretrain", "--steps", "0"], "--steps should be greater than 0"),
        (["train", "pretrain", "--steps", "3", "--minutes", "1"], "give either --steps or --minutes"),
        (["train", "finetune", "--from", "nowhere"], "There is no model nowhere."),
        (["train"], "Missing argument"),
        (["rank", "nowhere", "--simulate"], "There is no model nowhere."),
        (["ask", "nowhere", "hi"], "There is no model nowhere."),
        (["ask", "nowhere", " \n"], "There is no text."),
        (["next", "nowhere", "", "--raw"], "There is no text."),
        (["tree", "nowhere", "", "--raw"], "There is no text."),
        (["forks", "nowhere", ""], "There is no text."),
        (["tree", "nowhere", "hi", "--budget", "0"], "--budget should be a whole number of passes from 1 up (it is 0)"),
        (["examine", "nowhere", "--budget", "00"], "--budget should be a whole number of passes from 1 up (it is 00)"),
        (["ask", "nowhere", "hi", "--temperature", "-1"], "--temperature should be a number from 0 up (it is -1)."),
        (["ask", "nowhere", "hi", "--temperature", "nan"], "--temperature should be a number from 0 up"),
        (["ask", "nowhere", "hi", "--top-p", "0"], "--top-p should be above 0 and at most 1"),
        (["next", "nowhere", "hi", "--top", "0"], "Invalid value for '--top'"),
        (["chat", "nowhere"], "There is no model nowhere."),
        (["runs", "compare", "a"], "A comparison needs two runs at least."),
        (["runs", "compare", "a", "b"], "a is not a run: it has no run.json."),
        (["tell"], "No such command 'tell'."),
    ],
)
def test_wrong_words_and_inputs_start_nothing(
    argv: list[str], sentence: str, elsewhere: Path, capsys: Captured
) -> None:
    assert klype(*argv, "--json") == 2
    said = capsys.readouterr()
    assert json.loads(said.out)["error"]["message"].startswith(sentence)
    assert list(elsewhere.iterdir()) == []
    assert klype(*argv) == 2
    assert capsys.readouterr().err.startswith(f"klype: {sentence}")


@pytest.mark.slow
def test_help_and_version_end_well(capsys: Captured) -> None:
    assert klype("--version") == 0
    assert capsys.readouterr().out.startswith("klype 0.")
    for argv in ([], ["run"], ["train"], ["rank"], ["chat"], ["ask"], ["next"], ["doctor"], ["runs", "list"]):
        assert klype(*argv, "--help") == 0
        shown = capsys.readouterr().out
        assert " ".join(["klype", *argv]) in shown
        assert max(map(len, shown.splitlines())) <= 80


def test_the_console_script_exits_with_the_code(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "klype", "ask", "nowhere", "hi"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("klype: There is no model nowhere.")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("environ", [{"PYTHONIOENCODING": "ascii"}, {}])
def test_any_bytes_and_any_terminal(tmp_path: Path, environ: dict[str, str]) -> None:
    """An argument that is no UTF-8, on a terminal that knows only ASCII: still a sentence, and still JSON."""
    for words in ([b"ask", b"\xff\xc3\xa6", b"hi"], [b"\xff\xc3\xa6"]):
        run = [sys.executable.encode(), b"-m", b"klype", *words]
        done = subprocess.run([*run, b"--json"], cwd=tmp_path, env={**os.environ, **environ}, capture_output=True)
        assert done.returncode == 2
        assert "æ" in json.loads(done.stdout)["error"]["message"]
        done = subprocess.run(run, cwd=tmp_path, env={**os.environ, **environ}, capture_output=True)
        assert done.stderr.startswith(b"klype: ")
        assert done.stderr.count(b"\n") == 1


@pytest.mark.slow
def test_ctrl_c_gives_130() -> None:
    """A command that computes for long, interrupted from outside."""
    script = (
        "import sys, time\n"
        "from klype.cli import main\n"
        "from klype.cli import doctor\n"
        "def compute():\n"
        "    print('computing', file=sys.stderr, flush=True)\n"
        "    time.sleep(60)\n"
        "doctor.machine = compute\n"
        "sys.exit(main.exit_code(main.call, ['doctor', '--json']))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    assert process.stderr.readline() == b"computing\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(out)["error"]["message"] == "Interrupted."
    assert err == b""


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "klype", "runs", "list", "--json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    assert process.wait(timeout=60) in (0, 1)
    assert err == b""


def test_help_is_light() -> None:
    """No heavy module is imported before it is needed."""
    heavy = ("torch", "scipy", "numpy", "pydantic", "transformers", "pyarrow", "tokenizers", "nicegui", "jinja2")
    script = (
        "import sys, klype.cli.main as m\n"
        "code = m.exit_code(m.call, ['--help'])\n"
        f"print('HEAVY', [h for h in {heavy!r} if h in sys.modules], code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY [] 0"


@pytest.mark.slow
def test_help_is_quick() -> None:
    """The budget is 0.3 s on an idle machine; here processor time counts, the best of five, with some room."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "klype", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(once() for _ in range(5)) < 0.5


@pytest.mark.slow
def test_colour_is_for_terminals_and_not_where_unwanted(tmp_path: Path) -> None:
    environ = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "NO_COLOR")}
    run = [sys.executable, "-m", "klype", "runs", "list"]
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "run.json").write_text('{"recipe": "world"}', encoding="utf-8")
    plain = subprocess.run(run, cwd=tmp_path, env=environ, capture_output=True, check=True).stdout
    unwanted = subprocess.run(
        run, cwd=tmp_path, env={**environ, "NO_COLOR": "1"}, capture_output=True, check=True
    ).stdout
    assert b"\x1b" not in plain
    assert unwanted == plain


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "line 1"),
        (b'{"question": "Hvem?"}\n{"answers": ["x"]}\n', "line 2 has no question"),
        (b'{"question": "Hvem?", "answers": [1]}', "not lists of text"),
        (b"[" * 100_000, "line 1"),
        (b"", "no questions in"),
        (b"\xff\xfe\x00", "questions.jsonl"),
    ],
)
@pytest.mark.parametrize(
    "command", [["examine", "{run}", "--questions", "{file}"], ["ask", "{run}", "Hvem?", "--sure"]]
)
def test_a_bad_file_of_questions_is_bad_input(
    content: bytes, said: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that is named; not the one that lies in the run that is asked."""
    folder = tmp_path / "run"
    save(folder / "finetune", Tokenizer.train(["Hvem gikk?"], 300, TEMPLATE))
    (folder / "run.json").write_text(json.dumps({"settings": {"kind": "world", "world": "small"}}))
    file = (folder if command[0] == "ask" else tmp_path) / "questions.jsonl"
    file.write_bytes(content)
    code = exits.exit_code(call, [part.format(run=folder, file=file) for part in command])
    if command[0] == "ask":
        assert code == 0  # a run's own file that is damaged keeps no question back, and nobody has to answer for it
        return
    told = capsys.readouterr().err
    assert (code, told.count("klype:")) == (2, 1), told
    assert said in told
    assert "bug" not in told
