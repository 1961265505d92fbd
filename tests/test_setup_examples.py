"""Every command that README, tutorials and some how-tos show is known to `make examples`, in both languages; what it
types is judged, and what a page shows of the model that comes along is what is printed.
Notebooks are stored as they were written, without what they showed when they were run."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import pytest

from klype.cli.main import call

pytest.importorskip("pexpect")

from scripts.examples import (
    BAD,
    COMMANDS,
    ENGLISH,
    FOUND,
    OWN,
    PAGES,
    RANK,
    Driven,
    Line,
    Window,
    differences,
    driven_by,
    environment,
    files,
    is_alike,
    lines,
    pages,
    plain,
    unknown,
)

ROOT = Path(__file__).resolve().parent.parent
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in PAGES}
ENGLISH_PAGE, NORWEGIAN_PAGE = ((ROOT / f"README{of}.md").read_text(encoding="utf-8") for of in ("", ".nb"))


def test_every_command_of_a_page_is_known_and_nothing_else_is() -> None:
    """In both languages the same, but for what is quoted."""
    assert pages(PAGES) == TEXTS
    words = [shlex.split(line.command) for text in TEXTS.values() for line in lines(text)]
    assert len(words) > 50
    assert {" ".join(some[:2]) for some in words} == COMMANDS.keys()
    assert {word for some in words for word in some} >= OWN - {"questions.jsonl"} | FOUND
    norwegian = [file for name in PAGES if (file := (ROOT / name).with_suffix(".nb.md")).exists()]
    told = "".join(file.read_text(encoding="utf-8") for file in norwegian)
    assert all(name in told for name in ENGLISH)


def test_readme_is_short() -> None:
    assert max(len(text.splitlines()) for text in (ENGLISH_PAGE, NORWEGIAN_PAGE)) <= 120


def test_what_is_not_known_is_named() -> None:
    page = '```sh\nklype dance runs/world-DATE-1\nklype ask other/model.gguf "Why? I.e. how/where?" -n 0.5\n```\n'
    one, other = unknown(lines(page))
    assert one.startswith("“klype dance runs/world-DATE-1” is not known")
    assert "there is no other/model.gguf;" in other
    here, there = lines(ENGLISH_PAGE), lines(NORWEGIAN_PAGE)
    (sentence,) = differences(here[:-1], there)
    assert sentence.startswith("A page has “nothing” where its Norwegian one has “klype examine")
    (sentence,) = differences(here, lines(NORWEGIAN_PAGE.replace("--sure", "")))
    assert sentence.startswith("A page has “klype ask")


def test_what_a_page_shows_has_to_come_again_but_for_numbers() -> None:
    page = "What comes after “Jeg”\nstien ██▎ 47.8%\nall other tokens: 0.1%\n…\n"
    assert is_alike(page, "\x1b[1mWhat comes\r\nafter “Jeg”\x1b[0m\r\nveien █ 9%\r\nall other tokens: 3%\r\n")
    assert not is_alike(page, "What comes next\nveien █ 9%\nall other tokens: 3%\n")
    assert is_alike("", "anything")


def test_a_page_shows_replies_and_has_files() -> None:
    page = (
        '```json title="a.jsonl"\n{}\n```\n```sh\nklype chat demo\n```\n\n```text\nyou> Hei!\nHei.\nyou> /quit\n```\n'
    )
    (line,) = lines(page)
    assert driven_by(line).replies == ("Hei!", "/quit")
    assert files(page) == {"a.jsonl": "{}\n"}


BUNDLED = [
    (lang, line)
    for lang, name in (("en", "next-word.md"), ("nb", "next-word.nb.md"))
    for line in lines((ROOT / "docs/tutorials" / name).read_text(encoding="utf-8"))
    if line.shows and line.command.split()[1] != "chat"
]


@pytest.mark.slow
@pytest.mark.parametrize(("lang", "line"), BUNDLED, ids=[f"{lang} {line.command[6:40]}" for lang, line in BUNDLED])
def test_a_page_shows_what_the_model_that_comes_along_says(
    lang: str, line: Line, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Word for word; a figure may be rounded otherwise on another machine. When klype says it in other words now:
    scripts/examples.py docs/tutorials/next-word.md docs/tutorials/next-word.nb.md --refresh FOLDER.
    """
    for name, value in (("KLYPE_LANG", lang), ("COLUMNS", "84"), ("TERM", "dumb")):
        monkeypatch.setenv(name, value)
    call(shlex.split(line.command)[1:])
    out = capsys.readouterr()
    shown = plain(out.err + out.out)

    def parts(text: str) -> tuple[list[str], list[float]]:
        numbers = [float(n.replace(",", ".")) for n in re.findall(r"\d+(?:[.,]\d+)?", text)]
        return re.sub(r"[\d.,█▉▊▋▌▍▎▏\s]+", " ", text).split(), numbers

    (words, numbers), (page_words, page_numbers) = parts(shown), parts(line.shows)
    assert words == page_words
    assert numbers == pytest.approx(page_numbers, abs=0.11)


def test_a_command_in_a_comment_is_typed_and_what_a_comment_names_is_said() -> None:
    rank, align = lines("```sh\nklype rank RUN   # yourself; then: klype align RUN\n```\n")
    assert (rank.command, align.command) == ("klype rank RUN", "klype align RUN")
    chat = driven_by(Line(".venv/bin/klype chat RUN", " # /probs shows, /temperature 1.3 heats"))
    assert chat.replies[-3:] == ("/probs", "/temperature 1.3", "/quit")
    assert driven_by(Line("klype run --text x --human")).cue == RANK.cue


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
