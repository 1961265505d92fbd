"""The pages of the documentation that are written from the code when it is built: they are never out of date."""

from __future__ import annotations

import html
import inspect
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import klype  # noqa: E402
from klype.cli.main import app, in_language  # noqa: E402
from klype.config import schema  # noqa: E402
from klype.examine import measures  # noqa: E402
from klype.examine import say as reports  # noqa: E402
from klype.runs.recipe import Recipe  # noqa: E402

Say = Mapping[str, str]
"""A sentence by language."""
EDITED: Say = {
    "en": "This page is written from the code when the documentation is built.",
    "nb": "Denne siden skrives ut fra koden når dokumentasjonen bygges.",
}


def cell(text: object) -> str:
    """Plain text in a cell of a table."""
    return html.escape(" ".join(str(text).split()), quote=False).replace("|", "&#124;").replace("*", "&#42;")


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


# The command line


def leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command that does something, by what is typed."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
        return
    for word, one in inner.items():
        yield from leaves(one, f"{name} {word}")


def default_of(parameter: Any) -> str:
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    if parameter.required or parameter.default in (None, False, ()) or callable(parameter.default):
        return ""
    return str(parameter.default)


def option_row(parameter: Any) -> list[str]:
    spelled = ", ".join(f"`{flag}`" for flag in (*parameter.opts, *parameter.secondary_opts))
    kind = "" if parameter.is_flag else parameter.metavar or _kind(parameter)
    return [spelled, cell(kind), cell(default_of(parameter)), cell(parameter.help or "")]


def _kind(parameter: Any) -> str:
    annotation = parameter.type_descriptor.annotation
    return "FILE" if annotation is Path else getattr(annotation, "__name__", str(annotation)).upper()


def commands(lang: str) -> str:
    words = {
        "en": ["Command line", "What it takes", "Options", "Option", "Value", "Default", "Meaning"],
        "nb": ["Kommandolinjen", "Det den tar", "Valg", "Valg", "Verdi", "Standard", "Betydning"],
    }[lang]
    title, takes, options, *head = words
    parts = [f"# {title}\n\n{EDITED[lang]}"]
    for name, command in leaves(in_language(app(), lang), "klype"):
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        usage = " ".join([name, *(one.metavar for one in arguments), command.options_metavar])
        parts.append(f"## {name}\n\n{html.escape(inspect.cleandoc(command.help or ''), quote=False)}\n\n`{usage}`")
        if arguments:
            rows = [[f"`{one.metavar}`", cell(default_of(one)), cell(one.help or "")] for one in arguments]
            parts.append(f"**{takes}**\n\n" + table([head[0], head[2], head[3]], rows))
        panels: dict[str, list[list[str]]] = {}
        for one in command.params:
            if one.param_type_name == "option" and not one.hidden and one.name != "help":
                panels.setdefault(one.rich_help_panel or options, []).append(option_row(one))
        parts += [f"**{panel}**\n\n{table(head, rows)}" for panel, rows in panels.items()]
    return "\n\n".join(parts) + "\n"


# The Python API


KEYWORDS = (
    "klype.samplers.SamplingOptions",
    "klype.api.examination.ExamineOptions",
    "klype.api.run.TrainOptions",
    "klype.api.run.AlignOptions",
)


def python(lang: str) -> str:
    title = {"en": "From Python", "nb": "Fra Python"}[lang]
    lead = {
        "en": "Everything public is a name of `klype`: `import klype`, then `klype.load(…)`. A name is imported when "
        "it is first used.",
        "nb": "Alt som er offentlig, er et navn i `klype`: `import klype`, så `klype.load(…)`. Beskrivelsene er på "
        "engelsk, som koden.",
    }[lang]
    names = [name for name in klype.__all__ if not name.startswith("_")]
    found = sorted((getattr(klype, name) for name in names), key=inspect.isclass)  # functions first
    entries = [_entry(f"{one.__module__}.{one.__qualname__}") for one in found]
    options = {"en": "Options by keyword", "nb": "Valg som nøkkelord"}[lang]
    entries += [f"## {options}", *(_entry(one, "      show_if_no_docstring: true\n") for one in KEYWORDS)]
    return f"# {title}\n\n{lead}\n\n" + "\n\n".join(entries) + "\n"


def _entry(path: str, more: str = "") -> str:
    return f"::: {path}\n    options:\n      show_root_full_path: false\n{more}"


# Recipes


def recipes(lang: str) -> str:
    document = schema(Recipe)
    title = {"en": "Recipes", "nb": "Oppskrifter"}[lang]
    lead = {
        "en": "A recipe is a TOML file with what a run is made of: `klype run --recipe FILE.toml`. One key on the "
        "command line: `--set pretrain.rows=32`. `klype config schema` prints the same as JSON Schema. A key that "
        "does not exist is an error that names the closest one.",
        "nb": "En oppskrift er en TOML-fil med det en kjøring er laget av: `klype run --recipe FIL.toml`. Én nøkkel på "
        "kommandolinjen: `--set pretrain.rows=32`. `klype config schema` skriver det samme som JSON Schema. En nøkkel "
        "som ikke finnes, er en feil som nevner den som ligner mest.",
    }[lang]
    parts = [f"# {title}\n\n{lead}\n\n{EDITED[lang]}"]
    for key, about in document["properties"].items():
        section = document["$defs"].get(about.get("$ref", "").rpartition("/")[2])
        if section is None:
            parts.append(f"## {key}\n\n{_settings({key: about}, {}, lang)}")
        else:
            rows = _settings(section["properties"], about.get("default", {}), lang)
            parts.append(f"## [{key}]\n\n{_about(section)}{rows}")
    used = {ref for ref in re.findall(r'"#/\$defs/(\w+)"', json.dumps(document["$defs"]))}
    for name in sorted(used):
        inner = document["$defs"][name]
        parts.append(f"## {name}\n\n{_about(inner)}{_settings(inner['properties'], {}, lang)}")
    heading = {"en": "The recipes that come with klype", "nb": "Oppskriftene som følger med"}[lang]
    parts.append(f"## {heading}")
    for file in sorted((ROOT / "klype" / "runs" / "recipes").glob("*.toml")):
        parts.append(f"### {file.stem}\n\n```toml\n{file.read_text(encoding='utf-8').strip()}\n```")
    return "\n\n".join(parts) + "\n"


def _about(section: Mapping[str, Any]) -> str:
    said = section.get("description", "").replace("``", "`")
    return f"{said}\n\n" if said else ""


def _settings(rows: Mapping[str, Any], defaults: Mapping[str, Any], lang: str) -> str:
    head = {"en": ["Key", "Value", "Default"], "nb": ["Nøkkel", "Verdi", "Standard"]}[lang]
    out = []
    for key, about in rows.items():
        default = defaults.get(key, about.get("default"))
        shown = "" if isinstance(default, dict) or default is None else f"`{json.dumps(default, ensure_ascii=False)}`"
        out.append([f"`{key}`", _value(about), shown])
    return table(head, out)


def _value(about: Mapping[str, Any]) -> str:
    if "$ref" in about:
        name = about["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in about:
        return " or ".join(_value(one) for one in about["anyOf"])
    if "enum" in about:
        return ", ".join(f"`{json.dumps(one)}`" for one in about["enum"])
    said = str(about.get("type", "any"))
    for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<")):
        if key in about:
            said += f" {sign} {about[key]}"
    return cell(said)


# Measures


def measure_rows() -> dict[str, Any]:
    """docs/reference/measures.toml: definition, interval and when undefined, by measure, and the sentences named."""
    return tomllib.loads((ROOT / "docs" / "reference" / "measures.toml").read_text(encoding="utf-8"))


def measures_page(lang: str) -> str:
    written = measure_rows()
    words = {
        "en": ["Measures", "Unit", "Better", "Definition", "Estimator", "Interval", "Undefined", "Judged by"],
        "nb": ["Mål", "Enhet", "Bedre", "Definisjon", "Estimator", "Intervall", "Udefinert", "Bedømt av"],
    }[lang]
    title, unit, better, definition, estimator, interval, undefined, judged = words
    say = reports.Say(lang)
    parts = [f"# {title}\n\n{written['lead'][lang].strip()}\n\n{EDITED[lang]}"]
    for heading, rows in (("examination", measures.MEASURES), ("runs", measures.OF_RUNS)):
        parts.append(f"## {written['headings'][heading][lang]}")
        for row in rows:
            about = written["measures"][row.name]
            more = {
                unit: cell(written["units"].get(row.unit, {}).get(lang) or say.unit(row.unit) or row.unit),
                better: written["better"][row.better][lang],
                definition: cell(about["is"]),
                estimator: written["estimators"][about["estimator"]][lang],
                interval: written["intervals"][about["interval"]][lang],
                undefined: written["undefined"][about["undefined"]][lang],
            }
            if row.judge:
                more[judged] = written["judges"][row.judge][lang]
            said = f"{explained}\n\n" if (explained := say.help_text(row.name)) else ""
            told = "\n".join(f"- **{name}**: {value}" for name, value in more.items()) + "\n"
            parts.append(f"### {say.measure(row.name)} · `{row.name}` {{ #{row.name} }}\n\n{said}{told}")
    return "\n\n".join(parts) + "\n"


# The JSON contract


def contract(lang: str) -> str:
    title = {"en": "JSON", "nb": "JSON"}[lang]
    lead = {
        "en": "`--json` prints one document to standard output and nothing else; progress goes to standard error. "
        "The keys below are always there; there may be more. A number that was measured is a *figure*: its value, the "
        "95% interval, how many it was measured on, and its unit; `certain` marks bounds that hold without chance; "
        "a value that is `null` says `why`. On failure the document is an `Error`, and the exit code is 2 for wrong "
        "use, 1 for anything else.",
        "nb": "`--json` skriver ett dokument til standard ut og ingenting annet; framdriften går til standard feil. "
        "Nøklene under finnes alltid; det kan komme flere. Et målt tall er et objekt (`Figure`): verdien, "
        "95 %-intervallet, hvor mange det er målt på, og enheten; `certain` betyr grenser som gjelder sikkert; en "
        "verdi som er `null`, har en grunn (`why`). Går noe galt, er dokumentet en `Error`, og utgangskoden er 2 ved "
        "feil bruk, ellers 1.",
    }[lang]
    source = (ROOT / "tests" / "contract.py").read_text(encoding="utf-8")
    types = source[source.index("class Known") : source.index("def holds")].strip()
    return f"# {title}\n\n{lead}\n\n{EDITED[lang]}\n\n```python\n{types}\n```\n"


PAGES: Mapping[str, Callable[[str], str]] = {
    "commands.md": commands,
    "python.md": python,
    "recipes.md": recipes,
    "measures.md": measures_page,
    "json.md": contract,
}
"""The pages of reference/ by file."""
