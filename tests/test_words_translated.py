"""What the code says in English is said in the other languages too: errors as they are raised, and help."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from klype.cli.exits import exit_code
from klype.cli.main import app, call, in_language
from klype.experiments.bias import BIAS
from klype.experiments.framework import Experiment
from klype.experiments.mistakes import MISTAKES
from klype.words import LANGUAGES, words
from klype.words.sentences import HOLE, Sentences
from tests.test_words_catalogue import catalogues

KLYPE = Path(__file__).resolve().parent.parent / "klype"
ERRORS = re.compile(
    r"(.*\.)?(KlypeError|UsageError|TrainingInterrupted|DamagedError|NoPreferencesError|BusyError|BudgetSpentError|bad\.add)"
)
COMPOSED = {
    "Missing argument {}.",
    "Missing option {}.",
    "No such option: {} (Possible options: {})",
    "Option {} requires an argument.",
    "en or nb.",
    '{} has no text field "{}".',
    "{} has no field with text.",
}
"""Sentences that are put together of several strings."""
OTHERS = sorted(set(LANGUAGES) - {"en"})


def tables(lang: str) -> dict[str, dict[str, str]]:
    return tomllib.loads((KLYPE / "words" / "sentences" / f"{lang}.toml").read_text(encoding="utf-8"))


def told(node: ast.expr, constants: dict[str, ast.expr]) -> Iterator[str]:
    """The sentences that an expression can be, with {} for each value; none where that cannot be read off it."""
    match node:
        case ast.Constant(value=str(text)) if text:
            yield text
        case ast.JoinedStr(values=parts):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in parts)
        case ast.IfExp(body=one, orelse=other) | ast.BoolOp(values=[one, other]):
            yield from (*told(one, constants), *told(other, constants))
        case ast.Name(id=name) if name in constants:
            yield from told(constants[name], {})


def raised() -> Iterator[tuple[str, str]]:
    """Each error's sentence and hint, and the file it stands in."""
    for file in sorted(KLYPE.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        constants = {
            target.id: node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ERRORS.fullmatch(ast.unparse(node.func)):
                for part in (*node.args[:2], *(k.value for k in node.keywords if k.arg in ("message", "hint"))):
                    yield from ((text, file.name) for text in told(part, constants) if re.search("[a-z]", text))


def test_every_error_is_said_in_every_language() -> None:
    for lang in OTHERS:
        known = tables(lang)["errors"]
        missing = {f"{file}: {text}" for text, file in raised() if text not in known}
        assert not missing, f"klype/words/sentences/{lang}.toml lacks:\n" + "\n".join(sorted(missing))


@pytest.mark.parametrize("lang", OTHERS)
@pytest.mark.parametrize("one", [BIAS, MISTAKES], ids=["bias", "mistakes"])
def test_an_arm_that_is_not_there_is_said_in_every_language(lang: str, one: Experiment[Any]) -> None:
    sentence = f"{one.unknown} called x."
    assert "there" in sentence
    assert "there" not in Sentences(lang)(sentence)


@pytest.mark.parametrize("lang", OTHERS)
def test_each_sentence_is_told_from_all_others_and_keeps_its_values(lang: str) -> None:
    said, table = Sentences(lang), tables(lang)
    for english, translation in (*table["errors"].items(), *table["help"].items()):
        values = [f"<{i}>" for i in range(english.count(HOLE))]
        if english in ("{}{} should be {} (it is {}).", "{}{}.", "{} {}."):
            continue  # what stands before the name may be empty, and is here
        assert said("".join(a + b for a, b in zip(english.split(HOLE), [*values, ""], strict=True))) == (
            translation.format(*values) if values else translation
        ), english


def strings() -> Iterator[str]:
    for file in (*KLYPE.rglob("*.py"), *Path(typer.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield inspect.cleandoc(node.value) if "\n\n" in node.value else node.value


@pytest.mark.slow
def test_no_sentence_is_kept_that_nothing_says() -> None:
    said = "\n".join(strings())
    for lang in OTHERS:
        known = (english for table in ("errors", "help") for english in tables(lang)[table])
        unsaid = {english for english in known if not all(part in said for part in english.split(HOLE))} - COMPOSED
        assert not unsaid


def help_of(command: Any) -> Iterator[str]:
    yield command.help or ""
    for param in command.params:
        yield from (text for text in (param.help, param.rich_help_panel, param.show_default) if isinstance(text, str))
    for inner in getattr(command, "commands", {}).values():
        yield from help_of(inner)


@pytest.mark.parametrize("lang", OTHERS)
def test_all_help_is_said_in_every_language(lang: str) -> None:
    english, other = list(help_of(typer.main.get_command(app()))), list(help_of(in_language(app(), lang)))
    names = re.compile(r"grpo|KLYPE_API_KEY|200|[a-z]+/[A-Za-z/-]+|JSONL: [a-z, ;]+\.?")
    same = {text for text in set(english) & set(other) if text and not names.fullmatch(text)}
    assert not same


@pytest.mark.parametrize(
    ("argv", "english", "norwegian"),
    [
        (["ask", "/no/such", "hi"], "There is no model /no/such.", "Modellen /no/such finnes ikke."),
        (["ask", "a", "b", "--top-p", "3"], "--top-p should be above 0", "--top-p skal være over 0 og høyst 1"),
        (["ask", "a", "--limit", "x"], "See: klype ask --help", "Det skal være et helt tall. Se: klype ask --help"),
        (["ask", "a", "b", "--temperature", "-1"], "(it is -1).", "(det er -1)."),
        (
            ["ask", "a", "--temperature", "0,7"],
            "See: klype ask --help",
            "skal være et tall, med desimalpunktum: 0.7. Se:",
        ),
        (["ask", "a", "--temprature", "1"], "--temperature) See: klype", "--temperature). Se: klype"),
        (["tree", "hei", "--budget", "abc"], "should be a whole number of passes", "helt antall gjennomløp"),
        (["chta"], "No such command 'chta'. Did you", "Kommandoen 'chta' finnes ikke. Mente du"),
        (["run", "--size", "huge"], "--size should be 'tiny'", "'base' eller 'large' (den er 'huge')"),
        (["run", "--text", "/no/such"], "there is nothing at /no/such", "--text: Det er ingenting i /no/such."),
    ],
)
def test_errors_are_told_in_the_language_asked_for(
    argv: list[str], english: str, norwegian: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for lang, expected in (("en", english), ("nb", norwegian)):
        assert exit_code(call, [*argv, f"--lang={lang}"]) == 2
        assert expected in capsys.readouterr().err
    assert exit_code(call, [*argv, "--lang", "nb", "--json"]) == 2
    assert norwegian not in (out := capsys.readouterr().out)  # programs are told in English
    assert "message" in out


ENGLISH = [
    (r"nats a (word|token|answer)", "nats per word"),
    (r"likelie(r|st)|commonest", "more likely, most common"),
    (r"in the mean\b", "on average"),
    (r"threesome", "triples"),
    (r"[Gg]uess(ed|ing)? ahead", "speculative decoding"),
    (r"\bat most\"", "max"),
    (r"\b[Mm]end(ed)?\b", "fix"),
    (r"That cannot be[:.]", "not possible"),
    (r"gone on with|[Gg]o on with it\b", "resume"),
    (r"\bshare a (word|token)\b", "share per word"),
    (r"\b[Rr]ankers?\b", "annotator"),
    (r"(?<![Tt]here )\bis no (address|folder|file|name|taste|reward|number)\b", "is not a"),
]
"""What is not written, as a pattern, and what is instead."""
NORWEGIAN = [
    (r"\bparameter(e|ne)\b", "parametre"),
    (r"\} token\b", "tokener"),
    (r"gjennomkjøring", "gjennomløp"),
    (r"sammenlikn", "sammenligner"),
    (r"\bfeilet\b|gikk ikke[.:]", "mislyktes"),
    (r"[Rr]angereren|[Aa]nnotat(ør|orer|oren)", "den som rangerer"),
    (r"\b[Tt]jener(e|en|ne|s)?\b", "server"),
    (r"[Ee]ksaminasjon", "undersøkelse"),
    (r"trekløver|\bstø\b|enda både|tidligere jeg|[Bb]otemid", "selvmotsigende, stabil, selv om, tiltak"),
    (r"\brådene?\b|\bet råd\b|Hvilket råd", "tiltak"),
    (r"Terminalen sier|ikke nøkkelen", "Se terminalen, feil nøkkel"),
    (r"normalised|word_for_word", "normalisert, ord for ord"),
]
CHOSEN = {"nb": NORWEGIAN, "en": ENGLISH}


@pytest.mark.parametrize("lang", CHOSEN)
def test_one_term_for_each_thing(lang: str) -> None:
    """In what a person reads: both catalogues, help, errors and the pages but for the laboratory's notes."""
    said = {f"{name}.{key}": text for name, _ in catalogues() for key, text in words(lang, name).messages.items()}
    said |= {text: text for text in help_of(in_language(app(), lang))}
    for table in (table for other in OTHERS for table in tables(other).values()):
        said |= {english: english for english in table} if lang == "en" else table
    for page in (*KLYPE.parent.glob("README*.md"), *(KLYPE.parent / "docs").rglob("*.md")):
        if (".nb." in page.name) == (lang == "nb") and "laboratory" not in page.parts:
            lines = page.read_text(encoding="utf-8").splitlines()
            said |= {f"{page.name}:{i}": line for i, line in enumerate(lines, 1)}
    wrong = [
        f"{where}: “{found[0]}”, which is {instead}"
        for where, text in said.items()
        for pattern, instead in CHOSEN[lang]
        if (found := re.search(pattern, text))
    ]
    assert not wrong, "\n".join(wrong)
