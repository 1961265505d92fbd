"""Both languages say the same things, with the same values in them."""

from __future__ import annotations

import ast
import re
import string
from pathlib import Path

import pytest

from klype.examine.say import Say
from klype.words import LANGUAGES, words


def catalogues() -> list[tuple[str, str]]:
    """Every (catalogue, language) there is a file for."""
    files = (Path(__file__).parent.parent / "klype" / "words").glob("*_??.toml")
    return sorted((catalogue, lang) for catalogue, _, lang in (file.stem.rpartition("_") for file in files))


CATALOGUES = sorted({name for name, _ in catalogues()})
CLI = Path(__file__).resolve().parent.parent / "klype" / "cli"
OPENING = [CLI.parent / name for name in ("sources/opening.py", "sources/capabilities.py", "runs/folder.py")]
"""Opening a model tells what takes a while, in the same words."""


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def test_every_catalogue_is_there_in_every_language() -> None:
    assert "cli" in CATALOGUES
    assert set(catalogues()) == {(name, lang) for name in CATALOGUES for lang in LANGUAGES}


@pytest.mark.parametrize("catalogue", CATALOGUES)
def test_the_same_keys_and_placeholders(catalogue: str) -> None:
    first, *others = (words(lang, catalogue) for lang in LANGUAGES)
    for other in others:
        assert set(other.messages) == set(first.messages)
        for key, text in first.messages.items():
            assert text.strip(), key
            assert placeholders(other.messages[key]) == placeholders(text), key
            assert "" not in placeholders(text), f"{key}: a placeholder without a name"


def test_the_command_line_uses_every_message_and_no_other() -> None:
    used, prefixes = set(), set()
    for module in (*CLI.rglob("*.py"), *OPENING):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                used.add(node.value)
            elif isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
                prefixes.add(str(node.values[0].value))
    known = set(words("en").messages)
    unused = {k for k in known - used if not any(p.endswith(".") and k.startswith(p) for p in prefixes)}
    assert not unused
    sections = {key.partition(".")[0] for key in known}
    looks_like = {u for u in used if u.count(".") == 1 and u.partition(".")[0] in sections and " " not in u}
    assert {u for u in looks_like if not u.endswith(".")} <= known


def test_reports_use_every_message() -> None:
    """Whole in the source or in a template, or by the beginning that a key is put together from."""
    files = [file for suffix in ("*.py", "*.jinja") for file in CLI.parent.rglob(suffix)]
    source = "\n".join(file.read_text(encoding="utf-8") for file in files)
    begun = tuple(set(re.findall(r"""["'(]([a-z]+\.[a-z_]*)(?=\{|["'] [~+])""", source)))
    quoted = set(re.findall(r"""["']([a-z]+(?:\.[a-z_]+)?)["']""", source))
    assert {key for key in words("en", "report").messages if key not in quoted and not key.startswith(begun)} == set()


def test_a_message_takes_its_values() -> None:
    assert words("nb")("chat.set", what="temperature", value="0,5") == "/temperature er nå 0,5."
    assert words("en").section("probs") == {"token": "token", "p": "p", "instead": "instead"}
    with pytest.raises(KeyError):
        words("en")("chat.set", what="temperature")
    with pytest.raises(KeyError):
        words("en")("chat.none")


def test_every_reason_for_a_missing_figure_is_told_in_both_languages() -> None:
    say, unknown = Say("nb"), []
    for module in CLI.parent.rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "why" and isinstance(node.value, ast.Constant):
                reason = str(node.value.value)
                if reason and say.why(reason) == reason:
                    unknown.append(f"{module.name}: {reason}")
    assert not unknown
    assert say.why("fewer than 30 matched pairs") == "færre enn 30 par som passer sammen"


@pytest.mark.parametrize(("lang", "others"), [("en", "«»"), ("nb", "“”")])
def test_each_language_has_its_own_quotes(lang: str, others: str) -> None:
    for catalogue in CATALOGUES:
        for key, text in words(lang, catalogue).messages.items():
            assert not set(others) & set(text), f"{catalogue}: {key}"
