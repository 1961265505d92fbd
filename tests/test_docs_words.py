"""What people read: links lead somewhere, commands are klype's, and words are spelled as dictionaries have them."""

from __future__ import annotations

import html
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks.__main__ import app as benchmarks_app
from klype.cli.main import app, call
from klype.config import schema
from klype.runs.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import docs_reference  # noqa: E402

PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*.md"))]
OF_THEIR_TIME = {"docs/laboratory/log.md", "CHANGELOG.md"}
"""They have commands as they were typed then."""
NORWEGIAN = re.compile(r"(?:[._]|^)nb\.(md|toml)$")


def spelled_here() -> bool:
    known = ["hunspell", "-d", "nb_NO,en_US,en_GB", "-l"]
    return shutil.which("hunspell") is not None and subprocess.run(known, input=b"", check=False).returncode == 0


hunspell = pytest.mark.skipif(
    not spelled_here(), reason="needs hunspell with its dictionaries (make test installs them)"
)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


# Links


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"(?s)```.*?```|`[^`\n]*`", "", text))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page: Path) -> None:
    """Anchors inside the site are checked as it is built."""
    gone = []
    for link in links(page.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not link.startswith(("http:", "https:", "mailto:")):
            known = target.exists() and (not anchor or target.suffix != ".md" or anchor in anchors(target))
            gone += [] if known else [link]
    assert gone == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name.endswith(".nb.md")], ids=name)
def test_norwegian_pages_lead_to_norwegian_ones(page: Path) -> None:
    """But for the link that says it leads to the English one. The pages lie so in a checkout, where no site is."""
    found = re.findall(r"\[([^\]]*)\]\(([^)\s#]+\.md)", page.read_text(encoding="utf-8"))
    others = [link for said, link in found if said != "In English" and not link.endswith(".nb.md")]
    assert [link for link in others if (page.parent / link).with_suffix(".nb.md").exists()] == []


def anchors(page: Path) -> set[str]:
    """As GitHub and the site make them of headings, and those that are given."""
    headings = re.findall(r"(?m)^#+ (.*?)(?:\s*\{\s*#([\w-]+)\s*\})?\s*$", page.read_text(encoding="utf-8"))
    return {given or re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title, given in headings}


# Commands


def lines(text: str) -> Iterator[str]:
    """Every line of a block of code or in a span that begins with klype, python -m klype or python -m benchmarks."""
    fenced = re.findall(r"(?ms)^```(\w*)[^\n]*\n(.*?)^```", text)
    blocks = [block for kind, block in fenced if kind in ("", "sh", "bash", "console")]
    blocks += re.findall(r"(?m)^    (.*)$", text)
    spans = [" ".join(one.split()) for one in re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"(?s)```.*?```", "", text))]
    for line in [*"\n".join(blocks).replace("\\\n", " ").splitlines(), *spans]:
        for part in re.split(r" \|\| | && | \| |; ", line):
            found = re.match(r"\$?\s*(?:\S*/)?(klype|python -m klype|python -m benchmarks)(?= [a-z])(.*)", part.strip())
            if found and not re.search(r" #? ?:|^klype/", found[0]):
                yield f"{found[1].split()[-1]}{found[2]}"


@cache
def programs() -> dict[str, Any]:
    return {"klype": typer.main.get_command(app()), "benchmarks": typer.main.get_command(benchmarks_app())}


def faults(line: str) -> Iterator[str]:
    """What the program would not take: a command, an option, or a setting that there is not."""
    words = shlex.split(line.replace("…", ""), comments=True)
    command, words = programs()[words[0]], words[1:]
    while (inner := getattr(command, "commands", None)) is not None and words:
        if words[0].startswith("-"):
            break
        if re.split(r"[|,]", words[0])[0] not in inner:
            yield f"no command {words[0]}: {line}"
            return
        command, words = inner[re.split(r"[|,]", words[0])[0]], words[1:]
    flags = {flag for one in command.params for flag in (*one.opts, *one.secondary_opts)} | {"--help", "-h"}
    for word, after in zip(words, [*words, ""][1:], strict=True):
        if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in flags:
            yield f"no option {word}: {line}"
        if word == "--set" and command.name in ("run", "train", "align") and not is_setting(after.partition("=")[0]):
            yield f"no setting {after}: {line}"


@cache
def is_setting(key: str) -> bool:
    place: Any = schema(Recipe)
    definitions = place["$defs"]
    for part in key.split("."):
        if "properties" not in place or part not in place["properties"]:
            return "additionalProperties" in place and bool(place["additionalProperties"])
        place = place["properties"][part]
        for one in [place, *place.get("anyOf", ())]:
            if "$ref" in one:
                place = definitions[one["$ref"].rpartition("/")[2]]
    return True


@pytest.mark.parametrize("page", [page for page in PAGES if name(page) not in OF_THEIR_TIME], ids=name)
def test_commands_are_known(page: Path) -> None:
    assert [fault for line in lines(page.read_text(encoding="utf-8")) for fault in faults(line)] == []


@pytest.mark.slow
def test_the_ideas_can_be_seen(capsys: pytest.CaptureFixture[str]) -> None:
    """Quick commands of the explanation pages, with the model that comes with klype."""
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "explanation").glob("*[!b].md")]
    asked = {line for text in pages for line in lines(text) if re.match(r"klype (next|ask) demo", line)}
    assert len(asked) > 5
    for line in asked:
        assert call(shlex.split(line, comments=True)[1:]) in (None, 0), line
        assert capsys.readouterr().out, line


def test_unknown_commands_are_found() -> None:
    spans = "`klype dance`, `klype run --set pretrain.rowz=3`, `klype next RUN TEXT`"
    text = f"```sh\nklype ask RUN --colour red\n```\n{spans}"
    found = [fault.partition(":")[0] for line in lines(text) for fault in faults(line)]
    assert found == ["no option --colour", "no command dance", "no setting pretrain.rowz=3"]


# Spelling


def prose(text: str) -> str:
    """Without code, addresses and the names of places in templates."""
    for pattern in (
        r"(?s)```.*?```",
        r"(?s)<style.*?</style>|<[^>]+>",
        r"(?m)^(?:    |\t).*$",
        r"(?s)`[^`]*`",
        r"\]\([^)]*\)",
        r"\{[^}]*\}",
        r"\S+@\S+|https?://\S+|\b[\w-]+\.(?:com|org|io)\b",
    ):
        text = re.sub(pattern, " ", text)
    return text


def texts(value: Any) -> Iterator[str]:
    """All that a catalogue says."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from texts(one)


def misspelled(text: str, dictionaries: Iterable[str], own: Path) -> set[str]:
    """Words that are in none of the dictionaries, nor in our own list."""
    found = re.findall(r"(?<![\w.])[^\W\d_]+(?:['’-][^\W\d_]+)*(?!\w|[.-]\w)", prose(html.unescape(text)))
    words = {re.sub(r"['’]s$", "", word) for word in found}
    for dictionary in dictionaries:
        command = ["hunspell", "-d", dictionary, "-i", "utf-8", "-l"]
        done = subprocess.run(command, input="\n".join(sorted(words)), capture_output=True, text=True, check=True)
        words = set(done.stdout.split())
    return words - set(own.read_text(encoding="utf-8").split())


def said(norwegian: bool) -> str:
    """All prose in a language: pages, catalogues, sentences of the code (keys in English), and every command's help."""
    words = ROOT / "klype" / "words"
    parts = [docs_reference.commands("nb" if norwegian else "en")]
    for file in [*PAGES, *sorted(words.glob("*.toml"))]:
        if bool(NORWEGIAN.search(file.name)) == norwegian and file.name != "glossary.md":
            text = file.read_text(encoding="utf-8")
            parts.append(text if file.suffix == ".md" else "\n".join(texts(tomllib.loads(text))))
    for table in tomllib.loads((words / "sentences" / "nb.toml").read_text(encoding="utf-8")).values():
        parts += table.values() if norwegian else table
    return "\n\n".join(parts)


@hunspell
def test_english_is_spelled_right() -> None:
    assert misspelled(said(norwegian=False), ["en_US,en_GB"], ROOT / "tests" / "spelling_en.txt") == set()


@hunspell
def test_norwegian_is_spelled_right() -> None:
    """English names, and titles of papers, are spelled as the English are."""
    own = ROOT / "tests" / "spelling_nb.txt"
    assert misspelled(said(norwegian=True), ["nb_NO", "en_US,en_GB"], own) == set()


@hunspell
def test_misspelled_words_are_found(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text("klype")
    assert misspelled("klype measurs `whta` it meets", ["en_US,en_GB"], own) == {"measurs"}
    assert misspelled("klype måller et svarr", ["nb_NO"], own) == {"måller", "svarr"}
