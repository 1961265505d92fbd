"""A page made to be read: a title, a lead, and sections of texts, tables, pictures and glossaries, in every language.

One file, nothing fetched from the net. What a model or a user wrote is inert in it: every text is escaped, hidden
characters are shown as code points, and the page's own security policy allows no script but the ones written here, and
no connection at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from klype import durable
from klype.errors import KlypeError, UsageError
from klype.examine.charts import DARK, LIGHT, PROBABILITY_EDGES, Picture, echarts_script, probability_scale, step_of
from klype.examine.say import Say, visible
from klype.words import LANGUAGES


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph. ``kind``: verdict, small, note, or none of these."""

    text: str
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """The first cell of a row is its name."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Glossary:
    """Names and what they are."""

    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Formula:
    """The article's formula with its sliders; ``s``: a model's own S."""

    picture: Picture
    s: float | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """What one kind of document alone has: a macro of ``parts.html.jinja`` and its data."""

    macro: str
    data: Any


Part = Text | Table | Glossary | Picture | Formula | Block


@dataclass(frozen=True, slots=True)
class Section:
    """``name``: where links lead to. None is no part; a section without any is left out."""

    parts: Sequence[Part | None]
    title: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """What there is to read in one language."""

    say: Say
    title: str
    lead: str
    sections: Sequence[Section]

    @property
    def pictures(self) -> dict[str, Picture]:
        parts = [part.picture if isinstance(part, Formula) else part for s in self.sections for part in s.parts]
        return {part.id: part for part in parts if isinstance(part, Picture)}


def texts(paragraphs: Sequence[str], kind: str = "") -> list[Text]:
    return [Text(paragraph, kind) for paragraph in paragraphs]


def render(documents: Sequence[Document], lang: str, title: str = "") -> str:
    """The page, a document in each language. ``title``: the window's; by default the document's own in ``lang``."""
    views = [
        {"lang": one.say.lang, "say": one.say, "document": one, "pictures": one.pictures, "edges": edges(one.say)}
        for one in documents
    ]
    title = title or next(one.title for one in documents if one.say.lang == lang)
    return page("document.html.jinja", views, lang, title=title)


def write(file: Path, text: str) -> Path:
    """All of it or nothing. Errors: an unwritable folder."""
    try:
        durable.write(file, text)
    except OSError as error:
        raise KlypeError(f"Cannot write {file}: {error.strerror}.", "Choose another --out.") from error
    return file


def edges(say: Say) -> list[str]:
    """Where the colours of probabilities change."""
    return [say.share(edge) for edge in PROBABILITY_EDGES]


def page(template: str, views: Sequence[Mapping[str, Any]], lang: str, **content: Any) -> str:
    """A template of ``klype/examine/page`` with the style, the scripts and the data of the pictures of its views."""
    if lang not in LANGUAGES:
        raise UsageError(f"There is no report in “{lang}”.", f"Languages: {', '.join(LANGUAGES)}.")
    environment = Environment(
        loader=PackageLoader("klype.examine", "page"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": visible, "step_of": step_of, "kind": _kind}
    charts = {view["lang"]: {key: asdict(picture) for key, picture in view["pictures"].items()} for view in views}
    scripts = [echarts_script(), _page_file("page.js")]
    return environment.get_template(template).render(
        lang=lang,
        names={code: row.name for code, row in LANGUAGES.items()},
        views=views,
        **content,
        style=Markup(_theme() + _page_file("page.css")),
        scripts=[Markup(script) for script in scripts],
        policy=_policy(scripts),
        data=_inert_json({"charts": charts, "words": {view["lang"]: _script_words(view["say"]) for view in views}}),
    )


def _kind(part: Part) -> str:
    """The macro that writes it."""
    return part.macro if isinstance(part, Block) else type(part).__name__.lower()


def _script_words(say: Say) -> dict[str, str]:
    return {"zero": say("formula.zero"), "half": say("formula.half", n="{n}"), "save": say("tools.save")}


def _theme() -> str:
    """Custom properties of both themes; the scale of probabilities is p0 (certain) … p5, with its text in q0 … q5."""

    def properties(dark: bool) -> str:
        named = {**(DARK if dark else LIGHT)}
        for i, (background, ink) in enumerate(probability_scale(dark)):
            named |= {f"p{i}": background, f"q{i}": ink}
        return ";".join(f"--{name}:{colour}" for name, colour in named.items())

    dark = f"{{color-scheme:dark;{properties(True)}}}"
    return (
        f":root{{color-scheme:light;{properties(False)}}}\n"
        f"@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){dark}}}\n"
        f"@media screen{{:root[data-theme=dark]{dark}}}\n"
    )


def _policy(scripts: list[str]) -> str:
    """Content-Security-Policy: these scripts and nothing else; images from the page itself (for saving); no net."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _inert_json(value: Any) -> Markup:
    """JSON that cannot end its script element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)


def _page_file(name: str) -> str:
    return (resources.files("klype.examine") / "page" / name).read_text(encoding="utf-8")
