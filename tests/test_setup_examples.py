"""Every command that README shows is known to `make examples`, in both languages; what it types is judged.
Notebooks are stored as they were written, without what they showed when they were run."""

from __future__ import annotations

import ast
import json
import shlex
from pathlib import Path

import pytest

pytest.importorskip("pexpect")

from scripts.examples import (
    BAD,
    COMMANDS,
    ENGLISH,
    FOUND,
    OWN,
    Driven,
    Line,
    Window,
    differences,
    driven_by,
    environment,
    lines,
    unknown,
)

ROOT = Path(__file__).resolve().parent.parent
ENGLISH_PAGE, NORWEGIAN_PAGE = ((ROOT / f"README{of}.md").read_text(encoding="utf-8") for of in ("", ".nb"))


def test_every_command_of_readme_is_known_and_nothing_else_is() -> None:
    found = lines(ENGLISH_PAGE)
    assert len(found) > 20
    assert unknown(found) == []
    words = [shlex.split(line.command) for line in found]
    assert {" ".join(some[:2]) for some in words} == COMMANDS.keys()
    assert {word for some in words for word in some} >= OWN | FOUND


def test_both_readmes_show_the_same_commands() -> None:
    assert differences(lines(ENGLISH_PAGE), lines(NORWEGIAN_PAGE)) == []
    assert all(name in NORWEGIAN_PAGE for name in ENGLISH)


def test_what_is_not_known_is_named() -> None:
    page = '```sh\nklype dance runs/world-DATE-1\nklype ask other/model.gguf "Why? I.e. how/where?" -n 0.5\n```\n'
    one, other = unknown(lines(page))
    assert one.startswith("“klype dance runs/world-DATE-1” is not known")
    assert "there is no other/model.gguf;" in other
    here, there = lines(ENGLISH_PAGE), lines(NORWEGIAN_PAGE)
    assert differences(here[:-1], there) == [f"README.md has “nothing” where README.nb.md has “{here[-1].command}”."]
    (sentence,) = differences(here, lines(NORWEGIAN_PAGE.replace("--sure", "")))
    assert sentence.startswith("README.md has “klype ask")


def test_a_command_in_a_comment_is_typed_and_what_a_comment_names_is_said() -> None:
    rank, align = lines("```sh\nklype rank RUN   # yourself; then: klype align RUN\n```\n")
    assert (rank.command, align.command) == ("klype rank RUN", "klype align RUN")
    chat = driven_by(Line(".venv/bin/klype chat RUN", " # /probs shows, /temperature 1.3 heats"))
    assert chat.replies[-3:] == ("/probs", "/temperature 1.3", "/quit")
    assert driven_by(Line("klype run --text x --human")).cue == "order: "


def test_a_line_is_typed_as_at_a_terminal(tmp_path: Path) -> None:
    window = Window(tmp_path, environment(tmp_path))
    assert window.type("test -t 0 && test -t 1 && (exit 3) # a comment") == (3, "")
    code, shown = window.type("klype chat runs/x")
    assert code == 127
    assert BAD[-1] in shown
    asks = """read -p "name? " a; read -p "name? " b; read -p "name? " c; echo "$a, $b, $c" """
    assert window.type(asks, Driven("name. ", ("Kari", "Ola")))[1].endswith("Kari, Ola, Ola\r\n")
    interrupted = Driven("begun", (lambda window, shown: window.shell.sendintr(),))
    assert window.type("(trap 'echo ended; exit 0' INT; echo begun; sleep 60)", interrupted)[1].endswith("ended\r\n")


NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_explains_each_cell_and_holds_no_outputs(file: Path) -> None:
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    assert [cell["cell_type"] for cell in cells] == ["markdown", "code"] * (len(cells) // 2)
    for cell in cells[1::2]:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        source = "".join(cell["source"])
        assert not source.endswith("\n")
        ast.parse("\n".join(line for line in source.splitlines() if not line.startswith("%")))
        assert max(map(len, source.splitlines())) <= 120
    assert cells[0]["source"][0].startswith("# ")
